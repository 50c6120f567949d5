//! The rack server: images the machines of one rack.
//!
//! 1. dnsmasq answers DHCP and TFTP, as a child that is watched ([`dhcp`]);
//! 2. HTTP serves iPXE scripts, kernel and initramfs out of the release commit ([`boot_files`]), and the release repo;
//! 3. installers and booted hosts report ([`http`]); what is known is recorded before it is answered ([`records`]);
//! 4. everything that happens goes to one listener as [`RackEvent`]s.
//!
//! It never images a machine that the rack file does not name, and never decides here: see [`crate::imaging::plan`].

mod advertise;
mod boot_files;
pub mod check;
mod dhcp;
mod dhcp_log;
mod files;
mod http;
mod listen;
pub mod manifest;
mod neighbours;
pub mod netboot;
mod pace;
mod records;
pub mod repo;
mod view;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::model::Commit;
use crate::model::rack::{Mac, Rack};
use crate::ostree::repo::RepoError;
use crate::rim::files::FileError;

pub use dhcp::DEFAULT_IPXE;
pub use view::{MachineView, RackView};

/// How long connections may take to end after Ctrl-C.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the rack server does not work.
#[derive(Debug, thiserror::Error)]
pub enum RackError {
    /// A file or socket operation failed.
    #[error("{what}")]
    Io {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of ours could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The repo, or a release in it, cannot be read.
    #[error("{what}")]
    Repo {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: RepoError,
    },
    /// A release must have one kernel.
    #[error("release {commit} has {found} kernels, expected one")]
    Kernels {
        /// The release.
        commit: Commit,
        /// How many.
        found: usize,
    },
    /// dnsmasq ended at once.
    #[error("dnsmasq ended with {status}: {words}")]
    Dhcp {
        /// Its exit status.
        status: String,
        /// Its last words.
        words: String,
    },
    /// A boot program is missing.
    #[error("{} is missing (Debian package: ipxe)", path.display())]
    BootProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The records are of a format that this program does not know.
    #[error("records {} have format {format}; this program reads 1 and 2", path.display())]
    RecordsFormat {
        /// The file.
        path: PathBuf,
        /// Its number.
        format: u32,
    },
    /// A request without the secret of an attempt.
    #[error("no secret of an attempt that is known here: a machine gets one when it boots from the network")]
    NoSecret,
    /// A host says that it booted something that is no release of ours.
    #[error("{commit} is no release of this repo")]
    UnknownCommit {
        /// The commit.
        commit: Commit,
    },
    /// The records cannot be understood.
    #[error("records {} are damaged", path.display())]
    Records {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl RackError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Something happened that people may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RackEvent {
    /// Whose: a host's name, a MAC address, or the rack's name.
    pub subject: String,
    /// The step, such as `inventory`, `pull`, `done`.
    pub step: String,
    /// For people.
    pub message: String,
    /// Bytes done and in all.
    pub progress: Option<(u64, u64)>,
}

/// Where the server finds and keeps things.
#[derive(Debug, Clone)]
pub struct RackOptions {
    /// The release repo.
    pub repo: PathBuf,
    /// Records, leases and boot files.
    pub state: PathBuf,
    /// The directory with iPXE's programs.
    pub ipxe: PathBuf,
    /// Run dnsmasq? Without, someone else's DHCP must point here.
    pub dhcp: bool,
}

/// Serves the rack until `shutdown` is done; then dnsmasq is stopped too.
pub async fn serve(
    rack: Rack,
    options: RackOptions,
    listener: UnboundedSender<RackEvent>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RackError> {
    create_dir(&options.state)?;
    let address = SocketAddr::from((rack.network.address.address, rack.network.port));
    let files = boot_files::ReleaseFiles::open(&options.repo, &options.state.join("boot"))?;
    let records = records::Records::open(&options.state.join("machines.json"))?;
    let tell = Teller(listener);
    let server =
        Arc::new(http::RackServer { rack, files, records, tell: tell.clone(), options: options.clone() });

    let socket =
        TcpListener::bind(address).await.map_err(RackError::io(format!("listening on {address}")))?;
    let (stop, stopped) = watch::channel(false);
    let repo = files::FileRoot::open(&options.repo)
        .map_err(RackError::io(format!("opening the release repo {}", options.repo.display())))?;
    let app = http::router(server.clone(), repo);
    let mut web = tokio::spawn(listen::serve_connections(socket, app, stopped.clone()));
    tell.rack(
        &server.rack.name,
        "listening",
        &format!("{} (repo {})", server.rack.network.server_url(), options.repo.display()),
    );

    let advertised = server.rack.network.interface.clone();
    let advertiser = tokio::spawn(async move {
        // Without IPv6 here machines boot all the same, 16 s later.
        if let Err(error) = advertise::answer_solicitations(&advertised).await {
            tracing::warn!(%error, interface = advertised, "no router advertisements");
        }
    });
    let dhcp_server = server.clone();
    let mut dhcp = tokio::spawn(async move {
        if dhcp_server.options.dhcp {
            dhcp::supervise(&dhcp_server.rack, &dhcp_server.options, &dhcp_server.tell, stopped).await
        } else {
            let mut stopped = stopped;
            dhcp::stop_asked(&mut stopped).await;
            Ok(())
        }
    });
    let ended = |what: &str| RackError::io(what.to_owned());
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        served = &mut web => match served {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ended("serving HTTP")(error)),
            Err(join) => Err(ended("serving HTTP")(io::Error::other(join))),
        },
        ran = &mut dhcp => return ran.unwrap_or_else(|join| Err(ended("watching dnsmasq")(io::Error::other(join)))),
    };
    let _ = stop.send(true);
    advertiser.abort();
    let _ = tokio::time::timeout(FAREWELL, &mut web).await;
    match dhcp.await {
        Ok(Ok(())) => outcome,
        Ok(Err(error)) => outcome.and(Err(error)),
        Err(join) => outcome.and(Err(ended("watching dnsmasq")(io::Error::other(join)))),
    }
}

/// Passes events on; a listener that is gone is nobody's trouble.
#[derive(Debug, Clone)]
struct Teller(UnboundedSender<RackEvent>);

impl Teller {
    fn tell(&self, event: RackEvent) {
        tracing::info!(subject = event.subject, step = event.step, message = event.message);
        let _ = self.0.send(event);
    }

    fn rack(&self, rack: &str, step: &str, message: &str) {
        self.subject(rack.to_owned(), step, message);
    }

    fn machine(&self, mac: Mac, host: Option<&str>, step: &str, message: &str) {
        self.subject(host.map_or_else(|| mac.to_string(), str::to_owned), step, message);
    }

    fn subject(&self, subject: String, step: &str, message: &str) {
        self.tell(RackEvent { subject, step: step.to_owned(), message: message.to_owned(), progress: None });
    }
}

fn create_dir(path: &Path) -> Result<(), RackError> {
    std::fs::create_dir_all(path).map_err(RackError::io(format!("creating {}", path.display())))
}

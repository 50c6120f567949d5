//! `rackstep compose`.

use std::path::{Path, PathBuf};

use super::interrupt::on_stop;
use super::progress::Terminal;
use super::{Failure, Kind};
use crate::host::startable::require_startable;
use crate::model::Commit;
use crate::release::compose::plan::Consent;
use crate::release::compose::{self, ComposeError, Report, Request};
use crate::release::tree::cache::Cache;

const UNCHANGED: &str = "repo unchanged";

/// Make a release commit from a treefile, its lock and its services.
///
/// The release holds the host's operating system and every container image of its services, file by file. The same
/// lock gives the same commit; if the ref's newest commit was made from the very same inputs, nothing is done.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rackstep lock host-image/openstack-host.yaml\n  rackstep compose host-image/openstack-host.yaml --repo /srv/rackstep/repo\n\nNeeds root: packages are installed into the tree, and files keep their owners."
)]
pub struct Arguments {
    /// The treefile.
    treefile: PathBuf,
    /// The ostree repo to write to; made if it is not there.
    #[arg(long, value_name = "DIR")]
    repo: PathBuf,
    /// The lock [default: next to the treefile].
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Secret key to sign commit and packs with; `rackstep release keygen` makes one.
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Let the version name this release instead of another one, and the ref an older one than it does.
    #[arg(long)]
    replace: bool,
    /// Let this release follow a signed one unsigned.
    #[arg(long, conflicts_with = "sign_key")]
    unsigned: bool,
    /// Write no packs; hosts then fetch object by object.
    #[arg(long)]
    no_pack: bool,
    /// Mirror of the distribution [default: the one that this machine's apt uses].
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Cache of packages, images and stages [default: ~/.cache/rackstep].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Print the release as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let cache = Cache::open(arguments.cache.as_deref())
        .map_err(|error| Failure::new(Kind::Failed, error, UNCHANGED))?;
    let work = cache.work().map_err(|error| Failure::new(Kind::Failed, error, UNCHANGED))?;
    remove_on_interrupt(work.path());
    let request = Request {
        treefile: &arguments.treefile,
        lock: arguments.lock.as_deref(),
        repo: &arguments.repo,
        sign_key: arguments.sign_key.as_deref(),
        consent: Consent { replace: arguments.replace, unsigned: arguments.unsigned },
        pack: !arguments.no_pack,
        mirror: arguments.mirror.as_deref(),
        // Which commit it becomes does not matter to the readers.
        require_startable: |release| Ok(require_startable(release, Commit::from_bytes([0; 32]))?),
    };
    let report = compose::compose(&request, &cache, work.path(), &Terminal::default()).map_err(explain)?;
    print(&report, arguments.json);
    Ok(())
}

fn explain(error: ComposeError) -> Failure {
    let hint = match &error {
        ComposeError::NoLock { .. } | ComposeError::StaleLock { .. } => {
            Some("run `rackstep lock` on this treefile")
        }
        _ => None,
    };
    let kind = match error {
        ComposeError::Input(_)
        | ComposeError::Start(_)
        | ComposeError::NoLock { .. }
        | ComposeError::StaleLock { .. } => Kind::BadInput,
        ComposeError::Refused(_) => Kind::Refused,
        _ => Kind::Failed,
    };
    let failure = Failure::new(kind, error, UNCHANGED);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn print(report: &Report, json: bool) {
    if json {
        let mut told = serde_json::json!(report);
        told["format"] = 1.into();
        say!("{told:#}");
        return;
    }
    let Report { commit, follows, version, .. } = report;
    if report.unchanged {
        say!("{follows} {version} {commit}\nnothing changed: the newest release was made from these inputs");
        return;
    }
    say!(
        "{follows} {version} {commit}\n{} packages, {} container images ({} MB)",
        report.packages,
        report.images.len(),
        report.image_bytes / 1_000_000
    );
}

/// Removes the work directory when the person at the terminal loses patience.
#[allow(clippy::print_stderr)]
fn remove_on_interrupt(work: &Path) {
    let work = work.to_owned();
    on_stop(move || {
        // Programs that were interrupted too may still write for a moment.
        let gone = (0..REMOVE_TRIES).any(|_| std::fs::remove_dir_all(&work).is_ok() || !work.exists());
        let left =
            if gone { String::new() } else { format!("; {} is left to the next compose", work.display()) };
        eprintln!("error: interrupted\nstate: {UNCHANGED}{left}");
        std::process::exit(INTERRUPTED);
    });
}

const REMOVE_TRIES: usize = 20;
/// What shells expect of a program that ended at SIGINT.
const INTERRUPTED: i32 = 130;

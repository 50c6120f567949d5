//! What the host verbs share: where the sysroot and Docker are, and how their failures are told.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, Kind};
use crate::docker::Docker;
use crate::host::places::Places;
use crate::host::upgrade::UpgradeError;
use crate::model::deployment::name_release;
use crate::model::host::HOST_CONFIG;
use crate::model::{Deployment, HostConfig};
use crate::ostree::repo::ReleaseError;
use crate::ostree::sysroot::Sysroot;
use crate::rim::layers::Layers;

/// Which host a verb is about.
#[derive(Debug, Clone, Args)]
pub struct HostArguments {
    /// The host's root; any other than / is a scratch system.
    #[arg(long, value_name = "PATH", default_value = "/", env = "RACKSTEP_SYSROOT")]
    pub sysroot: PathBuf,
    /// Where Docker listens [default: unix:///var/run/docker.sock].
    #[arg(long, value_name = "URL", env = "DOCKER_HOST")]
    pub docker_host: Option<String>,
    /// Docker's data root, for what is written while Docker is stopped.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/docker", env = "RACKSTEP_DOCKER_ROOT")]
    pub docker_root: PathBuf,
    /// The host's configuration [default: etc/rackstep/host.json of the booted or first deployment].
    #[arg(long, value_name = "FILE")]
    pub host_config: Option<PathBuf>,
}

/// What the verbs share that plan first and then act.
#[derive(Debug, Clone, Args)]
pub struct PlanArguments {
    /// Show the plan and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
    /// Which host.
    #[command(flatten)]
    pub host: HostArguments,
}

impl PlanArguments {
    /// Opens the sysroot: to look at it, or with the lock that keeps other programs from changing it meanwhile.
    pub fn open_sysroot(&self) -> Result<Sysroot, Failure> {
        if self.dry_run { self.host.open_sysroot() } else { self.host.open_sysroot_alone() }
    }
}

/// What helps where Docker does not answer.
pub const DOCKER_HINT: &str =
    "does the daemon run? `systemctl status docker` tells; --docker-host names another";

/// What every failure says of the host when nothing was changed.
pub const NOTHING_CHANGED: &str = "nothing changed";

impl HostArguments {
    /// Opens the sysroot.
    pub fn open_sysroot(&self) -> Result<Sysroot, Failure> {
        Sysroot::open(&self.sysroot).map_err(|error| {
            Failure::new(Kind::Failed, error, NOTHING_CHANGED)
                .hint("is this a rackstep host? --sysroot names another root")
        })
    }

    /// Opens the sysroot to change it: nobody else does until the program ends.
    pub fn open_sysroot_alone(&self) -> Result<Sysroot, Failure> {
        let sysroot = self.open_sysroot()?;
        sysroot.lock().map_err(|error| {
            Failure::new(Kind::Failed, error, NOTHING_CHANGED).hint("wait for it to end, and try again")
        })?;
        Ok(sysroot)
    }

    /// Where the host keeps its state, by the `/var` of its deployments.
    pub fn places(&self, sysroot: &Sysroot, deployments: &[Deployment]) -> Places {
        let root = if sysroot.is_booted() { Path::new("/") } else { self.sysroot.as_path() };
        match deployments.first() {
            Some(first) if !sysroot.is_booted() => {
                let var = root.join("ostree/deploy").join(&first.id.stateroot).join("var");
                Places::of_deployment(&root.join(&first.path), &var, &root.join("run"))
            }
            _ => Places::below(root),
        }
    }

    /// Layers of container images that are mounted.
    pub fn layers(&self, sysroot: &Sysroot) -> Layers {
        let root = if sysroot.is_booted() { Path::new("/") } else { self.sysroot.as_path() };
        Layers::new(Places::below(root).layers(), &sysroot.repo_path())
    }

    /// Connects to Docker.
    pub fn connect_docker(&self) -> Result<Docker, Failure> {
        Docker::connect(self.docker_host.as_deref())
            .map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED).hint(DOCKER_HINT))
    }

    /// Where the host's configuration is expected.
    pub fn config_path(&self, sysroot: &Sysroot, deployments: &[Deployment]) -> PathBuf {
        match (&self.host_config, sysroot.is_booted(), deployments.first()) {
            (Some(path), _, _) => path.clone(),
            (None, false, Some(first)) => self.sysroot.join(&first.path).join(HOST_CONFIG),
            (None, _, _) => self.sysroot.join(HOST_CONFIG),
        }
    }

    /// Reads the host's configuration.
    pub fn read_config(&self, path: &Path) -> Result<HostConfig, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(Kind::BadInput, format!("reading {}: {error}", path.display()), NOTHING_CHANGED)
                .hint("the installer writes it; --host-config names another file")
        })?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(Kind::BadInput, format!("{}: {error}", path.display()), NOTHING_CHANGED)
        })
    }
}

/// Tells what is true after an upgrade or rollback that did not run to its end.
pub fn upgrade_failure(error: UpgradeError, sysroot: &Sysroot) -> Failure {
    let kind = if error.is_refusal() { Kind::Refused } else { Kind::Failed };
    let disk_full = error.is_disk_full();
    let damaged = matches!(&error, UpgradeError::Release(ReleaseError::Bad { .. }));
    let failure = Failure::new(kind, error, state_line(sysroot));
    if damaged {
        return failure
            .hint("`rackstep verify --repair` mends objects out of the deployments' own files, or the repo");
    }
    if disk_full {
        failure.hint("make room on that disk; the same command then goes on from here")
    } else {
        failure
    }
}

/// Which release the next boot takes, as it is on the disk now.
pub fn state_line(sysroot: &Sysroot) -> String {
    let next = sysroot
        .deployments()
        .ok()
        .and_then(|deployments| deployments.into_iter().find(|deployment| deployment.next_boot));
    match next {
        Some(next) => format!("next boot: release {}", name_of(&next)),
        None => "next boot: unknown".to_owned(),
    }
}

/// Version and short commit, as people say it.
pub fn name_of(deployment: &Deployment) -> String {
    name_release(deployment.version.as_deref(), deployment.id.commit)
}

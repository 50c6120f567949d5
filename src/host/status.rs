//! Observes what `status` shows.

use std::path::Path;

use crate::docker::{Docker, DockerError};
use crate::host::absent;
use crate::host::boot::{BootError, observe_services};
use crate::host::identity;
use crate::host::newest::read_newest;
use crate::host::places::Places;
use crate::model::deployment::Role;
use crate::model::pins::{PinsError, ReleasePins};
use crate::model::status::{BootStatus, DeploymentStatus, ImageStatus, NewestStatus, STATUS_FORMAT, Status};
use crate::model::{Deployment, HostConfig};
use crate::ostree::sysroot::{Sysroot, SysrootError};
use crate::rim::clock::now;
use crate::rim::systemd::boot_under_way;
use crate::rim::versioned::VersionedError;

/// Where a release has this program.
const PROGRAM: &str = "/usr/bin/rackstep";

/// Why the host could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The deployments.
    #[error("looking at the deployments")]
    Sysroot(#[from] SysrootError),
    /// The pins of one of them.
    #[error("reading the pins of {deployment}")]
    Pins {
        /// Which.
        deployment: String,
        /// Why.
        #[source]
        source: PinsError,
    },
    /// Docker.
    #[error("asking Docker")]
    Docker(#[from] DockerError),
    /// The services.
    #[error("looking at the services")]
    Services(#[from] BootError),
}

/// The newest release that was accepted of the host's ref, and how old it is now; none: nothing was yet.
pub fn observe_newest(path: &Path, config: &HostConfig) -> Result<Option<NewestStatus>, VersionedError> {
    let reference = config.follows.to_string();
    let Some(release) = read_newest(path)?.refs.remove(&reference) else { return Ok(None) };
    let age = now().saturating_sub(release.created);
    Ok(Some(NewestStatus { reference, release, age }))
}

/// Looks at everything that `status` shows.
pub fn observe_status(
    sysroot: &Sysroot,
    docker: Option<&Docker>,
    docker_root: &Path,
    places: &Places,
    config: Option<&HostConfig>,
    newest: Option<NewestStatus>,
) -> Result<Status, StatusError> {
    let observed = docker.map(Docker::observe).transpose()?;
    let deployments = sysroot.deployments()?;
    let mut entries = Vec::new();
    for deployment in &deployments {
        let images = match read_pins(sysroot, deployment)? {
            Some(pins) => pins
                .images()
                .map(|(name, image)| ImageStatus {
                    name: name.to_owned(),
                    config: image.config,
                    present: observed.as_ref().map(|observed| observed.has_image(image)),
                })
                .collect(),
            None => Vec::new(),
        };
        entries.push(DeploymentStatus { deployment: deployment.clone(), images });
    }
    let booted = deployments.iter().find(|deployment| deployment.role == Role::Booted);
    let services = match (docker, booted) {
        (Some(docker), Some(booted)) => observe_services(docker, &sysroot.release_dir(booted))?,
        _ => Vec::new(),
    };
    let mut waiting = waiting(&deployments);
    if let (Some(docker), Some(booted)) = (docker, booted)
        && let Some(pins) = read_pins(sysroot, booted)?
    {
        let absent = absent::observe(docker, docker_root, &pins, places)?.into_iter();
        waiting
            .extend(absent.map(|(image, why)| format!("pods of image {image}: it is not in docker: {why}")));
    }
    Ok(Status {
        format: STATUS_FORMAT,
        host: config.map(identity::name_of),
        address: config.and_then(identity::address_of),
        // A scratch system does not boot.
        boot: booted.and(boot_under_way()).map(|since| BootStatus::new(since, &services)),
        newest,
        booted: booted.map(|booted| booted.id.commit),
        kernel: kernel_release(),
        unlocked: observe_unlocked(),
        waiting,
        deployments: entries,
        services,
    })
}

/// Whatever is mounted over the program, it is not the release's. Without a mount table nothing is known.
fn observe_unlocked() -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    is_covered(&table, PROGRAM).then(|| format!("another program lies over {PROGRAM} until the next restart"))
}

/// proc(5): the mount point is the fifth word.
fn is_covered(table: &str, path: &str) -> bool {
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn waiting(deployments: &[Deployment]) -> Vec<String> {
    deployments
        .iter()
        .filter_map(|deployment| match deployment.role {
            Role::StagedLocked => Some(format!(
                "release {} is prepared; `rackstep upgrade --commit` makes it the next boot",
                deployment.id.commit.short()
            )),
            Role::Staged | Role::Pending => {
                Some(format!("release {} waits for the reboot", deployment.id.commit.short()))
            }
            Role::Booted | Role::Rollback => None,
        })
        .collect()
}

fn read_pins(sysroot: &Sysroot, deployment: &Deployment) -> Result<Option<ReleasePins>, StatusError> {
    let path = sysroot.release_dir(deployment).join("pins.json");
    // A deployment that is not a release of ours has none, and nothing of it is pinned.
    let Some(bytes) = read_if_there(&path) else { return Ok(None) };
    ReleasePins::parse(deployment.id.commit, &bytes)
        .map(Some)
        .map_err(|source| StatusError::Pins { deployment: deployment.id.to_string(), source })
}

fn read_if_there(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_over_the_program_is_seen() {
        let usr = "30 20 8:1 /deploy/usr /usr ro,relatime shared:1 - ext4 /dev/vda4 rw\n";
        let over = "31 30 0:25 /rackstep-pushed/rackstep /usr/bin/rackstep rw,nosuid - tmpfs tmpfs rw\n";
        let beside = "32 30 0:25 /runc /usr/bin/runc rw,nosuid - tmpfs tmpfs rw\n";
        for (table, expected) in
            [(usr.to_owned(), false), (format!("{usr}{beside}"), false), (format!("{usr}{over}"), true)]
        {
            assert_eq!(is_covered(&table, PROGRAM), expected, "{table}");
        }
    }
}

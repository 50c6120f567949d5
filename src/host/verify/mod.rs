//! Reads every bit of every deployment back, and mends what is missing or damaged.
//!
//! 1. [`verify_files`]: the objects of the repo, and the checkouts that are made of them; [`repair_files`];
//! 2. [`verify_records`]: mounted layers and Docker's records of them; [`repair_mounts`] and [`repair_records`], out of those
//!    files, which therefore come first.
//!
//! All deployments at once: releases share files and layers. Docker itself is not asked: it has nothing but what is read here.

mod files;
mod mend;
mod mounts;
mod services;

use std::path::PathBuf;

pub use files::{BadObject, BadPath, FilesReport, verify_files};
pub use mend::{MendedFiles, repair_files};
pub use mounts::{MendedRecords, bad_image_files, bad_layers, repair_mounts, repair_records, verify_records};
pub use services::{StoppedDocker, StoppedServices, stop_docker, stop_services};

use crate::docker::DockerError;
use crate::host::records::RecordsError;
use crate::model::pins::PinsError;
use crate::model::{Deployment, Digest, ReleasePins};
use crate::ostree::repo::RepoError;
use crate::ostree::sysroot::{Sysroot, SysrootError};
use crate::rim::command::CommandError;

/// Why images could not be looked at, or not be mended.
#[derive(Debug, thiserror::Error)]
pub enum VerifyHostError {
    /// The deployments.
    #[error("looking at the deployments")]
    Sysroot(#[source] Box<SysrootError>),
    /// The repo.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A deployment's pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A file of a deployment.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Mounted layers, or Docker's records of them.
    #[error("looking after docker's records")]
    Records(#[source] Box<RecordsError>),
    /// Docker's unit.
    #[error("stopping docker")]
    StopDocker(#[source] CommandError),
    /// Kubelet.
    #[error("stopping kubelet")]
    Kubelet(#[source] CommandError),
    /// A container that was to be stopped.
    #[error("stopping services")]
    Stop(#[source] Box<DockerError>),
}

impl VerifyHostError {
    /// True when a running Docker keeps its records from being written.
    pub fn is_docker_running(&self) -> bool {
        matches!(self, Self::Records(error) if error.is_docker_running())
    }
}

/// A deployment and its pins.
#[derive(Debug)]
pub struct PinnedDeployment {
    /// The deployment.
    pub deployment: Deployment,
    /// What its release pins.
    pub pins: ReleasePins,
}

impl PinnedDeployment {
    /// What pods call the image of that config.
    pub fn name_of(&self, config: Digest) -> Option<&str> {
        self.pins.images().find(|(_, image)| image.config == config).map(|(name, _)| name)
    }
}

/// Every deployment that pins images, each release once.
pub fn pinned_deployments(sysroot: &Sysroot) -> Result<Vec<PinnedDeployment>, VerifyHostError> {
    let mut pinned: Vec<PinnedDeployment> = Vec::new();
    for deployment in sysroot.deployments().map_err(|error| VerifyHostError::Sysroot(Box::new(error)))? {
        let directory = sysroot.release_dir(&deployment);
        let path = directory.join("pins.json");
        let seen = pinned.iter().any(|other| other.deployment.id.commit == deployment.id.commit);
        if seen || !path.exists() {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|source| VerifyHostError::Read { path, source })?;
        let pins = ReleasePins::parse(deployment.id.commit, &bytes)?;
        pinned.push(PinnedDeployment { deployment, pins });
    }
    Ok(pinned)
}

//! Reads every bit of every deployment back, and mends what is missing or damaged.
//!
//! 1. [`verify_files`]: the objects of the repo, and the checkouts that are made of them; [`repair_files`];
//! 2. [`verify_host`]: the container images in Docker; [`repair_host`], out of the deployments' files, which therefore come first.
//!
//! All deployments at once: releases share files and layers, and a damaged layer must leave Docker with every image that
//! stands on it before it can come back.

mod files;
mod mend;
mod mounts;
mod services;

use std::path::PathBuf;

pub use files::{BadObject, BadPath, FilesReport, verify_files};
pub use mend::{MendedFiles, repair_files};
pub use mounts::{MendedRecords, bad_layers, repair_mounts, repair_records, verify_records};
pub use services::{StoppedDocker, StoppedServices, stop_docker, stop_services};

use crate::docker::{Docker, DockerError, Finding, ImageArchive, Repaired};
use crate::formats::image::store::ImageStore;
use crate::host::records::RecordsError;
use crate::model::pins::PinsError;
use crate::model::{Deployment, Digest, PinnedImage, Progress, ReleasePins};
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
    /// Docker.
    #[error("reading container images back from docker")]
    Look(#[source] Box<DockerError>),
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
    /// Docker, while mending.
    #[error("mending container images")]
    Repair(#[source] Box<DockerError>),
}

impl VerifyHostError {
    /// True when a running service keeps an image from being replaced.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Repair(error) if matches!(**error, DockerError::InUse { .. }))
    }

    /// True when a running Docker keeps its records from being written.
    pub fn is_docker_running(&self) -> bool {
        matches!(self, Self::Records(error) if error.is_docker_running())
    }
}

/// One release of the host and what was found.
#[derive(Debug)]
pub struct Verified {
    /// A deployment of it.
    pub deployment: Deployment,
    /// How many images it pins.
    pub images: usize,
    /// Those that are not good.
    pub findings: Vec<Finding>,
}

/// A deployment's pins and the files that its images can be made of.
#[derive(Debug)]
pub struct PinnedDeployment {
    deployment: Deployment,
    pins: ReleasePins,
    store: ImageStore,
}

impl PinnedDeployment {
    /// Whether the image of that config is one of the release's, and all of its layers are among those that are `mounted`.
    pub fn is_mounted(&self, config: Digest, mounted: &[Digest]) -> bool {
        let is = |image: &PinnedImage| image.layers.iter().all(|layer| mounted.contains(&layer.diff_id));
        self.pins
            .images()
            .any(|(_, image)| image.config == config && self.store.has_trees(image) && is(image))
    }

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
        pinned.push(PinnedDeployment { deployment, pins, store: ImageStore::new(directory.join("images")) });
    }
    Ok(pinned)
}

/// Reads every pinned image back.
pub fn verify_host(
    docker: &Docker,
    deployments: &[PinnedDeployment],
    progress: &dyn Progress,
) -> Result<Vec<Verified>, VerifyHostError> {
    deployments
        .iter()
        .map(|pinned| {
            Ok(Verified {
                deployment: pinned.deployment.clone(),
                images: pinned.pins.pins().images.len(),
                findings: docker
                    .findings(&pinned.pins, progress)
                    .map_err(|error| VerifyHostError::Look(Box::new(error)))?,
            })
        })
        .collect()
}

/// Makes every pinned image good again, out of the deployments' own files.
pub fn repair_host(
    docker: &Docker,
    deployments: &[PinnedDeployment],
    progress: &dyn Progress,
) -> Result<Repaired, VerifyHostError> {
    let releases: Vec<(&dyn ImageArchive, &ReleasePins)> =
        deployments.iter().map(|pinned| (&pinned.store as &dyn ImageArchive, &pinned.pins)).collect();
    docker.repair(&releases, progress).map_err(|error| VerifyHostError::Repair(Box::new(error)))
}

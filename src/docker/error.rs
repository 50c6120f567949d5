//! What can go wrong between us and Docker.

use std::io;
use std::path::PathBuf;

use crate::formats::image::store::StoreError;
use crate::model::Digest;
use crate::rim::command::CommandError;

use super::import::ArchiveError;

/// Why Docker did not do what it was asked for, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The threads that talk to it could not be started.
    #[error("starting the threads that talk to docker")]
    Runtime {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error("connecting to docker at {url}")]
    Connect {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// It refused, or the connection broke.
    #[error("{operation}")]
    Call {
        /// What was asked.
        operation: String,
        /// Its answer.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// It said something that we do not understand.
    #[error("docker's answer to {operation} has {problem}")]
    Answer {
        /// What was asked.
        operation: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The release's own files do not give the image.
    #[error("reading container image {image} ({reference}) from the release")]
    Archive {
        /// Config digest.
        image: Digest,
        /// As asked for.
        reference: String,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// It refused the image.
    #[error("loading container image {image} ({reference}) into docker")]
    Load {
        /// Config digest.
        image: Digest,
        /// As asked for.
        reference: String,
        /// Its answer.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// Its disk is too small for the image.
    #[error(
        "no space for container image {reference} in docker's data root {path}: {needed} bytes needed, {free} are free"
    )]
    NoRoom {
        /// As asked for.
        reference: String,
        /// The data root.
        path: PathBuf,
        /// Bytes that a load takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A saved image cannot be written down.
    #[error("writing container image {image} as docker saves it")]
    Save {
        /// Its Id.
        image: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// After a load that it called good, the image is not there.
    #[error("docker loaded container image {image} ({reference}) and yet does not have it: {problem}")]
    NotLoaded {
        /// Config digest.
        image: Digest,
        /// As asked for.
        reference: String,
        /// What it has instead.
        problem: String,
    },
    /// It keeps its images in containerd's store, and that is nowhere.
    #[error("docker keeps its images in containerd's store, and no containerd listens at {}", sockets.join(" or "))]
    NoContainerd {
        /// Where one was looked for.
        sockets: Vec<String>,
    },
    /// It keeps its images in containerd's store, which did not do what it was asked for.
    #[error("looking into docker's containerd store at {socket}")]
    Containerd {
        /// Where containerd listens.
        socket: PathBuf,
        /// Why.
        #[source]
        source: Box<CommandError>,
    },
    /// Its data root is not on this machine, or not readable.
    #[error("opening docker's data root {path} (needed to sync it to the disk)")]
    DataRoot {
        /// As Docker tells it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was loaded may not survive a power cut.
    #[error("syncing {path} to the disk")]
    Sync {
        /// Docker's data root.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading its store failed for a reason that says nothing about the images.
    #[error("reading {path} in docker's store")]
    Store {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A container that runs holds on to damaged content.
    #[error("container {container} runs from the damaged container image {image}; stop it first")]
    InUse {
        /// Its name.
        container: String,
        /// Config digest.
        image: Digest,
    },
    /// A damaged layer is shared with an image that is not ours to load again.
    #[error(
        "layer {layer} is damaged and belongs to container image {image} too, which no release here can load again; remove that image first"
    )]
    Foreign {
        /// Diff-id.
        layer: Digest,
        /// Its Id.
        image: Digest,
    },
    /// A step did not end in time.
    #[error("container {container} did not end within {seconds} s; its last words: {log}")]
    TooLong {
        /// Its name.
        container: String,
        /// The bound.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
}

impl DockerError {
    /// True when the files that an image is made of were read and are not what is pinned.
    pub fn is_bad_archive(&self) -> bool {
        let Self::Archive { source, .. } = self else { return false };
        matches!(
            source.downcast_ref(),
            Some(StoreError::Damaged { .. } | StoreError::Broken { .. } | StoreError::Missing { .. })
        )
    }

    /// True when Docker answered that it failed by itself, as it does for an image whose records are damaged.
    pub(super) fn is_internal(&self) -> bool {
        matches!(self, Self::Call { source, .. } if matches!(**source,
            bollard::errors::Error::DockerResponseServerError { status_code: 500, .. }))
    }

    /// True when Docker says that it does not know the thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, .. } if matches!(**source,
            bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }))
    }
}

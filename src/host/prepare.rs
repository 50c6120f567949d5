//! Brings a release's container images into Docker: additive and repeatable, no network, nothing of another release touched.
//!
//! 1. Import what is missing out of the release's own files;
//! 2. hold every pinned image against collection;
//! 3. sync, so that a power cut takes none of it away.
//!
//! The proof that a flip takes is another matter: [`Docker::verify_release`] reads everything back.

use crate::docker::{Docker, DockerError, ImageArchive};
use crate::model::{Commit, Digest, Progress, ReleasePins};

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Names of the pinned images that were brought to Docker.
    pub imported: Vec<String>,
    /// Names of those that were there already.
    pub present: Vec<String>,
    /// Bytes sent to Docker.
    pub bytes: u64,
}

/// Why the images are not all there.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Import or sync.
    #[error("importing the container images of release {commit}")]
    Import {
        /// The release.
        commit: Commit,
        /// Why.
        #[source]
        source: DockerError,
    },
    /// Protective containers and tags.
    #[error("protecting the container images of release {commit}")]
    Protect {
        /// The release.
        commit: Commit,
        /// Why.
        #[source]
        source: DockerError,
    },
}

impl PrepareError {
    fn docker(&self) -> &DockerError {
        match self {
            Self::Import { source, .. } | Self::Protect { source, .. } => source,
        }
    }

    /// Whether the release's own files are not what it pins.
    pub fn is_refusal(&self) -> bool {
        self.docker().is_bad_archive()
    }

    /// Whether there was no room left in Docker's data root.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.docker(), DockerError::NoRoom { .. })
    }
}

/// Makes sure that every pinned image of `release` is in Docker, held, and on the disk.
pub fn prepare_images(
    docker: &Docker,
    store: &dyn ImageArchive,
    release: &ReleasePins,
    progress: &dyn Progress,
) -> Result<Prepared, PrepareError> {
    let commit = release.commit();
    let imported = docker
        .import(store, release.images().map(|(_, image)| image), progress)
        .map_err(|source| PrepareError::Import { commit, source })?;
    docker.protect(release).map_err(|source| PrepareError::Protect { commit, source })?;
    let named = |ids: &[Digest]| {
        let names = release.images().filter(|(_, image)| ids.contains(&image.config));
        names.map(|(name, _)| name.to_owned()).collect()
    };
    Ok(Prepared {
        imported: named(&imported.loaded),
        present: named(&imported.present),
        bytes: imported.bytes,
    })
}

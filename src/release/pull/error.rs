//! What goes wrong with a pull.

use std::path::PathBuf;

use crate::model::Commit;
use crate::ostree::repo::RepoError;
use crate::ostree::signature::SignatureError;
use crate::rim::fetch::FetchError;

/// Why a release was not pulled. The repo is usable whatever happened, and no ref was moved.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The server could not be asked.
    #[error("asking {url}")]
    Fetch {
        /// The repo's URL.
        url: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The server does not have the commit.
    #[error("{url} has no commit {commit}")]
    NoCommit {
        /// The repo's URL.
        url: String,
        /// The commit.
        commit: Commit,
    },
    /// The server gave something else under an object's name.
    #[error("{url} has a damaged object {object}: expected digest {expected}, got {got}")]
    Damaged {
        /// The repo's URL.
        url: String,
        /// Which object.
        object: String,
        /// Its digest.
        expected: String,
        /// What came instead.
        got: String,
    },
    /// The server lacks an object of the commit.
    #[error("{url} lacks object {object} of commit {commit}")]
    Missing {
        /// The repo's URL.
        url: String,
        /// Which object.
        object: String,
        /// The commit.
        commit: Commit,
    },
    /// The release is not trusted.
    #[error("the release is not trusted")]
    Signature(#[source] SignatureError),
    /// There is not enough room to begin.
    #[error("not enough room in {path}: commit {commit} needs {needed} bytes, {free} are free")]
    NoSpace {
        /// The repo.
        path: PathBuf,
        /// The commit.
        commit: Commit,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The connection was lost on the way.
    #[error(
        "the connection was lost while pulling commit {commit}: {objects} objects ({bytes} bytes received) are here and will not be fetched again"
    )]
    Cut {
        /// The commit.
        commit: Commit,
        /// Objects that came.
        objects: u64,
        /// Bytes that came.
        bytes: u64,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The repo refused.
    #[error("writing to the repo")]
    Repo(#[from] RepoError),
}

impl PullError {
    /// Whether a check said no, as against something that did not work.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Signature(_))
    }

    /// Whether there was no room left.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Repo(RepoError::DiskFull { .. }))
    }

    /// Whether the same pull, started again, may go on where it stopped.
    pub fn is_resumable(&self) -> bool {
        match self {
            Self::Cut { .. } => true,
            Self::Fetch { source, .. } => source.is_passing(),
            _ => false,
        }
    }
}

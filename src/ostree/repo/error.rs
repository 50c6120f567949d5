//! What goes wrong with a repo.

use std::io;
use std::path::{Path, PathBuf};

use super::gvariant::Malformed;
use crate::model::{Commit, ObjectName};

/// Why a repo could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// There is no repo.
    #[error("{path} is not an ostree repo")]
    NotARepo {
        /// Where it should be.
        path: PathBuf,
    },
    /// The repo keeps its files in a way that does not fit.
    #[error("repo {path} has mode {mode}, which does not fit here (archive on servers, bare on hosts)")]
    Mode {
        /// The repo.
        path: PathBuf,
        /// Its mode.
        mode: String,
    },
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is no room left.
    #[error("disk full: writing to {path}, {free} bytes are free")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// Bytes that are free there.
        free: u64,
    },
    /// An object is not there.
    #[error("object {object} is missing")]
    Missing {
        /// Which.
        object: ObjectName,
    },
    /// An object's bytes are not those of its name.
    #[error("object {object} is damaged: its bytes have the digest {got}")]
    Damaged {
        /// Which; its name is the expected digest.
        object: ObjectName,
        /// The digest of the bytes.
        got: String,
    },
    /// An object's bytes make no sense.
    #[error("object {object} is malformed")]
    Malformed {
        /// Which.
        object: ObjectName,
        /// Why.
        #[source]
        source: Malformed,
    },
    /// A file of a commit does not hold what its name promises.
    #[error("{file} of {commit} does not parse")]
    Json {
        /// The commit.
        commit: Commit,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No commit goes by this text.
    #[error(
        "no release {text:?} in {path}: it is neither a ref, a version, a commit nor the beginning of one"
    )]
    NoRevision {
        /// What was asked for.
        text: String,
        /// The repo.
        path: PathBuf,
    },
    /// Several commits go by this text.
    #[error("{text:?} means more than one commit: {}", found.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The commits.
        found: Vec<String>,
    },
    /// The bytes of an object stopped coming.
    #[error("receiving object {object}")]
    Source {
        /// Which.
        object: ObjectName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path is not in the commit.
    #[error("no file {file} in the commit")]
    NoFile {
        /// Which path.
        file: String,
    },
    /// A file cannot be held by ostree.
    #[error("{path} cannot be in a commit: {reason}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process writes.
    #[error("another rackstep process is writing to {path}")]
    Busy {
        /// The repo.
        path: PathBuf,
    },
    /// libostree refused.
    #[error("{action} repo {path}")]
    Ostree {
        /// What was tried.
        action: &'static str,
        /// The repo.
        path: PathBuf,
        /// Why.
        #[source]
        source: glib::Error,
    },
}

impl RepoError {
    /// An error of the file system; a full disk is named as such.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let directory = path.ancestors().find(|path| path.is_dir()).unwrap_or(path);
            let free = crate::formats::atomic::free_bytes(directory).unwrap_or(0);
            return Self::DiskFull { path: path.to_owned(), free };
        }
        Self::Io { action, path: path.to_owned(), source }
    }
}

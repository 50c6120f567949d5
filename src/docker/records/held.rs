//! Who may write Docker's store: we or a daemon, never both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why the store is not ours for now.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// A file of the store.
    #[error("reading {path} in docker's store")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A daemon uses the store.
    #[error("docker uses {data_root}; stop it first")]
    Running {
        /// The store.
        data_root: PathBuf,
    },
}

/// A database that every daemon keeps open and locked (bbolt's flock, moby `volume/service/store.go`), whatever its pid
/// file is called.
const HELD_BY_DAEMON: &str = "volumes/metadata.db";

/// Keeps daemons from the store while the file is open; refuses while one uses it.
pub(super) fn hold(data_root: &Path) -> Result<Option<fs::File>, HeldError> {
    let path = data_root.join(HELD_BY_DAEMON);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        // No daemon has ever run here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HeldError::Read { path, source }),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(HeldError::Running { data_root: data_root.to_owned() }),
        Err(error) => Err(HeldError::Read { path, source: error.into() }),
    }
}

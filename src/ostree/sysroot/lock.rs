//! The lock that keeps a staged deployment from becoming the next boot.
//!
//! libostree looks for the file at shutdown; both releases that we run on know it (2022.7, 2025.2:
//! `_OSTREE_SYSROOT_RUNSTATE_STAGED_LOCKED` in `ostree-sysroot-private.h`).

use std::fs;
use std::io;
use std::path::Path;

const LOCK: &str = "/run/ostree/staged-deployment-locked";

/// What went wrong with the lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It could not be created or removed.
    #[error("{doing} {LOCK}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It vanished.
    #[error("{LOCK} vanished while the release was staged")]
    Vanished,
}

/// Creates the lock; nothing to do when it is there.
pub(super) fn take() -> Result<(), LockError> {
    let io = |source| LockError::Io { doing: "creating", source };
    if let Some(parent) = Path::new(LOCK).parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    fs::write(LOCK, b"").map_err(io)
}

/// Present, or an error.
pub(super) fn require() -> Result<(), LockError> {
    if is_held() { Ok(()) } else { Err(LockError::Vanished) }
}

/// Removes the lock: from now on the staged deployment is the next boot.
pub(super) fn release() -> Result<(), LockError> {
    fs::remove_file(LOCK).map_err(|source| LockError::Io { doing: "removing", source })
}

/// Is it there?
pub(super) fn is_held() -> bool {
    Path::new(LOCK).exists()
}

//! Who may change a repo while others do.
//!
//! | | adds objects ([`Staging`](super::Staging)) | writes packs | takes away |
//! |---|---|---|---|
//! | adds objects | one at a time | yes | no |
//! | writes packs | yes | yes | no |
//!
//! libostree's own programs are kept away by libostree's own lock.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{Repo, RepoError};

const OBJECTS: &str = "state/rackstep.lock";
const PACKS: &str = "state/rackstep-packs.lock";

/// Keeps what takes things away out while packs are written.
#[derive(Debug)]
#[must_use]
pub struct PackLock {
    _packs: File,
}

/// The right to take things away: nobody adds objects or writes packs.
#[derive(Debug)]
#[must_use]
pub struct PruneLock {
    _objects: File,
    _packs: File,
}

impl Repo {
    /// Waits until nobody takes things away, and keeps it so.
    pub fn lock_for_packing(&self) -> Result<PackLock, RepoError> {
        Ok(PackLock { _packs: lock(self.path(), PACKS, FlockOperation::LockShared)? })
    }

    /// Keeps writers away, unless there are some.
    pub fn lock_for_pruning(&self) -> Result<PruneLock, RepoError> {
        let _objects = lock_for_writing(self)?;
        let _packs = lock(self.path(), PACKS, FlockOperation::NonBlockingLockExclusive)?;
        Ok(PruneLock { _objects, _packs })
    }
}

/// Keeps other writers of objects away, unless there is one.
pub(super) fn lock_for_writing(repo: &Repo) -> Result<File, RepoError> {
    lock(repo.path(), OBJECTS, FlockOperation::NonBlockingLockExclusive)
}

fn lock(repo: &Path, name: &str, how: FlockOperation) -> Result<File, RepoError> {
    let path = repo.join(name);
    let creating = |source| RepoError::io("creating", &path, source);
    fs::create_dir_all(repo.join("state")).map_err(creating)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(creating)?;
    match rustix::fs::flock(&file, how) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(RepoError::Busy { path: repo.to_owned() }),
        Err(source) => Err(RepoError::io("locking", &path, source.into())),
    }
}

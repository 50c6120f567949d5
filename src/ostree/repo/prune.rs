//! Taking commits away, and the objects that only they need.

use super::{PruneLock, Repo, RepoError};
use crate::model::{Commit, ObjectName};

impl Repo {
    /// Deletes `commits` and then every object that no commit of the repo needs, also what an interrupted deletion left
    /// behind. Gives the bytes of objects that went. Refs to the commits must be gone before.
    ///
    /// A commit goes first and its objects later, so that whatever is cut leaves no commit that misses objects.
    pub fn delete_commits(&self, _alone: &PruneLock, commits: &[Commit]) -> Result<u64, RepoError> {
        let failed = |source| RepoError::Ostree { action: "pruning", path: self.path.clone(), source };
        let handle = ostree::Repo::new_for_path(&self.path);
        handle.open(gio::Cancellable::NONE).map_err(failed)?;
        for commit in commits.iter().filter(|commit| self.has(&ObjectName::of_commit(**commit))) {
            handle
                .delete_object(ostree::ObjectType::Commit, &commit.hex(), gio::Cancellable::NONE)
                .map_err(failed)?;
        }
        // Every commit of the repo is a root, not only those with refs: parents do not count, no release has one.
        let every_commit = ostree::RepoPruneFlags::NONE;
        let (_, _, freed) = handle.prune(every_commit, -1, gio::Cancellable::NONE).map_err(failed)?;
        Ok(freed)
    }
}

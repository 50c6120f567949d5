//! Kernel and initramfs of a release, read out of its commit.
//!
//! Written once to `<state>/boot/<commit>/` and served from there: a rack of machines asks for the same two files.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{RackError, create_dir};
use crate::model::Commit;
use crate::model::rack::{NEWEST, Profile};
use crate::ostree::repo::{Repo, RepoError};

/// Where kernels are in a host tree, below a directory per kernel release.
const MODULES: &str = "usr/lib/modules";
/// Names in the commit, and in our URLs.
const NAMES: [&str; 2] = ["vmlinuz", "initramfs.img"];

/// Releases in a repo, and boot files out of them. Everything here blocks.
#[derive(Debug)]
pub(super) struct ReleaseFiles {
    repo: Repo,
    home: PathBuf,
    extracting: Mutex<()>,
}

impl ReleaseFiles {
    /// Reads from `repo`, keeps files in `home`.
    pub(super) fn open(repo: &Path, home: &Path) -> Result<Self, RackError> {
        let what = || format!("opening the release repo {}", repo.display());
        let repo = Repo::open(repo).map_err(|source| RackError::Repo { what: what(), source })?;
        Ok(Self { repo, home: home.to_owned(), extracting: Mutex::new(()) })
    }

    /// The commit that a profile's hosts are imaged with now.
    pub(super) fn resolve(&self, profile: &Profile) -> Result<Commit, RackError> {
        let wanted = if profile.release == NEWEST { profile.follows.as_str() } else { &profile.release };
        self.repo.resolve(wanted).map_err(self.reading(format!("finding release {wanted}")))
    }

    /// Is it a release of the repo?
    pub(super) fn has(&self, commit: Commit) -> bool {
        self.repo.commit_info(commit).is_ok()
    }

    /// The version that people say.
    pub(super) fn version(&self, commit: Commit) -> Option<String> {
        self.repo.commit_info(commit).ok()?.version
    }

    /// The file of a release, extracted if it is not there; `None` for a name that is not ours.
    pub(super) fn require(&self, commit: Commit, name: &str) -> Result<Option<PathBuf>, RackError> {
        if !NAMES.contains(&name) {
            return Ok(None);
        }
        let dir = self.home.join(commit.hex());
        let path = dir.join(name);
        let _one_at_a_time = self.extracting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !path.exists() {
            let what = || format!("reading {name} of release {}", commit.short());
            let kernels = self.repo.list_dir(commit, MODULES).map_err(self.reading(what()))?;
            let [(kernel, ..)] = kernels.dirs.as_slice() else {
                return Err(RackError::Kernels { commit, found: kernels.dirs.len() });
            };
            let bytes = self
                .repo
                .read_file(commit, &format!("{MODULES}/{kernel}/{name}"))
                .map_err(self.reading(what()))?;
            create_dir(&dir)?;
            let partial = dir.join(format!("{name}.partial"));
            std::fs::write(&partial, bytes)
                .and_then(|()| std::fs::rename(&partial, &path))
                .map_err(RackError::io(format!("writing {}", path.display())))?;
        }
        Ok(Some(path))
    }

    fn reading(&self, what: String) -> impl FnOnce(RepoError) -> RackError + use<> {
        move |source| RackError::Repo { what, source }
    }
}

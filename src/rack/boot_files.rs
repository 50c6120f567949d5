//! Kernel and initramfs of a release, read out of its commit.
//!
//! Written once to `<state>/boot/<commit>/` and served from there: a rack of machines asks for the same two files. What a power
//! cut, a full disk or somebody's hand left there is found by comparing it with the release, once in the server's life, and made anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{RackError, create_dir};
use crate::model::Commit;
use crate::model::rack::{NEWEST, Profile};
use crate::ostree::repo::{Repo, RepoError};
use crate::rim::files::{Durability, UNFINISHED, list, write_atomic};

/// Where kernels are in a host tree, below a directory per kernel release.
const MODULES: &str = "usr/lib/modules";
/// Names in the commit, and in our URLs.
const NAMES: [&str; 2] = ["vmlinuz", "initramfs.img"];

/// Releases in a repo, and boot files out of them. Everything here blocks.
#[derive(Debug)]
pub(super) struct ReleaseFiles {
    repo: Repo,
    home: PathBuf,
    /// Files that were compared with the release, with their size.
    proved: Mutex<BTreeMap<PathBuf, u64>>,
}

impl ReleaseFiles {
    /// Reads from `repo`, keeps files in `home`.
    pub(super) fn open(repo: &Path, home: &Path) -> Result<Self, RackError> {
        let what = || format!("opening the release repo {}", repo.display());
        let repo = Repo::open(repo).map_err(|source| RackError::Repo { what: what(), source })?;
        let is_release = |dir: &PathBuf| {
            dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<Commit>().is_ok())
        };
        list(home)?.into_iter().filter(is_release).for_each(|dir| remove_unfinished(&dir));
        Ok(Self { repo, home: home.to_owned(), proved: Mutex::new(BTreeMap::new()) })
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
        // One at a time: a rack that is powered on asks for the same file as one.
        let mut proved = self.proved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let size = std::fs::metadata(&path).map(|metadata| metadata.len()).ok();
        if size.is_some() && size == proved.get(&path).copied() {
            return Ok(Some(path));
        }
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
        write_atomic(&path, &bytes, 0o644, Durability::Durable)?;
        proved.insert(path.clone(), bytes.len() as u64);
        Ok(Some(path))
    }

    fn reading(&self, what: String) -> impl FnOnce(RepoError) -> RackError + use<> {
        move |source| RackError::Repo { what, source }
    }
}

/// Removes what a power cut left half-written in `dir`, which a release's files have for themselves.
fn remove_unfinished(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        // The second is how older servers called it.
        if name.starts_with(UNFINISHED) || name.ends_with(".partial") {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::progress::Silent;
    use crate::ostree::repo::{CommitOptions, Mode};

    #[test]
    fn a_file_that_a_power_cut_emptied_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("tree/usr/lib/modules/6.1.0");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("vmlinuz"), "kernel").unwrap();
        let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
        let commit =
            repo.commit_tree(&dir.path().join("tree"), &CommitOptions::default(), &Silent).unwrap().commit;
        let open = || ReleaseFiles::open(&dir.path().join("repo"), &dir.path().join("boot")).unwrap();
        let path = open().require(commit, "vmlinuz").unwrap().unwrap();
        let partial = path.parent().unwrap().join("initramfs.img.partial");
        std::fs::write(&partial, "ker").unwrap();
        open();
        assert!(!partial.exists());
        for damaged in ["", "kernex", "kernel and more"] {
            std::fs::write(&path, damaged).unwrap();
            let files = open();
            files.require(commit, "vmlinuz").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "kernel", "{damaged:?}");
            // Emptied while it runs.
            std::fs::write(&path, "").unwrap();
            files.require(commit, "vmlinuz").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "kernel");
        }
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}

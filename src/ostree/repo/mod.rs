//! An ostree repo: releases at rest.
//!
//! 1. [`Repo`] is a path and a mode: cheap to clone, free to cross threads. Reading needs nothing else (`read`, `refs`);
//! 2. writing goes through a [`Staging`]: objects are checked while they are written beside the repo's objects, flushed
//!    with `syncfs`, and only then renamed to their names, so neither a crash nor a power cut leaves a damaged object;
//! 3. [`Repo::commit_tree`] makes a commit on all cores, with exactly the checksum that `ostree commit` gives;
//! 4. what nobody needs any more goes with [`Repo::delete_commits`]; `lock` says who may work beside whom.
//!
//! Object formats are ours to read and write (`gvariant`), because a `GObject` must not cross threads and libostree
//! writes one object at a time. libostree creates repos and holds the lock that keeps `ostree prune` away.
//! Refused: repos in other modes than archive (servers) and bare (hosts).

pub mod check;
mod commit;
mod dir_meta;
mod error;
pub mod gvariant;
mod lock;
mod proof;
mod prune;
mod read;
mod refs;
mod staging;

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::formats::atomic::free_bytes;
use crate::model::{ObjectKind, ObjectName};

pub use commit::{CommitOptions, CommitReport, DEFAULT_DEFLATE_LEVEL, file_object};
pub use dir_meta::DirMeta;
pub use error::RepoError;
pub use gvariant::MetaValue;
pub use lock::{PackLock, PruneLock};
pub use proof::{ReleaseError, VerifiedRelease};
pub use read::{CommitInfo, FileObject};
pub use refs::Listed;
pub(crate) use refs::write_atomically;
pub use staging::{Batch, Content, Staging};

/// How a repo keeps its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Compressed, owner and xattrs inside the file: what servers hand out.
    Archive,
    /// As they are deployed: what hosts have.
    Bare,
}

/// An ostree repo on this machine.
#[derive(Debug, Clone)]
pub struct Repo {
    path: PathBuf,
    mode: Mode,
}

impl Repo {
    /// Opens the repo at `path`.
    pub fn open(path: &Path) -> Result<Self, RepoError> {
        let config = path.join("config");
        let text = match fs::read_to_string(&config) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(RepoError::NotARepo { path: path.to_owned() });
            }
            Err(source) => return Err(RepoError::io("reading", &config, source)),
        };
        let keys = glib::KeyFile::new();
        let mode =
            keys.load_from_data(&text, glib::KeyFileFlags::NONE).and_then(|()| keys.string("core", "mode"));
        let mode = match mode.as_deref().ok() {
            Some("archive" | "archive-z2") => Mode::Archive,
            Some("bare") => Mode::Bare,
            other => {
                let mode = other.unwrap_or("no mode at all").to_owned();
                return Err(RepoError::Mode { path: path.to_owned(), mode });
            }
        };
        Ok(Self { path: path.to_owned(), mode })
    }

    /// Makes an empty repo at `path`, or opens it if one of this mode is there.
    pub fn create(path: &Path, mode: Mode) -> Result<Self, RepoError> {
        match Self::open(path) {
            Ok(repo) if repo.mode == mode => return Ok(repo),
            Ok(repo) => {
                let mode = format!("{:?}", repo.mode).to_lowercase();
                return Err(RepoError::Mode { path: path.to_owned(), mode });
            }
            Err(RepoError::NotARepo { .. }) => {}
            Err(error) => return Err(error),
        }
        fs::create_dir_all(path).map_err(|source| RepoError::io("creating", path, source))?;
        let wanted = match mode {
            Mode::Archive => ostree::RepoMode::Archive,
            Mode::Bare => ostree::RepoMode::Bare,
        };
        ostree::Repo::new_for_path(path)
            .create(wanted, gio::Cancellable::NONE)
            .map_err(|source| RepoError::Ostree { action: "creating", path: path.to_owned(), source })?;
        Self::open(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it keeps its files.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The path of an object below the repo, as in its URLs.
    pub fn object_path_of(mode: Mode, object: &ObjectName) -> String {
        let hex = object.digest.hex();
        let (head, tail) = hex.split_at(2);
        let extension = match (object.kind, mode) {
            (ObjectKind::File, Mode::Archive) => "filez",
            (kind, _) => kind.word(),
        };
        format!("objects/{head}/{tail}.{extension}")
    }

    /// The path of an object in this repo.
    pub fn object_path(&self, object: &ObjectName) -> PathBuf {
        self.path.join(Self::object_path_of(self.mode, object))
    }

    /// Whether the object is there; its content is not looked at.
    pub fn has(&self, object: &ObjectName) -> bool {
        fs::symlink_metadata(self.object_path(object)).is_ok()
    }

    /// Free bytes where the repo is.
    pub fn free_bytes(&self) -> Result<u64, RepoError> {
        free_bytes(&self.path).map_err(|source| RepoError::io("asking for free space at", &self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_opens_what_is_there_and_refuses_another_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/repo");
        assert!(matches!(Repo::open(&path), Err(RepoError::NotARepo { .. })));
        assert_eq!(Repo::create(&path, Mode::Archive).unwrap().mode(), Mode::Archive);
        assert_eq!(Repo::create(&path, Mode::Archive).unwrap().mode(), Mode::Archive);
        assert!(matches!(Repo::create(&path, Mode::Bare), Err(RepoError::Mode { .. })));
    }

    #[test]
    fn a_link_with_content_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("bare", Mode::Bare), ("archive", Mode::Archive)] {
            let repo = Repo::create(&dir.path().join(name), mode).unwrap();
            let staging = Staging::open(&repo, DEFAULT_DEFLATE_LEVEL).unwrap();
            let batch = staging.batch("one").unwrap().unwrap();
            let (uid, gid) = (0, 0);
            let link = gvariant::FileHeader { uid, gid, mode: 0o120_777, target: "x".into(), xattrs: vec![] };
            let prefix = link.stream_prefix();
            let digest = crate::model::Digest::of(&[prefix.as_slice(), b"more"].concat());
            let content = Content { header: &link, stream: &mut b"more".as_slice(), size: 4 };
            let refused = batch.write_file(digest, &prefix, content);
            assert!(matches!(refused, Err(RepoError::Damaged { .. })), "{refused:?}");
        }
    }
}

//! ostree's objects by name: what a release is made of, on disk and on the wire.

use std::fmt;

use super::{Commit, Digest};

/// What an ostree object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A regular file or a symbolic link, with owner, mode and xattrs.
    File,
    /// A directory's list of names.
    DirTree,
    /// A directory's owner, mode and xattrs.
    DirMeta,
    /// A commit.
    Commit,
}

impl ObjectKind {
    /// The word that ostree uses for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::DirTree => "dirtree",
            Self::DirMeta => "dirmeta",
            Self::Commit => "commit",
        }
    }
}

/// An ostree object's name: its kind, and the sha256 of its canonical bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// What it is.
    pub kind: ObjectKind,
    /// The sha256 of its canonical bytes.
    pub digest: Digest,
}

impl ObjectName {
    /// The object of `kind` with `digest`.
    pub const fn new(kind: ObjectKind, digest: Digest) -> Self {
        Self { kind, digest }
    }

    /// The object that is `commit` itself.
    pub const fn of_commit(commit: Commit) -> Self {
        Self { kind: ObjectKind::Commit, digest: Digest::from_bytes(*commit.as_bytes()) }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.digest.hex(), self.kind.word())
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

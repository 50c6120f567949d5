//! Reading objects back: is what stands under a name what the name says?
//!
//! "It is bad" is a [`Condition`], "I could not look" an error. A file of a checkout is measured by the same rule, so it
//! can be compared with the object that it should be, and stand in for it.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::read::{check_metadata, open_bare_file};
use super::{DirMeta, FileObject, Repo, RepoError};
use crate::model::{Commit, Digest, ObjectKind, ObjectName};

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// What an object is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Its bytes have the digest of its name.
    Good,
    /// There is nothing under its name.
    Missing,
    /// Its bytes are others, or the disk does not give them.
    Damaged(String),
}

impl Repo {
    /// Every object of the commits with the first path that leads to it; what a damaged directory would lead to is missing.
    pub fn survey(&self, commits: &[Commit]) -> Result<BTreeMap<ObjectName, String>, RepoError> {
        let mut objects = BTreeMap::new();
        for commit in commits {
            let mut seen = |path: &str, object| {
                objects.entry(object).or_insert_with(|| path.to_owned());
            };
            self.walk_past(*commit, &mut seen, &|error| match error {
                RepoError::Missing { .. } | RepoError::Damaged { .. } | RepoError::Malformed { .. } => Ok(()),
                RepoError::Io { source, .. } if is_the_disks(&source) => Ok(()),
                error => Err(error),
            })?;
        }
        Ok(objects)
    }

    /// Reads an object back; `read` is told the bytes of content as they go by.
    pub fn check(&self, object: &ObjectName, read: &dyn Fn(u64)) -> Result<Condition, RepoError> {
        let outcome = match object.kind {
            ObjectKind::File => self.open_file(&object.digest).and_then(|mut file| {
                let path = self.object_path(object);
                digest_of(&mut file, read).map_err(|source| RepoError::io("reading", &path, source))
            }),
            _ => self.read_metadata(object).and_then(|bytes| {
                read(bytes.len() as u64);
                check_metadata(object, &bytes).map(|()| object.digest)
            }),
        };
        match outcome {
            Ok(got) if got == object.digest => Ok(Condition::Good),
            Ok(got) => Ok(Condition::Damaged(format!("its bytes have the digest {}", got.hex()))),
            Err(RepoError::Missing { .. }) => Ok(Condition::Missing),
            Err(RepoError::Damaged { got, .. }) => {
                Ok(Condition::Damaged(format!("its bytes have the digest {got}")))
            }
            Err(RepoError::Malformed { source, .. }) => Ok(Condition::Damaged(source.to_string())),
            Err(RepoError::Io { source, .. }) if is_the_disks(&source) => {
                Ok(Condition::Damaged(source.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

/// Opens a file or link of a checkout as the file object that it would be in a repo.
pub fn open_checkout_file(path: &Path) -> io::Result<FileObject> {
    open_bare_file(path)
}

/// The name that a directory of a checkout has as a dirmeta object.
pub fn digest_of_directory(path: &Path) -> io::Result<Digest> {
    Ok(Digest::of(&DirMeta::read(path)?.render()))
}

/// The name that a file object with these bytes has: sha256 of its header and content (libostree, `ostree-core.c`).
pub fn digest_of(file: &mut FileObject, read: &dyn Fn(u64)) -> io::Result<Digest> {
    let mut hasher = Sha256::new_with_prefix(file.header.stream_prefix());
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.content.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            count => {
                hasher.update(&buffer[..count]);
                read(count as u64);
            }
        }
    }
}

/// True for what a disk says of its own bytes; everything else keeps us from looking.
fn is_the_disks(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, UnexpectedEof};
    matches!(error.kind(), InvalidData | IsADirectory | NotADirectory | UnexpectedEof)
        || matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::NXIO | Errno::LOOP | Errno::UCLEAN))
}

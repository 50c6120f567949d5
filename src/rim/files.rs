//! Writes files so that nobody ever sees half of one.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::formats::atomic::{is_same, replace};

pub use crate::formats::atomic::{Durability, UNFINISHED, free_bytes};

/// A file or directory that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Names the file in an I/O error.
pub fn naming<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> FileError + 'a {
    move |source| FileError { operation, path: path.to_owned(), source }
}

/// Replaces `path` by a file of `bytes`, as [`replace`] does. False: it was so already.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<bool, FileError> {
    if is_same(path, bytes, mode) {
        return Ok(false);
    }
    replace(path, bytes, mode, durability).map_err(naming("writing", path))?;
    Ok(true)
}

/// Makes sure that a directory of this mode is there; leaves one that is there already as it is.
pub fn ensure_directory(path: &Path, mode: u32) -> Result<bool, FileError> {
    if path.is_dir() {
        return Ok(false);
    }
    let create = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        DirBuilder::new().mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    create().map_err(naming("making directory", path))?;
    Ok(true)
}

/// Reads a file as text.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(naming("reading", path))
}

/// Entries of a directory in order of their names; none when it is not there.
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(naming("listing", directory)(error)),
    };
    let mut paths: Vec<PathBuf> = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(naming("listing", directory))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_only_when_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert!(write_atomic(&path, b"one", 0o600, Durability::Volatile).unwrap());
        assert!(!write_atomic(&path, b"one", 0o600, Durability::Durable).unwrap());
        assert_eq!(mode(), 0o600);
        assert!(write_atomic(&path, b"one", 0o700, Durability::Durable).unwrap());
        assert_eq!(mode(), 0o700);
        assert!(write_atomic(&path, b"two", 0o600, Durability::Durable).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(list(directory.path()).unwrap(), [path]);
    }
}

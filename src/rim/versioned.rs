//! Keeps small JSON files that say their format: read as a whole, replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::files::{Durability, FileError, ensure_directory, naming, write_atomic};

/// Why such a file cannot be used. It is never guessed: what it says decides what a host does.
#[derive(Debug, thiserror::Error)]
pub enum VersionedError {
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what we write.
    #[error("reading {what} {path}")]
    Damaged {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer program wrote it.
    #[error("{what} {path} is of format {got}, expected {expected}")]
    Format {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its format.
        got: u64,
        /// Ours.
        expected: u32,
    },
}

/// A kind of file: what it is called, and its one format.
pub trait Versioned: Serialize + DeserializeOwned {
    /// What it is, as errors say it.
    const WHAT: &'static str;
    /// Its format.
    const FORMAT: u32;
}

/// Reads a file; none: it is not there. The format is looked at first, so that a newer one is named as such.
pub fn read_versioned<T: Versioned>(path: &Path) -> Result<Option<T>, VersionedError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(naming("reading", path)(error).into()),
    };
    let damaged = |source| VersionedError::Damaged { what: T::WHAT, path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    if let Some(got) = value["format"].as_u64().filter(|got| *got != u64::from(T::FORMAT)) {
        return Err(VersionedError::Format {
            what: T::WHAT,
            path: path.to_owned(),
            got,
            expected: T::FORMAT,
        });
    }
    serde_json::from_value(value).map(Some).map_err(damaged)
}

/// Replaces a file, root's alone; with [`Durability::Durable`] it is on the disk when this returns.
pub fn write_versioned<T: Versioned>(
    path: &Path,
    value: &T,
    durability: Durability,
) -> Result<(), VersionedError> {
    let damaged = |source| VersionedError::Damaged { what: T::WHAT, path: path.to_owned(), source };
    let mut text = serde_json::to_vec_pretty(value).map_err(damaged)?;
    text.push(b'\n');
    if let Some(directory) = path.parent() {
        ensure_directory(directory, 0o755)?;
    }
    write_atomic(path, &text, 0o600, durability)?;
    Ok(())
}

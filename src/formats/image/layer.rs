//! One layer: a tar taken apart into files and a skeleton, and put together again byte for byte.
//!
//! Below a layer's directory stand
//!
//! 1. `root/`: the contents of the layer's files under their own names;
//! 2. `odd/`: contents whose names cannot stand below `root` (duplicates, `..`, not UTF-8, …), numbered;
//! 3. `skeleton`: everything else, see [`skeleton`](super::skeleton).
//!
//! Directories, links, devices and empty files are headers alone, so they exist in the skeleton only. Memory is
//! bounded: contents stream through one buffer, and extended headers are limited.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::skeleton::{Record, SkeletonError, SkeletonReader};
use super::stream::{CHUNK, Hashing};
use super::tree::Tree;
use crate::model::Digest;

pub mod entries;
mod split;
#[cfg(test)]
mod tests;

pub use split::{SplitError, SplitLayer, split};

/// Directory of files under their own names.
pub const ROOT: &str = "root";
/// Directory of files under numbers.
pub const ODD: &str = "odd";
/// File of everything else.
pub const SKELETON: &str = "skeleton";

/// Why a layer cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A part of the layer's directory is missing or cannot be read.
    #[error("reading {path}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The skeleton is damaged.
    #[error("following {path}")]
    Skeleton {
        /// The skeleton.
        path: PathBuf,
        /// How.
        #[source]
        source: SkeletonError,
    },
    /// A file has not the size that it had.
    #[error("{path} has {got} bytes, expected {expected}")]
    Content {
        /// The file.
        path: PathBuf,
        /// As the skeleton says.
        expected: u64,
        /// As the file is.
        got: u64,
    },
    /// What the records give is not as long as the tar was.
    #[error("{path} gives {got} bytes, expected {expected}")]
    Size {
        /// The skeleton.
        path: PathBuf,
        /// As its end says.
        expected: u64,
        /// As it came.
        got: u64,
    },
    /// The reader of the tar failed.
    #[error("writing the layer of {dir}")]
    Write {
        /// The layer's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the tar of the layer in `dir` and returns its digest, which the caller compares with the diff-id.
pub fn join(dir: &Path, out: &mut (impl Write + ?Sized)) -> Result<Digest, JoinError> {
    let path = dir.join(SKELETON);
    let skeleton_error = |source| JoinError::Skeleton { path: path.clone(), source };
    let write_error = |source| JoinError::Write { dir: dir.to_owned(), source };
    let file = File::open(&path).map_err(|source| JoinError::Read { path: path.clone(), source })?;
    let mut records = SkeletonReader::new(BufReader::with_capacity(CHUNK, file)).map_err(skeleton_error)?;
    let mut contents = Contents::new(dir)?;
    let mut out = BufWriter::with_capacity(CHUNK, Hashing::new(out));
    let expected = loop {
        match records.next_record().map_err(skeleton_error)? {
            Record::Literal(bytes) => out.write_all(&bytes).map_err(write_error)?,
            Record::Zeros(count) => {
                io::copy(&mut io::repeat(0).take(count), &mut out).map_err(write_error)?;
            }
            Record::Header(block) => out.write_all(&block[..]).map_err(write_error)?,
            Record::File { path, size } => contents.copy(ROOT, &path, size, &mut out)?,
            Record::Odd { number, size } => contents.copy(ODD, &number.to_string(), size, &mut out)?,
            Record::End { size } => break size,
        }
    };
    out.flush().map_err(write_error)?;
    let (digest, got) = out.into_inner().map_err(|error| write_error(error.into_error()))?.finish();
    if got == expected { Ok(digest) } else { Err(JoinError::Size { path, expected, got }) }
}

/// Reads file contents of a layer's directory.
struct Contents<'a> {
    dir: &'a Path,
    tree: Tree,
    buffer: Vec<u8>,
}

impl<'a> Contents<'a> {
    fn new(dir: &'a Path) -> Result<Self, JoinError> {
        let tree = Tree::open(dir).map_err(|source| JoinError::Read { path: dir.to_owned(), source })?;
        Ok(Self { dir, tree, buffer: vec![0; CHUNK] })
    }

    fn copy(
        &mut self,
        below: &str,
        path: &str,
        size: u64,
        out: &mut (impl Write + ?Sized),
    ) -> Result<(), JoinError> {
        let relative = format!("{below}/{path}");
        let full = self.dir.join(&relative);
        let mut file = match self.tree.read(&relative) {
            Ok(file) => file,
            Err(source) => return Err(JoinError::Read { path: full, source }),
        };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(JoinError::Read { path: full, source }),
        };
        if !metadata.is_file() || metadata.len() != size {
            return Err(JoinError::Content { path: full, expected: size, got: metadata.len() });
        }
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut self.buffer[..want]) {
                Ok(0) => return Err(JoinError::Content { path: full, expected: size, got: size - left }),
                Ok(count) => {
                    out.write_all(&self.buffer[..count])
                        .map_err(|source| JoinError::Write { dir: self.dir.to_owned(), source })?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(JoinError::Read { path: full, source }),
            }
        }
        Ok(())
    }
}

/// Bytes of the tar of the layer in `dir`, without putting it together.
pub fn size(dir: &Path) -> Result<u64, JoinError> {
    let path = dir.join(SKELETON);
    let file = File::open(&path).map_err(|source| JoinError::Read { path: path.clone(), source })?;
    let skeleton_error = |source| JoinError::Skeleton { path: path.clone(), source };
    let mut records = SkeletonReader::new(BufReader::with_capacity(CHUNK, file)).map_err(skeleton_error)?;
    loop {
        if let Record::End { size } = records.next_record().map_err(skeleton_error)? {
            return Ok(size);
        }
    }
}

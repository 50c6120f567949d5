//! Files of a layout or an archive, by name: a directory, or a tar that is indexed once and then read in place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::compression::{decompress, is_zstd};
use crate::formats::image::tree::tree_path;

/// A set of named files.
pub struct Bundle {
    path: PathBuf,
    files: Files,
}

enum Files {
    Directory,
    Archive { file: File, index: BTreeMap<String, Place> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Bytes { at: u64, size: u64 },
    // `docker save` before version 25 links a layer that occurs twice.
    Link(String),
}

/// Why a file of a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file system says no.
    #[error("file {name:?}")]
    Io {
        /// Name in the bundle; empty: the bundle itself.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such file.
    #[error("file {0:?} is missing")]
    Missing(String),
    /// A file that must be held in memory is too large.
    #[error("file {name:?} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Name in the bundle.
        name: String,
        /// As it is.
        size: u64,
        /// As allowed.
        limit: u64,
    },
}

impl Bundle {
    /// Opens a directory, or indexes a tar.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let error = |source| BundleError::Io { name: String::new(), source };
        let files = if std::fs::metadata(path).map_err(error)?.is_dir() {
            Files::Directory
        } else {
            let file = open_regular(path).and_then(plain).map_err(error)?;
            let index = index(&file).map_err(error)?;
            Files::Archive { file, index }
        };
        Ok(Self { path: path.to_owned(), files })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when there is such a file.
    pub fn contains(&self, name: &str) -> bool {
        match &self.files {
            Files::Directory => tree_path(name.as_bytes()).is_some_and(|name| self.path.join(name).is_file()),
            Files::Archive { .. } => self.place(name).is_some(),
        }
    }

    /// Opens a file; with it comes its size.
    pub fn read(&self, name: &str) -> Result<(Box<dyn Read + Send + '_>, u64), BundleError> {
        let error = |source| BundleError::Io { name: name.to_owned(), source };
        let missing = || BundleError::Missing(name.to_owned());
        match &self.files {
            Files::Directory => {
                let relative = tree_path(name.as_bytes()).ok_or_else(missing)?;
                let file = match open_regular(&self.path.join(relative)) {
                    Err(source) if source.kind() == io::ErrorKind::NotFound => return Err(missing()),
                    opened => opened.map_err(error)?,
                };
                let size = file.metadata().map_err(error)?.len();
                Ok((Box::new(file), size))
            }
            Files::Archive { file, .. } => {
                let (at, size) = self.place(name).ok_or_else(missing)?;
                Ok((Box::new(Slice { file, at, left: size }), size))
            }
        }
    }

    /// Reads a small file whole.
    pub fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>, BundleError> {
        let (reader, size) = self.read(name)?;
        if size > limit {
            return Err(BundleError::TooLarge { name: name.to_owned(), size, limit });
        }
        let mut bytes = Vec::new();
        reader
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| BundleError::Io { name: name.to_owned(), source })?;
        Ok(bytes)
    }

    fn place(&self, name: &str) -> Option<(u64, u64)> {
        let Files::Archive { index, .. } = &self.files else { return None };
        let mut name = tree_path(name.as_bytes())?;
        // One link may lead to another, but not in a circle.
        for _ in 0..8 {
            match index.get(&name)? {
                Place::Bytes { at, size } => return Some((*at, *size)),
                Place::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// Opens a file, never waiting for one: a FIFO or a device in its place is refused.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

/// The archive without its compression (gzip, zstd, xz): entries are read in place, so it is unpacked into a file without
/// a name, in the directory of temporary files.
fn plain(mut file: File) -> io::Result<File> {
    let mut start = [0; 6];
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            count => length += count,
        }
    }
    file.rewind()?;
    let start = &start[..length];
    if start == XZ {
        return unpack_xz(file);
    }
    if !start.starts_with(&GZIP) && !is_zstd(start) {
        return Ok(file);
    }
    let mut unpacked = tempfile::tempfile()?;
    let copied = io::copy(&mut decompress(file)?.take(MAX_UNPACKED + 1), &mut unpacked)?;
    require_size(copied)?;
    unpacked.rewind()?;
    Ok(unpacked)
}

/// First bytes of a gzip and of an xz file.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// An archive larger than this, unpacked, is refused: all layers of one image at their limit are fewer bytes.
const MAX_UNPACKED: u64 = 256 << 30;

fn require_size(size: u64) -> io::Result<()> {
    if size <= MAX_UNPACKED {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, "unpacked it is larger than 256 GiB"))
}

/// Has `xz` unpack it, as `docker load` does.
fn unpack_xz(file: File) -> io::Result<File> {
    let mut unpacked = tempfile::tempfile()?;
    let mut xz =
        Command::new("xz").args(["-dc"]).stdin(file).stdout(Stdio::piped()).spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("it is compressed with xz, and xz cannot be run: {error}"))
        })?;
    let copied = match xz.stdout.take() {
        Some(output) => io::copy(&mut output.take(MAX_UNPACKED + 1), &mut unpacked),
        None => Ok(0),
    };
    let status = xz.wait()?;
    require_size(copied?)?;
    if !status.success() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "xz cannot unpack it"));
    }
    unpacked.rewind()?;
    Ok(unpacked)
}

/// Bytes of an archive, read in place: several may be read at once.
struct Slice<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt as _;
        let max = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut out[..max], self.at)?;
        if count == 0 && max > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn index(mut file: &File) -> io::Result<BTreeMap<String, Place>> {
    file.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut index = BTreeMap::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let Some(name) = tree_path(&entry.path_bytes()) else { continue };
        let place = match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                Place::Bytes { at: entry.raw_file_position(), size: entry.size() }
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let symbolic = entry.header().entry_type() == tar::EntryType::Symlink;
                let base = if symbolic { name.rsplit_once('/').map(|(dir, _)| dir) } else { None };
                match entry.link_name_bytes().and_then(|target| resolve(base, &target)) {
                    Some(target) => Place::Link(target),
                    None => continue,
                }
            }
            _ => continue,
        };
        index.insert(name, place);
    }
    Ok(index)
}

/// A link's target within the archive.
fn resolve(base: Option<&str>, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut parts: Vec<&str> = base.map(|base| base.split('/').collect()).unwrap_or_default();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

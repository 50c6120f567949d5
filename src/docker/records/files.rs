//! Small files of Docker's store.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::formats::atomic::{self, Durability};

use super::RecordError;
use crate::model::Digest;

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError + use<> {
    let path = path.to_owned();
    move |source| RecordError::Io { doing, path, source }
}

/// A file's bytes, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, RecordError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(io_error("reading", path)(error)),
    }
}

pub(super) fn ensure_directory(path: &Path, mode: u32) -> Result<(), RecordError> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(io_error("setting the mode of", path)),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(io_error("making", path)(error)),
    }
}

/// A new directory with these files.
pub(super) fn make_directory(
    path: &Path,
    mode: u32,
    content: &BTreeMap<&str, Vec<u8>>,
) -> Result<(), RecordError> {
    ensure_directory(path, mode)?;
    for (name, bytes) in content {
        let path = path.join(name);
        fs::write(&path, bytes).map_err(io_error("writing", &path))?;
    }
    Ok(())
}

/// Has a symbolic link lead to `target`, whatever it led to.
pub(super) fn ensure_link(target: &Path, link: &Path) -> Result<(), RecordError> {
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    remove(link)?;
    symlink(target, link).map_err(io_error("making the link", link))
}

/// Gives what was made its name; what has it now goes to `old` first.
pub(super) fn settle(from: &Path, to: &Path, old: &Path) -> Result<(), RecordError> {
    if to.symlink_metadata().is_ok() {
        if let Some(parent) = old.parent() {
            ensure_directory(parent, 0o700)?;
        }
        remove(old)?;
        fs::rename(to, old).map_err(io_error("setting aside", to))?;
    }
    fs::rename(from, to).map_err(io_error("giving its name to", from))
}

/// Writes a file as a whole or not at all, power cuts included.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RecordError> {
    atomic::replace(path, bytes, mode, Durability::Durable).map_err(io_error("writing", path))
}

/// Removes a file, a link or a directory, if it is there. Links are not followed.
pub(super) fn remove(path: &Path) -> Result<(), RecordError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Flushes the file system that `path` is on.
pub(super) fn sync(path: &Path) -> Result<(), RecordError> {
    let directory = fs::File::open(path).map_err(io_error("opening", path))?;
    rustix::fs::syncfs(&directory).map_err(|errno| io_error("flushing", path)(errno.into()))
}

/// Names in a directory, in order; none if it is not there.
pub(super) fn names_in(directory: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(io_error("reading", directory))?,
    };
    let mut names = Vec::new();
    for entry in listing {
        names.push(PathBuf::from(entry.map_err(io_error("reading", directory))?.file_name()));
    }
    names.sort();
    Ok(names)
}

/// Names in a directory that are digests.
pub(super) fn digests_in(directory: &Path) -> Result<Vec<Digest>, RecordError> {
    let names = names_in(directory)?;
    Ok(names.iter().filter_map(|name| Digest::parse_hex(name.to_str()?).ok()).collect())
}

//! Layer directories that nothing refers to.
//!
//! A daemon killed during a load leaves `overlay2` directories behind that neither a restart nor a prune takes away (24
//! kills left 6.3 GB). They are found by comparing the directories with what the layer database names, and swept only
//! while no daemon runs: a load in flight looks just like an orphan.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What could not be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// A file or directory of the store.
    #[error("reading {path} in docker's store")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An orphan that would not go.
    #[error("removing {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A daemon uses the store.
    #[error("docker uses {data_root}; stop it first")]
    Running {
        /// The store.
        data_root: PathBuf,
    },
}

/// One directory that nothing refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Where.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// Finds the orphans below `data_root`. While a daemon loads an image, its new layers show up here as well.
pub fn find_orphans(data_root: &Path) -> Result<Vec<Orphan>, OrphanError> {
    let store = data_root.join("overlay2");
    let layerdb = data_root.join("image/overlay2/layerdb");
    let mut used: BTreeSet<OsString> = BTreeSet::from(["l".into(), "backingFsBlockDev".into()]);
    for layer in entries(&layerdb.join("sha256"))? {
        used.extend(read_id(&layer.join("cache-id"))?);
    }
    for mount in entries(&layerdb.join("mounts"))? {
        for file in ["mount-id", "init-id", "parent"] {
            used.extend(read_id(&mount.join(file))?);
        }
    }
    let mut orphans = Vec::new();
    for path in entries(&store)? {
        let name = path.file_name().unwrap_or_default();
        if !used.contains(name) {
            let bytes = size_of(&path)?;
            orphans.push(Orphan { path, bytes });
        }
    }
    Ok(orphans)
}

/// A database that every daemon keeps open and locked (bbolt's flock, moby `volume/service/store.go`), whatever its pid
/// file is called.
const HELD_BY_DAEMON: &str = "volumes/metadata.db";

/// Removes the orphans below `data_root`; refuses while a daemon uses it. Gives what went.
pub fn sweep_orphans(data_root: &Path) -> Result<Vec<Orphan>, OrphanError> {
    // Held until the end: a daemon that starts meanwhile waits for it.
    let _held = hold_store(data_root)?;
    let orphans = find_orphans(data_root)?;
    for orphan in &orphans {
        // The short name below `l/` goes first: a link to nothing is what a restart repairs itself.
        if let Some(link) = read_id(&orphan.path.join("link"))? {
            let link = data_root.join("overlay2/l").join(link);
            match fs::remove_file(&link) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OrphanError::Remove { path: link, source });
                }
                _ => {}
            }
        }
        fs::remove_dir_all(&orphan.path)
            .map_err(|source| OrphanError::Remove { path: orphan.path.clone(), source })?;
    }
    Ok(orphans)
}

/// Keeps daemons from the store while the file is open; refuses while one uses it.
pub(super) fn hold_store(data_root: &Path) -> Result<Option<fs::File>, OrphanError> {
    let path = data_root.join(HELD_BY_DAEMON);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        // No daemon has ever run here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OrphanError::Read { path, source }),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OrphanError::Running { data_root: data_root.to_owned() }),
        Err(error) => Err(OrphanError::Read { path, source: error.into() }),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, OrphanError> {
    let read = |source| OrphanError::Read { path: directory.to_owned(), source };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut paths: Vec<PathBuf> =
        listing.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(read)?;
    paths.sort();
    Ok(paths)
}

fn read_id(path: &Path) -> Result<Option<OsString>, OrphanError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OrphanError::Read { path: path.to_owned(), source }),
    }
}

fn size_of(directory: &Path) -> Result<u64, OrphanError> {
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(directory).same_file_system(true) {
        let metadata = entry
            .and_then(|entry| entry.metadata())
            .map_err(|error| OrphanError::Read { path: directory.to_owned(), source: error.into() })?;
        bytes += metadata.blocks() * 512;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_layer_and_no_container_names_is_an_orphan() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("image/overlay2/layerdb/sha256/aa/cache-id", "kept");
        write("image/overlay2/layerdb/mounts/c/mount-id", "mounted");
        write("image/overlay2/layerdb/mounts/c/init-id", "mounted-init");
        for layer in ["kept", "mounted", "mounted-init", "lost"] {
            write(&format!("overlay2/{layer}/diff/file"), "content");
        }
        write("overlay2/lost/link", "SHORT");
        write("overlay2/l/SHORT", "");
        let orphans = find_orphans(root.path()).unwrap();
        assert_eq!(orphans.len(), 1, "{orphans:?}");
        assert_eq!(orphans[0].path, root.path().join("overlay2/lost"));

        assert_eq!(sweep_orphans(root.path()).unwrap().len(), 1);
        assert_eq!(find_orphans(root.path()).unwrap(), []);
        assert!(!root.path().join("overlay2/l/SHORT").exists());
        assert!(root.path().join("overlay2/mounted-init").exists());
    }
}

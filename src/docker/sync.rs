//! Brings what Docker wrote to the disk.
//!
//! A load makes Docker fsync its metadata but none of a layer's files, so a power cut soon after leaves an image that
//! every listing shows and whose files are empty. One `syncfs` closes that.

use std::fs::File;
use std::io;

use super::{Docker, DockerError, Store};

impl Docker {
    /// Syncs the file systems that hold Docker's images.
    pub fn sync(&self) -> Result<(), DockerError> {
        let store = self.store()?;
        for path in store.roots() {
            let data_root = |source| DockerError::DataRoot { path: path.to_owned(), source };
            // A daemon on another machine tells a path that may well exist here, and mean nothing.
            if matches!(store, Store::Classic(_)) && !path.join("image").is_dir() {
                return Err(data_root(io::Error::new(
                    io::ErrorKind::NotFound,
                    "it is not on this machine, or holds no images",
                )));
            }
            let directory = File::open(path).map_err(data_root)?;
            rustix::fs::syncfs(&directory)
                .map_err(|error| DockerError::Sync { path: path.to_owned(), source: error.into() })?;
        }
        Ok(())
    }
}

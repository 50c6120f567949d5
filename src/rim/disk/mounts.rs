//! Mounts that are undone.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::DiskError;

/// A mounted file system; unmounted when dropped, though [`Mount::unmount`] tells of failures.
#[derive(Debug)]
pub struct Mount {
    place: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts `device`, which holds a file system of `kind`, on the directory `place`.
    pub fn new(device: &Path, kind: &str, place: &Path) -> Result<Self, DiskError> {
        rustix::mount::mount(
            device,
            place,
            kind,
            MountFlags::empty(),
            None::<&CString>.map(CString::as_c_str),
        )
        .map_err(|errno| DiskError::io("mounting a file system on", place)(errno.into()))?;
        Ok(Self { place: place.to_owned(), mounted: true })
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Unmounts it; everything written is on the disk afterwards.
    pub fn unmount(mut self) -> Result<(), DiskError> {
        self.unmount_now()
    }

    fn unmount_now(&mut self) -> Result<(), DiskError> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        // A process of somebody's that made a mount namespace meanwhile has this mount, too: then it lives on for a while, and
        // unmounting it here writes nothing.
        let root = std::fs::File::open(&self.place).map_err(DiskError::io("opening", &self.place))?;
        rustix::fs::syncfs(&root).map_err(|errno| DiskError::io("syncing", &self.place)(errno.into()))?;
        drop(root);
        rustix::mount::unmount(&self.place, UnmountFlags::empty())
            .map_err(|errno| DiskError::io("unmounting", &self.place)(errno.into()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount_now() {
            tracing::warn!(%error, "left behind");
            // Whoever still uses it keeps it; nobody new finds it.
            let _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH);
        }
    }
}

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

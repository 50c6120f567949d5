//! Small disks that can be filled.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own in memory; gone when it is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(path: &Path, bytes: usize) -> Self {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={bytes}");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status();
        assert!(status.unwrap().success());
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves about `free` bytes.
    pub fn fill(&self, free: usize) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let available = (stat.f_bavail * stat.f_frsize) as usize;
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        ballast.write_all(&vec![0; available.saturating_sub(free)]).unwrap();
    }

    pub fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

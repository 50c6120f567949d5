//! A span of a disk as a block device of its own, without a partition table.
//!
//! Loop devices rather than the kernel's partitions: they work the same on a disk and on an image file, and a re-read of
//! the (empty) partition table, which udev starts whenever a writer closes the disk, does not take them away.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layout::Span;
use super::target::Target;
use super::{DiskError, MIB};
use crate::rim::command;

/// A loop device; detached when dropped, though [`LoopDevice::detach`] tells of failures.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    attached: bool,
}

impl LoopDevice {
    /// Attaches a span of `target`.
    pub fn attach(target: &Target, span: Span) -> Result<Self, DiskError> {
        let mut losetup = Command::new("losetup");
        losetup
            .args(["--find", "--show"])
            .arg(format!("--offset={}", span.start))
            .arg(format!("--sizelimit={}", span.size))
            .arg(format!("--sector-size={}", target.sector()));
        if target.is_device() {
            // Else every page is cached twice, and memory is what a machine in its initramfs has least of.
            losetup.arg("--direct-io=on");
        }
        losetup.arg(target.path());
        Self::attach_with(&mut losetup, target.path(), span)
    }

    /// Attaches a whole scratch file with sectors of `sector` bytes.
    pub(super) fn attach_file(file: &Path, size: u64, sector: u32) -> Result<Self, DiskError> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(format!("--sector-size={sector}")).arg(file);
        Self::attach_with(&mut losetup, file, Span { start: 0, size })
    }

    fn attach_with(losetup: &mut Command, path: &Path, span: Span) -> Result<Self, DiskError> {
        let printed = command::run_text(losetup).map_err(DiskError::command(format!(
            "attaching {} MiB at {} MiB of {} to a loop device",
            span.size / MIB,
            span.start / MIB,
            path.display()
        )))?;
        Ok(Self { path: PathBuf::from(printed.trim()), attached: true })
    }

    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches it.
    pub fn detach(mut self) -> Result<(), DiskError> {
        self.detach_now()
    }

    fn detach_now(&mut self) -> Result<(), DiskError> {
        if !std::mem::take(&mut self.attached) {
            return Ok(());
        }
        // Others (udev) may hold it open, so that detaching it would not be its last close, which flushes.
        let device = File::open(&self.path).map_err(DiskError::io("opening", &self.path))?;
        let flushed = device.sync_all().map_err(DiskError::io("flushing", &self.path));
        drop(device);
        command::run(Command::new("losetup").arg("--detach").arg(&self.path))
            .map_err(DiskError::command(format!("detaching {}", self.path.display())))?;
        flushed
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = self.detach_now() {
            tracing::warn!(%error, "left behind");
        }
    }
}

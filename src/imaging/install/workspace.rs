//! The disk's file systems, formatted and mounted without a partition table.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::rim::disk::DiskError;
use crate::rim::disk::filesystem::{format_ext4, format_fat, format_xfs, random_uuid};
use crate::rim::disk::layout::Layout;
use crate::rim::disk::loops::LoopDevice;
use crate::rim::disk::mounts::Mount;
use crate::rim::disk::signatures::wipe_span;
use crate::rim::disk::table::Settled;
use crate::rim::disk::target::Target;

/// Mounted file systems; fields are in the order in which they go away.
#[derive(Debug)]
pub struct Workspace {
    boot_mount: Mount,
    root_mount: Mount,
    root: LoopDevice,
    boot: LoopDevice,
    esp: LoopDevice,
    uuids: Uuids,
}

/// UUIDs of the file systems, chosen beforehand.
#[derive(Debug)]
pub struct Uuids {
    /// The EFI system partition's.
    pub esp: Uuid,
    /// That of `/boot`.
    pub boot: Uuid,
    /// The root's.
    pub root: Uuid,
}

impl Uuids {
    /// New ones.
    pub fn random() -> Result<Self, DiskError> {
        Ok(Self { esp: random_uuid()?, boot: random_uuid()?, root: random_uuid()? })
    }
}

impl Workspace {
    /// Attaches, wipes and formats the spans of `layout`, and mounts root and `/boot` below `scratch`.
    pub fn open(target: &Target, layout: &Layout, uuids: Uuids, scratch: &Path) -> Result<Self, DiskError> {
        for span in [layout.bios, layout.esp, layout.boot, layout.root] {
            wipe_span(target, span)?;
        }
        let esp = LoopDevice::attach(target, layout.esp)?;
        let boot = LoopDevice::attach(target, layout.boot)?;
        let root = LoopDevice::attach(target, layout.root)?;
        format_fat(esp.path(), &uuids.esp, "RS-ESP")?;
        format_ext4(boot.path(), &uuids.boot, "rackstep-boot")?;
        format_xfs(root.path(), &uuids.root, "rackstep")?;
        let root_mount = Mount::new(root.path(), "xfs", &make_directory(scratch.join("sysroot"))?)?;
        let boot_place = make_directory(root_mount.place().join("boot"))?;
        let boot_mount = Mount::new(boot.path(), "ext4", &boot_place)?;
        make_directory(boot_place.join("efi"))?;
        Ok(Self { boot_mount, root_mount, root, boot, esp, uuids })
    }

    /// Where the root file system is mounted.
    pub fn sysroot(&self) -> &Path {
        self.root_mount.place()
    }

    /// The EFI system partition's device.
    pub fn esp(&self) -> &Path {
        self.esp.path()
    }

    /// UUID of the root file system.
    pub const fn root_uuid(&self) -> &Uuid {
        &self.uuids.root
    }

    /// UUID of `/boot`.
    pub const fn boot_uuid(&self) -> &Uuid {
        &self.uuids.boot
    }

    /// UUID of the EFI system partition.
    pub const fn esp_uuid(&self) -> &Uuid {
        &self.uuids.esp
    }

    /// Unmounts and detaches everything: what was written is on its way to the disk, and nothing of ours holds it.
    pub fn close(self) -> Result<Settled, DiskError> {
        // Each is tried, whatever became of the ones before.
        let results = [
            self.boot_mount.unmount(),
            self.root_mount.unmount(),
            self.root.detach(),
            self.boot.detach(),
            self.esp.detach(),
        ];
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(Settled::from_unmounting())
    }
}

fn make_directory(path: PathBuf) -> Result<PathBuf, DiskError> {
    fs::create_dir_all(&path).map_err(DiskError::io("creating", &path))?;
    Ok(path)
}

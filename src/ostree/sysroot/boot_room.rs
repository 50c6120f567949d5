//! Kernels in /boot: room for one more beside those that boot now, and which copy is whose.

use std::fs;
use std::path::{Path, PathBuf};

use crate::formats::atomic::free_bytes;

/// What libostree copies from `usr/lib/modules/KVER` to /boot.
const COPIED: [&str; 2] = ["vmlinuz", "initramfs.img"];

/// Room for boot entries and for the boot loader's own file.
const ROOM_FOR_ENTRIES: u64 = 256 << 10;

/// Too little room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short {
    pub(super) needed: u64,
    pub(super) free: u64,
}

/// Fails when `boot` has no room for the kernel of the tree at `checkout`. What cannot be looked at is not judged.
pub(super) fn require(boot: &Path, checkout: &Path) -> Result<(), Short> {
    let Ok(free) = free_bytes(boot) else { return Ok(()) };
    let needed = kernel_bytes(checkout) + ROOM_FOR_ENTRIES;
    if needed <= free { Ok(()) } else { Err(Short { needed, free }) }
}

/// A file that the boot loader reads, and the file of a checkout that libostree copied it from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootCopy {
    /// Below /boot.
    pub copy: PathBuf,
    /// In the checkout.
    pub original: PathBuf,
}

/// The copies of the kernel of the tree at `checkout` below `dir`, named as libostree names them (`ostree-sysroot-deploy.c`).
pub(super) fn copies(dir: &Path, checkout: &Path) -> Vec<BootCopy> {
    let versions = fs::read_dir(checkout.join("usr/lib/modules")).into_iter().flatten().flatten();
    let of_version = |version: fs::DirEntry| {
        let name = version.file_name();
        let name = name.to_string_lossy();
        [format!("vmlinuz-{name}"), format!("initramfs-{name}.img")]
            .map(|copy| dir.join(copy))
            .into_iter()
            .zip(COPIED.map(|original| version.path().join(original)))
            .map(|(copy, original)| BootCopy { copy, original })
            .filter(|both| both.original.exists())
            .collect::<Vec<_>>()
    };
    versions.flat_map(of_version).collect()
}

fn kernel_bytes(checkout: &Path) -> u64 {
    let size = |path: &Path| fs::metadata(path).map_or(0, |stat| stat.len());
    let versions = fs::read_dir(checkout.join("usr/lib/modules")).into_iter().flatten().flatten();
    versions.map(|version| COPIED.iter().map(|name| size(&version.path().join(name))).sum::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("usr/lib/modules/6.1");
        fs::create_dir_all(&modules).unwrap();
        for (name, bytes) in [("vmlinuz", 10), ("initramfs.img", 20), ("other.ko", 40)] {
            fs::write(modules.join(name), vec![0; bytes]).unwrap();
        }
        assert_eq!(kernel_bytes(dir.path()), 30);
        assert_eq!(require(dir.path(), dir.path()), Ok(()));
        assert_eq!(kernel_bytes(&modules), 0);
    }
}

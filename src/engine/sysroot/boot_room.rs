//! Room for one more kernel beside those that boot now.

use std::fs;
use std::path::Path;

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
    let Ok(stat) = rustix::fs::statvfs(boot) else { return Ok(()) };
    let free = stat.f_bavail * stat.f_frsize;
    let needed = kernel_bytes(checkout) + ROOM_FOR_ENTRIES;
    if needed <= free { Ok(()) } else { Err(Short { needed, free }) }
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

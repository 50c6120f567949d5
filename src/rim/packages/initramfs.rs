//! Builds the initramfs of a tree with the tree's own dracut.
//!
//! For no machine in particular (the disk's driver is not known yet), and the same bytes for the same tree.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{PackageError, at, chroot, clean, remove};
use crate::formats::pack::repack;

/// Bump when [`build`] changes its outcome.
pub const INITRAMFS_VERSION: u32 = 2;

/// What dracut makes, before it is compressed.
const ARCHIVE: &str = "initramfs.cpio";

/// Where initramfs and kernel stand, below the root: where libostree looks for them.
pub fn kernel_dir(root: &Path, kernel: &str) -> PathBuf {
    root.join("usr/lib/modules").join(kernel)
}

/// The tree's kernel release; none if it has no kernel.
pub fn observe_kernel(root: &Path) -> Result<Option<String>, PackageError> {
    let kernels = clean::read_names(&root.join("usr/lib/modules"))?;
    match kernels.as_slice() {
        [] => Ok(None),
        [kernel] => Ok(Some(kernel.clone())),
        several => Err(PackageError::Tree(format!("one kernel is expected, got {}", several.join(", ")))),
    }
}

/// Puts the kernel image where libostree looks for it and empties /boot.
pub fn place_kernel(root: &Path, kernel: &str) -> Result<(), PackageError> {
    let wanted = kernel_dir(root, kernel).join("vmlinuz");
    let boot = root.join("boot");
    if !wanted.exists() {
        let image = boot.join(format!("vmlinuz-{kernel}"));
        std::fs::rename(&image, &wanted).map_err(at(&image))?;
    }
    let config = boot.join(format!("config-{kernel}"));
    if config.exists() {
        std::fs::rename(&config, kernel_dir(root, kernel).join("config")).map_err(at(&config))?;
    }
    for link in ["vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"] {
        remove(&root.join(link))?;
    }
    clean::empty(&boot)
}

/// Builds `usr/lib/modules/<kernel>/initramfs.img` in the tree.
pub fn build(
    root: &Path,
    kernel: &str,
    modules: &[String],
    drivers: &[String],
    created: u64,
) -> Result<PathBuf, PackageError> {
    let archive = format!("/usr/lib/modules/{kernel}/{ARCHIVE}");
    let mut command: Vec<String> = [
        "dracut",
        "--force",
        "--no-hostonly",
        "--reproducible",
        "--no-early-microcode",
        "--no-compress",
        "--quiet",
        "--tmpdir",
        "/tmp",
    ]
    .map(str::to_owned)
    .to_vec();
    if !modules.is_empty() {
        command.extend(["--add".to_owned(), modules.join(" ")]);
    }
    if !drivers.is_empty() {
        command.extend(["--drivers".to_owned(), drivers.join(" ")]);
    }
    command.extend(["--kver".to_owned(), kernel.to_owned(), archive]);
    chroot::run_in(root, "building the initramfs", created, &command)?;
    let archive = kernel_dir(root, kernel).join(ARCHIVE);
    if !archive.is_file() {
        return Err(PackageError::Tree(format!("dracut made no {}", archive.display())));
    }
    let path = kernel_dir(root, kernel).join("initramfs.img");
    compress(&archive, &path).map_err(at(&path))?;
    remove(&archive)?;
    Ok(path)
}

/// By ourselves, not by dracut: an update can then bring the difference of what is inside (`formats::pack::repack`).
fn compress(archive: &Path, image: &Path) -> io::Result<()> {
    // The rack server and the installer read it; dracut would keep it to root.
    let mut out = File::create(image)?;
    out.set_permissions(Permissions::from_mode(0o644))?;
    repack::compress(File::open(archive)?, &mut out)?;
    Ok(())
}

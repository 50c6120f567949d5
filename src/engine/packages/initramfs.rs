//! Builds the initramfs of a tree with the tree's own dracut.
//!
//! For no machine in particular (the disk's driver is not known yet), and the same bytes for the same tree.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{PackageError, at, chroot, clean, remove};

/// Bump when [`build`] changes its outcome.
pub const INITRAMFS_VERSION: u32 = 1;

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
    let image = format!("/usr/lib/modules/{kernel}/initramfs.img");
    let mut command: Vec<String> = [
        "dracut",
        "--force",
        "--no-hostonly",
        "--reproducible",
        "--no-early-microcode",
        "--quiet",
        "--tmpdir",
        "/tmp",
    ]
    .map(str::to_owned)
    .to_vec();
    // One thread: zstd's output depends on how the work is divided.
    command.extend(["--compress".to_owned(), "zstd -10 -q -T1".to_owned()]);
    if !modules.is_empty() {
        command.extend(["--add".to_owned(), modules.join(" ")]);
    }
    if !drivers.is_empty() {
        command.extend(["--drivers".to_owned(), drivers.join(" ")]);
    }
    command.extend(["--kver".to_owned(), kernel.to_owned(), image]);
    chroot::run_in(root, "building the initramfs", created, &command)?;
    let path = kernel_dir(root, kernel).join("initramfs.img");
    if !path.is_file() {
        return Err(PackageError::Tree(format!("dracut made no {}", path.display())));
    }
    // The rack server and the installer read it; dracut keeps it to root.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).map_err(at(&path))?;
    Ok(path)
}

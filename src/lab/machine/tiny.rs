//! A small kernel and a static busybox, from the distribution, for probes and for tests of machines without a release.
//!
//! 1. Downloaded by the machine's own apt (no mirror named), unpacked into the cache, once;
//! 2. [`initramfs`] packs busybox, an `/init` of the caller and, if asked, the virtio network modules.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::MachineError;
use crate::rim::cache_dir::cache_dir;
use crate::rim::command;

/// The modules of a virtio network card and disk and of the kernel's own watchdog, in the order in which they must be loaded.
const MODULES: [&str; 12] = [
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_pci_legacy_dev.ko",
    "kernel/drivers/virtio/virtio_pci_modern_dev.ko",
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/net/core/failover.ko",
    "kernel/drivers/net/net_failover.ko",
    "kernel/drivers/net/virtio_net.ko",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/net/packet/af_packet.ko",
    "kernel/drivers/watchdog/watchdog.ko",
    "kernel/drivers/watchdog/softdog.ko",
];

/// A kernel with its modules, and a static busybox.
#[derive(Debug, Clone)]
pub struct TinyKernel {
    /// The kernel.
    pub vmlinuz: PathBuf,
    /// `/lib/modules/<release>`.
    pub modules: PathBuf,
    /// Static busybox.
    pub busybox: PathBuf,
}

/// The kernel, fetched into the cache when it is not there.
pub fn kernel() -> Result<TinyKernel, MachineError> {
    let parent = cache_dir().unwrap_or_else(std::env::temp_dir);
    let home = parent.join("tiny");
    if let Some(found) = find(&home) {
        return Ok(found);
    }
    fs::create_dir_all(&parent).map_err(MachineError::io(format!("creating {}", parent.display())))?;
    let work = tempfile::Builder::new()
        .prefix("tiny-")
        .tempdir_in(&parent)
        .map_err(MachineError::io(format!("creating a directory in {}", parent.display())))?;
    let fetching = || MachineError::program("fetching a small kernel with apt");
    let depends = command::run_text(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))
        .map_err(fetching())?;
    let package = depends
        .split_whitespace()
        .find(|word| {
            word.strip_prefix("linux-image-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .ok_or_else(|| MachineError::Input("apt knows no linux-image-cloud-amd64".to_owned()))?;
    command::run(
        Command::new("apt-get").args(["-qq", "download", package, "busybox-static"]).current_dir(work.path()),
    )
    .map_err(fetching())?;
    let tree = work.path().join("tree");
    for entry in fs::read_dir(work.path()).map_err(MachineError::io("listing downloads"))?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            command::run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&tree))
                .map_err(fetching())?;
        }
    }
    if find(&tree).is_none() {
        return Err(MachineError::Input(format!(
            "{package} and busybox-static lack a kernel, modules or busybox"
        )));
    }
    // Renamed as a whole: a half-written cache is never found. Losing the race against another process is fine.
    if let Err(error) = fs::rename(&tree, &home) {
        tracing::debug!(%error, "someone else filled the cache");
    }
    find(&home).ok_or_else(|| MachineError::Input(format!("no kernel in {}", home.display())))
}

fn find(home: &Path) -> Option<TinyKernel> {
    let only = |dir: PathBuf, prefix: &str| {
        fs::read_dir(dir)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
    };
    let vmlinuz = only(home.join("boot"), "vmlinuz-")?;
    let modules = only(home.join("lib/modules"), "")?;
    let busybox = home.join("bin/busybox");
    busybox.exists().then_some(TinyKernel { vmlinuz, modules, busybox })
}

/// Packs an initramfs whose first process is the given shell script at `path` (`/init`, or what `rdinit=` says).
///
/// The script finds busybox's tools in `/bin`, `/proc`, `/sys` and `/dev` mounted, and virtio network and disks ready.
pub fn initramfs(kernel: &TinyKernel, path: &str, init: &str, out: &Path) -> Result<(), MachineError> {
    let mut archive = Cpio::default();
    for dir in ["bin", "dev", "proc", "sys", "lib", "etc"] {
        archive.add(dir, 0o040_755, &[]);
    }
    let read = |path: &Path| fs::read(path).map_err(MachineError::io(format!("reading {}", path.display())));
    archive.add("bin/busybox", 0o100_755, &read(&kernel.busybox)?);
    let mut prologue = String::from(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
         mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         exec <>/dev/console >&0 2>&0\n",
    );
    for module in MODULES {
        let path = kernel.modules.join(module);
        let Some(name) =
            path.file_name().filter(|_| path.exists()).map(|name| name.to_string_lossy().into_owned())
        else {
            continue;
        };
        archive.add(&format!("lib/{name}"), 0o100_644, &read(&path)?);
        prologue.push_str(&format!("insmod /lib/{name}\n"));
    }
    prologue.push_str(init);
    let path = path.trim_start_matches('/');
    for (at, _) in path.match_indices('/') {
        archive.add(&path[..at], 0o040_755, &[]);
    }
    archive.add(path, 0o100_755, prologue.as_bytes());
    let file = fs::File::create(out).map_err(MachineError::io(format!("creating {}", out.display())))?;
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gzip.write_all(&archive.finish())
        .and_then(|()| gzip.finish().map(drop))
        .map_err(MachineError::io(format!("writing {}", out.display())))
}

/// The "newc" archive that kernels unpack (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).
#[derive(Debug, Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let (inode, size, name_size) = (self.inode, content.len(), name.len() + 1);
        let links = 1;
        self.bytes.extend_from_slice(
            format!(
                "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}{name}\0",
                0, 0, 0, 0, 0, 0, 0, 0
            )
            .as_bytes(),
        );
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

//! Hosts as system containers: a deployment of a release, unchanged, booted on this machine's own kernel.
//!
//! ```text
//! rackstep cluster up ──starts──▶ launcher (one a host, outlives the program; [`launcher`])
//!                                   │ private mounts: the disk's file systems, by loop devices that go with it
//!                                   └─▶ process 1 of the host ([`init`], then systemd)
//! ```
//!
//! 1. [`deployment`]: finds the deployment that the highest boot entry names, and refuses whatever is not a release of ours,
//!    before anything is mounted over it or started in it;
//! 2. [`launcher`]: network, namespaces, and the life of a host: `reboot` inside starts the deployment that the entries name
//!    then, `poweroff` ends it;
//! 3. [`init`]: mounts as a boot loader, an initramfs and a kernel would have left them; then systemd;
//! 4. [`storage`]: the partitions of a disk image; a power cut loses what was not synced;
//! 5. [`lacks`]: what this machine does not let a host do, and what is put in its place, in memory, for this boot.
//!
//! Root in such a host is root on this machine: it is for developers and tests, not a wall. Kernel, initramfs, boot loader and
//! modules are not tried by it; QEMU does that.
//!
//! It refuses to start init in anything but a checked deployment, and changes nothing of this machine: no mount outside its
//! own namespaces, no setting of the kernel, no control group but its own, which goes with it.

pub mod cgroup;
mod console;
pub mod deployment;
pub mod init;
pub mod kernel;
mod lacks;
pub mod launcher;
mod nodes;
pub mod probe;
mod running;
pub mod spec;
pub mod storage;

use std::io;
use std::path::{Path, PathBuf};

use crate::rim::command::CommandError;

pub use deployment::Refused;
pub use running::{Container, start};
pub use spec::{HostSpec, Link, Storage};

/// The hidden verb that launcher, process 1 and guard are started by: the running program, anew. A program other than
/// `rackstep` that starts hosts has to leave this word to `cli::run`.
pub const VERB: &str = "container-host";

/// Why a host did not start, or did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// What it was to boot is not a deployment of ours.
    #[error("refusing to start init in {}", sysroot.display())]
    Refused {
        /// The sysroot.
        sysroot: PathBuf,
        /// Why.
        #[source]
        source: Refused,
    },
    /// A system call, file or process operation failed.
    #[error("{what}")]
    Io {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program of this machine failed.
    #[error("{what}")]
    Program {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The network's end of the cable.
    #[error("plugging the host's network card in")]
    Network(#[source] Box<super::MachineError>),
    /// A record of ours cannot be understood.
    #[error("reading {}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The host is on already.
    #[error("a host already runs from {}", .0.display())]
    Busy(PathBuf),
    /// The disk image is in use.
    #[error("{} is attached to {device}: somebody else uses it", image.display())]
    ImageInUse {
        /// The image.
        image: PathBuf,
        /// The loop device.
        device: String,
    },
    /// The image has no partition of that name.
    #[error("{} has no partition {name}: it is not a disk of a release", image.display())]
    NoPartition {
        /// The image.
        image: PathBuf,
        /// The partition's name.
        name: &'static str,
    },
    /// The disk belongs to another host, or its installation was never finished.
    #[error("{} is not a disk of {name}: {why}", image.display())]
    NotItsDisk {
        /// The image.
        image: PathBuf,
        /// The host.
        name: String,
        /// What the disk says.
        why: String,
    },
    /// The disk's mark cannot be read.
    #[error("reading the mark of {}", image.display())]
    Mark {
        /// The image.
        image: PathBuf,
        /// Why.
        #[source]
        source: crate::rim::disk::DiskError,
    },
    /// This machine cannot run hosts as containers.
    #[error("this machine cannot run hosts as containers: {0}")]
    Unable(String),
    /// Process 1 did not come up, or ended in a way that is no reboot and no power-off.
    #[error("process 1 of the host {0}")]
    Init(String),
    /// The launcher ended before the host was up.
    #[error("{name} did not start: {said}")]
    Launcher {
        /// The host.
        name: String,
        /// What it said.
        said: String,
    },
    /// A power cut found nothing to lose; the host runs on.
    #[error("no file system of {} was found that could lose what it has not synced", .0.display())]
    NothingToCut(PathBuf),
}

impl ContainerError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(super) fn path<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io { what: format!("{operation} {}", path.display()), source }
    }

    pub(super) fn program(what: impl Into<String>) -> impl FnOnce(CommandError) -> Self {
        let what = what.into();
        move |source| Self::Program { what, source }
    }
}

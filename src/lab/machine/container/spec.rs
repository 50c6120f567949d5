//! What a host is made of, as its launcher and its process 1 are told: two small JSON records.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where a host's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// A raw disk image, as `rackstep box --format raw` makes it or as an installer left it.
    Disk(PathBuf),
    /// A sysroot in a directory.
    Directory(PathBuf),
}

/// The host's network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The network, as [`crate::lab::machine::Network::open`] finds it.
    pub network: String,
    /// Name of the cable's other end, on the network's bridge.
    pub outside: String,
    /// The card's address.
    pub mac: String,
}

/// One host, for its launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its name.
    pub name: String,
    /// Directory of its console, its pid files and its mount point.
    pub dir: PathBuf,
    /// Its files.
    pub storage: Storage,
    /// Its card; none: a loopback alone.
    pub link: Option<Link>,
    /// systemd's credentials, by name.
    pub credentials: Vec<(String, String)>,
    /// Memory in MiB, kept to where control groups have controllers.
    pub memory_mib: u32,
    /// Processors, likewise.
    pub cpus: u32,
}

impl HostSpec {
    /// The record of the host in `dir`; its path stands in the launcher's command line and in nobody else's.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("container.json")
    }

    /// The launcher's number.
    pub fn pid_path(dir: &Path) -> PathBuf {
        dir.join("container.pid")
    }

    /// Number of the host's process 1, as this machine counts.
    pub fn init_path(dir: &Path) -> PathBuf {
        dir.join("init.pid")
    }

    /// Held by the launcher.
    pub fn lock_path(dir: &Path) -> PathBuf {
        dir.join("container.lock")
    }

    /// What the launcher had to say.
    pub fn log_path(dir: &Path) -> PathBuf {
        dir.join("launcher.log")
    }

    /// Where the launcher, and nobody else, sees the disk's root file system.
    pub fn sysroot_place(dir: &Path) -> PathBuf {
        dir.join("sysroot")
    }

    /// Where it sees the file system of `/var`, if the disk has one.
    pub fn state_place(dir: &Path) -> PathBuf {
        dir.join("state")
    }
}

/// What process 1 is told before it becomes systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitSpec {
    /// The host's name.
    pub name: String,
    /// The physical root.
    pub sysroot: PathBuf,
    /// The deployment below it.
    pub checkout: PathBuf,
    /// Device and inode of the deployment, as it was checked.
    pub identity: (u64, u64),
    /// What becomes `/var`.
    pub var: PathBuf,
    /// The control group that it enters.
    pub cgroup: PathBuf,
    /// The terminal that becomes `/dev/console`.
    pub console: PathBuf,
    /// Kernel arguments of the boot entry, shown in `/proc/cmdline`.
    pub options: String,
    /// systemd's credentials, by name.
    pub credentials: Vec<(String, String)>,
    /// What this machine lacks.
    pub lacks: super::lacks::Lacks,
}

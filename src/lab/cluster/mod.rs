//! A developer's cluster: machines that outlive the program, on a network that is kept, by QEMU, by libvirt or as containers
//! ([`crate::lab::machine::Hypervisor`]; nothing here knows the difference).
//!
//! 1. [`Home`]: one directory for each cluster, locked while a verb works on it;
//! 2. [`observe`]: what there is; 3. [`up`]: makes what is missing, and takes back what it made when it is stopped;
//!    [`adopt`] takes a disk that a rack imaged;
//! 4. [`rollout`]: the host verbs on every machine, in waves, with [`health`] between them; 5. [`down`].
//!
//! ```text
//! $XDG_STATE_HOME/rackstep/clusters/NAME/
//!   cluster.json                the machines, and the file that they come from
//!   ssh-key, ssh-key.pub
//!   base-<commit>.raw           disk of a release: never changes, machines' disks lie over it
//!   dnsmasq.{conf,pid,leases}
//!   machines/MACHINE/           disk.qcow2, console.log; qmp.sock, qemu.pid, or domain.xml;
//!                               of a container disk.raw, container.json, container.pid, launcher.log
//! ```
//!
//! It never touches a machine that it did not make, but by ssh.

pub mod adopt;
pub mod down;
pub mod health;
pub mod home;
pub mod network;
pub mod observe;
pub mod plan;
pub mod push;
pub mod rollout;
pub mod serve;
pub mod up;
pub mod vagrant;

use crate::lab::disk_image::DiskImageError;
use crate::lab::machine::{MachineError, Ssh};
use crate::rim::command::CommandError;
use crate::rim::files::FileError;

pub use home::{Home, Lock};

/// Listens to work on several machines at once, and may stop it.
pub trait Watcher: Sync {
    /// Something changed for `machine`.
    fn tell(&self, machine: &str, what: &str);
    /// Work on `machine` is over.
    fn end(&self, machine: &str, what: &str);
    /// Did somebody ask to stop?
    fn stopped(&self) -> bool;
}

/// A machine that can be talked to.
#[derive(Debug, Clone)]
pub struct Host<'n> {
    /// Its name in the cluster.
    pub name: String,
    /// Its shell.
    pub ssh: Ssh<'n>,
}

/// Why work on a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// A record that cannot be understood.
    #[error("reading {}", path.display())]
    Record {
        /// The record.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Somebody else works on it.
    #[error("another rackstep works on cluster {0:?}")]
    Locked(String),
    /// There is no such cluster.
    #[error("there is no cluster {0:?}")]
    Absent(String),
    /// A machine or the network.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// One of the machines.
    #[error("{machine}: {why}")]
    Unhealthy {
        /// Which.
        machine: String,
        /// What is missing.
        why: String,
    },
    /// The disk that machines begin with.
    #[error("making a disk of the release")]
    Base(#[source] DiskImageError),
    /// A program that was to be pushed.
    #[error("taking the debugging tables out of the program (Debian package: binutils)")]
    Pack(#[source] CommandError),
    /// A repo that cannot be served.
    #[error("serving {} at {url}", repo.display())]
    Serve {
        /// The repo.
        repo: std::path::PathBuf,
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A disk of another form.
    #[error("copying the disk")]
    Convert(#[source] CommandError),
    /// DHCP.
    #[error("starting dnsmasq (Debian package: dnsmasq-base)")]
    Dhcp(#[source] CommandError),
    /// Vagrant.
    #[error("asking Vagrant for its machines")]
    Vagrant(#[source] CommandError),
    /// Vagrant has no machine of ours.
    #[error("Vagrant runs no machine in {} that it logs in to as root, as it does to rackstep's boxes", .0.display())]
    NoVagrantMachine(std::path::PathBuf),
    /// Somebody stopped it.
    #[error("stopped")]
    Stopped,
}

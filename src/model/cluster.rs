//! A developer's cluster: the machines that are wanted, what is kept of them, and how a machine's shell is reached.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rack::Mac;
use super::{Commit, Ref};

/// Address of this machine on the cluster's bridge, with its prefix. All clusters have the same: each has a network of its own.
/// On libvirt that network is among this machine's, and there can be one of them at a time.
pub const BRIDGE_ADDRESS: &str = "10.90.0.1/24";
/// The same without its prefix: gateway, DHCP and name server of the machines, and where they look for releases.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
/// Domain of the machines' names, in the part of the name space that is nobody's.
pub const DOMAIN: &str = "cluster.internal";
/// The port at which machines look for releases.
pub const REPO_PORT: u16 = 8080;
/// The port of ssh servers that were not told another.
pub const DEFAULT_PORT: u16 = 22;
/// Format number of [`ClusterRecord`].
pub const RECORD_FORMAT: u32 = 1;

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the services.
    Control,
    /// Runs what the services start.
    Compute,
}

impl Role {
    /// Addresses of this role are counted from here.
    const fn first(self) -> u8 {
        match self {
            Self::Control => 10,
            Self::Compute => 100,
        }
    }

    /// How many machines of this role have an address.
    pub const fn most(self) -> u8 {
        match self {
            Self::Control => 80,
            Self::Compute => 150,
        }
    }
}

/// How machines are run: the way to say it before there were containers. [`Platform`] says it all now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Hardware virtualisation, without a look whether it works.
    Kvm,
    /// Emulation.
    Qemu,
    /// Hardware virtualisation where a kernel really boots by it.
    #[default]
    Auto,
}

/// Who runs the machines of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// QEMU, started by this program, in a network namespace. All clusters were, before there was a choice.
    #[default]
    Qemu,
    /// This machine's libvirt.
    Libvirt,
    /// This machine's own kernel: hosts are system containers.
    Container,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::Libvirt => "libvirt",
            Self::Container => "containers",
        })
    }
}

/// One machine as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMachine {
    /// Its name, which is its host name.
    pub name: String,
    /// Its address, given out by the cluster's DHCP.
    pub address: Ipv4Addr,
    /// Its card.
    pub mac: Mac,
    /// Memory in MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u32,
}

impl ClusterMachine {
    /// The machine `number` (from 1) of `role`.
    pub fn new(name: String, role: Role, number: u8, memory: u32, cpus: u32) -> Self {
        let last = role.first().saturating_add(number);
        let [a, b, c, _] = SERVER.octets();
        Self { name, address: Ipv4Addr::new(a, b, c, last), mac: Mac::emulated([b, c, last]), memory, cpus }
    }
}

/// A cluster as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its name: of its directory and of its network.
    pub name: String,
    /// The release repo.
    pub repo: Option<PathBuf>,
    /// The release of new machines: version, ref, commit or the beginning of one.
    pub release: Option<String>,
    /// ed25519 public keys, base64: the release must be signed by one of them, and the machines trust them.
    pub trusted_keys: Vec<String>,
    /// Who runs machines; none: see [`crate::lab::cluster::plan::choose_platform`].
    pub platform: Option<Platform>,
    /// How machines are run.
    pub driver: Driver,
    /// Largest size of a machine's disk in GiB.
    pub disk_gib: u64,
    /// The machines.
    pub machines: Vec<ClusterMachine>,
}

/// What is kept of a cluster between two runs of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The file that it was made from.
    pub file: PathBuf,
    /// The release repo, if there was one.
    pub repo: Option<PathBuf>,
    /// Who runs the machines.
    #[serde(default)]
    pub platform: Platform,
    /// The machines that were made, in order.
    pub machines: Vec<ClusterMachine>,
}

/// The release that new machines get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterRelease {
    /// The repo that has it.
    pub repo: PathBuf,
    /// The release.
    pub commit: Commit,
    /// As people call it.
    pub version: Option<String>,
    /// The ref that the machines follow.
    #[serde(rename = "ref")]
    pub follows: Ref,
}

/// How the shell of a machine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshTarget {
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Account.
    pub user: String,
    /// Private keys to try.
    pub keys: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_address_of_its_own() {
        let machine =
            |role, number| ClusterMachine::new(String::new(), role, number, 0, 0).address.octets()[3];
        assert_eq!((machine(Role::Control, 1), machine(Role::Compute, 1)), (11, 101));
        assert!(machine(Role::Control, Role::Control.most()) < machine(Role::Compute, 1));
        assert_eq!(machine(Role::Compute, Role::Compute.most()), 250);
        let control = ClusterMachine::new("control".into(), Role::Control, 1, 0, 0);
        assert_eq!(control.mac.to_string(), "52:54:00:5a:00:0b");
    }
}

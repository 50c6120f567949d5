//! What the installer and the rack server say to each other. JSON over HTTP, protocol version 1.
//!
//! 1. `POST /v1/machines/<mac>/inventory` with an [`Inventory`]: answered by an [`ImagingAnswer`].
//! 2. `POST /v1/machines/<mac>/events` with a [`MachineEvent`], as often as there is something to say.
//! 3. `POST /v1/machines/<mac>/booted` with a [`BootedReport`], by the *booted* host: only this makes a machine "installed".
//!
//! `<mac>` is lower case, parts divided by '-', as iPXE's `${mac:hexhyp}` prints it.

use serde::{Deserialize, Serialize};

use super::{Commit, Digest, Ref};

/// What the installer saw before it touched anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// SMBIOS system UUID.
    pub uuid: Option<String>,
    /// SMBIOS system serial number.
    pub serial: Option<String>,
    /// True when started by UEFI.
    pub uefi: bool,
    /// Bytes of memory.
    pub memory: u64,
    /// Logical processors.
    pub cpus: u32,
    /// Whole disks.
    pub disks: Vec<Disk>,
}

/// One whole disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name, such as `vda`. Not stable over boots.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Logical sector size in bytes.
    pub sector: u32,
    /// Model, trimmed.
    pub model: Option<String>,
    /// Serial number, trimmed.
    pub serial: Option<String>,
    /// World-wide name.
    pub wwn: Option<String>,
    /// Links below `/dev/disk/by-path`, without the directory.
    pub by_path: Vec<String>,
    /// True for spinning disks.
    pub rotational: bool,
    /// True for removable media.
    pub removable: bool,
    /// Transport (`nvme`, `sata`, `virtio`, `iscsi`, …).
    pub transport: Option<String>,
    /// What was found on it: partition table, file systems, RAID or LVM members; empty: blank.
    pub contents: Vec<String>,
}

/// Which disk a host's operating system goes to. Every given field must match; the rule must match one disk alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    /// Serial number, whole.
    pub serial: Option<String>,
    /// World-wide name, whole.
    pub wwn: Option<String>,
    /// Model, whole.
    pub model: Option<String>,
    /// A link below `/dev/disk/by-path`.
    pub path: Option<String>,
    /// Smallest size in bytes.
    pub min_size: Option<u64>,
    /// Largest size in bytes.
    pub max_size: Option<u64>,
    /// May a disk that holds data be wiped?
    #[serde(default)]
    pub wipe: bool,
}

/// The server's answer to an inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum ImagingAnswer {
    /// Image this machine.
    Image(Box<ImagingPlan>),
    /// Do not touch it; the reasons are for people.
    Refuse {
        /// One sentence each.
        reasons: Vec<String>,
    },
}

/// Everything that the installer needs; no decision is left to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagingPlan {
    /// Used once; bound to host, disk and release.
    pub order: String,
    /// Host name; empty in a disk image of which many machines are made: each gets its name from outside.
    pub host: String,
    /// The one disk, as the inventory told it; the installer checks that it is still so.
    pub disk: Disk,
    /// What will be lost, for the report.
    pub wiped: Vec<String>,
    /// The release.
    pub commit: Commit,
    /// The ref that the host will follow.
    #[serde(rename = "ref")]
    pub follows: Ref,
    /// Base URL of the release repo.
    pub repo: String,
    /// Base URL of the repo that the host is to follow, where that is another: a disk image is made from a local repo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_repo: Option<String>,
    /// ed25519 public keys, base64.
    pub trusted_keys: Vec<String>,
    /// Kernel arguments besides root= and ostree=.
    pub kernel_arguments: Vec<String>,
    /// Lines for root's authorized_keys.
    pub ssh_keys: Vec<String>,
    /// The interface by which it was booted.
    pub mac: String,
    /// Static address with prefix, or none for DHCP.
    pub address: Option<String>,
    /// Default gateway.
    pub gateway: Option<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Base URL of the rack server.
    pub rack_server: String,
}

/// One thing that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEvent {
    /// The order that is being carried out.
    pub order: Option<String>,
    /// Step, such as `partition`, `pull`, `deploy`, `bootloader`, `done`, `failed`.
    pub step: String,
    /// For people.
    pub message: String,
    /// Bytes done and in all, for long steps.
    pub progress: Option<(u64, u64)>,
}

/// What a host booted from its disk says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootedReport {
    /// The booted commit.
    pub commit: Commit,
    /// Config digests of the images present in Docker, of those that are pinned.
    pub images: Vec<Digest>,
    /// True when every pod runs its pinned image.
    pub ready: bool,
}

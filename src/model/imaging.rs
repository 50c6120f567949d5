//! What the installer and the rack server say to each other. JSON over HTTP, protocol version 2.
//!
//! 1. `POST /v1/machines/<mac>/inventory` with an [`Inventory`]: answered by an [`ImagingAnswer`].
//! 2. `POST /v1/machines/<mac>/events` with a [`MachineEvent`], as often as there is something to say.
//! 3. `POST /v1/machines/<mac>/booted` with a [`BootedReport`], by the *booted* host.
//!
//! `<mac>` is lower case, parts divided by '-', as iPXE's `${mac:hexhyp}` prints it. Each request carries the attempt's secret
//! (`Authorization: Bearer <secret>`), which netboot puts on the installer's kernel command line ([`SECRET_ARGUMENT`]) and the
//! installer into the host's [`SECRET_FILE`]; 403 without it. The secret of an attempt is void when the next one has reported.
//!
//! An installation tells what it is by a mark on its disk ([`DiskMark`]), so that nothing depends on a server's memory.

use serde::{Deserialize, Serialize};

use super::{Commit, Digest, Ref};

/// The kernel argument that hands an attempt's secret to the installer.
pub const SECRET_ARGUMENT: &str = "rackstep.secret";

/// Where a host keeps the secret that it calls home with, below its root. Mode 0600.
pub const SECRET_FILE: &str = "etc/rackstep/rack-secret";

/// Its name beside the host's configuration.
pub const SECRET_NAME: &str = "rack-secret";

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
    /// The mark of an installation of ours, if what it speaks of is what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<DiskMark>,
}

/// What an installation says of itself on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMark {
    /// The host that it belongs to.
    pub host: String,
    /// `reimage` of that host when the order was given.
    pub generation: u32,
    /// The order.
    pub order: String,
    /// How far it came.
    pub state: MarkState,
    /// SHA-256 of the secret that the installed host calls home with, in hexadecimal digits; empty: it has none.
    #[serde(default)]
    pub secret: String,
}

/// How far an installation came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkState {
    /// Begun and never sealed: nothing on the disk has ever been able to boot.
    Unfinished,
    /// Sealed: it can have booted, and what is on it may be somebody's only copy.
    Installed,
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
    /// Smallest size in bytes; rack files may use units ([`super::size`]).
    #[serde(default, deserialize_with = "super::size::read_option")]
    pub min_size: Option<u64>,
    /// Largest size in bytes, likewise.
    #[serde(default, deserialize_with = "super::size::read_option")]
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
    /// It is imaged already, as its disk says: restart, and boot from it.
    BootDisk {
        /// One sentence.
        reason: String,
    },
    /// Do not touch it; the reasons are for people.
    Refuse {
        /// One sentence each.
        reasons: Vec<String>,
    },
}

/// Everything that the installer needs. It looks once more and refuses what it may not wipe, whatever the plan says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagingPlan {
    /// Used once; bound to host, disk and release.
    pub order: String,
    /// Host name; empty in a disk image of which many machines are made: each gets its name from outside.
    pub host: String,
    /// The host's generation: `reimage` in the rack file.
    #[serde(default)]
    pub generation: u32,
    /// The one disk, as the inventory told it; the installer checks that it is still so.
    pub disk: Disk,
    /// What will be lost, for the report.
    pub wiped: Vec<String>,
    /// The operator's leave to wipe what is not ours.
    #[serde(default)]
    pub wipe: bool,
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

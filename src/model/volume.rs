//! `volumes.json`: the state that a release's services keep on the host, and what a rollback may do to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The format number that this program writes and reads.
pub const VOLUMES_FORMAT: u32 = 1;

/// Every volume of a release, by name: a directory below `/var/lib/rackstep/state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSet {
    /// [`VOLUMES_FORMAT`].
    pub format: u32,
    /// Name → what it is.
    pub volumes: BTreeMap<String, Volume>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// What a rollback may do to it.
    pub policy: VolumePolicy,
    /// `uid:gid` that it is made with; services usually give it to themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Octal mode that it is made with, such as `"0750"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// What a rollback may do to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumePolicy {
    /// Kept per release; a rollback may restore it (databases).
    Snapshot,
    /// Never rolled back (keys, user data).
    Keep,
    /// May be lost at any time (queues, caches).
    Disposable,
}

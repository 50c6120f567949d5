//! `phases.json`: the ordered one-shot steps that a release's services need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The format number that this program writes and reads.
pub const PHASES_FORMAT: u32 = 1;

/// All phases of a release, in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSet {
    /// [`PHASES_FORMAT`].
    pub format: u32,
    /// The steps.
    pub phases: Vec<Phase>,
    /// Pod → phases that must have run, if they are due, before it starts.
    #[serde(default)]
    pub pods_after: BTreeMap<String, Vec<String>>,
}

/// When a phase is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseKind {
    /// Once in the life of a host's state.
    Bootstrap,
    /// Once per image; only adds, so that the previous release still runs.
    Expand,
    /// Once per image; moves data.
    Migrate,
    /// Once per image, after the release is confirmed; removes what the previous release needed.
    Contract,
}

/// One step: a container that runs to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Unique in the release, such as `keystone-db-expand`.
    pub id: String,
    /// The service that it belongs to.
    pub service: String,
    /// When it is due.
    pub kind: PhaseKind,
    /// Pinned image, by its name in the pin set.
    pub image: String,
    /// What follows the image's entrypoint.
    pub command: Vec<String>,
    /// Environment, over that of the pod.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The pod whose first container's mounts and environment it takes.
    pub pod: String,
    /// Pods (`pod/<name>`) that must be ready, and phases (`phase/<id>`) that must have run if they are due, before it runs.
    #[serde(default)]
    pub needs: Vec<String>,
    /// `uid[:gid]` that it runs as, where that is not the user of its pod's first container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

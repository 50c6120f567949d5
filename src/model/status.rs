//! `rackstep status --json`, format 1: every deployment with its release and images, and what runs against what is pinned.

use serde::{Deserialize, Serialize};

use super::newest::KnownRelease;
use super::{Commit, Deployment, Digest};

/// The format number that this program writes.
pub const STATUS_FORMAT: u32 = 1;

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_FORMAT`].
    pub format: u32,
    /// Host name, if it is configured.
    pub host: Option<String>,
    /// The newest release that the host has accepted of the ref that it follows. One that grows old is a repo without news,
    /// or one that somebody keeps from telling them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<NewestStatus>,
    /// The commit that runs, if this sysroot is booted.
    pub booted: Option<Commit>,
    /// Its address; a name is known to nobody but to those who were told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What the boot is at; none: it is over, so that what does not run is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootStatus>,
    /// Kernel release that runs, as `uname -r` prints it.
    pub kernel: String,
    /// Why what runs is not wholly the release: a developer's program lies over the release's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlocked: Option<String>,
    /// In boot order.
    pub deployments: Vec<DeploymentStatus>,
    /// Containers of the booted release's pods.
    pub services: Vec<ContainerStatus>,
    /// Why something waits; empty: nothing does.
    pub waiting: Vec<String>,
}

/// The newest accepted release of a ref.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestStatus {
    /// The ref.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The release.
    #[serde(flatten)]
    pub release: KnownRelease,
    /// Its age in seconds, by the host's clock.
    pub age: u64,
}

/// A boot that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStatus {
    /// Seconds since it began.
    pub since: u64,
    /// Containers that run from their pinned images.
    pub up: usize,
    /// Containers of the release.
    pub all: usize,
}

impl BootStatus {
    /// A boot that began `since` seconds ago, with the services that it is to bring up.
    pub fn new(since: u64, services: &[ContainerStatus]) -> Self {
        let up = services.iter().filter(|container| container.running == Some(container.expected));
        Self { since, up: up.count(), all: services.len() }
    }
}

/// One deployment and its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// The deployment.
    #[serde(flatten)]
    pub deployment: Deployment,
    /// Pinned images.
    pub images: Vec<ImageStatus>,
}

/// One pinned image of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// Name in the pods.
    pub name: String,
    /// Config digest: its Id in Docker.
    pub config: Digest,
    /// Is it in Docker? None: Docker could not be asked.
    pub present: Option<bool>,
}

/// One container of a pod: what is pinned against what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Pod.
    pub pod: String,
    /// Container in the pod.
    pub container: String,
    /// Image by its name in the pin set.
    pub image: String,
    /// Id that is pinned.
    pub expected: Digest,
    /// Id that runs; none: it does not run.
    pub running: Option<Digest>,
}

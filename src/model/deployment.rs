//! Deployments as `status` shows them.

use serde::{Deserialize, Serialize};

use super::{Commit, DeploymentId};

/// What a deployment is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Prepared; becomes the next boot only when it is unlocked.
    StagedLocked,
    /// Becomes the next boot when the host shuts down.
    Staged,
    /// The next boot, but not what runs.
    Pending,
    /// What runs.
    Booted,
    /// What ran before, or what would run after a rollback.
    Rollback,
}

/// One deployment of a sysroot, in boot order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Which.
    #[serde(flatten)]
    pub id: DeploymentId,
    /// What it is to the host.
    pub role: Role,
    /// True for the one that the next boot takes.
    pub next_boot: bool,
    /// Version in the commit's metadata.
    pub version: Option<String>,
    /// Where it is checked out, below the sysroot.
    pub path: String,
}

/// Version and short commit, as people say it.
pub fn name_release(version: Option<&str>, commit: Commit) -> String {
    match version {
        Some(version) => format!("{version} ({})", commit.short()),
        None => commit.short(),
    }
}

/// The deployment that `rollback` would go back to: the first that is neither what runs nor waiting to run.
pub fn rollback_target(deployments: &[Deployment]) -> Option<&Deployment> {
    deployments.iter().find(|deployment| deployment.role == Role::Rollback)
}

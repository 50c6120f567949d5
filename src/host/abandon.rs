//! Gives up what is prepared or waits for the reboot: what runs stays the next boot.

use crate::host::history::begin;
use crate::host::places::Places;
use crate::model::Commit;
use crate::model::deployment::Role;
use crate::model::history::{ActVerb, Outcome};
use crate::ostree::sysroot::{Sysroot, SysrootError};
use crate::rim::versioned::VersionedError;

/// What was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// Nothing was there.
    Nothing,
    /// This release.
    Release(Commit),
}

/// Why nothing was given up.
#[derive(Debug, thiserror::Error)]
pub enum AbandonError {
    /// The deployments.
    #[error("giving up what is staged")]
    Sysroot(#[from] SysrootError),
    /// The act could not be taken note of.
    #[error(transparent)]
    History(#[from] VersionedError),
}

/// Gives up the staged release, proven or not: one rename less at the shutdown, and nothing else. What was pulled stays until
/// `gc`. The sysroot must be locked.
pub fn abandon(sysroot: &Sysroot, places: &Places, who: &str) -> Result<Abandoned, AbandonError> {
    let staged = |role| matches!(role, Role::Staged | Role::StagedLocked);
    let deployments = sysroot.deployments()?;
    let Some(found) = deployments.iter().find(|deployment| staged(deployment.role)) else {
        return Ok(Abandoned::Nothing);
    };
    let commit = found.id.commit;
    let act = begin(&places.history(), ActVerb::Abandon, Some((commit, found.version.clone())), who, None)?;
    sysroot.discard_staged()?;
    act.end(Outcome::Done, None)?;
    Ok(Abandoned::Release(commit))
}

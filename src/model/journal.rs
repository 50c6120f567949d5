//! `/var/lib/rackstep/phases.json`: which phases ran on this host's state.

use serde::{Deserialize, Serialize};

use super::{Commit, Digest};

/// The format number that this program writes and reads.
pub const JOURNAL_FORMAT: u32 = 1;

/// Every phase that ran to its good end, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseJournal {
    /// [`JOURNAL_FORMAT`].
    pub format: u32,
    /// What ran.
    pub records: Vec<PhaseRecord>,
}

impl Default for PhaseJournal {
    fn default() -> Self {
        Self { format: JOURNAL_FORMAT, records: Vec::new() }
    }
}

/// One phase that ran to its good end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseRecord {
    /// The phase's id.
    pub phase: String,
    /// Config digest of the image that it ran from.
    pub image: Digest,
    /// The release that it belonged to.
    pub release: Commit,
    /// When that release was locked: tells an older release from a newer one.
    pub created: u64,
}

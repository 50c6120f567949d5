//! `/var/lib/rackstep/newest.json`: the newest release that this host has accepted of each ref that it followed.
//!
//! A repo that is frozen, or set back, cannot be told from one without news by what it sends; only by what it sent before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Commit;

/// The format number that this program writes and reads.
pub const NEWEST_FORMAT: u32 = 1;

/// The newest accepted release of each ref.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Newest {
    /// [`NEWEST_FORMAT`].
    pub format: u32,
    /// Ref → its newest release. A host that follows another ref begins there anew.
    pub refs: BTreeMap<String, KnownRelease>,
}

impl Default for Newest {
    fn default() -> Self {
        Self { format: NEWEST_FORMAT, refs: BTreeMap::new() }
    }
}

/// A release that was accepted: every object of it was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownRelease {
    /// Its commit.
    pub commit: Commit,
    /// The version that people say.
    pub version: Option<String>,
    /// When it was made, in seconds since 1970, as its commit says under the signature.
    pub created: u64,
}

impl Newest {
    /// Takes note of an accepted release of a ref; false: one that is as new was known.
    pub fn note(&mut self, reference: &str, release: KnownRelease) -> bool {
        match self.refs.get(reference) {
            Some(known) if known.created >= release.created => false,
            _ => {
                self.refs.insert(reference.to_owned(), release);
                true
            }
        }
    }
}

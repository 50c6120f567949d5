//! `release.json`: what a release says of itself, under the commit's checksum and signature.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The format number that this program writes and reads.
pub const RELEASE_FORMAT: u32 = 1;

/// A release's own description, format 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseInfo {
    /// [`RELEASE_FORMAT`].
    pub format: u32,
    /// The treefile's name.
    pub name: String,
    /// The version that people say.
    pub version: String,
    /// Seconds since 1970, from the lock: never the time of the compose.
    pub created: u64,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Services in the order in which they were named.
    pub services: Vec<String>,
    /// Distribution packages of the host tree: name → version.
    pub packages: BTreeMap<String, String>,
    /// Versions that may be upgraded to this one; empty: any.
    #[serde(default)]
    pub upgrade_from: Vec<String>,
}

//! Distribution packages, resolved to bytes.

use serde::{Deserialize, Serialize};

use super::Digest;

/// Which of a distribution's archives a package comes from; never a host name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archive {
    /// The distribution's main archive.
    #[default]
    Main,
    /// The archive of security updates.
    Security,
}

impl Archive {
    /// The archive that holds `suite`.
    pub fn of_suite(suite: &str) -> Self {
        if suite.ends_with("-security") { Self::Security } else { Self::Main }
    }
}

/// One distribution package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version as the distribution writes it, epoch included.
    pub version: String,
    /// Architecture, `all` included.
    pub architecture: String,
    /// Digest of the package file.
    pub sha256: Digest,
    /// Bytes of the package file.
    pub size: u64,
    /// Where it comes from.
    pub archive: Archive,
    /// Path of the package file in its archive.
    pub path: String,
}

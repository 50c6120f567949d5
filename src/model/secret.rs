//! `secrets.json`: the secrets that a release's services need. Names and kinds alone: values are made on the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The format number that this program writes and reads.
pub const SECRETS_FORMAT: u32 = 1;

/// Every secret of a release, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretSet {
    /// [`SECRETS_FORMAT`].
    pub format: u32,
    /// Name → how it is made.
    pub secrets: BTreeMap<String, Secret>,
}

/// How a secret comes into being, once in the life of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// What is made.
    pub generate: SecretKind,
}

/// Kinds of secret that a host can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// Letters and digits, safe in any configuration file and in URLs.
    Password,
}

//! ostree's own nouns: commits, refs and deployments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::parse_hex32;

/// An ostree commit: the sha256 of its commit object, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commit([u8; 32]);

/// Why a text is not a commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a commit (64 lower-case hexadecimal digits)")]
pub struct ParseCommitError(pub String);

impl Commit {
    /// Takes a finished sha256 of a commit object.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first ten digits, as shown to people.
    pub fn short(&self) -> String {
        self.hex()[..10].to_owned()
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Commit {
    type Err = ParseCommitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex32(text).map(Self).ok_or_else(|| ParseCommitError(text.to_owned()))
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Commit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Commit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A moving ostree name, such as `rackstep/x86_64/openstack-host`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ref(String);

/// Why a text is not a ref.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a ref (letters, digits, '.', '_', '-' in parts divided by '/')")]
pub struct ParseRefError(pub String);

/// Where released versions are named in a repo: `releases/<name>/<version>`.
pub const RELEASE_REFS: &str = "releases/";

/// The version that a ref names, if it is one of [`RELEASE_REFS`].
pub fn version_in_ref(name: &str) -> Option<&str> {
    release_in_ref(name).map(|(_, version)| version)
}

/// The name of the releases to which a ref belongs, if it is one of [`RELEASE_REFS`].
pub fn name_in_ref(name: &str) -> Option<&str> {
    release_in_ref(name).map(|(name, _)| name)
}

fn release_in_ref(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(RELEASE_REFS)?.split_once('/')
}

impl Ref {
    /// The ref's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Ref {
    type Err = ParseRefError;

    /// Follows libostree's `ostree_validate_rev`: no empty part, no part that starts with '.' or '-'.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part_is_good = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if text.split('/').all(part_is_good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseRefError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Ref {
    type Error = ParseRefError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ref> for String {
    fn from(name: Ref) -> Self {
        name.0
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A commit checked out in a stateroot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeploymentId {
    /// The `/var` it shares (ostree's "osname").
    pub stateroot: String,
    /// What it is a checkout of.
    pub commit: Commit,
    /// Tells several checkouts of one commit apart.
    pub serial: u32,
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.commit, self.serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs() {
        for good in ["main", "rackstep/x86_64/openstack-host", "a.b/c_d"] {
            assert!(good.parse::<Ref>().is_ok(), "{good}");
        }
        for bad in ["", "/", "a//b", "a/", "../x", "-x", "a b", ".hid"] {
            assert!(bad.parse::<Ref>().is_err(), "{bad}");
        }
    }
}

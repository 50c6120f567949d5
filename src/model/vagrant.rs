//! What Vagrant reads: a box's `metadata.json`, and the catalogue by which `vagrant box update` finds newer versions.
//!
//! Forms: Vagrant's "Box File Format" and vagrant-libvirt's "Boxes", version 1 of the latter (one disk, `box.img`). A
//! catalogue may have been edited by people: what we do not know of it is kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Digest;

/// Vagrant's name of the provider that our boxes are for.
pub const PROVIDER: &str = "libvirt";
/// Vagrant's name of the only architecture that releases are made for.
const ARCHITECTURE: &str = "amd64";

/// A box's name as Vagrant knows it: `name` or `somebody/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxName(String);

/// Why a text is not the name of a box.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name for a box (letters, digits, '.', '_', '-', and one '/' at most)")]
pub struct ParseBoxNameError(pub String);

impl FromStr for BoxName {
    type Err = ParseBoxNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part_is_good = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if text.split('/').count() <= 2 && text.split('/').all(part_is_good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseBoxNameError(text.to_owned()))
        }
    }
}

impl BoxName {
    /// The part that files are named after.
    pub fn stem(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, stem)| stem)
    }
}

impl fmt::Display for BoxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Does Vagrant take `text` for a version? It asks RubyGems, and refuses the whole catalogue for one that is none.
pub fn is_box_version(text: &str) -> bool {
    let (release, before) = text.split_once('-').map_or((text, None), |(a, b)| (a, Some(b)));
    let words = |text: &str, more: &str| {
        text.split('.').all(|word| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        })
    };
    release.split('.').next().is_some_and(|first| first.chars().all(|c| c.is_ascii_digit()))
        && words(release, "")
        && before.is_none_or(|before| words(before, "-"))
}

/// `metadata.json` inside a box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BoxMetadata {
    provider: &'static str,
    architecture: &'static str,
    format: &'static str,
    /// Size of the disk in GiB, which Vagrant calls GB.
    virtual_size: u64,
}

impl BoxMetadata {
    /// That of a box with one disk of `gib` GiB.
    pub const fn with_disk(gib: u64) -> Self {
        Self { provider: PROVIDER, architecture: ARCHITECTURE, format: "qcow2", virtual_size: gib }
    }
}

/// Every version of a box and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// The box's name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Oldest entry first; Vagrant sorts for itself.
    #[serde(default)]
    pub versions: Vec<BoxVersion>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// One version of a box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxVersion {
    /// The version.
    pub version: String,
    /// One file for each provider.
    #[serde(default)]
    pub providers: Vec<BoxFile>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// One file of a box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxFile {
    /// Whom it is for.
    pub name: String,
    /// Where it is.
    pub url: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl BoxFile {
    /// A file of ours.
    pub fn new(url: String, digest: Digest) -> Self {
        let more = [
            ("checksum_type", Value::from("sha256")),
            ("checksum", Value::from(digest.hex())),
            ("architecture", Value::from(ARCHITECTURE)),
            ("default_architecture", Value::from(true)),
        ];
        let more = more.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { name: PROVIDER.to_owned(), url, more }
    }
}

impl Catalogue {
    /// One without versions.
    pub fn new(name: &BoxName, description: String) -> Self {
        Self { name: name.to_string(), description, versions: Vec::new(), more: Map::new() }
    }

    /// Enters a file for a version, in the place of an earlier one for the same version and provider.
    pub fn put(&mut self, version: &str, file: BoxFile) {
        let known = self.versions.iter_mut().find(|known| known.version == version);
        let Some(known) = known else {
            let version = version.to_owned();
            self.versions.push(BoxVersion { version, providers: vec![file], more: Map::new() });
            return;
        };
        known.providers.retain(|other| other.name != file.name);
        known.providers.push(file);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names() {
        for (name, stem) in [("rackstep", "rackstep"), ("acme/open-stack_1.0", "open-stack_1.0")] {
            assert_eq!(name.parse::<BoxName>().unwrap().stem(), stem);
        }
        for bad in ["", "a/b/c", "/a", "a/", "a b", "../x", "-a"] {
            assert!(bad.parse::<BoxName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_as_rubygems_has_them() {
        for good in ["1", "1.0.0", "2026.11.22", "1.0.0.rc1", "1.0.0-rc.1", "1.0-a-b"] {
            assert!(is_box_version(good), "{good}");
        }
        for bad in ["", "v1.0", "1..0", "1.0+x", "1.0_2", "main", "1.0-", "a.1", "1.0-rc..1"] {
            assert!(!is_box_version(bad), "{bad}");
        }
    }

    #[test]
    fn metadata_as_vagrant_libvirt_reads_it() {
        assert_eq!(
            serde_json::to_value(BoxMetadata::with_disk(40)).unwrap(),
            json!({"provider": "libvirt", "architecture": "amd64", "format": "qcow2", "virtual_size": 40})
        );
    }

    #[test]
    fn a_catalogue_grows_and_keeps_what_people_wrote() {
        let text = r#"{
            "name": "acme/host", "description": "ours", "short_description": "by hand",
            "versions": [{"version": "1.0.0", "status": "active", "providers": [
                {"name": "virtualbox", "url": "file:///v.box"},
                {"name": "libvirt", "url": "file:///old.box", "checksum": "00", "checksum_type": "sha256"}]}]}"#;
        let mut catalogue: Catalogue = serde_json::from_str(text).unwrap();
        catalogue.put("1.0.0", BoxFile::new("file:///1.box".into(), Digest::of(b"1")));
        catalogue.put("2.0.0", BoxFile::new("file:///2.box".into(), Digest::of(b"2")));
        let file = |url: &str, checksum: &str| {
            json!({"name": "libvirt", "url": url, "checksum_type": "sha256", "checksum": checksum,
                   "architecture": "amd64", "default_architecture": true})
        };
        assert_eq!(
            serde_json::to_value(&catalogue).unwrap(),
            json!({
                "name": "acme/host", "description": "ours", "short_description": "by hand",
                "versions": [
                    {"version": "1.0.0", "status": "active", "providers": [
                        {"name": "virtualbox", "url": "file:///v.box"},
                        file("file:///1.box", "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b")]},
                    {"version": "2.0.0", "providers": [
                        file("file:///2.box", "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35")]},
                ],
            })
        );
    }
}

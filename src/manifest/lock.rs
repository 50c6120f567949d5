//! The lock: what a treefile resolved to, exactly. Format 1.
//!
//! Written by `rackstep lock`, read by `rackstep compose`; sorted and stable, so that a diff of two locks
//! is the difference of two releases. It names no host: package paths are relative to their archive.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{InputError, SourceText};
use crate::model::{Digest, Package, PinnedImage};

/// The format number that this program writes and reads.
pub const LOCK_FORMAT: u32 = 1;

/// What a treefile resolved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`LOCK_FORMAT`].
    pub format: u32,
    /// The treefile's name.
    pub name: String,
    /// Seconds since 1970; becomes the commit's time.
    pub created: u64,
    /// Suites that the packages were resolved from.
    pub suites: Vec<String>,
    /// Architecture of the tree, as the distribution names it.
    pub architecture: String,
    /// Packages asked for in the treefile, to notice that a lock is out of date.
    pub requested: Vec<String>,
    /// Programs that no package has.
    pub binaries: Vec<LockedBinary>,
    /// Container images, by the name that pods use.
    pub images: BTreeMap<String, PinnedImage>,
    /// Every package of the tree, by name.
    pub packages: Vec<Package>,
}

/// A program, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedBinary {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of the file.
    pub sha256: Digest,
    /// Bytes.
    pub size: u64,
}

impl Lock {
    /// Parses a lock.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, InputError> {
        let source = SourceText::new(file_name, text);
        let lock: Self = source.parse()?;
        if lock.format != LOCK_FORMAT {
            return Err(source.error(
                "format",
                &lock.format.to_string(),
                format!("format {} is not known, expected {LOCK_FORMAT}", lock.format),
            ));
        }
        for package in &lock.packages {
            if package.path.starts_with('/') || package.path.split('/').any(|part| part == "..") {
                return Err(source.error(
                    "packages",
                    &package.path,
                    format!("package {}: path {:?} leaves its archive", package.name, package.path),
                ));
            }
        }
        Ok(lock)
    }

    /// The lock as text; equal locks give equal text.
    pub fn render(&self) -> Result<String, serde_yaml_ng::Error> {
        let mut sorted = self.clone();
        sorted.packages.sort();
        sorted.binaries.sort_by(|a, b| a.name.cmp(&b.name));
        let body = serde_yaml_ng::to_string(&sorted)?;
        Ok(format!("# Written by `rackstep lock`: change the treefile, not this file.\n{body}"))
    }

    /// Bytes of all package files.
    pub fn package_bytes(&self) -> u64 {
        self.packages.iter().map(|package| package.size).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{Archive, PinnedLayer};

    pub(crate) fn example() -> Lock {
        let package = |name: &str| Package {
            name: name.into(),
            version: "1:2.3-4".into(),
            architecture: "amd64".into(),
            sha256: Digest::of(name.as_bytes()),
            size: 5,
            archive: Archive::Main,
            path: format!("pool/main/{name}.deb"),
        };
        let pinned = PinnedImage {
            reference: "image.yaml".into(),
            manifest: Digest::of(b"m"),
            config: Digest::of(b"c"),
            layers: vec![PinnedLayer { diff_id: Digest::of(b"l"), size: 7 }],
        };
        Lock {
            format: LOCK_FORMAT,
            name: "host".into(),
            created: 1_700_000_000,
            suites: vec!["trixie".into()],
            architecture: "amd64".into(),
            requested: vec!["bash".into()],
            binaries: vec![],
            images: BTreeMap::from([("keystone".into(), pinned)]),
            packages: vec![package("zlib"), package("bash")],
        }
    }

    #[test]
    fn round_trip_and_order() {
        let mut lock = example();
        let text = lock.render().unwrap();
        let read = Lock::parse(&text, "l").unwrap();
        lock.packages.sort();
        assert_eq!(read, lock);
        assert_eq!(read.render().unwrap(), text, "rendering is stable");
        assert!(text.find("name: bash").unwrap() < text.find("name: zlib").unwrap());
    }

    #[test]
    fn refuses() {
        let text = example().render().unwrap();
        let table = [
            (text.replace("format: 1", "format: 9"), "format 9 is not known, expected 1"),
            (text.replace("pool/main/bash.deb", "../../etc/passwd"), "leaves its archive"),
            (text.replace("sha256: sha256:", "sha256: md5:"), "does not start with \"sha256:\""),
            (text.replace("created:", "creatd:"), "unknown field `creatd`"),
        ];
        for (text, expected) in table {
            let told = Lock::parse(&text, "l.yaml").unwrap_err().to_string();
            assert!(told.starts_with("l.yaml:") && told.contains(expected), "{told}");
        }
    }
}

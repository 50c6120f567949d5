//! The lock: what a treefile resolved to, exactly. Format 1.
//!
//! Written by `rackstep lock`, read by `rackstep compose`; sorted and stable, so that a diff of two locks
//! is the difference of two releases. It names no host: package paths are relative to their archive.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::place::{InputError, SourceText};
use crate::model::{Digest, Package, PinnedImage, PinnedLayer};

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
    /// Components of each suite besides `main`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<String>,
    /// Architecture of the tree, as the distribution names it.
    pub architecture: String,
    /// Packages asked for in the treefile, to notice that a lock is out of date.
    pub requested: Vec<String>,
    /// Programs that no package has.
    pub binaries: Vec<LockedBinary>,
    /// Container images, by the name that pods use.
    pub images: BTreeMap<String, LockedImage>,
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

/// A container image, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedImage {
    /// Where it comes from, as the treefile or service says.
    pub reference: String,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its config.
    pub config: Digest,
    /// Layers, lowest first.
    pub layers: Vec<LockedLayer>,
}

/// One layer of a locked image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedLayer {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of its uncompressed tar; none: a registry has it, and only pulling it would tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl LockedImage {
    /// The image as releases pin it; `size_of` is asked for what the lock does not know.
    pub fn pinned(&self, size_of: impl Fn(Digest) -> u64) -> PinnedImage {
        let layers = self.layers.iter().map(|layer| PinnedLayer {
            diff_id: layer.diff_id,
            size: layer.size.unwrap_or_else(|| size_of(layer.diff_id)),
        });
        PinnedImage {
            reference: self.reference.clone(),
            manifest: self.manifest,
            config: self.config,
            layers: layers.collect(),
        }
    }
}

impl From<PinnedImage> for LockedImage {
    fn from(image: PinnedImage) -> Self {
        let layers = image.layers.into_iter();
        let layers = layers.map(|layer| LockedLayer { diff_id: layer.diff_id, size: Some(layer.size) });
        Self {
            reference: image.reference,
            manifest: image.manifest,
            config: image.config,
            layers: layers.collect(),
        }
    }
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
    use crate::model::Archive;

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
        let of = |reference: &str, size| LockedImage {
            reference: reference.into(),
            manifest: Digest::of(b"m"),
            config: Digest::of(b"c"),
            layers: vec![LockedLayer { diff_id: Digest::of(b"l"), size }],
        };
        let images =
            [("keystone".into(), of("image.yaml", Some(7))), ("pulled".into(), of("q.io/p:1", None))];
        Lock {
            format: LOCK_FORMAT,
            name: "host".into(),
            created: 1_700_000_000,
            suites: vec!["trixie".into()],
            components: vec![],
            architecture: "amd64".into(),
            requested: vec!["bash".into()],
            binaries: vec![],
            images: BTreeMap::from(images),
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
        assert_eq!(text.matches("size: 7").count(), 1, "{text}");
        let sizes: Vec<u64> = lock.images.values().map(|image| image.pinned(|_| 9).size()).collect();
        assert_eq!(sizes, [7, 9]);
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

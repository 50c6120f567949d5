//! The pin set: every container image of a release, by content.
//!
//! `pins.json`, format 1. All three digests are recorded because Docker's classic store names an image by its config
//! digest, its containerd store by its manifest digest, and both check a layer by its diff-id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Commit, Digest};

/// The format number that this program writes and reads.
pub const PINS_FORMAT: u32 = 1;

/// Every pinned image of one release, by the name that pods use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinSet {
    /// [`PINS_FORMAT`].
    pub format: u32,
    /// Name in the pod files → image.
    pub images: BTreeMap<String, PinnedImage>,
}

/// One container image, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedImage {
    /// The image as asked for: `registry/name:tag`, or the path of a recipe or OCI layout.
    pub reference: String,
    /// Digest of the image's manifest.
    pub manifest: Digest,
    /// Digest of the image's config: its Id in Docker's classic store.
    pub config: Digest,
    /// Layers, lowest first.
    pub layers: Vec<PinnedLayer>,
}

/// One layer of a pinned image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedLayer {
    /// Digest of the layer's uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub size: u64,
}

impl PinnedImage {
    /// Bytes of all layers, uncompressed.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// The chain of each layer, lowest first: what Docker calls the layer *on top of those below it*.
    pub fn chains(&self) -> Vec<Digest> {
        chains(self.layers.iter().map(|layer| layer.diff_id))
    }
}

/// Chain of each diff-id over those before it (OCI image specification, `config.md`, "Layer ChainID").
pub fn chains(diff_ids: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let chain = match chains.last() {
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
            None => diff_id,
        };
        chains.push(chain);
    }
    chains
}

/// Why a text is not a pin set.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// It is not the JSON that it should be.
    #[error("reading pins.json of release {commit}")]
    Json {
        /// The release.
        commit: Commit,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another format.
    #[error("pins.json of release {commit} is of format {got}, expected {PINS_FORMAT}")]
    Format {
        /// The release.
        commit: Commit,
        /// Its format.
        got: u32,
    },
}

/// The pin set of one release: the three parts cannot be put together by hand, only read from the release's own bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasePins {
    commit: Commit,
    digest: Digest,
    pins: PinSet,
}

impl ReleasePins {
    /// Takes the bytes of `pins.json` as they stand in `commit`.
    pub fn parse(commit: Commit, pins_json: &[u8]) -> Result<Self, PinsError> {
        let pins: PinSet =
            serde_json::from_slice(pins_json).map_err(|source| PinsError::Json { commit, source })?;
        if pins.format != PINS_FORMAT {
            return Err(PinsError::Format { commit, got: pins.format });
        }
        Ok(Self { commit, digest: Digest::of(pins_json), pins })
    }

    /// The release.
    pub const fn commit(&self) -> Commit {
        self.commit
    }

    /// Digest of the bytes of `pins.json`.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The pin set.
    pub const fn pins(&self) -> &PinSet {
        &self.pins
    }

    /// Every pinned image with the name that pods use.
    pub fn images(&self) -> impl Iterator<Item = (&str, &PinnedImage)> {
        self.pins.images.iter().map(|(name, image)| (name.as_str(), image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values by `printf '<chain> <diff-id>' | sha256sum`.
    #[test]
    fn chains_are_those_of_the_specification() {
        let a = Digest::of(b"a");
        let b = Digest::of(b"b");
        assert_eq!(chains([a]), [a]);
        let chain = chains([a, b])[1].to_string();
        assert_eq!(chain, "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676");
    }

    #[test]
    fn another_format_is_refused() {
        let commit = "0".repeat(64).parse().unwrap();
        let error = ReleasePins::parse(commit, br#"{"format": 2, "images": {}}"#).unwrap_err();
        assert!(error.to_string().ends_with("is of format 2, expected 1"), "{error}");
        assert!(ReleasePins::parse(commit, br#"{"format": 1, "images": {}}"#).is_ok());
    }
}

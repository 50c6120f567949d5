//! The pin set: every container image of a release, by content.
//!
//! `pins.json`, format 1. All three digests are recorded because Docker's classic store names an image by its config
//! digest, its containerd store by its manifest digest, and both check a layer by its diff-id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Digest;

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
}

//! Reads and writes the JSON that describes images: manifests, indexes and configs of the OCI image specification.
//!
//! Docker's own forms (schema 2 manifests, manifest lists) have the same fields under other media types, so they are
//! read as well.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::{Deserialize, Serialize};

use crate::model::{Digest, PinnedLayer};

/// The platform that releases are made for.
pub const OS: &str = "linux";
/// The processor architecture that releases are made for, in Go's words.
pub const ARCHITECTURE: &str = "amd64";

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not the JSON that it should be.
    #[error("{what} is not valid JSON of its kind")]
    Json {
        /// Manifest, index or config.
        what: &'static str,
        /// Where it breaks.
        #[source]
        source: serde_json::Error,
    },
    /// A digest is not sha256.
    #[error("{what} names a digest that is not supported")]
    Digest {
        /// Manifest, index or config.
        what: &'static str,
        /// Which.
        #[source]
        source: crate::model::digest::ParseDigestError,
    },
    /// The image is for another platform.
    #[error("image is for {got}, expected {OS}/{ARCHITECTURE}")]
    Platform {
        /// `os/architecture`.
        got: String,
    },
}

/// The part of an image's config that matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfigParts {
    /// Go's name of the architecture.
    pub architecture: String,
    /// Go's name of the operating system.
    pub os: String,
    /// What the image is made of.
    pub rootfs: RootFs,
}

/// An image's layers, as its config names them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default, deserialize_with = "null_is_none")]
    pub diff_ids: Vec<Digest>,
}

/// Go writes an empty list as `null`.
fn null_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Digest>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads a config and requires our platform.
pub fn parse_config(bytes: &[u8]) -> Result<ConfigParts, SpecError> {
    let config: ConfigParts =
        serde_json::from_slice(bytes).map_err(|source| SpecError::Json { what: "config", source })?;
    if config.os == OS && config.architecture == ARCHITECTURE {
        Ok(config)
    } else {
        Err(SpecError::Platform { got: format!("{}/{}", config.os, config.architecture) })
    }
}

/// Reads a manifest.
pub fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest, SpecError> {
    serde_json::from_slice(bytes).map_err(|source| SpecError::Json { what: "manifest", source })
}

/// Reads an index.
pub fn parse_index(bytes: &[u8]) -> Result<ImageIndex, SpecError> {
    serde_json::from_slice(bytes).map_err(|source| SpecError::Json { what: "index", source })
}

/// The digest that a descriptor names.
pub fn digest_of(descriptor: &Descriptor, what: &'static str) -> Result<Digest, SpecError> {
    descriptor.digest().to_string().parse().map_err(|source| SpecError::Digest { what, source })
}

/// True when a descriptor names an index, in either family of media types.
pub fn is_index(descriptor: &Descriptor) -> bool {
    match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(name) => name == "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => false,
    }
}

/// True when a descriptor may be for our platform; one that does not say is a candidate.
pub fn is_for_us(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_none_or(|platform| {
        platform.os().to_string() == OS && platform.architecture().to_string() == ARCHITECTURE
    })
}

/// The descriptor for our platform, of several the one for the oldest processors: an image for x86-64-v3 does not start on
/// others, and the order of an index means nothing.
pub fn choose_for_us<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> Option<&'a Descriptor> {
    let level = |descriptor: &&Descriptor| {
        let platform = descriptor.platform().as_ref();
        match platform.map(|platform| platform.variant().as_deref().unwrap_or_default()) {
            Some("" | "v1") => 0,
            None => 1,
            Some("v2") => 2,
            Some("v3") => 3,
            Some(_) => 4,
        }
    };
    descriptors.filter(|descriptor| is_for_us(descriptor)).min_by_key(level)
}

/// True when a manifest is that of an image, and not of a signature or an attestation in an image's form.
pub fn is_image(manifest: &ImageManifest) -> bool {
    let is_config = |kind: String| kind.contains(".image.config.") || kind.contains(".container.image.v1");
    let is_layer = |kind: String| kind.contains(".image.layer.") || kind.contains(".image.rootfs.");
    is_config(manifest.config().media_type().to_string())
        && manifest.layers().iter().all(|layer| is_layer(layer.media_type().to_string()))
}

/// A manifest over uncompressed layers: for images that come without one.
///
/// It depends on nothing but the image, so that the same image always has the same manifest.
pub fn render_plain_manifest(config: Digest, config_size: u64, layers: &[PinnedLayer]) -> Vec<u8> {
    let manifest = PlainManifest {
        schema_version: 2,
        media_type: "application/vnd.oci.image.manifest.v1+json",
        config: PlainDescriptor {
            media_type: "application/vnd.oci.image.config.v1+json",
            digest: config,
            size: config_size,
        },
        layers: layers
            .iter()
            .map(|layer| PlainDescriptor {
                media_type: "application/vnd.oci.image.layer.v1.tar",
                digest: layer.diff_id,
                size: layer.size,
            })
            .collect(),
    };
    // Plain structs of strings and numbers always serialise.
    serde_json::to_vec(&manifest).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlainManifest {
    schema_version: u32,
    media_type: &'static str,
    config: PlainDescriptor,
    layers: Vec<PlainDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlainDescriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
}

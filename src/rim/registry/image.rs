//! One image of a registry: its descriptions, and its layers as streams.

use std::io::{self, Read};

use oci_spec::image::{ImageIndex, ImageManifest};
use serde::Deserialize;

use super::blob::Blob;
use super::{Registry, RegistryError, Settings};
use crate::formats::image::Limits;
use crate::formats::image::source::{ImageSource, SourceError, SourceImage, decompress};
use crate::formats::image::spec::{self, SpecError};
use crate::formats::image::stream::VerifyingReader;
use crate::model::{Digest, ImageRef};

/// Indexes within indexes beyond this are refused.
const MAX_DEPTH: usize = 4;
/// What we understand. Without it registries answer with the oldest form that they have.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// An image of a registry, its manifest and config read and checked.
pub struct RegistryImage {
    registry: Registry,
    image: SourceImage,
    /// Digest and size of each layer's blob.
    layers: Vec<(Digest, u64)>,
}

impl RegistryImage {
    /// Reads what `image` is; `insecure` allows plain HTTP.
    pub fn open(
        image: &ImageRef,
        insecure: bool,
        settings: &Settings,
        limits: &Limits,
    ) -> Result<Self, RegistryError> {
        let registry = Registry::connect(image, insecure, settings)?;
        let named = || Box::new(image.clone());
        let spec_error = |what| move |source| RegistryError::Spec { what, image: named(), source };
        let (bytes, parsed) = read_manifest(&registry, limits)?;
        let config_digest = spec::digest_of(parsed.config(), "manifest").map_err(spec_error("manifest"))?;
        let rest = format!("blobs/{config_digest}");
        let (config, _) = registry.get_whole(&rest, "*/*", limits.description_bytes)?;
        require_digest(image, "config", config_digest, &config)?;
        let diff_ids = spec::parse_config(&config).map_err(spec_error("config"))?.rootfs.diff_ids;
        let layers = parsed.layers().iter();
        let layers: Vec<(Digest, u64)> = layers
            .map(|layer| Ok((spec::digest_of(layer, "manifest")?, layer.size())))
            .collect::<Result<_, SpecError>>()
            .map_err(spec_error("manifest"))?;
        if layers.len() != diff_ids.len() {
            let (manifest, config) = (layers.len(), diff_ids.len());
            return Err(RegistryError::LayerCount { image: named(), manifest, config });
        }
        Ok(Self { registry, image: SourceImage { manifest: Some(bytes), config, diff_ids }, layers })
    }

    fn layer(
        &self,
        index: usize,
        digest: Digest,
        size: u64,
    ) -> Result<Box<dyn Read + Send + '_>, RegistryError> {
        let blob = Blob::open(&self.registry, digest, size)?;
        let checked = VerifyingReader::new(blob, digest, Some(size));
        let error = move |source| self.layer_error(digest, source);
        tracing::debug!(image = %self.registry.image(), index, %digest, size, "pulling a layer");
        let tar = decompress(checked).map_err(error)?;
        Ok(Box::new(Named { tar, error }))
    }

    fn layer_error(&self, digest: Digest, source: io::Error) -> RegistryError {
        RegistryError::Layer { digest, image: Box::new(self.registry.image().clone()), source }
    }
}

impl ImageSource for RegistryImage {
    fn describe(&mut self) -> Result<SourceImage, SourceError> {
        Ok(self.image.clone())
    }

    fn open_layer(&mut self, index: usize) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let &(digest, size) = self
            .layers
            .get(index)
            .ok_or_else(|| SourceError::NoLayer { path: self.registry.image().to_string().into(), index })?;
        self.layer(index, digest, size).map_err(|error| SourceError::Remote(Box::new(error)))
    }
}

/// Says of which blob an error is: what decompresses does not know.
struct Named<R, F> {
    tar: R,
    error: F,
}

impl<R: Read, F: Fn(io::Error) -> RegistryError> Read for Named<R, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.tar.read(out).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, (self.error)(error)),
        })
    }
}

/// Reads the manifest, by way of an index if there is one.
fn read_manifest(
    registry: &Registry,
    limits: &Limits,
) -> Result<(Vec<u8>, Box<ImageManifest>), RegistryError> {
    let mut image = registry.image().clone();
    for _ in 0..MAX_DEPTH {
        let rest = format!("manifests/{}", image.target());
        let (bytes, media_type) = registry.get_whole(&rest, MANIFESTS, limits.description_bytes)?;
        if let Some(expected) = image.digest() {
            require_digest(&image, "manifest", expected, &bytes)?;
        }
        match parse_document(&image, &bytes, media_type.as_deref())? {
            Document::Manifest(manifest) => return Ok((bytes, manifest)),
            Document::Index(index) => image = image.at(choose(&image, &index)?),
        }
    }
    Err(RegistryError::NoImage {
        image: Box::new(registry.image().clone()),
        why: format!("more than {MAX_DEPTH} indexes within each other"),
    })
}

fn require_digest(
    image: &ImageRef,
    what: &'static str,
    expected: Digest,
    bytes: &[u8],
) -> Result<(), RegistryError> {
    let got = Digest::of(bytes);
    if got == expected {
        return Ok(());
    }
    Err(RegistryError::Digest { what, image: Box::new(image.clone()), expected, got })
}

/// What a registry keeps under a tag.
#[derive(Debug)]
enum Document {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// The fields by which documents are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a document by its own fields; one that could be read in two ways is refused (CVE-2021-41190).
fn parse_document(
    image: &ImageRef,
    bytes: &[u8],
    media_type: Option<&str>,
) -> Result<Document, RegistryError> {
    let named = || Box::new(image.clone());
    let broken = |source| RegistryError::Spec { what: "manifest", image: named(), source };
    let no_image = |why: String| Err(RegistryError::NoImage { image: named(), why });
    let shape: Shape = serde_json::from_slice(bytes)
        .map_err(|source| broken(SpecError::Json { what: "manifest", source }))?;
    if shape.schema_version == 1 {
        return Err(RegistryError::Schema1 { image: named() });
    }
    let is_index = match (shape.manifests.is_some(), shape.config.is_some() || shape.layers.is_some()) {
        (true, false) => true,
        (false, true) => false,
        (true, true) => return no_image("a manifest and an index in one".to_owned()),
        (false, false) => {
            let kind = shape.media_type.as_deref().or(media_type).unwrap_or("nothing known");
            return no_image(format!("its manifest is {kind}"));
        }
    };
    let says_index = |kind: &str| kind.contains(".index.") || kind.contains(".manifest.list.");
    let says_manifest = |kind: &str| kind.contains(".manifest.v");
    for kind in [shape.media_type.as_deref(), media_type].into_iter().flatten() {
        if if is_index { says_manifest(kind) } else { says_index(kind) } {
            return no_image(format!("its manifest is called {kind} and is not"));
        }
    }
    if is_index {
        return spec::parse_index(bytes).map(|index| Document::Index(Box::new(index))).map_err(broken);
    }
    spec::parse_manifest(bytes).map(|manifest| Document::Manifest(Box::new(manifest))).map_err(broken)
}

/// The manifest for our platform.
fn choose(image: &ImageRef, index: &ImageIndex) -> Result<Digest, RegistryError> {
    let Some(ours) = spec::choose_for_us(index.manifests().iter()) else {
        let platforms = index.manifests().iter().filter_map(|descriptor| descriptor.platform().as_ref());
        let found = platforms.map(|platform| format!("{}/{}", platform.os(), platform.architecture()));
        return Err(RegistryError::Platform { image: Box::new(image.clone()), found: found.collect() });
    };
    spec::digest_of(ours, "index").map_err(|source| RegistryError::Spec {
        what: "index",
        image: Box::new(image.clone()),
        source,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    fn read(document: &serde_json::Value, media_type: &str) -> Result<&'static str, String> {
        let image: ImageRef = "r.io/a:1".parse().unwrap();
        match parse_document(&image, document.to_string().as_bytes(), Some(media_type)) {
            Ok(Document::Manifest(_)) => Ok("manifest"),
            Ok(Document::Index(index)) => choose(&image, &index).map(|_| "index").map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn documents_are_what_they_say() {
        let blob = json!({ "mediaType": "x/y", "digest": Digest::of(b"x"), "size": 1 });
        let manifest = json!({ "schemaVersion": 2, "config": blob, "layers": [blob] });
        let on = |architecture: &str| {
            let mut descriptor = blob.clone();
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            descriptor
        };
        let index = json!({ "schemaVersion": 2, "manifests": [on("arm64"), on("amd64")] });
        let foreign = json!({ "schemaVersion": 2, "manifests": [on("arm64"), on("s390x")] });
        let both = json!({ "schemaVersion": 2, "manifests": [blob], "config": blob, "layers": [] });
        let called = json!({ "schemaVersion": 2, "mediaType": INDEX, "config": blob, "layers": [] });
        let artifact = json!({ "schemaVersion": 2, "mediaType": "application/x.other" });
        let old = json!({ "schemaVersion": 1, "name": "a", "fsLayers": [], "history": [] });
        for (document, media_type, expected) in [
            (&manifest, MANIFEST, Ok("manifest")),
            (&manifest, "application/json", Ok("manifest")),
            (&index, INDEX, Ok("index")),
            (&index, LIST, Ok("index")),
            (&manifest, LIST, Err("its manifest is called application/vnd.docker")),
            (&called, MANIFEST, Err("its manifest is called application/vnd.oci.image.index")),
            (&index, MANIFEST, Err("its manifest is called")),
            (
                &foreign,
                INDEX,
                Err(r#"r.io/a:1 is not for linux/amd64, only for ["linux/arm64", "linux/s390x"]"#),
            ),
            (&both, MANIFEST, Err("a manifest and an index in one")),
            (&artifact, MANIFEST, Err("its manifest is application/x.other")),
            (
                &old,
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                Err("r.io/a:1 has a schema 1 manifest"),
            ),
        ] {
            match (read(document, media_type), expected) {
                (Err(told), Err(part)) => assert!(told.contains(part), "{told}"),
                (got, expected) => assert_eq!(got, expected.map_err(str::to_owned), "{document}"),
            }
        }
    }
}

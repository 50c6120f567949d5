//! An OCI image layout: `index.json` and `blobs/sha256/…`.

use std::collections::BTreeSet;
use std::io::Read;

use oci_spec::image::Descriptor;

use super::compression::decompress;
use super::{Bundle, ImageSource, SourceError, SourceImage, same_name};
use crate::formats::image::Limits;
use crate::formats::image::spec::{self, SpecError};
use crate::formats::image::stream::VerifyingReader;
use crate::model::Digest;

/// Indexes within indexes beyond this are refused.
const MAX_DEPTH: usize = 4;
/// The annotation that names an image within a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Docker's and containerd's annotation with the full name.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// One image of an OCI layout.
pub struct OciLayout {
    bundle: Bundle,
    image: SourceImage,
    layers: Vec<(Digest, u64)>,
}

impl OciLayout {
    /// Chooses the image `name`, or the only one, and reads its manifest and config.
    pub fn new(bundle: Bundle, name: Option<&str>, limits: &Limits) -> Result<Self, SourceError> {
        let opened = Opened { bundle: &bundle, limits };
        let index = opened.whole("index.json")?;
        let index = spec::parse_index(&index).map_err(|source| opened.spec("index.json", source))?;
        let descriptor = opened.choose(index.manifests(), name)?;
        let (manifest_digest, manifest) = opened.manifest(descriptor, MAX_DEPTH)?;
        let file = blob_name(manifest_digest);
        let parsed = spec::parse_manifest(&manifest).map_err(|source| opened.spec(&file, source))?;
        let config_digest =
            spec::digest_of(parsed.config(), "manifest").map_err(|source| opened.spec(&file, source))?;
        let config = opened.blob(config_digest)?;
        let parts =
            spec::parse_config(&config).map_err(|source| opened.spec(&blob_name(config_digest), source))?;
        let layers: Vec<(Digest, u64)> = parsed
            .layers()
            .iter()
            .map(|layer| Ok((spec::digest_of(layer, "manifest")?, layer.size())))
            .collect::<Result<_, _>>()
            .map_err(|source| opened.spec(&file, source))?;
        let diff_ids = parts.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let path = bundle.path().to_owned();
            return Err(SourceError::LayerCount { path, manifest: layers.len(), config: diff_ids.len() });
        }
        let image = SourceImage { manifest: Some(manifest), config, diff_ids };
        Ok(Self { bundle, image, layers })
    }
}

impl ImageSource for OciLayout {
    fn describe(&mut self) -> Result<SourceImage, SourceError> {
        Ok(self.image.clone())
    }

    fn open_layer(&mut self, index: usize) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let path = || self.bundle.path().to_owned();
        let &(digest, size) =
            self.layers.get(index).ok_or_else(|| SourceError::NoLayer { path: path(), index })?;
        let (blob, _) = self
            .bundle
            .read(&blob_name(digest))
            .map_err(|source| SourceError::Bundle { path: path(), source })?;
        // A plain layer's digest is its diff-id, which the reader checks: no need to hash it twice.
        if self.image.diff_ids.get(index) == Some(&digest) {
            return Ok(blob);
        }
        decompress(VerifyingReader::new(blob, digest, Some(size))).map_err(|source| SourceError::Decompress {
            path: path(),
            index,
            source,
        })
    }
}

/// What is needed while descriptions are read.
struct Opened<'a> {
    bundle: &'a Bundle,
    limits: &'a Limits,
}

impl Opened<'_> {
    fn choose<'d>(
        &self,
        descriptors: &'d [Descriptor],
        name: Option<&str>,
    ) -> Result<&'d Descriptor, SourceError> {
        let mut matches: Vec<&Descriptor> = descriptors
            .iter()
            .filter(|descriptor| {
                name.is_none_or(|name| names(descriptor).any(|known| same_name(known, name)))
            })
            .collect();
        // One image under two tags is one image.
        let mut seen = BTreeSet::new();
        matches.retain(|descriptor| seen.insert(descriptor.digest().to_string()));
        if matches.len() > 1 {
            matches.retain(|descriptor| self.may_run(descriptor));
        }
        match matches[..] {
            [one] => Ok(one),
            // An index of one image per platform, without names.
            _ if matches.len() > 1 && matches.iter().all(|d| d.platform().is_some()) => self.for_us(&matches),
            _ => Err(SourceError::Choice {
                path: self.bundle.path().to_owned(),
                wanted: name.map(str::to_owned),
                found: descriptors
                    .iter()
                    .map(|descriptor| names(descriptor).next().unwrap_or("-").to_owned())
                    .collect(),
            }),
        }
    }

    fn for_us<'d>(&self, descriptors: &[&'d Descriptor]) -> Result<&'d Descriptor, SourceError> {
        spec::choose_for_us(descriptors.iter().copied()).ok_or_else(|| SourceError::Platform {
            path: self.bundle.path().to_owned(),
            found: descriptors
                .iter()
                .filter_map(|descriptor| descriptor.platform().as_ref())
                .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
                .collect(),
        })
    }

    /// False for signatures, attestations and the like, which tools put beside the image that they are about.
    fn may_run(&self, descriptor: &Descriptor) -> bool {
        let manifest = || {
            let bytes = self.blob(spec::digest_of(descriptor, "index").ok()?).ok()?;
            spec::parse_manifest(&bytes).ok()
        };
        // What cannot be read stays, so that choosing it tells why.
        spec::is_index(descriptor) || manifest().is_none_or(|manifest| spec::is_image(&manifest))
    }

    fn manifest(&self, descriptor: &Descriptor, depth: usize) -> Result<(Digest, Vec<u8>), SourceError> {
        let digest =
            spec::digest_of(descriptor, "index").map_err(|source| self.spec("index.json", source))?;
        let bytes = self.blob(digest)?;
        if !spec::is_index(descriptor) || depth == 0 {
            return Ok((digest, bytes));
        }
        let file = blob_name(digest);
        let index = spec::parse_index(&bytes).map_err(|source| self.spec(&file, source))?;
        let all: Vec<&Descriptor> = index.manifests().iter().collect();
        self.manifest(self.for_us(&all)?, depth - 1)
    }

    fn blob(&self, expected: Digest) -> Result<Vec<u8>, SourceError> {
        let file = blob_name(expected);
        let bytes = self.whole(&file)?;
        let got = Digest::of(&bytes);
        if got == expected {
            Ok(bytes)
        } else {
            Err(SourceError::Digest { path: self.bundle.path().to_owned(), file, expected, got })
        }
    }

    fn whole(&self, file: &str) -> Result<Vec<u8>, SourceError> {
        self.bundle
            .read_whole(file, self.limits.description_bytes)
            .map_err(|source| SourceError::Bundle { path: self.bundle.path().to_owned(), source })
    }

    fn spec(&self, file: &str, source: SpecError) -> SourceError {
        SourceError::Spec { path: self.bundle.path().to_owned(), file: file.to_owned(), source }
    }
}

fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = descriptor.annotations().as_ref();
    [REF_NAME, IMAGE_NAME].into_iter().filter_map(move |key| annotations?.get(key).map(String::as_str))
}

/// Where a layout keeps a blob.
pub fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

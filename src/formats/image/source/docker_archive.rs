//! A `docker save` archive: `manifest.json` and what it names.

use std::io::Read;

use serde::Deserialize;

use super::compression::decompress;
use super::{Bundle, ImageSource, SourceError, SourceImage, same_name};
use crate::formats::image::Limits;
use crate::formats::image::spec::{self, SpecError};
use crate::model::Digest;

/// One image of a `docker save` archive. It has no manifest with a digest.
pub struct DockerArchive {
    bundle: Bundle,
    image: SourceImage,
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl DockerArchive {
    /// Chooses the image with tag `name`, or the only one, and reads its config.
    pub fn new(bundle: Bundle, name: Option<&str>, limits: &Limits) -> Result<Self, SourceError> {
        let path = || bundle.path().to_owned();
        let whole = |file: &str| {
            bundle
                .read_whole(file, limits.description_bytes)
                .map_err(|source| SourceError::Bundle { path: path(), source })
        };
        let spec_error =
            |file: &str, source| SourceError::Spec { path: path(), file: file.to_owned(), source };
        let items: Vec<Item> = serde_json::from_slice(&whole("manifest.json")?)
            .map_err(|source| spec_error("manifest.json", SpecError::Json { what: "manifest", source }))?;
        let item = choose(&items, name).ok_or_else(|| SourceError::Choice {
            path: path(),
            wanted: name.map(str::to_owned),
            found: items.iter().map(|item| tags(item).first().cloned().unwrap_or("-".into())).collect(),
        })?;
        let config = whole(&item.config)?;
        let got = Digest::of(&config);
        if let Some(expected) = named_digest(&item.config)
            && got != expected
        {
            return Err(SourceError::Digest { path: path(), file: item.config.clone(), expected, got });
        }
        let diff_ids =
            spec::parse_config(&config).map_err(|source| spec_error(&item.config, source))?.rootfs.diff_ids;
        let layers = item.layers.clone().unwrap_or_default();
        if layers.len() != diff_ids.len() {
            let (manifest, config) = (layers.len(), diff_ids.len());
            return Err(SourceError::LayerCount { path: path(), manifest, config });
        }
        let image = SourceImage { manifest: None, config, diff_ids };
        Ok(Self { bundle, image, layers })
    }
}

impl ImageSource for DockerArchive {
    fn describe(&mut self) -> Result<SourceImage, SourceError> {
        Ok(self.image.clone())
    }

    fn open_layer(&mut self, index: usize) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let path = || self.bundle.path().to_owned();
        let name = self.layers.get(index).ok_or_else(|| SourceError::NoLayer { path: path(), index })?;
        let (blob, _) =
            self.bundle.read(name).map_err(|source| SourceError::Bundle { path: path(), source })?;
        decompress(blob).map_err(|source| SourceError::Decompress { path: path(), index, source })
    }
}

fn tags(item: &Item) -> &[String] {
    item.repo_tags.as_deref().unwrap_or_default()
}

fn choose<'a>(items: &'a [Item], name: Option<&str>) -> Option<&'a Item> {
    let mut matches =
        items.iter().filter(|item| name.is_none_or(|name| tags(item).iter().any(|tag| same_name(tag, name))));
    let one = matches.next()?;
    matches.next().is_none().then_some(one)
}

/// The digest in `<hex>.json` or `blobs/sha256/<hex>`.
fn named_digest(file: &str) -> Option<Digest> {
    let name = file.rsplit('/').next()?;
    Digest::parse_hex(name.strip_suffix(".json").unwrap_or(name)).ok()
}

//! The archive that `docker load` reads, as a stream.
//!
//! 1. `manifest.json`, and beside it the same images as an OCI layout, for readers of that;
//! 2. the configs;
//! 3. every layer once, put together from its files while it is written: sizes are known beforehand.
//!
//! Layers that the receiving Docker has already, at the same place in a chain, may be left out of the stream. They stay
//! in `manifest.json`: dockerd counts them there and looks for a file only if it lacks the layer (moby,
//! `image/tarexport/load.go`). The containerd store reads the layout, and takes layers whose blobs it has at any place.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde::Serialize;

use super::spec;
use super::store::{ImageStore, StoreError};
use crate::model::{Digest, PinnedImage};

/// One image to be written.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveImage<'a> {
    /// Which.
    pub image: &'a PinnedImage,
    /// `name:tag` under which Docker is to list it; none: by its Id alone.
    pub tag: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Streams images without tags; layers whose chain id is in `present` are left out.
    pub fn write_archive(
        &self,
        images: &[&PinnedImage],
        present: &BTreeSet<Digest>,
        out: &mut (impl Write + ?Sized),
    ) -> Result<(), StoreError> {
        let images: Vec<_> = images.iter().map(|&image| ArchiveImage { image, tag: None }).collect();
        self.write_tagged_archive(&images, present, out)
    }

    /// Streams images; layers whose chain id is in `present` are left out.
    pub fn write_tagged_archive(
        &self,
        images: &[ArchiveImage<'_>],
        present: &BTreeSet<Digest>,
        out: &mut (impl Write + ?Sized),
    ) -> Result<(), StoreError> {
        let mut items = Vec::new();
        let mut index = Vec::new();
        let mut blobs: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        let mut layers: BTreeMap<Digest, u64> = BTreeMap::new();
        for &ArchiveImage { image, tag } in images {
            let stored = self.image(&image.config)?;
            let manifest =
                spec::render_plain_manifest(image.config, stored.config.len() as u64, &image.layers);
            index.push(spec::plain_manifest_descriptor(&manifest, tag));
            blobs.insert(Digest::of(&manifest), manifest);
            blobs.insert(image.config, stored.config);
            items.push(Item {
                config: blob_name(image.config),
                repo_tags: tag.map(|tag| vec![tag.to_owned()]),
                layers: image.layers.iter().map(|layer| blob_name(layer.diff_id)).collect(),
            });
            let chain = image.chains();
            for (layer, _) in image.layers.iter().zip(chain).filter(|(_, id)| !present.contains(id)) {
                layers.insert(layer.diff_id, layer.size);
            }
        }
        let items = serde_json::to_vec(&items).map_err(|error| StoreError::Write(error.into()))?;
        let mut tar = TarWriter(out);
        tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.file("index.json", &spec::render_index(&index))?;
        tar.file("manifest.json", &items)?;
        for (digest, bytes) in &blobs {
            tar.file(&blob_name(*digest), bytes)?;
        }
        for (digest, size) in layers {
            tar.header(&blob_name(digest), size)?;
            self.write_layer(digest, size, &mut *tar.0)?;
            tar.pad(size)?;
        }
        tar.end()
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Writes plain entries: the same input gives the same bytes.
struct TarWriter<'a, W: ?Sized>(&'a mut W);

impl<W: Write + ?Sized> TarWriter<'_, W> {
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.header(name, bytes.len() as u64)?;
        self.0.write_all(bytes).map_err(StoreError::Write)?;
        self.pad(bytes.len() as u64)
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), StoreError> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(StoreError::Write)?;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size);
        header.set_cksum();
        self.0.write_all(header.as_bytes()).map_err(StoreError::Write)
    }

    fn pad(&mut self, size: u64) -> Result<(), StoreError> {
        let zeros = [0; super::header::BLOCK];
        self.0.write_all(&zeros[..super::header::padding(size) as usize]).map_err(StoreError::Write)
    }

    fn end(&mut self) -> Result<(), StoreError> {
        self.0.write_all(&[0; 2 * super::header::BLOCK]).map_err(StoreError::Write)?;
        self.0.flush().map_err(|error: io::Error| StoreError::Write(error))
    }
}

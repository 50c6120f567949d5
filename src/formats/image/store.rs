//! The directory of all container images of a release.
//!
//! 1. [`ImageStore::add`] splits the layers that are not there yet, each in a temporary directory that is renamed when
//!    its diff-id is right, and then writes the image's own directory the same way;
//! 2. [`ImageStore::verify`] puts every layer together again and compares digests.
//!
//! The same images added in any order give the same tree. Nothing is ever changed in place, and nothing removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::layer::{self, JoinError, SplitError};
use super::layer_image::{SUMS, TREE};
use super::source::{ImageSource, SourceError};
use super::spec;
use super::stream::BoundedWriter;
use super::{Limits, Ownership};
use crate::formats::atomic::{Durability, UNFINISHED, replace};
use crate::model::{Digest, PinnedImage, PinnedLayer};

/// The format number that this program writes and reads.
pub const LAYERS_FORMAT: u32 = 1;

const CONFIG: &str = "config.json";
const MANIFEST: &str = "manifest.json";
const LAYERS: &str = "layers.json";
const LAYERS_DIR: &str = "layers";

/// A directory of images.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

/// An image of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Raw config; its digest is the image's Id in Docker.
    pub config: Vec<u8>,
    /// Raw manifest.
    pub manifest: Vec<u8>,
    /// Layers, lowest first.
    pub layers: Vec<PinnedLayer>,
}

/// `layers.json`, format 1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayersFile {
    format: u32,
    layers: Vec<PinnedLayer>,
}

/// What a look at every bit of an image found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All digests are right.
    Good,
    /// These are not.
    Damaged(Vec<Damage>),
}

/// One thing that is wrong with a stored image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The layer's diff-id, or the config's or manifest's digest.
    pub digest: Digest,
    /// What is wrong, in one line.
    pub why: String,
}

/// Why a store cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store.
    #[error("image store: {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image cannot be read.
    #[error("adding {reference}")]
    Source {
        /// The image as asked for.
        reference: String,
        /// Why.
        #[source]
        source: Box<SourceError>,
    },
    /// A layer cannot be split.
    #[error("adding layer {diff_id} of {reference}")]
    Split {
        /// The image as asked for.
        reference: String,
        /// As its config names it.
        diff_id: Digest,
        /// Why.
        #[source]
        source: Box<SplitError>,
    },
    /// A layer is not what the image's config names.
    #[error("layer {index} of {reference} has diff-id {got}, expected {expected}")]
    DiffId {
        /// The image as asked for.
        reference: String,
        /// Counted from 0.
        index: usize,
        /// As the config says.
        expected: Digest,
        /// As it came.
        got: Digest,
    },
    /// There is no such image or layer.
    #[error("{what} {digest} is not in the image store {dir}")]
    Missing {
        /// Image or layer.
        what: &'static str,
        /// Config digest or diff-id.
        digest: Digest,
        /// The store.
        dir: PathBuf,
    },
    /// A description in the store is broken.
    #[error("{path} is broken: {why}")]
    Broken {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A layer of the store cannot be put together.
    #[error("putting layer {diff_id} together")]
    Join {
        /// Which.
        diff_id: Digest,
        /// Why.
        #[source]
        source: Box<JoinError>,
    },
    /// A layer of the store is damaged.
    #[error("layer {expected} of the image store gives {got}")]
    Damaged {
        /// Its diff-id.
        expected: Digest,
        /// What came out.
        got: Digest,
    },
}

impl ImageStore {
    /// A store in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds an image; layers that are there already are not read.
    pub fn add(
        &self,
        source: &mut dyn ImageSource,
        reference: &str,
        ownership: Ownership,
        limits: &Limits,
    ) -> Result<PinnedImage, StoreError> {
        let source_error =
            |source| StoreError::Source { reference: reference.to_owned(), source: Box::new(source) };
        let image = source.describe().map_err(source_error)?;
        let layers_dir = self.dir.join(LAYERS_DIR);
        fs::create_dir_all(&layers_dir)
            .and_then(|()| fs::set_permissions(&layers_dir, fs::Permissions::from_mode(0o755)))
            .map_err(|source| io_error(&layers_dir, source))?;
        let mut layers = Vec::new();
        for (index, &diff_id) in image.diff_ids.iter().enumerate() {
            let size = match self.layer_size(diff_id)? {
                Some(size) => size,
                None => {
                    let tar = source.open_layer(index).map_err(source_error)?;
                    self.add_layer(tar, reference, index, diff_id, ownership, limits)?
                }
            };
            layers.push(PinnedLayer { diff_id, size });
        }
        let config = Digest::of(&image.config);
        let manifest = image
            .manifest
            .unwrap_or_else(|| spec::render_plain_manifest(config, image.config.len() as u64, &layers));
        self.write_image(config, &image.config, &manifest, &layers)?;
        Ok(PinnedImage { reference: reference.to_owned(), manifest: Digest::of(&manifest), config, layers })
    }

    /// Reads the description of the image with this config digest.
    pub fn image(&self, config: &Digest) -> Result<StoredImage, StoreError> {
        let dir = self.dir.join(config.hex());
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => {
                    StoreError::Missing { what: "image", digest: *config, dir: self.dir.clone() }
                }
                _ => io_error(&path, source),
            })
        };
        let layers: LayersFile = serde_json::from_slice(&read(LAYERS)?)
            .map_err(|error| StoreError::Broken { path: dir.join(LAYERS), why: error.to_string() })?;
        if layers.format != LAYERS_FORMAT {
            let why = format!("format {}, expected {LAYERS_FORMAT}", layers.format);
            return Err(StoreError::Broken { path: dir.join(LAYERS), why });
        }
        Ok(StoredImage { config: read(CONFIG)?, manifest: read(MANIFEST)?, layers: layers.layers })
    }

    /// Config digests of all images, in order.
    pub fn images(&self) -> Result<Vec<Digest>, StoreError> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|source| io_error(&self.dir, source))? {
            let entry = entry.map_err(|source| io_error(&self.dir, source))?;
            images.extend(entry.file_name().to_str().and_then(|name| Digest::parse_hex(name).ok()));
        }
        images.sort_unstable();
        Ok(images)
    }

    /// Reads every bit of an image and compares digests, on all cores.
    pub fn verify(&self, image: &PinnedImage) -> Result<Verdict, StoreError> {
        let mut damage = Vec::new();
        match self.image(&image.config) {
            Ok(stored) => damage.extend(damaged_descriptions(image, &stored)),
            Err(error @ (StoreError::Missing { .. } | StoreError::Broken { .. })) => {
                damage.push(Damage { digest: image.config, why: error.to_string() });
            }
            Err(error) => return Err(error),
        }
        let layers: BTreeMap<Digest, u64> =
            image.layers.iter().map(|layer| (layer.diff_id, layer.size)).collect();
        let verdicts: Vec<Result<(), StoreError>> = layers
            .par_iter()
            .map(|(&diff_id, &size)| self.write_layer(diff_id, size, &mut io::sink()))
            .collect();
        for (verdict, &digest) in verdicts.into_iter().zip(layers.keys()) {
            match verdict {
                Ok(()) => {}
                Err(error) if is_blind(&error) => return Err(error),
                Err(error) => damage.push(Damage { digest, why: one_line(&error) }),
            }
        }
        Ok(if damage.is_empty() { Verdict::Good } else { Verdict::Damaged(damage) })
    }

    /// Writes the tar of one layer; fails unless its digest and size are right.
    pub fn write_layer(
        &self,
        diff_id: Digest,
        size: u64,
        out: &mut (impl io::Write + ?Sized),
    ) -> Result<(), StoreError> {
        let dir = self.layer_dir(diff_id);
        if !dir.is_dir() {
            return Err(StoreError::Missing { what: "layer", digest: diff_id, dir: self.dir.clone() });
        }
        let got = layer::join(&dir, &mut BoundedWriter::new(out, size))
            .map_err(|source| StoreError::Join { diff_id, source: Box::new(source) })?;
        if got == diff_id { Ok(()) } else { Err(StoreError::Damaged { expected: diff_id, got }) }
    }

    /// The first layer of the image that cannot be mounted, see [`layer_image`](super::layer_image).
    pub fn layer_without_tree<'i>(&self, image: &'i PinnedImage) -> Option<&'i PinnedLayer> {
        image.layers.iter().find(|layer| {
            let dir = self.layer_dir(layer.diff_id);
            ![TREE, SUMS].iter().all(|name| dir.join(name).is_file())
        })
    }

    /// Where a layer is, or would be.
    pub fn layer_dir(&self, diff_id: Digest) -> PathBuf {
        self.dir.join(LAYERS_DIR).join(diff_id.hex())
    }

    /// Bytes of a layer's tar, if it is there.
    fn layer_size(&self, diff_id: Digest) -> Result<Option<u64>, StoreError> {
        let dir = self.layer_dir(diff_id);
        if !dir.exists() {
            return Ok(None);
        }
        let size =
            layer::size(&dir).map_err(|source| StoreError::Join { diff_id, source: Box::new(source) })?;
        Ok(Some(size))
    }

    fn add_layer(
        &self,
        tar: impl io::Read,
        reference: &str,
        index: usize,
        expected: Digest,
        ownership: Ownership,
        limits: &Limits,
    ) -> Result<u64, StoreError> {
        let parent = self.dir.join(LAYERS_DIR);
        let temporary = temporary_in(&parent)?;
        let split = layer::split(tar, temporary.path(), ownership, limits).map_err(|source| {
            StoreError::Split { reference: reference.to_owned(), diff_id: expected, source: Box::new(source) }
        })?;
        if split.diff_id != expected {
            let got = split.diff_id;
            return Err(StoreError::DiffId { reference: reference.to_owned(), index, expected, got });
        }
        settle(temporary, &self.layer_dir(expected))?;
        Ok(split.size)
    }

    fn write_image(
        &self,
        digest: Digest,
        config: &[u8],
        manifest: &[u8],
        layers: &[PinnedLayer],
    ) -> Result<(), StoreError> {
        let file = LayersFile { format: LAYERS_FORMAT, layers: layers.to_vec() };
        let dir = self.dir.join(digest.hex());
        let layers = serde_json::to_vec_pretty(&file)
            .map_err(|error| StoreError::Broken { path: dir.join(LAYERS), why: error.to_string() })?;
        if dir.exists() {
            // The same image may come again under another manifest (compressed anew): the last one counts.
            return write_file(&dir, MANIFEST, manifest);
        }
        let temporary = temporary_in(&self.dir)?;
        for (name, bytes) in [(CONFIG, config), (MANIFEST, manifest), (LAYERS, &layers)] {
            write_file(temporary.path(), name, bytes)?;
        }
        settle(temporary, &dir)
    }
}

/// True when a layer could not be looked at, which says nothing about it.
fn is_blind(error: &StoreError) -> bool {
    let StoreError::Join { source, .. } = error else { return false };
    matches!(&**source, JoinError::Read { source, .. } if !is_damage(source))
}

/// True for what a damaged tree or disk gives: a file that is not there, is something else, or cannot be read back.
fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::IO | Errno::UCLEAN))
}

fn damaged_descriptions(image: &PinnedImage, stored: &StoredImage) -> Vec<Damage> {
    let mut damage = Vec::new();
    for (what, bytes, expected) in
        [("config", &stored.config, image.config), ("manifest", &stored.manifest, image.manifest)]
    {
        let got = Digest::of(bytes);
        if got != expected {
            damage.push(Damage { digest: expected, why: format!("{what} has digest {got}") });
        }
    }
    if stored.layers != image.layers {
        damage.push(Damage { digest: image.config, why: "stored layers are not the pinned ones".to_owned() });
    }
    damage
}

fn temporary_in(dir: &Path) -> Result<tempfile::TempDir, StoreError> {
    let temporary = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(dir);
    // Set apart from making it: the commit's checksum must not depend on the umask.
    temporary
        .and_then(|dir| fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).map(|()| dir))
        .map_err(|source| io_error(dir, source))
}

/// Gives a finished temporary directory its name, unless another writer was faster with the same content.
fn settle(temporary: tempfile::TempDir, target: &Path) -> Result<(), StoreError> {
    match fs::rename(temporary.path(), target) {
        Ok(()) => {
            let _ = temporary.keep();
            Ok(())
        }
        Err(_) if target.is_dir() => Ok(()),
        Err(source) => Err(io_error(target, source)),
    }
}

fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(name);
    replace(&path, bytes, 0o644, Durability::Volatile).map_err(|source| io_error(&path, source))
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), source }
}

/// An error with its causes, for a report.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

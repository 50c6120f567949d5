//! Container images of a release: had from where they come, split into files, linked into the tree.
//!
//! 1. [`Images::resolve`] finds out what an image is: from a registry by its descriptions alone, else by having it: a
//!    recipe is built by the project's script (cached by what goes into it), Docker saves its own, archives are read;
//! 2. [`Images::ensure`] makes sure that the store in the cache has what is locked, and pulls the layers that it lacks;
//! 3. a release links the images that it pins. What comes again must come as locked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::binaries::{BinaryError, find_script};
use super::cache::{Cache, link_tree};
use super::layer_trees::{LayerTreeError, ensure_layer_tree};
use crate::docker::{Docker, DockerError};
use crate::formats::image::source::{self, ImageSource, SourceError, SourceImage};
use crate::formats::image::store::{ImageStore, StoreError};
use crate::formats::image::{Limits, Ownership};
use crate::model::{Digest, ImageRef, PinnedImage};
use crate::release::manifest::service::WantedImage;
use crate::release::manifest::{LockedImage, LockedLayer, Origin};
use crate::rim::command::{CommandError, run};
use crate::rim::registry::{RegistryError, RegistryImage, Settings};

/// The project's script that builds a container image from a recipe.
const BUILD_SCRIPT: &str = "scripts/build-image.sh";
/// Most layers of an image that Docker starts (`maxDepth` of its overlay2 driver less the container's own).
const MAX_LAYERS: usize = 125;
/// Below `/usr/lib/rackstep`.
pub const IMAGES_DIR: &str = "images";
const LAYERS_DIR: &str = "layers";

/// Why a container image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its recipe did not build.
    #[error("building image {name} from {recipe}")]
    Build {
        /// Image.
        name: String,
        /// Recipe.
        recipe: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// What was built cannot be read.
    #[error("reading image {name}")]
    Read {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: Box<SourceError>,
    },
    /// It cannot be split into files.
    #[error("storing image {name}")]
    Store {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// A registry does not give it.
    #[error("pulling image {name}")]
    Registry {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// Docker does not give it.
    #[error("taking image {name} from docker")]
    Docker {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: Box<DockerError>,
    },
    /// A layer cannot be shown by an overlay.
    #[error("layer {diff_id} of {reference}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// The image that has it, as asked for.
        reference: String,
        /// Why.
        #[source]
        source: Box<LayerTreeError>,
    },
    /// Where it comes from there is another image now than the lock says.
    #[error("image {name} of {reference} is no longer the locked one: expected {expected}, got {got}")]
    Moved {
        /// Image.
        name: String,
        /// Where it comes from.
        reference: String,
        /// The lock's digest of config or manifest.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// Docker's overlays end at 128 directories, its own among them: a host could not start it.
    #[error("image {name} has {layers} layers, more than the {MAX_LAYERS} that a host can start: flatten it")]
    TooManyLayers {
        /// Image.
        name: String,
        /// As it is.
        layers: usize,
    },
    /// The script was not found.
    #[error(transparent)]
    Script(#[from] BinaryError),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read or written.
    #[error("{path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ImageError + '_ {
    move |source| ImageError::Io { path: path.to_owned(), source }
}

/// The store of split images in the cache.
pub fn cached_store(cache: &Cache) -> ImageStore {
    ImageStore::new(cache.dir().join("store"))
}

/// Gets container images.
pub struct Images<'a> {
    cache: &'a Cache,
    mirror: Option<&'a str>,
    /// Where Docker listens; none: where it always does.
    pub docker_url: Option<String>,
    /// What is known about registries.
    pub registries: Settings,
    limits: Limits,
}

impl<'a> Images<'a> {
    /// Takes the places of Docker and its configuration from the environment; `mirror` is for recipes.
    pub fn new(cache: &'a Cache, mirror: Option<&'a str>) -> Self {
        let docker_url = std::env::var("DOCKER_HOST").ok().filter(|url| !url.is_empty());
        Self { cache, mirror, docker_url, registries: Settings::observe(), limits: Limits::default() }
    }

    /// Finds out what the image `name` is.
    pub fn resolve(&self, name: &str, wanted: &WantedImage) -> Result<LockedImage, ImageError> {
        let locked = self.describe(name, wanted)?;
        require_layers(name, locked.layers.len())?;
        Ok(locked)
    }

    fn describe(&self, name: &str, wanted: &WantedImage) -> Result<LockedImage, ImageError> {
        match &wanted.origin {
            Origin::Registry { image, insecure } => {
                let mut source = self.open(name, image, *insecure)?;
                let described = source.describe().map_err(|source| read_error(name, source))?;
                Ok(locked(&wanted.reference, described))
            }
            Origin::Docker(known_as) => {
                let docker = self.docker(name)?;
                let id = docker.resolve(known_as).map_err(|source| docker_error(name, source))?;
                self.save(&docker, name, &wanted.reference, id).map(LockedImage::from)
            }
            Origin::Recipe(_) | Origin::Files { .. } => self.read(name, wanted).map(LockedImage::from),
        }
    }

    /// Makes sure that the cache's store has a locked image, and gives it with all sizes known.
    pub fn ensure(
        &self,
        name: &str,
        wanted: &WantedImage,
        locked: &LockedImage,
    ) -> Result<PinnedImage, ImageError> {
        let store = cached_store(self.cache);
        if let Some(pinned) = find(&store, locked) {
            return Ok(pinned);
        }
        let got = match &wanted.origin {
            // By digest: a tag may name another image by now.
            Origin::Registry { image, insecure } => {
                let mut source = self.open(name, &image.at(locked.manifest), *insecure)?;
                self.add(name, &wanted.reference, &mut source)?
            }
            Origin::Docker(_) => {
                let docker = self.docker(name)?;
                // Either digest may be its Id, see `save`.
                let is_there = |id: &Digest| docker.resolve(&id.to_string()).is_ok();
                let id = [locked.config, locked.manifest].into_iter().find(is_there);
                self.save(&docker, name, &wanted.reference, id.unwrap_or(locked.config))?
            }
            Origin::Recipe(_) | Origin::Files { .. } => self.read(name, wanted)?,
        };
        for (expected, got) in [(locked.config, got.config), (locked.manifest, got.manifest)] {
            if expected != got {
                let (name, reference) = (name.to_owned(), wanted.reference.clone());
                return Err(ImageError::Moved { name, reference, expected, got });
            }
        }
        Ok(got)
    }

    /// Reads an image whose files are on this machine, or will be when its recipe is built, into the store.
    fn read(&self, name: &str, wanted: &WantedImage) -> Result<PinnedImage, ImageError> {
        let work = self.cache.work().map_err(at(self.cache.dir()))?;
        let layout = work.path().join("layout");
        let (path, image) = match &wanted.origin {
            Origin::Recipe(recipe) => {
                self.build(name, recipe, &layout)?;
                (&layout, None)
            }
            Origin::Files { path, name, .. } => (path, name.as_deref()),
            Origin::Registry { .. } | Origin::Docker(_) => (&layout, None),
        };
        let mut source =
            source::open(path, image, &self.limits).map_err(|source| read_error(name, source))?;
        self.add(name, &wanted.reference, source.as_mut())
    }

    fn build(&self, name: &str, recipe: &Path, layout: &Path) -> Result<(), ImageError> {
        let script = find_script(recipe.parent().unwrap_or(Path::new(".")), BUILD_SCRIPT)?;
        let mut command = Command::new(script);
        if let Some(mirror) = self.mirror {
            command.args(["--mirror", mirror]);
        }
        command.arg(recipe).arg(layout).env("RACKSTEP_CACHE", self.cache.dir());
        let (name, recipe) = (name.to_owned(), recipe.to_owned());
        run(&mut command).map(drop).map_err(|source| ImageError::Build { name, recipe, source })
    }

    fn open(&self, name: &str, image: &ImageRef, insecure: bool) -> Result<RegistryImage, ImageError> {
        RegistryImage::open(image, insecure, &self.registries, &self.limits)
            .map_err(|source| ImageError::Registry { name: name.to_owned(), source: Box::new(source) })
    }

    fn docker(&self, name: &str) -> Result<Docker, ImageError> {
        Docker::connect(self.docker_url.as_deref()).map_err(|source| docker_error(name, source))
    }

    /// Has Docker save the image of this Id; layers that the store has are not kept.
    fn save(
        &self,
        docker: &Docker,
        name: &str,
        reference: &str,
        id: Digest,
    ) -> Result<PinnedImage, ImageError> {
        let work = self.cache.work().map_err(at(self.cache.dir()))?;
        let store = cached_store(self.cache);
        let has = |diff_id| store.layer_dir(diff_id).is_dir();
        docker.save(id, work.path(), &has).map_err(|source| docker_error(name, source))?;
        let mut source =
            source::open(work.path(), None, &self.limits).map_err(|source| read_error(name, source))?;
        let saved = self.add(name, reference, source.as_mut())?;
        // Docker's classic store names an image by its config, its containerd store by its manifest.
        if saved.config == id || saved.manifest == id {
            return Ok(saved);
        }
        let (name, reference) = (name.to_owned(), reference.to_owned());
        Err(ImageError::Moved { name, reference, expected: id, got: saved.config })
    }

    fn add(
        &self,
        name: &str,
        reference: &str,
        source: &mut dyn ImageSource,
    ) -> Result<PinnedImage, ImageError> {
        let store = cached_store(self.cache);
        fs::create_dir_all(store.dir()).map_err(at(store.dir()))?;
        store
            .add(source, reference, Ownership::Apply, &self.limits)
            .map_err(|source| ImageError::Store { name: name.to_owned(), source: Box::new(source) })
    }
}

fn require_layers(name: &str, layers: usize) -> Result<(), ImageError> {
    if layers <= MAX_LAYERS {
        return Ok(());
    }
    Err(ImageError::TooManyLayers { name: name.to_owned(), layers })
}

fn read_error(name: &str, source: SourceError) -> ImageError {
    ImageError::Read { name: name.to_owned(), source: Box::new(source) }
}

fn docker_error(name: &str, source: DockerError) -> ImageError {
    ImageError::Docker { name: name.to_owned(), source: Box::new(source) }
}

/// What a registry says of an image. Sizes are not known until its layers have been pulled.
fn locked(reference: &str, image: SourceImage) -> LockedImage {
    LockedImage {
        reference: reference.to_owned(),
        manifest: Digest::of(&image.manifest.unwrap_or_default()),
        config: Digest::of(&image.config),
        layers: image.diff_ids.into_iter().map(|diff_id| LockedLayer { diff_id, size: None }).collect(),
    }
}

/// The locked image as the store has it, if all of it is there.
fn find(store: &ImageStore, locked: &LockedImage) -> Option<PinnedImage> {
    let stored = store.image(&locked.config).ok()?;
    let same_layers = stored.layers.iter().map(|layer| layer.diff_id);
    let is_whole = Digest::of(&stored.manifest) == locked.manifest
        && same_layers.eq(locked.layers.iter().map(|layer| layer.diff_id))
        && stored.layers.iter().all(|layer| store.layer_dir(layer.diff_id).is_dir());
    is_whole.then(|| PinnedImage {
        reference: locked.reference.clone(),
        manifest: locked.manifest,
        config: locked.config,
        layers: stored.layers,
    })
}

/// Bytes of the locked images as far as lock or store know them.
pub fn known_bytes<'a>(cache: &Cache, images: impl Iterator<Item = &'a LockedImage>) -> u64 {
    let store = cached_store(cache);
    images
        .map(|image| match find(&store, image) {
            Some(pinned) => pinned.size(),
            None => image.pinned(|_| 0).size(),
        })
        .sum()
}

/// Links `images` from the cache's store into the store at `target`.
pub fn link_into<'a>(
    cache: &Cache,
    images: impl Iterator<Item = &'a PinnedImage>,
    target: &Path,
) -> Result<(), ImageError> {
    let store = cached_store(cache);
    let layers = target.join(LAYERS_DIR);
    fs::create_dir_all(&layers).map_err(at(&layers))?;
    for image in images {
        link_once(&store.dir().join(image.config.hex()), &target.join(image.config.hex()))?;
        for layer in &image.layers {
            let layer_error = |source| ImageError::Layer {
                diff_id: layer.diff_id,
                reference: image.reference.clone(),
                source: Box::new(source),
            };
            ensure_layer_tree(&store.layer_dir(layer.diff_id)).map_err(layer_error)?;
            link_once(&store.layer_dir(layer.diff_id), &layers.join(layer.diff_id.hex()))?;
        }
    }
    Ok(())
}

fn link_once(from: &Path, to: &Path) -> Result<(), ImageError> {
    if to.exists() { Ok(()) } else { link_tree(from, to).map_err(ImageError::from) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_more_layers_than_a_host_starts_is_refused() {
        assert!(require_layers("web", 125).is_ok());
        let told = require_layers("web", 126).unwrap_err().to_string();
        assert!(told.starts_with("image web has 126 layers, more than the 125"), "{told}");
    }
}

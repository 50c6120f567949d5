//! Container images of a release: built, split into files, linked into the tree.
//!
//! 1. a recipe is built by the project's script into an OCI layout, cached by what goes into it; 2. its layers are
//!    split once into a store in the cache; 3. a release links the images that it pins. An image that the cache has
//!    lost is built again, and must come out as locked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::binaries::{BinaryError, find_script};
use super::cache::{Cache, link_tree};
use crate::engine::command::{CommandError, run};
use crate::image::source::{self, SourceError};
use crate::image::store::{ImageStore, StoreError};
use crate::image::{Limits, Ownership};
use crate::manifest::service::WantedImage;
use crate::model::{Digest, PinnedImage};

/// The project's script that builds a container image from a recipe.
const BUILD_SCRIPT: &str = "scripts/build-image.sh";
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
    /// The recipe gives another image than the lock says.
    #[error("image {name} of {recipe} is no longer the locked one: expected {expected}, got {got}")]
    Moved {
        /// Image.
        name: String,
        /// Recipe.
        recipe: PathBuf,
        /// The lock's config digest.
        expected: Digest,
        /// What was built.
        got: Digest,
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

/// Builds the image `name` and splits it into the cache's store.
pub fn resolve(
    cache: &Cache,
    name: &str,
    wanted: &WantedImage,
    mirror: Option<&str>,
) -> Result<PinnedImage, ImageError> {
    let work = cache.work().map_err(at(cache.dir()))?;
    let layout = work.path().join("layout");
    let script = find_script(wanted.recipe.parent().unwrap_or(Path::new(".")), BUILD_SCRIPT)?;
    let mut command = Command::new(script);
    if let Some(mirror) = mirror {
        command.args(["--mirror", mirror]);
    }
    command.arg(&wanted.recipe).arg(&layout).env("RACKSTEP_CACHE", cache.dir());
    run(&mut command).map_err(|source| ImageError::Build {
        name: name.to_owned(),
        recipe: wanted.recipe.clone(),
        source,
    })?;
    let limits = Limits::default();
    let mut image = source::open(&layout, None, &limits)
        .map_err(|source| ImageError::Read { name: name.to_owned(), source: Box::new(source) })?;
    let store = cached_store(cache);
    fs::create_dir_all(store.dir()).map_err(at(store.dir()))?;
    store
        .add(image.as_mut(), &wanted.reference, Ownership::Apply, &limits)
        .map_err(|source| ImageError::Store { name: name.to_owned(), source: Box::new(source) })
}

/// Makes sure that the cache's store has a locked image.
pub fn ensure(
    cache: &Cache,
    name: &str,
    wanted: &WantedImage,
    locked: &PinnedImage,
    mirror: Option<&str>,
) -> Result<(), ImageError> {
    let store = cached_store(cache);
    let has_all = store.image(&locked.config).is_ok()
        && locked.layers.iter().all(|layer| store.layer_dir(layer.diff_id).is_dir());
    if has_all {
        return Ok(());
    }
    let built = resolve(cache, name, wanted, mirror)?;
    if built.config == locked.config && built.manifest == locked.manifest {
        return Ok(());
    }
    Err(ImageError::Moved {
        name: name.to_owned(),
        recipe: wanted.recipe.clone(),
        expected: locked.config,
        got: built.config,
    })
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
            link_once(&store.layer_dir(layer.diff_id), &layers.join(layer.diff_id.hex()))?;
        }
    }
    Ok(())
}

fn link_once(from: &Path, to: &Path) -> Result<(), ImageError> {
    if to.exists() { Ok(()) } else { link_tree(from, to).map_err(ImageError::from) }
}

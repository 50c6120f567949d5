//! Before Docker starts: mounts the layers of this host's releases and writes Docker's records of their images.
//!
//! 1. A ref for each release whose layers are mounted: what a container runs from stays in the repo when the deployment goes;
//! 2. mount what the deployments pin, and what refs keep for containers of releases that are no deployment any more;
//! 3. write the records of images whose layers are all mounted.
//!
//! No content is read or copied. An image that cannot be recorded keeps no other away: [`boot`](super::boot) brings it to
//! Docker out of the release's files, as it does for releases without trees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::docker::records::{MountedLayer, RecordError, Recorded, RecordedImage, Records};
use crate::docker::tag_of;
use crate::formats::image::layer_image::TREE;
use crate::formats::image::store::{ImageStore, StoreError};
use crate::model::pins::PinsError;
use crate::model::{Commit, Digest, ObjectKind, ObjectName, RELEASE_DIR, ReleasePins};
use crate::ostree::repo::{Repo, RepoError};
use crate::rim::layers::{Layers, LayersError, Source};

/// Refs that keep the objects of mounted layers, by commit.
pub const MOUNTED_REFS: &str = "rackstep/mounted/";

/// Why there are no records.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// A release's pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A release's file.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A description of an image.
    #[error("reading the description of an image")]
    Store(#[from] StoreError),
    /// The repo.
    #[error("keeping the objects of mounted layers")]
    Repo(#[from] RepoError),
    /// The mounts.
    #[error("mounting layers")]
    Layers(#[from] LayersError),
    /// Docker's store.
    #[error("writing docker's records")]
    Records(#[from] RecordError),
}

/// A release that is checked out on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedOut {
    /// Its commit.
    pub commit: Commit,
    /// Its own files, `…/usr/lib/rackstep`.
    pub files: PathBuf,
}

/// Where everything is.
#[derive(Debug, Clone)]
pub struct RecordPlaces {
    /// The host's repo.
    pub repo: PathBuf,
    /// Where layers are mounted.
    pub layers: PathBuf,
    /// Docker's data root.
    pub docker_root: PathBuf,
}

impl RecordPlaces {
    /// The mounted layers.
    pub fn mounts(&self) -> Layers {
        Layers::new(&self.layers, &self.repo)
    }

    /// Docker's records.
    pub fn records(&self) -> Records {
        Records::new(&self.docker_root, &self.layers)
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct RecordsDone {
    /// Layers mounted now.
    pub mounted: usize,
    /// Layers that could not be mounted, and why.
    pub failed: Vec<(Digest, LayersError)>,
    /// Docker's records.
    pub recorded: Recorded,
    /// Images of releases that were made without trees.
    pub without_trees: usize,
}

/// Mounts layers and writes records; of `releases`, the first one's images get their tags last, and so win.
pub fn write_records(releases: &[CheckedOut], places: &RecordPlaces) -> Result<RecordsDone, RecordsError> {
    let repo = Repo::open(&places.repo)?;
    let mut done = RecordsDone::default();
    let mut sources: BTreeMap<Digest, PathBuf> = BTreeMap::new();
    let mut images: BTreeMap<Digest, RecordedImage> = BTreeMap::new();
    for release in releases {
        let Some(pins) = read_pins(release)? else { continue };
        let store = ImageStore::new(release.files.join("images"));
        for (name, image) in pins.images() {
            if !store.has_trees(image) {
                done.without_trees += 1;
                continue;
            }
            let layers = image.layers.iter().map(|layer| (layer.diff_id, store.layer_dir(layer.diff_id)));
            sources.extend(layers);
            let config = store.image(&image.config)?.config;
            let recorded = images.entry(image.config).or_insert_with(|| RecordedImage {
                image: image.clone(),
                config,
                tags: Vec::new(),
            });
            recorded.tags.push(tag_of(name, image.config));
        }
        if !sources.is_empty() {
            repo.set_ref(&mounted_ref(release.commit), release.commit)?;
        }
    }
    let layers = places.mounts();
    let mut wanted: Vec<Source> =
        sources.iter().map(|(layer, dir)| Source { layer: *layer, tree: dir.join(TREE) }).collect();
    wanted.extend(kept_for_containers(&repo, releases, &sources)?);
    for (layer, mounted) in layers.mount(&wanted)? {
        match mounted {
            Ok(()) => done.mounted += 1,
            Err(error) => done.failed.push((layer, error)),
        }
    }
    let there: BTreeSet<Digest> = layers.mounted()?.into_iter().collect();
    let mounted: BTreeMap<Digest, MountedLayer> = sources
        .into_iter()
        .filter(|(layer, _)| there.contains(layer))
        .map(|(layer, source)| (layer, MountedLayer { files: layers.files(layer), source }))
        .collect();
    let images: Vec<RecordedImage> = images.into_values().collect();
    done.recorded = places.records().write(&images, &mounted)?;
    Ok(done)
}

/// The ref that keeps a release whose layers are mounted.
pub fn mounted_ref(commit: Commit) -> String {
    format!("{MOUNTED_REFS}{commit}")
}

/// A release's pins; none if it is no release of ours.
fn read_pins(release: &CheckedOut) -> Result<Option<ReleasePins>, RecordsError> {
    let path = release.files.join("pins.json");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(ReleasePins::parse(release.commit, &bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordsError::Read { path, source }),
    }
}

/// Layers of releases that are no deployment any more: containers may still stand on them.
fn kept_for_containers(
    repo: &Repo,
    releases: &[CheckedOut],
    known: &BTreeMap<Digest, PathBuf>,
) -> Result<Vec<Source>, RecordsError> {
    let mut kept = BTreeMap::new();
    for (name, commit) in repo.refs()? {
        let deployed = releases.iter().any(|release| release.commit == commit);
        if deployed || !name.starts_with(MOUNTED_REFS) {
            continue;
        }
        let layers = format!("{RELEASE_DIR}/images/layers");
        let Ok(tree) = repo.list_dir(commit, &layers) else { continue };
        for (name, ..) in tree.dirs {
            let Ok(layer) = Digest::parse_hex(&name) else { continue };
            if known.contains_key(&layer) {
                continue;
            }
            let files = repo.list_dir(commit, &format!("{layers}/{name}"))?.files;
            if let Some((_, object)) = files.into_iter().find(|(name, _)| name == TREE) {
                let tree = repo.object_path(&ObjectName::new(ObjectKind::File, object));
                kept.insert(layer, Source { layer, tree });
            }
        }
    }
    Ok(kept.into_values().collect())
}

//! Before Docker starts: mounts the layers of this host's releases and writes Docker's records of their images.
//!
//! 1. A ref for each release whose layers are mounted: what a container runs from stays in the repo when the deployment goes;
//! 2. mount what the deployments pin, and what refs keep for containers of releases that are no deployment any more;
//! 3. write the records of images whose layers are all mounted.
//!
//! No content is read or copied. An image that cannot be recorded keeps no other away: [`absent`](super::absent) tells [`boot`](super::boot)
//! why its pods have to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::docker::records::{
    HeldError, MountedLayer, RecordError, RecordFault, Recorded, RecordedImage, Records,
};
use crate::docker::tag_of;
use crate::formats::image::layer_image::TREE;
use crate::formats::image::store::ImageStore;
use crate::model::causes::in_one_line;
use crate::model::pins::PinsError;
use crate::model::{Commit, Deployment, Digest, ObjectKind, ObjectName, RELEASE_DIR, ReleasePins};
use crate::ostree::repo::{Repo, RepoError};
use crate::ostree::sysroot::Sysroot;
use crate::rim::layers::{Attempt, Layers, LayersError, Source};

/// Why an image of a release that an older rackstep composed cannot run.
const NO_TREE: &str = "the release was composed by an older rackstep, without the tree";

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

impl RecordsError {
    /// True when a daemon runs on Docker's store, so that nothing can be written.
    pub fn is_docker_running(&self) -> bool {
        matches!(self, Self::Records(RecordError::Store(HeldError::Running { .. })))
    }
}

/// A release that is checked out on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedOut {
    /// Its commit.
    pub commit: Commit,
    /// Its own files, `…/usr/lib/rackstep`.
    pub files: PathBuf,
}

impl CheckedOut {
    /// A deployment's release.
    pub fn of(sysroot: &Sysroot, deployment: &Deployment) -> Self {
        Self { commit: deployment.id.commit, files: sysroot.release_dir(deployment) }
    }
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
    /// Releases whose pins cannot be read, and why.
    pub unread: Vec<(Commit, String)>,
    /// Pinned images that Docker will not have, by config digest, and why.
    pub absent: BTreeMap<Digest, String>,
}

/// What the releases of this host want mounted and recorded.
#[derive(Debug, Default)]
struct Wanted {
    /// Directories of layers in a release.
    sources: BTreeMap<Digest, PathBuf>,
    images: BTreeMap<Digest, RecordedImage>,
    /// Commits with at least one layer.
    commits: Vec<Commit>,
    unread: Vec<(Commit, String)>,
    /// Images that cannot be wanted, and why.
    absent: BTreeMap<Digest, String>,
}

impl Wanted {
    /// What cannot be read keeps nothing else away.
    fn of(releases: &[CheckedOut]) -> Self {
        let mut wanted = Self::default();
        for release in releases {
            match read_pins(release) {
                Ok(Some(pins)) => wanted.add(release, &pins),
                Ok(None) => {}
                Err(error) => {
                    wanted.unread.push((release.commit, in_one_line(&error)));
                }
            }
        }
        wanted
    }

    fn add(&mut self, release: &CheckedOut, pins: &ReleasePins) {
        let store = ImageStore::new(release.files.join("images"));
        for (name, image) in pins.images() {
            if let Some(layer) = store.layer_without_tree(image) {
                let why = format!("{NO_TREE} of layer {}", layer.diff_id);
                self.absent.insert(image.config, why);
                continue;
            }
            let config = match store.image(&image.config) {
                Ok(description) => description.config,
                Err(error) => {
                    self.absent.insert(image.config, in_one_line(&error));
                    continue;
                }
            };
            let layers = image.layers.iter().map(|layer| (layer.diff_id, store.layer_dir(layer.diff_id)));
            self.sources.extend(layers);
            self.commits.push(release.commit);
            let recorded = self.images.entry(image.config).or_insert_with(|| RecordedImage {
                image: image.clone(),
                config,
                tags: Vec::new(),
            });
            recorded.tags.push(tag_of(name, image.config));
        }
        self.commits.dedup();
    }

    fn to_mount(&self) -> Vec<Source> {
        let source = |(layer, dir): (&Digest, &PathBuf)| Source { layer: *layer, tree: dir.join(TREE) };
        self.sources.iter().map(source).collect()
    }

    fn mounted(&self, layers: &Layers) -> Result<BTreeMap<Digest, MountedLayer>, LayersError> {
        let there: BTreeSet<Digest> = layers.mounted()?.into_iter().collect();
        let mounted = self.sources.iter().filter(|(layer, _)| there.contains(layer));
        Ok(mounted
            .map(|(layer, source)| {
                (*layer, MountedLayer { files: layers.files(*layer), source: source.clone() })
            })
            .collect())
    }
}

/// Mounts layers and writes records; of `releases`, the first one's images get their tags last, and so win.
pub fn write_records(releases: &[CheckedOut], places: &RecordPlaces) -> Result<RecordsDone, RecordsError> {
    let repo = Repo::open(&places.repo)?;
    let wanted = Wanted::of(releases);
    for commit in &wanted.commits {
        repo.set_ref(&mounted_ref(*commit), *commit)?;
    }
    let layers = places.mounts();
    let mut to_mount = wanted.to_mount();
    to_mount.extend(kept_for_containers(&repo, releases, &wanted.sources)?);
    let (mounted, failed) = outcomes(layers.mount(&to_mount)?);
    let there = wanted.mounted(&layers)?;
    let Wanted { images, unread, mut absent, .. } = wanted;
    let images: Vec<RecordedImage> = images.into_values().collect();
    let recorded = places.records().write(&images, &there)?;
    for (image, layer) in &recorded.incomplete {
        let chains = images.iter().filter(|wanted| wanted.image.config == *image);
        let chain = chains.flat_map(|wanted| {
            let image = &wanted.image;
            image
                .layers
                .iter()
                .zip(image.chains())
                .find(|(of, _)| of.diff_id == *layer)
                .map(|(_, chain)| chain)
        });
        let unmounted = failed.iter().find(|(of, _)| of == layer).map(|(_, error)| in_one_line(error));
        let unrecorded = || {
            recorded
                .failed
                .iter()
                .find(|(of, _)| chain.clone().any(|chain| chain == *of))
                .map(|(_, why)| why.clone())
        };
        let why = unmounted.or_else(unrecorded).unwrap_or_else(|| format!("layer {layer} is not mounted"));
        absent.insert(*image, why);
    }
    Ok(RecordsDone { mounted, failed, recorded, unread, absent })
}

/// What is wrong with mounts and records of the releases' images; Docker may run.
pub fn check_records(
    releases: &[CheckedOut],
    places: &RecordPlaces,
) -> Result<Vec<RecordFault>, RecordsError> {
    let wanted = Wanted::of(releases);
    let mounted = wanted.mounted(&places.mounts())?;
    let images: Vec<RecordedImage> = wanted.images.into_values().collect();
    let mut faults = places.records().check(&images, &mounted)?;
    let absent = wanted.absent.into_iter();
    faults.extend(absent.map(|(image, problem)| RecordFault { image, layer: None, problem }));
    Ok(faults)
}

/// Mounts what is not mounted, and mounts `anew` what is: containers that run keep the old one until they end. Docker may
/// run. Gives how many layers were mounted, and what could not be.
pub fn mount_layers(
    releases: &[CheckedOut],
    places: &RecordPlaces,
    anew: &BTreeSet<Digest>,
) -> Result<(usize, Vec<(Digest, LayersError)>), RecordsError> {
    let layers = places.mounts();
    for layer in layers.mounted()?.into_iter().filter(|layer| anew.contains(layer)) {
        layers.unmount(layer)?;
    }
    Ok(outcomes(layers.mount(&Wanted::of(releases).to_mount())?))
}

fn outcomes(attempts: Vec<Attempt>) -> (usize, Vec<(Digest, LayersError)>) {
    let mut mounted = 0;
    let mut failed = Vec::new();
    for (layer, attempt) in attempts {
        match attempt {
            Ok(()) => mounted += 1,
            Err(error) => failed.push((layer, error)),
        }
    }
    (mounted, failed)
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

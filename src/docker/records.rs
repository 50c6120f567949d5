//! Docker's own records of images whose layers are mounted, written while no daemon runs.
//!
//! The classic store (moby, `layer`, `image`, `reference` and `daemon/graphdriver/overlay2`) is files: of a layer what it is
//! and where (`image/overlay2/layerdb`, `overlay2/<cache id>`), of an image its config (`imagedb`), and tags
//! (`repositories.json`). A layer's `diff` may be a symbolic link to files that are elsewhere. So an image is "loaded" by a
//! few small files:
//!
//! 1. [`Records::write`] writes the records of images whose layers are all mounted, and takes back those of ours that
//!    nobody wants and no container needs;
//! 2. what Docker has already, loaded or pulled by somebody, is used as it is and never touched;
//! 3. everything is made beside the store, synced, and renamed into it: killed half-way, the next run goes on.
//!
//! A record is ours if its `diff` is a link into the directory of mounted layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::formats::image::layer::entries::EntryError;
use crate::formats::image::skeleton::SkeletonError;
use crate::model::causes::in_one_line;
use crate::model::{Digest, PinnedImage};

mod check;
mod files;
mod held;
mod names;
mod tar_split;

pub use check::RecordFault;
use files::{read, replace};
pub use held::HeldError;
use held::hold;
use names::Repositories;

/// Below the data root: what is being made.
const WORK: &str = ".rackstep";
const LAYERS: &str = "image/overlay2/layerdb/sha256";
const MOUNTS: &str = "image/overlay2/layerdb/mounts";
const CONFIGS: &str = "image/overlay2/imagedb/content/sha256";
const METADATA: &str = "image/overlay2/imagedb/metadata/sha256";
const DRIVER: &str = "overlay2";
const TAR_SPLIT: &str = "tar-split.json.gz";
/// Beside a layer's `diff`: the digest of its [`TAR_SPLIT`] as this program makes it. Another form takes another name.
const MARK: &str = "rackstep-tar-split-1";

/// Why Docker's records are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A daemon runs on the data root.
    #[error(transparent)]
    Store(#[from] HeldError),
    /// A file or directory of the store, or of a layer.
    #[error("{doing} {path}")]
    Io {
        /// What was done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer's skeleton is damaged.
    #[error("reading {path}")]
    Skeleton {
        /// The skeleton.
        path: PathBuf,
        /// How.
        #[source]
        source: SkeletonError,
    },
    /// A layer's skeleton does not tell its entries.
    #[error("reading the entries of {path}")]
    Entries {
        /// The skeleton.
        path: PathBuf,
        /// How.
        #[source]
        source: EntryError,
    },
    /// A layer's skeleton and sums do not belong together.
    #[error("{path} does not fit the layer's skeleton")]
    Sums {
        /// The sums.
        path: PathBuf,
    },
}

/// A layer that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedLayer {
    /// Its files, inside of the mount.
    pub files: PathBuf,
    /// The layer in the release: `skeleton` and `sums`.
    pub source: PathBuf,
}

/// An image that Docker shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedImage {
    /// What the release pins.
    pub image: PinnedImage,
    /// Its config, whose digest is the image's Id.
    pub config: Vec<u8>,
    /// Tags, as `repository:tag`.
    pub tags: Vec<String>,
}

/// What became of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Images that Docker will have.
    pub images: Vec<Digest>,
    /// Images that it will not have, with the first layer that is not mounted or cannot be recorded.
    pub incomplete: Vec<(Digest, Digest)>,
    /// Chains of layers that cannot be recorded, and why. No other layer is the worse for it.
    pub failed: Vec<(Digest, String)>,
    /// Records of layers written now.
    pub written: usize,
    /// Records of layers that were taken back.
    pub dropped: usize,
}

/// The store below one data root.
#[derive(Debug, Clone)]
pub struct Records {
    root: PathBuf,
    /// The directory that our links lead into.
    mounts: PathBuf,
}

/// What to rename, and to what.
type Rename = (PathBuf, PathBuf);

/// A layer as the store names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    cache: String,
    /// Its short name below `overlay2/l`.
    link: String,
}

impl Records {
    /// The store of a Docker whose data is in `root`; layers of ours are mounted below `mounts`.
    pub fn new(root: impl Into<PathBuf>, mounts: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), mounts: mounts.into() }
    }

    /// Makes Docker have `images` out of the mounted `layers`, and lets it forget what else is ours.
    pub fn write(
        &self,
        images: &[RecordedImage],
        layers: &BTreeMap<Digest, MountedLayer>,
    ) -> Result<Recorded, RecordError> {
        let _held = hold(&self.root)?;
        self.ensure_directories()?;
        let mut recorded = Recorded::default();
        let mut wanted: BTreeMap<Digest, LayerRecord> = BTreeMap::new();
        let mut whole = Vec::new();
        for image in images {
            let missing = image.image.layers.iter().find(|layer| {
                !layers.contains_key(&layer.diff_id) && !self.is_foreign_chain(&image.image, layer.diff_id)
            });
            if let Some(layer) = missing {
                recorded.incomplete.push((image.image.config, layer.diff_id));
                continue;
            }
            self.plan_layers(&image.image, layers, &mut wanted);
            whole.push(image);
        }
        self.write_layers(&wanted, &mut recorded)?;
        let failed = |image: &RecordedImage| {
            let mut with_chains = image.image.layers.iter().zip(image.image.chains());
            let of = |chain| recorded.failed.iter().any(|(failed, _)| *failed == chain);
            with_chains.find(|(_, chain)| of(*chain)).map(|(layer, _)| (image.image.config, layer.diff_id))
        };
        let incomplete: Vec<(Digest, Digest)> = whole.iter().copied().filter_map(failed).collect();
        whole.retain(|image| !incomplete.iter().any(|(config, _)| *config == image.image.config));
        recorded.incomplete.extend(incomplete);
        for image in &whole {
            self.write_config(image)?;
            recorded.images.push(image.image.config);
        }
        self.write_names(&whole)?;
        recorded.dropped = self.drop_layers(&wanted.keys().copied().collect())?;
        let _ = fs::remove_dir_all(self.root.join(WORK));
        Ok(recorded)
    }

    /// Chains of layers whose records are ours.
    pub fn ours(&self) -> Result<BTreeSet<Digest>, RecordError> {
        let mut ours = BTreeSet::new();
        for chain in files::digests_in(&self.root.join(LAYERS))? {
            if self.known(chain).is_some_and(|known| self.is_ours(chain, &known)) {
                ours.insert(chain);
            }
        }
        Ok(ours)
    }

    /// Diff-ids of layers that Docker has by records of ours.
    pub fn layers(&self) -> Result<BTreeSet<Digest>, RecordError> {
        let ours = self.ours()?;
        let diff = |chain: &Digest| {
            let text = fs::read_to_string(self.layer(*chain).join("diff")).ok()?;
            text.trim().parse().ok()
        };
        Ok(ours.iter().filter_map(diff).collect())
    }

    fn ensure_directories(&self) -> Result<(), RecordError> {
        for (path, mode) in [
            ("", 0o710),
            ("image", 0o700),
            ("image/overlay2", 0o700),
            ("image/overlay2/imagedb", 0o700),
            ("image/overlay2/imagedb/content", 0o700),
            (CONFIGS, 0o700),
            ("image/overlay2/imagedb/metadata", 0o700),
            (METADATA, 0o700),
            ("image/overlay2/layerdb", 0o700),
            (LAYERS, 0o700),
            (DRIVER, 0o710),
            ("overlay2/l", 0o700),
        ] {
            files::ensure_directory(&self.root.join(path), mode)?;
        }
        let work = self.root.join(WORK);
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files::io_error("removing", &work)(error));
            }
            _ => {}
        }
        files::ensure_directory(&work, 0o700)
    }

    fn layer(&self, chain: Digest) -> PathBuf {
        self.root.join(LAYERS).join(chain.hex())
    }

    /// A layer that the store has.
    fn known(&self, chain: Digest) -> Option<Known> {
        let cache = fs::read_to_string(self.layer(chain).join("cache-id")).ok()?.trim().to_owned();
        if cache.is_empty() || cache.contains('/') || cache.starts_with('.') {
            return None;
        }
        let link = fs::read_to_string(self.root.join(DRIVER).join(&cache).join("link")).ok()?;
        Some(Known { cache, link: link.trim().to_owned() })
    }

    /// By its name, which holds even where the link into the mounts was lost, or by that link.
    fn is_ours(&self, chain: Digest, known: &Known) -> bool {
        if *known.cache == names::own(chain).cache {
            return true;
        }
        let diff = self.root.join(DRIVER).join(&known.cache).join("diff");
        fs::read_link(diff).is_ok_and(|target| target.starts_with(&self.mounts))
    }

    /// A layer that somebody loaded or pulled.
    fn foreign(&self, chain: Digest) -> Option<Known> {
        let known = self.known(chain)?;
        let diff = self.root.join(DRIVER).join(&known.cache).join("diff");
        (!self.is_ours(chain, &known) && diff.is_dir()).then_some(known)
    }

    fn is_foreign_chain(&self, image: &PinnedImage, layer: Digest) -> bool {
        let chains = image.chains();
        let mut with_chains = image.layers.iter().zip(chains);
        with_chains.any(|(candidate, chain)| candidate.diff_id == layer && self.foreign(chain).is_some())
    }

    fn plan_layers(
        &self,
        image: &PinnedImage,
        layers: &BTreeMap<Digest, MountedLayer>,
        wanted: &mut BTreeMap<Digest, LayerRecord>,
    ) {
        let mut lower: Vec<String> = Vec::new();
        let mut parent = None;
        for (layer, chain) in image.layers.iter().zip(image.chains()) {
            let foreign = self.foreign(chain);
            let known = foreign.clone().unwrap_or_else(|| names::own(chain));
            if let (None, Some(mounted)) = (foreign, layers.get(&layer.diff_id)) {
                wanted.entry(chain).or_insert_with(|| LayerRecord {
                    diff_id: layer.diff_id,
                    parent,
                    known: known.clone(),
                    lower: lower.join(":"),
                    mounted: mounted.clone(),
                });
            }
            lower.insert(0, format!("l/{}", known.link));
            parent = Some(chain);
        }
    }

    /// Writes what is not there as it should be.
    fn write_layers(
        &self,
        wanted: &BTreeMap<Digest, LayerRecord>,
        recorded: &mut Recorded,
    ) -> Result<(), RecordError> {
        let attempts: Vec<(Digest, Result<Vec<Rename>, RecordError>)> =
            wanted.par_iter().map(|(chain, record)| (*chain, self.make_layer(*chain, record))).collect();
        let mut made: Vec<Rename> = Vec::new();
        for (chain, attempt) in attempts {
            match attempt {
                Ok(renames) => made.extend(renames),
                Err(error) => recorded.failed.push((chain, in_one_line(&error))),
            }
        }
        if !made.is_empty() {
            // No name may lead to what a power cut takes away.
            files::sync(&self.root)?;
        }
        for (from, to) in &made {
            if let Some(name) = to.file_name() {
                files::settle(from, to, &self.root.join(WORK).join("old").join(name))?;
            }
        }
        for record in wanted.values() {
            files::ensure_link(&record.link_target(), &self.short_name(record))?;
        }
        recorded.written = made.len() / 2;
        Ok(())
    }

    fn short_name(&self, record: &LayerRecord) -> PathBuf {
        self.root.join("overlay2/l").join(&record.known.link)
    }

    /// Makes both directories of a layer beside the store, unless they are there: what to rename, and to what.
    fn make_layer(&self, chain: Digest, record: &LayerRecord) -> Result<Vec<Rename>, RecordError> {
        let driver = self.root.join(DRIVER).join(&record.known.cache);
        let layer = self.layer(chain);
        let mut content = record.layer_files(tar_split::size(&record.mounted.source)?);
        let mut driver_files = record.driver_files();
        if self.faults(chain, record, &content).is_empty() {
            return Ok(Vec::new());
        }
        let tar_split = tar_split::render(&record.mounted.source)?;
        driver_files.insert(MARK, Digest::of(&tar_split).hex().into_bytes());
        content.insert(TAR_SPLIT, tar_split);
        let work = self.root.join(WORK);
        let new_driver = work.join(&record.known.cache);
        files::make_directory(&new_driver, 0o710, &driver_files)?;
        if record.parent.is_some() {
            files::ensure_directory(&new_driver.join("work"), 0o700)?;
        }
        files::ensure_link(&record.mounted.files, &new_driver.join("diff"))?;
        let new_layer = work.join(chain.hex());
        files::make_directory(&new_layer, 0o755, &content)?;
        // The layer's record comes last: it is what names the other.
        Ok(vec![(new_driver, driver), (new_layer, layer)])
    }

    fn write_config(&self, image: &RecordedImage) -> Result<(), RecordError> {
        let path = self.root.join(CONFIGS).join(image.image.config.hex());
        match read(&path)? {
            Some(bytes) if bytes == image.config => Ok(()),
            _ => replace(&path, &image.config, 0o600),
        }
    }

    /// Puts our tags on the images that are there and takes those of ours away that belong on no other.
    fn write_names(&self, images: &[&RecordedImage]) -> Result<(), RecordError> {
        let path = self.root.join("image/overlay2/repositories.json");
        let before = read(&path)?;
        let (mut names, broken) = Repositories::parse(before.as_deref());
        if broken {
            // Docker would not start with it. The images that it named are there; their names are kept beside it.
            let aside = path.with_extension("json.broken");
            fs::rename(&path, &aside).map_err(files::io_error("setting aside", &path))?;
            tracing::warn!(path = %aside.display(), "names of images could not be read");
        }
        let kept = self.images_of_containers()?;
        for (id, repository_and_tag) in names.ours() {
            let wanted = images.iter().any(|image| image.image.config == id);
            if wanted || kept.contains(&id) {
                continue;
            }
            names.remove(&repository_and_tag);
            if !names.has(id) {
                self.drop_image(id)?;
            }
        }
        for image in images {
            for tag in &image.tags {
                names.insert(tag, image.image.config);
            }
        }
        let after = names.render();
        if before.as_deref() == Some(after.as_slice()) { Ok(()) } else { replace(&path, &after, 0o600) }
    }

    fn drop_image(&self, id: Digest) -> Result<(), RecordError> {
        files::remove(&self.root.join(METADATA).join(id.hex()))?;
        files::remove(&self.root.join(CONFIGS).join(id.hex()))
    }

    /// Ids of the images that containers, running or not, were made of.
    fn images_of_containers(&self) -> Result<BTreeSet<Digest>, RecordError> {
        let mut images = BTreeSet::new();
        for container in files::names_in(&self.root.join("containers"))? {
            let path = self.root.join("containers").join(container).join("config.v2.json");
            let Some(bytes) = read(&path)? else { continue };
            let config: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            images.extend(config["Image"].as_str().and_then(|id| id.parse::<Digest>().ok()));
        }
        Ok(images)
    }

    /// Takes back our records of layers that are not `wanted` and that no image and no container stands on.
    fn drop_layers(&self, wanted: &BTreeSet<Digest>) -> Result<usize, RecordError> {
        let mut needed = BTreeSet::new();
        for container in files::names_in(&self.root.join(MOUNTS))? {
            let parent = self.root.join(MOUNTS).join(container).join("parent");
            let chain = read(&parent)?.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
            self.need(chain, &mut needed);
        }
        for image in files::digests_in(&self.root.join(CONFIGS))? {
            let Some(bytes) = read(&self.root.join(CONFIGS).join(image.hex()))? else { continue };
            let config: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let diff_ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
            let parsed = diff_ids.iter().filter_map(|id| id.as_str()?.parse::<Digest>().ok());
            needed.extend(crate::model::pins::chains(parsed));
        }
        for chain in files::digests_in(&self.root.join(LAYERS))? {
            // What somebody built or pulled on top of a layer of ours.
            if self.known(chain).is_some_and(|known| !self.is_ours(chain, &known)) {
                self.need(Some(chain), &mut needed);
            }
        }
        let mut dropped = 0;
        for chain in self.ours()? {
            let Some(known) = self.known(chain) else { continue };
            if wanted.contains(&chain) || needed.contains(&chain) {
                continue;
            }
            files::remove(&self.layer(chain))?;
            files::remove(&self.root.join("overlay2/l").join(&known.link))?;
            files::remove(&self.root.join(DRIVER).join(&known.cache))?;
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Adds a chain and all below it.
    fn need(&self, chain: Option<Digest>, needed: &mut BTreeSet<Digest>) {
        let mut next = chain;
        while let Some(chain) = next {
            if !needed.insert(chain) {
                return;
            }
            let parent = fs::read_to_string(self.layer(chain).join("parent")).ok();
            next = parent.and_then(|text| text.trim().parse().ok());
        }
    }
}

/// All that the store keeps of a layer of ours.
#[derive(Debug, Clone)]
struct LayerRecord {
    diff_id: Digest,
    parent: Option<Digest>,
    known: Known,
    lower: String,
    mounted: MountedLayer,
}

impl LayerRecord {
    fn layer_files(&self, size: u64) -> BTreeMap<&'static str, Vec<u8>> {
        let mut content = BTreeMap::from([
            ("diff", self.diff_id.to_string().into_bytes()),
            ("size", size.to_string().into_bytes()),
            ("cache-id", self.known.cache.clone().into_bytes()),
        ]);
        if let Some(parent) = self.parent {
            content.insert("parent", parent.to_string().into_bytes());
        }
        content
    }

    /// Where the short name leads.
    fn link_target(&self) -> PathBuf {
        PathBuf::from("..").join(&self.known.cache).join("diff")
    }

    fn driver_files(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let mut content =
            BTreeMap::from([("link", self.known.link.clone().into_bytes()), ("committed", Vec::new())]);
        if !self.lower.is_empty() {
            content.insert("lower", self.lower.clone().into_bytes());
        }
        content
    }
}

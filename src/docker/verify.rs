//! Reads container images back from Docker: "it is bad" is a [`Verdict`], "I could not look" an error.
//!
//! `docker inspect` shows a damaged image as healthy, and `docker load` does not mend it; only reading finds it. Each layer
//! is read once, straight from the store where its layout is the one that we know, else by `docker save`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::model::causes::in_one_line;
use crate::model::{Digest, PinnedImage, PinnedLayer, Progress};

use super::layerdb::LayerDb;
use super::stored::{LayerVerdict, ReadBack};
use super::{Docker, DockerError, Store};

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// Largest `manifest.json` that we take from `docker save`.
const LARGEST_MANIFEST: u64 = 4 << 20;

/// What Docker's copy of a pinned image is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It is there by its Id, and every layer reads back as its diff-id.
    Good,
    /// No image of that Id.
    Missing,
    /// An image of that Id made of other layers.
    OtherLayers {
        /// Diff-ids in Docker.
        got: Vec<Digest>,
    },
    /// Its config or a layer does not read back.
    Damaged {
        /// The lowest damaged layer's diff-id; none: the config, or not known.
        layer: Option<Digest>,
        /// What was seen.
        problem: String,
    },
}

impl Verdict {
    /// True when nothing is wrong.
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Good)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Good => f.write_str("good"),
            Self::Missing => f.write_str("not in docker"),
            Self::OtherLayers { got } => write!(f, "made of other layers: {got:?}"),
            Self::Damaged { layer: Some(layer), problem } => write!(f, "layer {layer} is damaged: {problem}"),
            Self::Damaged { layer: None, problem } => write!(f, "damaged: {problem}"),
        }
    }
}

impl Docker {
    /// Reads one image back.
    pub fn verify(&self, image: &PinnedImage) -> Result<Verdict, DockerError> {
        let verdicts = self.verify_all(&[image], &crate::model::progress::Silent)?;
        Ok(verdicts.into_iter().next().unwrap_or(Verdict::Missing))
    }

    /// Reads images back, layers that they share once; verdicts in the order of `images`.
    pub fn verify_all(
        &self,
        images: &[&PinnedImage],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, DockerError> {
        let listed: Vec<Verdict> =
            images.iter().map(|image| self.verify_listing(image)).collect::<Result<_, _>>()?;
        let there: Vec<&PinnedImage> = (images.iter().copied().zip(&listed))
            .filter_map(|(image, verdict)| verdict.is_good().then_some(image))
            .collect();
        match self.store()? {
            Store::Containerd(store) => verify_in_store(&store.look(&there)?, images, listed, progress),
            Store::Classic(storage) => match LayerDb::open(&storage.data_root, &storage.driver) {
                Some(db) => verify_in_store(&db, images, listed, progress),
                None => (images.iter().zip(listed))
                    .map(
                        |(image, verdict)| {
                            if verdict.is_good() { self.verify_by_export(image) } else { Ok(verdict) }
                        },
                    )
                    .collect(),
            },
        }
    }

    fn verify_listing(&self, image: &PinnedImage) -> Result<Verdict, DockerError> {
        let Some(id) = self.id_of(image.config)? else { return Ok(Verdict::Missing) };
        let layers = match self.layers_of(id) {
            // Its records are damaged: that is no reason to look at no other image.
            Err(error) if error.is_internal() => {
                return Ok(Verdict::Damaged { layer: None, problem: in_one_line(&error) });
            }
            layers => layers?,
        };
        Ok(match layers {
            None => Verdict::Missing,
            Some(got) if got.iter().eq(image.layers.iter().map(|layer| &layer.diff_id)) => Verdict::Good,
            Some(got) => Verdict::OtherLayers { got },
        })
    }

    /// Reads an image back by `docker save`, for stores that cannot be read directly.
    pub fn verify_by_export(&self, image: &PinnedImage) -> Result<Verdict, DockerError> {
        let operation = || format!("exporting container image {}", image.config);
        let Some(id) = self.id_of(image.config)? else { return Ok(Verdict::Missing) };
        let (hashed, sent) = self.export(id, hash_members);
        if let Err(error) = sent {
            return damage_in(&error)
                .map(|problem| Verdict::Damaged { layer: None, problem })
                .ok_or_else(|| DockerError::Call { operation: operation(), source: Box::new(error) });
        }
        let unreadable = |problem: String| DockerError::Answer { operation: operation(), problem };
        match hashed {
            Ok(Ok(saved)) => judge_saved(&saved, image).map_err(unreadable),
            Ok(Err(error)) => Err(unreadable(format!("a broken archive: {error}"))),
            Err(_) => Err(unreadable("an archive that stopped our reader".to_owned())),
        }
    }
}

/// Reads every layer that the images have, each once, on all cores.
fn verify_in_store(
    store: &dyn ReadBack,
    images: &[&PinnedImage],
    listed: Vec<Verdict>,
    progress: &dyn Progress,
) -> Result<Vec<Verdict>, DockerError> {
    let mut layers: BTreeMap<Digest, &PinnedLayer> = BTreeMap::new();
    for (image, _) in images.iter().zip(&listed).filter(|(_, verdict)| verdict.is_good()) {
        layers.extend(image.chains().into_iter().zip(&image.layers));
    }
    progress.begin("verifying container images", Some(layers.values().map(|layer| layer.size).sum()));
    let read: BTreeMap<Digest, LayerVerdict> = layers
        .par_iter()
        .map(|(chain, layer)| Ok((*chain, store.read_layer(layer, *chain, progress)?)))
        .collect::<Result<_, DockerError>>()?;
    let verdicts = images
        .iter()
        .zip(listed)
        .map(
            |(image, verdict)| {
                if verdict.is_good() { judge_stored(store, image, &read) } else { Ok(verdict) }
            },
        )
        .collect::<Result<Vec<_>, _>>()?;
    let good = verdicts.iter().filter(|verdict| verdict.is_good()).count();
    progress.end(&format!("{good} of {} good, {} layers read", verdicts.len(), read.len()));
    Ok(verdicts)
}

fn judge_stored(
    store: &dyn ReadBack,
    image: &PinnedImage,
    read: &BTreeMap<Digest, LayerVerdict>,
) -> Result<Verdict, DockerError> {
    let damaged = |layer, problem| Ok(Verdict::Damaged { layer, problem });
    if let Some(problem) = store.problem_of(image)? {
        return damaged(None, problem);
    }
    for (layer, chain) in image.layers.iter().zip(image.chains()) {
        match read.get(&chain) {
            Some(LayerVerdict::Content(got)) if *got == layer.diff_id => {}
            Some(LayerVerdict::Content(got)) => {
                return damaged(Some(layer.diff_id), format!("it reads back as {got}"));
            }
            Some(LayerVerdict::Broken(problem)) => return damaged(Some(layer.diff_id), problem.clone()),
            None => return damaged(Some(layer.diff_id), "it was not read".to_owned()),
        }
    }
    Ok(Verdict::Good)
}

/// Says what is wrong with the image when Docker failed because of it, and not because of something else.
fn damage_in(error: &bollard::errors::Error) -> Option<String> {
    // Texts of tar-split's and the store's checks; there is no code to go by. Anything else is "could not look".
    const SIGNS: [&str; 4] =
        ["integrity checksum failed", "no such file or directory", "unexpected EOF", "input/output error"];
    let text = error.to_string();
    SIGNS.iter().any(|sign| text.contains(sign)).then_some(text)
}

/// What a saved archive held, by member path.
#[derive(Debug, Default)]
struct Saved {
    files: BTreeMap<String, Digest>,
    links: BTreeMap<String, String>,
    manifest: Vec<u8>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

impl Saved {
    /// Digest of the member at `path`, symlinks followed: shared layers are links to one copy.
    fn digest(&self, path: &str) -> Option<Digest> {
        let mut path = normalize(path);
        let mut seen = BTreeSet::new();
        while seen.insert(path.clone()) {
            if let Some(digest) = self.files.get(&path) {
                return Some(*digest);
            }
            let target = self.links.get(&path)?;
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            path = normalize(&format!("{parent}/{target}"));
        }
        None
    }
}

fn normalize(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn hash_members(reader: impl Read) -> io::Result<Saved> {
    let mut saved = Saved::default();
    let mut archive = tar::Archive::new(reader);
    let mut buffer = vec![0; BUFFER];
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = normalize(&String::from_utf8_lossy(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            // A hard link's target counts from the archive's root.
            let target = if kind.is_hard_link() {
                format!("{}{target}", "../".repeat(path.matches('/').count()))
            } else {
                target
            };
            saved.links.insert(path, target);
        } else if path == "manifest.json" {
            entry.by_ref().take(LARGEST_MANIFEST).read_to_end(&mut saved.manifest)?;
        } else if kind.is_file() {
            let mut hash = Sha256::new();
            loop {
                let count = entry.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                hash.update(&buffer[..count]);
            }
            saved.files.insert(path, Digest::from_bytes(hash.finalize().into()));
        }
    }
    Ok(saved)
}

fn judge_saved(saved: &Saved, image: &PinnedImage) -> Result<Verdict, String> {
    let listed: Vec<SavedImage> =
        serde_json::from_slice(&saved.manifest).map_err(|error| format!("a bad manifest.json: {error}"))?;
    let [listed] = listed.as_slice() else {
        return Err(format!("{} images in it, expected 1", listed.len()));
    };
    let damaged = |layer, problem: String| Ok(Verdict::Damaged { layer, problem });
    let config = saved.digest(&listed.config);
    if config != Some(image.config) {
        return damaged(None, format!("its config reads back as {config:?}"));
    }
    if listed.layers.len() != image.layers.len() {
        return damaged(
            None,
            format!("{} layers read back, expected {}", listed.layers.len(), image.layers.len()),
        );
    }
    for (path, layer) in listed.layers.iter().zip(&image.layers) {
        let got = saved.digest(path);
        if got != Some(layer.diff_id) {
            return damaged(Some(layer.diff_id), format!("it reads back as {got:?}"));
        }
    }
    Ok(Verdict::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_shared_copy() {
        let layer = Digest::of(b"layer");
        let saved = Saved {
            files: [("a/layer.tar".to_owned(), layer)].into(),
            links: [
                ("b/layer.tar".to_owned(), "../a/layer.tar".to_owned()),
                ("loop".to_owned(), "loop".to_owned()),
            ]
            .into(),
            manifest: Vec::new(),
        };
        assert_eq!(saved.digest("b/layer.tar"), Some(layer));
        assert_eq!(saved.digest("./a/layer.tar"), Some(layer));
        assert_eq!(saved.digest("loop"), None);
        assert_eq!(saved.digest("../../x"), None);
    }
}

//! Replaces images whose content went bad.
//!
//! In the containerd store blobs are mended first, where they are ([`mend`](super::containerd::mend)).
//!
//! A load does not look at a layer that Docker believes to have, so a damaged layer must first go entirely: every image on
//! its chain, and every stopped container made from them. Then they are loaded again. A running container is never
//! taken away: repair happens before the services start, or after somebody stopped them.

use std::collections::BTreeSet;

use crate::model::pins::chains;
use crate::model::{Digest, PinnedImage, Progress, ReleasePins};

use super::containerd::mend::Depth;
use super::import::ImageArchive;
use super::{Docker, DockerError, Store, Verdict};

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Images that were removed and loaded again, or mended where they are.
    pub replaced: Vec<Digest>,
    /// Images that were missing and are there now.
    pub loaded: Vec<Digest>,
}

impl Docker {
    /// Makes every pinned image of `releases` good again, each out of its release's own files. All releases that share
    /// layers belong into one call: a damaged layer leaves with every image that stands on it.
    pub fn repair(
        &self,
        releases: &[(&dyn ImageArchive, &ReleasePins)],
        progress: &dyn Progress,
    ) -> Result<Repaired, DockerError> {
        let pinned: Vec<&PinnedImage> =
            releases.iter().flat_map(|(_, release)| release.images()).map(|(_, image)| image).collect();
        let mut mended = self.mend(releases, &|_| true, Depth::Descriptions)?;
        let mut verdicts = self.verify_all(&pinned, progress)?;
        let is_bad = |config| {
            let of_this =
                |(image, verdict): (&&PinnedImage, &Verdict)| image.config == config && !verdict.is_good();
            pinned.iter().zip(&verdicts).any(of_this)
        };
        let more = self.mend(releases, &is_bad, Depth::Everything)?;
        if !more.is_empty() {
            mended.extend(more);
            verdicts = self.verify_all(&pinned, progress)?;
        }
        let bad: Vec<(&PinnedImage, &Verdict)> =
            pinned.iter().copied().zip(&verdicts).filter(|(_, verdict)| !verdict.is_good()).collect();
        let mut repaired = Repaired::default();
        let position = |config: &Digest| pinned.iter().position(|image| image.config == *config);
        mended.sort_by_key(position);
        mended.dedup();
        if bad.is_empty() {
            repaired.replaced = mended;
            return Ok(repaired);
        }
        let removed = self.remove_damaged(&bad, &pinned)?;
        for (source, release) in releases {
            let images = release.images().map(|(_, image)| image);
            for id in self.import(*source, images, progress)?.loaded {
                if removed.contains(&id) { repaired.replaced.push(id) } else { repaired.loaded.push(id) }
            }
            self.protect(release)?;
        }
        repaired.replaced.extend(mended);
        repaired.replaced.sort_by_key(position);
        repaired.replaced.dedup();
        Ok(repaired)
    }

    /// In the containerd store: puts damaged blobs right where they are; gives the images that they are of. What was
    /// unpacked from them is another matter.
    fn mend(
        &self,
        releases: &[(&dyn ImageArchive, &ReleasePins)],
        which: &dyn Fn(Digest) -> bool,
        depth: Depth,
    ) -> Result<Vec<Digest>, DockerError> {
        let Store::Containerd(store) = self.store()? else { return Ok(Vec::new()) };
        let mut mended = Vec::new();
        for (source, release) in releases {
            let images = release.images().map(|(_, image)| image).filter(|image| which(image.config));
            mended.extend(store.mend(*source, &images.collect::<Vec<_>>(), depth)?);
        }
        Ok(mended)
    }

    /// Removes every image that stands on a damaged layer; gives their config digests.
    fn remove_damaged(
        &self,
        bad: &[(&PinnedImage, &Verdict)],
        pinned: &[&PinnedImage],
    ) -> Result<BTreeSet<Digest>, DockerError> {
        let mut damaged_chains: BTreeSet<Digest> = BTreeSet::new();
        let mut damaged_ids: BTreeSet<Digest> = BTreeSet::new();
        for (image, verdict) in bad {
            match verdict {
                Verdict::Good | Verdict::Missing => {}
                Verdict::OtherLayers { .. } => {
                    damaged_ids.insert(image.config);
                }
                Verdict::Damaged { layer, .. } => {
                    damaged_ids.insert(image.config);
                    // Only the lowest damaged layer is named, and those above it may be bad too: they go as well, as
                    // they stand on its chain. Nothing named: the whole image.
                    let from = layer.and_then(|layer| {
                        image.layers.iter().position(|candidate| candidate.diff_id == layer)
                    });
                    damaged_chains.extend(image.chains().into_iter().skip(from.unwrap_or(0)));
                }
            }
        }
        let images = self.observe_images()?;
        let mut doomed: BTreeSet<Digest> = BTreeSet::new();
        for (config, image) in &images {
            let layers = self.layers_of(image.id)?.unwrap_or_default();
            let damaged = chains(layers.iter().copied())
                .into_iter()
                .zip(layers)
                .find(|(chain, _)| damaged_chains.contains(chain));
            let Some((_, layer)) = damaged else {
                if damaged_ids.contains(config) {
                    doomed.insert(*config);
                }
                continue;
            };
            if !pinned.iter().any(|pinned| pinned.config == *config) {
                return Err(DockerError::Foreign { layer, image: *config });
            }
            doomed.insert(*config);
        }
        let containers: Vec<_> = self
            .observe_containers()?
            .into_iter()
            .filter(|container| container.image.is_some_and(|id| doomed.contains(&id)))
            .collect();
        if let Some(container) = containers.iter().find(|container| container.is_running()) {
            let image = container.image.unwrap_or(Digest::of(b""));
            return Err(DockerError::InUse { container: container.name.clone(), image });
        }
        for container in &containers {
            self.remove_container(container)?;
        }
        for image in doomed.iter().filter_map(|config| images.get(config)) {
            self.remove_image(image.id, &image.tags)?;
        }
        Ok(doomed)
    }
}

//! Reads images back: every blob against its name, every unpacked file against the blob that it came from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Containerd, unpacked};
use crate::docker::DockerError;
use crate::docker::stored::{LayerVerdict, ReadBack, tell};
use crate::formats::image::spec;
use crate::model::{Digest, PinnedImage, PinnedLayer, Progress};

/// A store with the places of the layers that are to be read.
pub(in crate::docker) struct Look<'s> {
    store: &'s Containerd,
    /// Chain → directory, or nothing where no snapshot has it.
    directories: BTreeMap<Digest, PathBuf>,
}

impl Containerd {
    /// Finds the unpacked layers of `images`.
    pub(in crate::docker) fn look(&self, images: &[&PinnedImage]) -> Result<Look<'_>, DockerError> {
        let mut directories = BTreeMap::new();
        for image in images {
            directories.extend(self.ctr.layers(&image.chains())?.unwrap_or_default());
        }
        Ok(Look { store: self, directories })
    }
}

impl ReadBack for Look<'_> {
    fn problem_of(&self, image: &PinnedImage) -> Result<Option<String>, DockerError> {
        let read = |digest: Digest| {
            let path = self.store.blob(digest);
            match std::fs::read(&path) {
                Ok(bytes) if Digest::of(&bytes) == digest => Ok(Ok(bytes)),
                Ok(bytes) => Ok(Err(format!("{} reads back as {}", path.display(), Digest::of(&bytes)))),
                Err(error) => match tell(&path, error)? {
                    LayerVerdict::Broken(problem) => Ok(Err(problem)),
                    LayerVerdict::Content(_) => Ok(Err(path.display().to_string())),
                },
            }
        };
        let config = match read(image.config)? {
            Ok(config) => config,
            Err(problem) => return Ok(Some(problem)),
        };
        let manifest = spec::render_plain_manifest(image.config, config.len() as u64, &image.layers);
        Ok(read(Digest::of(&manifest))?.err())
    }

    fn read_layer(
        &self,
        layer: &PinnedLayer,
        chain: Digest,
        progress: &dyn Progress,
    ) -> Result<LayerVerdict, DockerError> {
        match self.directories.get(&chain) {
            Some(directory) => {
                let blob = self.store.blob(layer.diff_id);
                unpacked::compare(&blob, layer.diff_id, directory, chain == layer.diff_id, progress)
            }
            None => Ok(LayerVerdict::Broken("it is not unpacked".to_owned())),
        }
    }
}

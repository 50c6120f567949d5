//! Compares Docker's records with what [`Records::write`] would write. Nothing is changed, and a daemon may run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{
    CONFIGS, DRIVER, LayerRecord, MARK, MountedLayer, RecordError, RecordedImage, Records, Repositories,
    TAR_SPLIT, read, tar_split,
};
use crate::model::causes::in_one_line;
use crate::model::{Digest, PinnedImage};

/// A record that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordFault {
    /// The image's config digest.
    pub image: Digest,
    /// The layer's diff-id, if it is a layer's record.
    pub layer: Option<Digest>,
    /// Which record, and what is wrong with it.
    pub problem: String,
}

impl std::fmt::Display for RecordFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layer {layer}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl Records {
    /// What is wrong with the records of `images`, whose `layers` are mounted. A layer that somebody else brought to Docker
    /// is not looked at.
    pub fn check(
        &self,
        images: &[RecordedImage],
        layers: &BTreeMap<Digest, MountedLayer>,
    ) -> Result<Vec<RecordFault>, RecordError> {
        let names = read(&self.root.join("image/overlay2/repositories.json"))?;
        let (names, _) = Repositories::parse(names.as_deref());
        let mut faults = Vec::new();
        for image in images {
            let config = image.image.config;
            let mut fault = |layer, problem| faults.push(RecordFault { image: config, layer, problem });
            if self.is_foreign(&image.image) {
                continue;
            }
            let mut wanted = BTreeMap::new();
            self.plan_layers(&image.image, layers, &mut wanted);
            for (layer, chain) in image.image.layers.iter().zip(image.image.chains()) {
                if let Some(record) = wanted.get(&chain) {
                    for problem in self.faults_of(chain, record) {
                        fault(Some(layer.diff_id), problem);
                    }
                } else if self.foreign(chain).is_none() {
                    fault(Some(layer.diff_id), "it is not mounted".to_owned());
                }
            }
            let path = self.root.join(CONFIGS).join(config.hex());
            if read(&path)?.as_ref() != Some(&image.config) {
                fault(None, told(&path));
            }
            for tag in image.tags.iter().filter(|tag| !names.is_on(tag, config)) {
                fault(None, format!("repositories.json does not name it {tag}"));
            }
        }
        Ok(faults)
    }

    /// Whether somebody else brought all of the image's layers to Docker.
    fn is_foreign(&self, image: &PinnedImage) -> bool {
        image.chains().into_iter().all(|chain| self.foreign(chain).is_some())
    }

    fn faults_of(&self, chain: Digest, record: &LayerRecord) -> Vec<String> {
        match tar_split::size(&record.mounted.source) {
            Ok(size) => self.faults(chain, record, &record.layer_files(size)),
            Err(error) => vec![in_one_line(&error)],
        }
    }

    /// Files of a layer's record that are not as they should be; `content` is what belongs into `layerdb`.
    pub(super) fn faults(
        &self,
        chain: Digest,
        record: &LayerRecord,
        content: &BTreeMap<&'static str, Vec<u8>>,
    ) -> Vec<String> {
        let driver = self.root.join(DRIVER).join(&record.known.cache);
        let layer = self.layer(chain);
        let mut faults = Vec::new();
        let files = content.iter().map(|file| (&layer, file));
        let driver_files = record.driver_files();
        for (directory, (name, bytes)) in files.chain(driver_files.iter().map(|file| (&driver, file))) {
            let path = directory.join(name);
            if !fs::read(&path).is_ok_and(|found| found == *bytes) {
                faults.push(told(&path));
            }
        }
        for (link, target) in [
            (driver.join("diff"), record.mounted.files.clone()),
            (self.short_name(record), record.link_target()),
        ] {
            if !fs::read_link(&link).is_ok_and(|found| found == target) {
                faults.push(told(&link));
            }
        }
        let tar_split = layer.join(TAR_SPLIT);
        if !is_as_marked(&tar_split, &driver.join(MARK)) {
            faults.push(told(&tar_split));
        }
        faults
    }
}

fn told(path: &Path) -> String {
    let is = if path.symlink_metadata().is_ok() { "not what it should be" } else { "not there" };
    format!("{} is {is}", path.display())
}

/// Whether a file has the digest that stands in another: making it anew at every boot would take longer than all the rest.
fn is_as_marked(file: &Path, mark: &Path) -> bool {
    let digest = fs::read(file).map(|bytes| Digest::of(&bytes).hex());
    matches!((digest, fs::read_to_string(mark)), (Ok(digest), Ok(mark)) if digest == mark)
}

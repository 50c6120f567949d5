//! Can this release start? Asked of its finished files, with the readers of the boot itself.
//!
//! Compose asks before it commits, and `upgrade` before it flips: what stops a boot stops every service of a host, so it must
//! stop here first. Nothing is written and Docker is not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::formats::image::store::ImageStore;
use crate::host::boot::plan::plan_boot;
use crate::model::{Commit, Digest, PhaseJournal};
use crate::release::manifest::read::is_entry_name;
use crate::release::manifest::references;

use super::boot::{BootError, Release};
use super::places::{Places, RUN};

/// What keeps a release from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The boot's own readers refuse it.
    #[error(transparent)]
    Boot(#[from] Box<BootError>),
    /// A configuration file asks for what no host has.
    #[error(transparent)]
    Reference(#[from] crate::model::place::InputError),
    /// A name that would leave its directory.
    #[error("{kind} {name:?} has a name that cannot stand in a directory")]
    Name {
        /// What it names.
        kind: &'static str,
        /// As written.
        name: String,
    },
    /// A pod mounts configuration that the release does not bring.
    #[error("pod {pod} mounts {path}, which the release does not bring")]
    NoConfig {
        /// The pod.
        pod: String,
        /// As written.
        path: String,
    },
    /// An older rackstep composed it.
    #[error(
        "image {image} has no tree of layer {layer}: the release was composed by a rackstep whose hosts imported images; \
         compose it again with this one"
    )]
    NoTree {
        /// Name in the pin set.
        image: String,
        /// Its diff-id.
        layer: Digest,
    },
}

impl From<BootError> for StartError {
    fn from(error: BootError) -> Self {
        Self::Boot(Box::new(error))
    }
}

/// Reads the release in `directory` as the boot of `commit` would and plans that boot, on a host where no phase has run.
pub fn require_startable(directory: &Path, commit: Commit) -> Result<(), StartError> {
    let release = Release::read(directory, commit)?;
    let pods: BTreeSet<String> = release.pods.keys().cloned().collect();
    let journal = PhaseJournal::default();
    let pins = release.pins.pins();
    let plan = plan_boot(&release.phases, pins, &pods, release.info.created, false, &journal)
        .map_err(|source| BootError::Plan { commit, source })?;
    require_names(&release)?;
    require_trees(directory, &release)?;
    let secrets = release.secrets.secrets.keys().map(String::as_str).collect();
    let config = directory.join("config");
    if config.is_dir() {
        references::check(&config, &secrets)?;
    }
    // A place that does not exist: rendering looks at configuration only to notice changes of it.
    let nowhere = Places::below(Path::new("/nonexistent"));
    for (name, pod) in &release.pods {
        pod.render(pins, &nowhere).map_err(BootError::from)?;
        pod.pinned_containers(pins).map_err(BootError::from)?;
        let run = Path::new(RUN).join("config");
        for path in pod.host_paths() {
            let below = Path::new(path).strip_prefix(&run).ok();
            if below.is_some_and(|below| !config.join(below).exists()) {
                return Err(StartError::NoConfig { pod: name.clone(), path: path.to_owned() });
            }
        }
    }
    for planned in &plan.phases {
        if let Some(pod) = release.pods.get(&planned.phase.pod) {
            pod.render_phase(&planned.phase, planned.image, commit, &nowhere).map_err(BootError::from)?;
        }
    }
    Ok(())
}

/// Hosts mount layers and import nothing.
fn require_trees(directory: &Path, release: &Release) -> Result<(), StartError> {
    let store = ImageStore::new(directory.join("images"));
    for (name, image) in release.pins.images() {
        if let Some(layer) = store.layer_without_tree(image) {
            return Err(StartError::NoTree { image: name.to_owned(), layer: layer.diff_id });
        }
    }
    Ok(())
}

fn require_names(release: &Release) -> Result<(), StartError> {
    let names: BTreeMap<&'static str, Vec<&String>> = BTreeMap::from([
        ("pod", release.pods.keys().collect()),
        ("volume", release.volumes.volumes.keys().collect()),
        ("secret", release.secrets.secrets.keys().collect()),
        ("phase", release.phases.phases.iter().map(|phase| &phase.id).collect()),
    ]);
    for (kind, names) in names {
        if let Some(name) = names.into_iter().find(|name| !is_entry_name(name)) {
            return Err(StartError::Name { kind, name: name.clone() });
        }
    }
    for (name, volume) in &release.volumes.volumes {
        let wrong = |problem| BootError::Volume { volume: name.clone(), problem };
        volume.parse_mode().map_err(wrong)?;
        volume.parse_owner().map_err(wrong)?;
    }
    Ok(())
}

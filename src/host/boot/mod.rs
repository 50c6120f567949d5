//! What a host does at boot with the release that it booted.
//!
//! Before kubelet starts ([`boot`]):
//! 1. read the release's own files and plan: which phases are due, which pods wait for them;
//! 2. ask Docker which images it lacks: what needs them waits, each with its reason, and all else runs;
//! 3. make volumes and secrets that are not there yet; render configuration;
//! 4. render the pods that wait for nothing, and name the pause image to cri-dockerd.
//!
//! Beside kubelet ([`boot_phases`]): run what is due and start the pods that waited.
//!
//! It needs no network, brings nothing to Docker and removes nothing: [`records`](super::records) has run before Docker.

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::docker::{Docker, DockerError, tag_of};
use crate::host::absent;
use crate::host::boot::plan::{BootPlan, BootPlanError, KeptOut, PAUSE, keep_out, plan_boot};
use crate::model::host::HOST_FORMAT;
use crate::model::phase::PHASES_FORMAT;
use crate::model::pins::PinsError;
use crate::model::release::RELEASE_FORMAT;
use crate::model::secret::SECRETS_FORMAT;
use crate::model::status::ContainerStatus;
use crate::model::volume::VOLUMES_FORMAT;
use crate::model::{Commit, HostConfig, PhaseSet, Progress, ReleaseInfo, ReleasePins, SecretSet, VolumeSet};

use super::config::{ConfigError, Values, render_directory};
use super::identity;
use super::journal::read_journal;
use super::phases::{PhaseError, PhasesDone, run_phases};
use super::places::Places;
use super::pods::{PodError, PodFile, keep_only, read_pods, write_pod};
use super::readiness::{node_name, running};
use super::secrets::ensure_secrets;
use crate::rim::files::{Durability, FileError, ensure_directory, list, naming, write_atomic};
use crate::rim::versioned::VersionedError;

/// How long a machine without an address of its own waits for a lease.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(60);

/// Why a boot step failed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file of the release is missing or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the release is not what it should be.
    #[error("reading {path}")]
    Json {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file of the release is of another format.
    #[error("{path} is of format {got}, expected {expected}")]
    Format {
        /// Which.
        path: PathBuf,
        /// Its format.
        got: u64,
        /// Ours.
        expected: u32,
    },
    /// The pin set.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The release's phases make no plan.
    #[error("planning the boot of release {commit}")]
    Plan {
        /// The release.
        commit: Commit,
        /// Why.
        #[source]
        source: BootPlanError,
    },
    /// The journal of phases.
    #[error(transparent)]
    Journal(#[from] VersionedError),
    /// The services' configuration.
    #[error("rendering configuration")]
    Config(#[from] ConfigError),
    /// A volume says something that we do not understand.
    #[error("volume {volume}: {problem}")]
    Volume {
        /// Which.
        volume: String,
        /// What.
        problem: String,
    },
    /// A phase.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// Docker could not be asked.
    #[error("asking docker what is there")]
    Docker(#[from] DockerError),
}

/// A release as its own files tell it.
#[derive(Debug, Clone)]
pub struct Release {
    /// What it says of itself.
    pub info: ReleaseInfo,
    /// Its images.
    pub pins: ReleasePins,
    /// Its phases.
    pub phases: PhaseSet,
    /// Its secrets' names.
    pub secrets: SecretSet,
    /// Its volumes.
    pub volumes: VolumeSet,
    /// Its pods, by name.
    pub pods: BTreeMap<String, PodFile>,
}

/// What [`boot`] did.
#[derive(Debug, Clone)]
pub struct Booted {
    /// The plan that it followed.
    pub plan: BootPlan,
    /// What waits for images that Docker does not have.
    pub kept_out: KeptOut,
    /// Pods given to kubelet.
    pub started: Vec<String>,
    /// Secrets made now.
    pub new_secrets: usize,
    /// Volumes made now.
    pub new_volumes: usize,
}

impl Release {
    /// Reads the files of `commit` in `directory`.
    pub fn read(directory: &Path, commit: Commit) -> Result<Self, BootError> {
        let pins = directory.join("pins.json");
        let pins = std::fs::read(&pins).map_err(naming("reading", &pins))?;
        Ok(Self {
            info: read_json(&directory.join("release.json"), RELEASE_FORMAT)?,
            pins: ReleasePins::parse(commit, &pins)?,
            phases: read_json(&directory.join("phases.json"), PHASES_FORMAT)?,
            secrets: read_json(&directory.join("secrets.json"), SECRETS_FORMAT)?,
            volumes: read_json(&directory.join("volumes.json"), VOLUMES_FORMAT)?,
            pods: read_pods(&directory.join("pods"))?,
        })
    }

    /// Decides what its boot has to do; `confirmed`: its trial is over.
    pub fn plan(&self, places: &Places, confirmed: bool) -> Result<BootPlan, BootError> {
        let journal = read_journal(&places.journal())?;
        let pods: BTreeSet<String> = self.pods.keys().cloned().collect();
        plan_boot(&self.phases, self.pins.pins(), &pods, self.info.created, confirmed, &journal)
            .map_err(|source| BootError::Plan { commit: self.pins.commit(), source })
    }

    /// Gives a pod to kubelet.
    pub fn start_pod(&self, name: &str, places: &Places) -> Result<(), BootError> {
        if let Some(pod) = self.pods.get(name) {
            write_pod(&places.pods(), name, &pod.render(self.pins.pins(), places)?)?;
        }
        Ok(())
    }

    /// What has to wait because Docker, whose records are written below `docker_root`, lacks its image.
    pub fn keep_out(
        &self,
        plan: &BootPlan,
        docker: &Docker,
        docker_root: &Path,
        places: &Places,
    ) -> Result<KeptOut, BootError> {
        let absent = absent::observe(docker, docker_root, &self.pins, places)?;
        let mut images = BTreeMap::new();
        for (name, pod) in &self.pods {
            let of_pod = pod.pinned_containers(self.pins.pins())?.into_iter().map(|(_, image, _)| image);
            images.insert(name.clone(), of_pod.collect());
        }
        Ok(keep_out(plan, &images, &absent))
    }
}

/// Brings up everything that must be there before kubelet starts.
pub fn boot(
    docker: &Docker,
    docker_root: &Path,
    release: &Release,
    places: &Places,
) -> Result<Booted, BootError> {
    let plan = release.plan(places, false)?;
    let kept_out = release.keep_out(&plan, docker, docker_root, places)?;
    let new_volumes = ensure_volumes(release, places)?;
    let (secrets, new_secrets) = ensure_secrets(&places.secrets(), &release.secrets)?;
    let host = read_host(&places.host_config)?;
    let values = Values { secrets: &secrets, host: host.as_ref() };
    ensure_directory(&places.run, 0o755)?;
    ensure_directory(&places.config(), 0o700)?;
    for service in list(&places.release.join("config"))? {
        if let Some(name) = service.file_name() {
            render_directory(&service, &places.config().join(name), values)?;
        }
    }
    write_pause_image(release, places)?;
    ensure_directory(&places.pods(), 0o700)?;
    let starts = |name: &str| !kept_out.pods.contains_key(name);
    let starting: BTreeSet<&str> = (plan.pods.iter().filter(|pod| pod.waits_for.is_empty()))
        .map(|pod| pod.name.as_str())
        .filter(|name| starts(name))
        .collect();
    keep_only(&places.pods(), &starting)?;
    for name in &starting {
        release.start_pod(name, places)?;
    }
    let started = starting.into_iter().map(str::to_owned).collect();
    Ok(Booted { plan, kept_out, started, new_secrets, new_volumes })
}

/// Runs the phases that are due, those after the confirm among them if the release is `confirmed`, and starts the pods that
/// waited for them. [`boot`] must have run.
pub fn boot_phases(
    docker: &Docker,
    docker_root: &Path,
    release: &Release,
    places: &Places,
    confirmed: bool,
    progress: &dyn Progress,
) -> Result<PhasesDone, BootError> {
    let plan = release.plan(places, confirmed)?;
    let kept_out = release.keep_out(&plan, docker, docker_root, places)?;
    run_phases(docker, release, places, &plan, kept_out, progress)
}

/// Every container of the release's pods: what is pinned, and what runs.
pub fn observe_services(docker: &Docker, release_dir: &Path) -> Result<Vec<ContainerStatus>, BootError> {
    let pods = read_pods(&release_dir.join("pods"))?;
    let pins = release_dir.join("pins.json");
    let pins = std::fs::read(&pins).map_err(naming("reading", &pins))?;
    // Which commit it is does not matter here.
    let pins = ReleasePins::parse(Commit::from_bytes([0; 32]), &pins)?;
    let containers = docker.observe_containers()?;
    let node = node_name();
    let running = running(&containers, &pods, &node);
    let mut services = Vec::new();
    for (name, pod) in &pods {
        for (container, image, expected) in pod.pinned_containers(pins.pins())? {
            let running =
                running.get(&(name.as_str(), container.as_str())).and_then(|container| container.image);
            services.push(ContainerStatus { pod: name.clone(), container, image, expected, running });
        }
    }
    Ok(services)
}

/// Tells cri-dockerd the pause image. By our own tag, which Docker's records carry: it takes an Id for a name that it must
/// pull.
fn write_pause_image(release: &Release, places: &Places) -> Result<(), BootError> {
    let Some(image) = release.pins.pins().images.get(PAUSE) else { return Ok(()) };
    let tag = tag_of(PAUSE, image.config);
    let text = format!("CRI_DOCKERD_ARGS=--pod-infra-container-image={tag}\nPOD_INFRA_IMAGE={tag}\n");
    write_atomic(&places.run.join("cri-dockerd.env"), text.as_bytes(), 0o644, Durability::Volatile)?;
    Ok(())
}

/// Makes the directories of volumes that are not there; those that are belong to the services.
fn ensure_volumes(release: &Release, places: &Places) -> Result<usize, BootError> {
    ensure_directory(&places.volumes(), 0o711)?;
    let mut new = 0;
    for (name, volume) in &release.volumes.volumes {
        let error = |problem: String| BootError::Volume { volume: name.clone(), problem };
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(error("not a name of a volume".to_owned()));
        }
        let mode = volume.parse_mode().map_err(error)?;
        let owner = volume.parse_owner().map_err(error)?;
        let path = places.volumes().join(name);
        if ensure_directory(&path, mode)? {
            if let Some((user, group)) = owner {
                std::os::unix::fs::chown(&path, Some(user), Some(group)).map_err(naming("owning", &path))?;
            }
            new += 1;
        }
    }
    Ok(new)
}

fn read_host(path: &Path) -> Result<Option<HostConfig>, BootError> {
    // A tree that was not installed by us has none; what needs it says so by name.
    if !path.exists() {
        return Ok(None);
    }
    read_json(path, HOST_FORMAT).map(|config| Some(identity::complete(config, ADDRESS_PATIENCE)))
}

/// Reads a file whose `format` must be `expected`; the format is looked at first, so that a newer one is named as such.
fn read_json<T: DeserializeOwned>(path: &Path, expected: u32) -> Result<T, BootError> {
    let json = |source| BootError::Json { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(naming("reading", path))?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(json)?;
    if let Some(got) = value["format"].as_u64().filter(|got| *got != u64::from(expected)) {
        return Err(BootError::Format { path: path.to_owned(), got, expected });
    }
    serde_json::from_value(value).map_err(json)
}

//! Looks at Docker: images, containers, and how and where it stores them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bollard::models::SystemInfo;
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions};

use crate::model::{Digest, PinnedImage};

use super::{Docker, DockerError};

/// What Docker had when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Every image, by config digest.
    pub images: BTreeMap<Digest, ObservedImage>,
    /// Every container, running or not.
    pub containers: Vec<ObservedContainer>,
    /// Its store.
    pub storage: Storage,
}

impl Observed {
    /// Is the pinned image there? Looks at names alone.
    pub fn has_image(&self, image: &PinnedImage) -> bool {
        self.images.contains_key(&image.config)
    }
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedImage {
    /// What pins call it: its config digest. In the containerd store, an image that is not of our making goes by its Id.
    pub config: Digest,
    /// What Docker calls it.
    pub id: Digest,
    /// `repository:tag` names.
    pub tags: Vec<String>,
    /// Labels of its config.
    pub labels: BTreeMap<String, String>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its id.
    pub id: String,
    /// Its name, without the leading slash.
    pub name: String,
    /// Config digest of the image that it was made from.
    pub image: Option<Digest>,
    /// `created`, `running`, `exited`, ….
    pub state: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl ObservedContainer {
    /// True while its process lives.
    pub fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "running" | "paused" | "restarting" | "stopping")
    }
}

/// How Docker keeps images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Storage driver, such as `overlay2`.
    pub driver: String,
    /// Which of its two stores.
    pub kind: StoreKind,
    /// Its data root, as a path on its machine.
    pub data_root: PathBuf,
}

/// Docker's two image stores; they name the same image differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Id is the config digest.
    Classic,
    /// Id is the manifest digest.
    Containerd,
}

impl Storage {
    pub(super) fn from_info(info: &SystemInfo) -> Self {
        let status = info.driver_status.as_deref().unwrap_or_default();
        let is_containerd = status.iter().flatten().any(|text| text.starts_with("io.containerd.snapshotter"));
        Self {
            driver: info.driver.clone().unwrap_or_default(),
            kind: if is_containerd { StoreKind::Containerd } else { StoreKind::Classic },
            data_root: info.docker_root_dir.clone().unwrap_or_default().into(),
        }
    }
}

impl Docker {
    /// Looks at everything that later steps decide on.
    pub fn observe(&self) -> Result<Observed, DockerError> {
        Ok(Observed {
            images: self.observe_images()?,
            containers: self.observe_containers()?,
            storage: self.observe_storage()?,
        })
    }

    /// Every image, untagged ones too, by config digest.
    pub fn observe_images(&self) -> Result<BTreeMap<Digest, ObservedImage>, DockerError> {
        let operation = || "listing docker's images".to_owned();
        let options = ListImagesOptions { all: true, ..Default::default() };
        let images = self.ask(operation, self.client.list_images(Some(options)))?;
        images
            .into_iter()
            .map(|image| {
                let id = parse_id(&image.id, operation)?;
                let mut tags: Vec<String> =
                    image.repo_tags.into_iter().filter(|tag| tag != "<none>:<none>").collect();
                tags.sort();
                let (config, labels) = (self.config_of(id)?, image.labels.into_iter().collect());
                Ok((config, ObservedImage { config, id, tags, labels }))
            })
            .collect()
    }

    /// Every container, running or not.
    pub fn observe_containers(&self) -> Result<Vec<ObservedContainer>, DockerError> {
        let options = ListContainersOptions { all: true, ..Default::default() };
        let containers = self
            .ask(|| "listing docker's containers".to_owned(), self.client.list_containers(Some(options)))?;
        let mut observed = Vec::new();
        for container in containers {
            let id = container.image_id.and_then(|id| id.parse().ok());
            let names = container.names.unwrap_or_default();
            observed.push(ObservedContainer {
                id: container.id.unwrap_or_default(),
                name: names.first().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default(),
                image: id.map(|id| self.config_of(id)).transpose()?,
                state: container.state.map(|state| state.to_string()).unwrap_or_default(),
                labels: container.labels.unwrap_or_default().into_iter().collect(),
            });
        }
        let mut containers = observed;
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// How and where it stores images.
    pub fn observe_storage(&self) -> Result<Storage, DockerError> {
        Ok(Storage::from_info(&self.info()?))
    }

    pub(super) fn info(&self) -> Result<SystemInfo, DockerError> {
        self.ask(|| "asking docker about itself".to_owned(), self.client.info())
    }

    /// Diff-ids of the image that Docker calls `id`, lowest first, or none when Docker does not have it.
    pub(super) fn layers_of(&self, id: Digest) -> Result<Option<Vec<Digest>>, DockerError> {
        let operation = || format!("inspecting container image {id}");
        let answer = match self.ask(operation, self.client.inspect_image(&id.to_string())) {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        if answer.id.as_deref() != Some(id.to_string().as_str()) {
            let problem = format!("the Id {:?}", answer.id.unwrap_or_default());
            return Err(DockerError::Answer { operation: operation(), problem });
        }
        let layers = answer.root_fs.and_then(|root| root.layers).unwrap_or_default();
        layers.iter().map(|layer| parse_id(layer, operation)).collect::<Result<_, _>>().map(Some)
    }

    /// Is the image there, with these layers? Looks at names alone; [`Docker::verify`] reads.
    pub fn present(&self, image: &PinnedImage) -> Result<bool, DockerError> {
        let pinned = image.layers.iter().map(|layer| layer.diff_id);
        let Some(id) = self.id_of(image.config)? else { return Ok(false) };
        Ok(self.layers_of(id)?.is_some_and(|layers| layers.into_iter().eq(pinned)))
    }
}

fn parse_id(text: &str, operation: impl FnOnce() -> String) -> Result<Digest, DockerError> {
    text.parse()
        .map_err(|_| DockerError::Answer { operation: operation(), problem: format!("the Id {text:?}") })
}

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
    /// Every image, by Id.
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
    /// What Docker calls it: its config digest, in the classic store.
    pub id: Digest,
    /// `repository:tag` names.
    pub tags: Vec<String>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its id.
    pub id: String,
    /// Its name, without the leading slash.
    pub name: String,
    /// Id of the image that it was made from.
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
    fn from_info(info: &SystemInfo) -> Self {
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

    /// Every image, untagged ones too, by Id.
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
                Ok((id, ObservedImage { id, tags }))
            })
            .collect()
    }

    /// Every container, running or not.
    pub fn observe_containers(&self) -> Result<Vec<ObservedContainer>, DockerError> {
        let options = ListContainersOptions { all: true, ..Default::default() };
        let containers = self
            .ask(|| "listing docker's containers".to_owned(), self.client.list_containers(Some(options)))?;
        let observed = containers.into_iter().map(|container| {
            let names = container.names.unwrap_or_default();
            ObservedContainer {
                id: container.id.unwrap_or_default(),
                name: names.first().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default(),
                image: container.image_id.and_then(|id| id.parse().ok()),
                state: container.state.map(|state| state.to_string()).unwrap_or_default(),
                labels: container.labels.unwrap_or_default().into_iter().collect(),
            }
        });
        let mut containers: Vec<ObservedContainer> = observed.collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// How and where it stores images.
    pub fn observe_storage(&self) -> Result<Storage, DockerError> {
        let info = self.ask(|| "asking docker about itself".to_owned(), self.client.info())?;
        Ok(Storage::from_info(&info))
    }
}

fn parse_id(text: &str, operation: impl FnOnce() -> String) -> Result<Digest, DockerError> {
    text.parse()
        .map_err(|_| DockerError::Answer { operation: operation(), problem: format!("the Id {text:?}") })
}

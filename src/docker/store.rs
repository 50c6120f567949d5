//! Which of Docker's two stores it is, and what that changes.
//!
//! A pin names an image by its config digest, and so does everything outside of this module. Docker's classic store takes
//! that for the Id; its containerd store takes the digest of the manifest. Here one becomes the other.

use std::collections::BTreeSet;
use std::path::Path;

use super::containerd::{self, Containerd};
use super::observe::{Storage, StoreKind};
use super::{Docker, DockerError};
use crate::model::pins::chains;
use crate::model::{Digest, PinnedImage};

/// Where Docker keeps images.
#[derive(Debug)]
pub(super) enum Store {
    /// Layers as overlay2 directories of its own; an Id is a config digest.
    Classic(Storage),
    /// containerd's; an Id is a manifest digest.
    Containerd(Containerd),
}

impl Store {
    /// Directories whose file systems hold what a load writes; the first one holds most of it.
    pub(super) fn roots(&self) -> Vec<&Path> {
        match self {
            Self::Classic(storage) => vec![&storage.data_root],
            Self::Containerd(store) => store.roots().to_vec(),
        }
    }
}

impl Docker {
    /// The store; looked for once.
    pub(super) fn store(&self) -> Result<&Store, DockerError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let info = self.info()?;
        let storage = Storage::from_info(&info);
        let store = match storage.kind {
            StoreKind::Classic => Store::Classic(storage),
            StoreKind::Containerd => {
                // Docker tells these since version 27.
                let told = info.containerd.unwrap_or_default();
                let namespace = told.namespaces.and_then(|spaces| spaces.containers);
                let namespace = namespace.as_deref().unwrap_or(containerd::NAMESPACE);
                let sockets = containerd::sockets(told.address, &self.url);
                Store::Containerd(Containerd::open(&sockets, namespace, &storage.driver)?)
            }
        };
        Ok(self.store.get_or_init(|| store))
    }

    /// What Docker calls the image of this config digest; none: it does not have it.
    pub fn id_of(&self, config: Digest) -> Result<Option<Digest>, DockerError> {
        if matches!(self.store()?, Store::Classic(_)) {
            return Ok(Some(config));
        }
        // Listing notes the names of all that is there; a name that was noted once never comes to mean anything else.
        if let Some(id) = self.noted(config) {
            return Ok(Some(id));
        }
        self.observe_images()?;
        Ok(self.noted(config))
    }

    fn noted(&self, config: Digest) -> Option<Digest> {
        let configs = self.configs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        configs.iter().find(|(_, known)| **known == config).map(|(id, _)| *id)
    }

    /// What pins call the image that Docker calls `id`: its config digest; the Id itself if it is not stored as we store images.
    pub(super) fn config_of(&self, id: Digest) -> Result<Digest, DockerError> {
        let Store::Containerd(store) = self.store()? else { return Ok(id) };
        let mut configs = self.configs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(config) = configs.get(&id) {
            return Ok(*config);
        }
        let config = store.config_of(id);
        configs.extend(config.map(|config| (id, config)));
        Ok(config.unwrap_or(id))
    }

    /// Chains of `images` whose top layer need not be sent.
    pub(super) fn observe_chains(&self, images: &[&PinnedImage]) -> Result<BTreeSet<Digest>, DockerError> {
        let mut present = BTreeSet::new();
        match self.store()? {
            // Every layer that some image of Docker's holds at the same place.
            Store::Classic(_) => {
                for id in self.observe_images()?.into_keys() {
                    present.extend(chains(self.layers_of(id)?.unwrap_or_default()));
                }
            }
            // Every layer whose own bytes are there, whatever it stands on.
            Store::Containerd(store) => {
                let blobs = store.blobs()?;
                for image in images {
                    let layers = image.layers.iter().zip(image.chains());
                    let there = layers.filter(|(layer, _)| blobs.contains(&layer.diff_id));
                    present.extend(there.map(|(_, chain)| chain));
                }
            }
        }
        Ok(present)
    }
}

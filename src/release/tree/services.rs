//! Puts the services of a release into its tree, below `/usr/lib/rackstep`.

use std::collections::BTreeMap;
use std::path::Path;

use super::cache::Cache;
use super::files::{self, FileError};
use super::images::{self, ImageError};
use crate::model::place::InputError;
use crate::model::{PinnedImage, RELEASE_DIR, ReleaseInfo};
use crate::release::manifest::{Service, service};

/// Mode of the directory of container images: their setuid files must not be in reach of a host's users.
const IMAGES_MODE: u32 = 0o700;

/// Why services could not be put into the tree.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A definition is wrong.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file of ours.
    #[error("writing the services")]
    File(#[from] FileError),
    /// An image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Writes pods, phases, secrets' names, volumes, configuration, pins, images and the release's own description.
pub fn install(
    root: &Path,
    cache: &Cache,
    services: &[Service],
    pins: &BTreeMap<String, PinnedImage>,
    release: &ReleaseInfo,
) -> Result<(), ServiceError> {
    let dir = Path::new(RELEASE_DIR);
    for (path, content) in service::render(services, pins)? {
        files::write(root, &dir.join(path), &content)?;
    }
    for service in services {
        if let Some(config) = &service.config {
            let target = dir.join("config").join(&service.name);
            files::lay_over(config, root, &target)?;
        }
    }
    let target = root.join(dir).join(images::IMAGES_DIR);
    images::link_into(cache, pins.values(), &target)?;
    files::set_mode(&target, IMAGES_MODE)?;
    let text = serde_json::to_string_pretty(release).unwrap_or_default();
    Ok(files::write(root, &dir.join("release.json"), format!("{text}\n").as_bytes())?)
}

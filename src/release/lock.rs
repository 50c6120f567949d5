//! Resolves a treefile: names become exact packages, binaries and container images.
//!
//! 1. packages, from the machine's mirror; 2. binaries, built or downloaded; 3. container images, built from their
//!    recipes, or described by the registry, daemon or archive that has them. The lock file is written last and at once: a failure leaves the old one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tree::binaries::{self, BinaryError};
use super::tree::cache::Cache;
use super::tree::images::{ImageError, Images};
use super::tree::podcheck::PodCheck;
use crate::formats::atomic::{Durability, replace};
use crate::model::place::InputError;
use crate::model::{Digest, PackageRequest, Progress};
use crate::release::manifest::lock::LOCK_FORMAT;
use crate::release::manifest::{Lock, LockedImage, Service, Treefile, service};
use crate::rim::packages::PackageError;
use crate::rim::packages::apt::{Apt, Mirrors, Sources};

/// The one architecture so far; the treefile's ref names it too.
pub const ARCHITECTURE: &str = "amd64";

/// Why a treefile could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody wrote something wrong.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Packages.
    #[error("resolving packages")]
    Packages(#[source] PackageError),
    /// A binary.
    #[error("resolving binaries")]
    Binary(#[from] BinaryError),
    /// A container image.
    #[error("resolving container images")]
    Image(#[from] ImageError),
    /// A release keeps one manifest for each image.
    #[error(
        "images {name} and {other} are the same image, {config}, by different manifests: take both from one place"
    )]
    TwoManifests {
        /// One.
        name: String,
        /// The other.
        other: String,
        /// Config digest of both.
        config: Digest,
    },
    /// The lock could not be written.
    #[error("writing {path}")]
    Write {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The lock has no text form.
    #[error("rendering the lock")]
    Render(#[from] serde_yaml_ng::Error),
}

/// Reads the services of a treefile; a later one of the same name replaces an earlier one.
pub fn load_services(treefile: &Treefile) -> Result<Vec<Service>, InputError> {
    let near = treefile.services.first().map(PathBuf::as_path).unwrap_or(Path::new("."));
    let pods = PodCheck::new(near);
    let services = treefile.services.iter().map(|dir| Service::load(dir, &pods)).collect::<Result<_, _>>()?;
    let services = service::last_of_each(services);
    service::check_together(&services)?;
    Ok(services)
}

/// Resolves everything.
pub fn resolve(
    treefile: &Treefile,
    treefile_path: &Path,
    services: &[Service],
    cache: &Cache,
    mirror: Option<&str>,
    created: u64,
    progress: &dyn Progress,
) -> Result<Lock, LockError> {
    progress.begin("resolving packages", None);
    let packages = resolve_packages(treefile, cache, mirror)?;
    let bytes: u64 = packages.iter().map(|package| package.size).sum();
    progress.end(&format!("{} packages, {} MB", packages.len(), bytes / 1_000_000));

    progress.begin("resolving binaries", Some(treefile.binaries.len() as u64));
    let mut locked_binaries = Vec::new();
    for binary in &treefile.binaries {
        locked_binaries.push(binaries::resolve(cache, treefile_path, binary)?);
        progress.advance(1);
    }
    progress.end(&format!("{} binaries", locked_binaries.len()));

    let wanted = service::wanted_images(services, &treefile.images)?;
    progress.begin("resolving images", Some(wanted.len() as u64));
    let images = Images::new(cache, mirror);
    let mut locked_images: BTreeMap<String, LockedImage> = BTreeMap::new();
    for (name, image) in &wanted {
        let locked = images.resolve(name, image)?;
        let same = locked_images.iter().find(|(_, other)| other.config == locked.config);
        if let Some((other, _)) = same.filter(|(_, other)| other.manifest != locked.manifest) {
            let (name, other) = (name.clone(), other.clone());
            return Err(LockError::TwoManifests { name, other, config: locked.config });
        }
        locked_images.insert(name.clone(), locked);
        progress.advance(1);
    }
    progress.end(&format!("{} images", wanted.len()));

    Ok(Lock {
        format: LOCK_FORMAT,
        name: treefile.name.clone(),
        created,
        suites: treefile.suites.clone(),
        components: treefile.components[1..].to_vec(),
        architecture: ARCHITECTURE.to_owned(),
        requested: treefile.packages.clone(),
        binaries: locked_binaries,
        images: locked_images,
        packages,
    })
}

fn resolve_packages(
    treefile: &Treefile,
    cache: &Cache,
    mirror: Option<&str>,
) -> Result<Vec<crate::model::Package>, LockError> {
    let requested = treefile.packages.iter().map(|text| text.parse::<PackageRequest>());
    let requested: Vec<PackageRequest> = requested
        .collect::<Result<_, _>>()
        .map_err(|error| treefile.error("packages", &error.text, error.to_string()))?;
    let sources =
        Sources { suites: &treefile.suites, components: &treefile.components, architecture: ARCHITECTURE };
    let resolved = Mirrors::observe(mirror)
        .and_then(|mirrors| Apt::open(cache.dir(), &mirrors, sources, &requested))
        .and_then(|apt| apt.resolve(&requested));
    resolved.map_err(|error| {
        let blamed = match &error {
            PackageError::Unknown { packages, .. } | PackageError::Conflict { packages, .. } => {
                packages.first()
            }
            PackageError::NoVersion { request, .. } => Some(request),
            _ => return LockError::Packages(error),
        };
        treefile.error("packages", blamed.map_or("", String::as_str), error.to_string()).into()
    })
}

/// Where the lock of a treefile stands: `host.yaml` → `host.lock.yaml`.
pub fn lock_path(treefile: &Path) -> PathBuf {
    treefile.with_extension("lock.yaml")
}

/// Writes a lock: the old one or the new one is there at every instant.
pub fn write(lock: &Lock, path: &Path) -> Result<(), LockError> {
    let text = lock.render()?;
    replace(path, text.as_bytes(), 0o644, Durability::Durable)
        .map_err(|source| LockError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::manifest::lock::tests::example;

    #[test]
    fn writes_whole_files_next_to_the_treefile() {
        let dir = tempfile::tempdir().unwrap();
        let path = lock_path(&dir.path().join("host.yaml"));
        assert!(path.ends_with("host.lock.yaml"));
        write(&example(), &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Lock::parse(&text, "l").unwrap().name, "host");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}

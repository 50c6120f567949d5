//! Reads what two releases of a repo say of themselves, and what the way from one to the other costs.

pub mod plan;

use std::collections::HashSet;
use std::fs;

use serde::Serialize;

use crate::model::pins::PinsError;
use crate::model::{Commit, KERNEL_ARGUMENTS, ObjectKind, ObjectName, RELEASE_DIR, ReleasePins};
use crate::ostree::repo::{Repo, RepoError};
use crate::release::diff::plan::Facts;
use crate::release::pack::listed_packs;

/// Why a release could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The repo.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Its pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Somebody else's commit, or one of a newer rackstep.
    #[error("commit {0} is no release that this rackstep can read")]
    NoRelease(Commit),
}

/// What has to be sent to a host that has the one release and wants the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ToSend {
    /// Bytes of the pack between the two, if there is one.
    pub pack: Option<u64>,
    /// Objects that are new.
    pub objects: usize,
    /// Their bytes, object by object, as the repo keeps them.
    pub bytes: u64,
}

/// Reads a release.
pub fn read_facts(repo: &Repo, commit: Commit) -> Result<Facts, ChangesError> {
    let info = repo.release_info(commit)?.ok_or(ChangesError::NoRelease(commit))?;
    let pins = ReleasePins::parse(commit, &repo.read_file(commit, &format!("{RELEASE_DIR}/pins.json"))?)?;
    let mut facts = Facts {
        kernel: info.kernel,
        kernel_arguments: repo.kernel_arguments(commit)?,
        packages: info.packages,
        services: info.services,
        images: pins.images().map(|(name, image)| (name.to_owned(), image.config)).collect(),
        ..Facts::default()
    };
    // Told apart already, or, as the images' own files, by the images.
    let told = ["images", "release.json", "pins.json", KERNEL_ARGUMENTS];
    let prefix = format!("/{RELEASE_DIR}/");
    repo.walk_paths(commit, &mut |path, object| {
        let Some(path) = path.strip_prefix(&prefix).filter(|_| object.kind == ObjectKind::File) else {
            return;
        };
        match path.split_once('/') {
            Some(("pods", pod)) => drop(facts.pods.insert(pod.to_owned(), object.digest)),
            Some((dir, _)) if told.contains(&dir) => {}
            None if told.contains(&path) => {}
            _ => drop(facts.files.insert(path.to_owned(), object.digest)),
        }
    })?;
    Ok(facts)
}

/// What has to be sent from `before` to `after`.
pub fn to_send(repo: &Repo, before: Commit, after: Commit) -> Result<ToSend, RepoError> {
    let known: HashSet<ObjectName> = repo.walk_objects(before)?.into_iter().collect();
    let (mut objects, mut bytes) = (0, 0);
    for object in repo.walk_objects(after)?.into_iter().filter(|object| !known.contains(object)) {
        let path = repo.object_path(&object);
        bytes +=
            fs::symlink_metadata(&path).map_err(|source| RepoError::io("looking at", &path, source))?.len();
        objects += 1;
    }
    let pack = listed_packs(repo, after).into_iter().find(|pack| pack.from == Some(before));
    let pack = pack.map(|pack| pack.bytes);
    Ok(ToSend { pack, objects, bytes })
}

//! Which pinned images Docker does not have, and why.
//!
//! What runs before Docker knows why ([`note`]); what runs beside it knows which, and asks for the reasons ([`observe`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::docker::{Docker, DockerError, Storage, StoreKind};
use crate::model::causes::in_one_line;
use crate::model::{Digest, ReleasePins};
use crate::rim::files::{Durability, FileError, ensure_directory, write_atomic};

use super::places::Places;
use super::records::{RecordsDone, RecordsError};

/// The format number that this program writes and reads.
const FORMAT: u32 = 1;

/// `/run/rackstep/absent.json`: what records could not be written, since this boot.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    format: u32,
    /// By config digest.
    images: BTreeMap<Digest, String>,
    /// Why there are no records at all.
    all: Option<String>,
}

/// Names of images that Docker does not have, and why.
pub type Absent = BTreeMap<String, String>;

fn file(places: &Places) -> PathBuf {
    places.run.join("absent.json")
}

/// Notes how the records went, for what runs beside Docker.
pub fn note(places: &Places, outcome: &Result<RecordsDone, RecordsError>) -> Result<(), FileError> {
    let note = match outcome {
        Ok(done) => Note { format: FORMAT, images: done.absent.clone(), all: None },
        Err(error) => Note { format: FORMAT, images: BTreeMap::new(), all: Some(in_one_line(error)) },
    };
    ensure_directory(&places.run, 0o755)?;
    let text = serde_json::to_vec_pretty(&note).unwrap_or_default();
    write_atomic(&file(places), &text, 0o644, Durability::Volatile).map(drop)
}

/// Images of `pins` that Docker does not have; its records are written below `docker_root`.
pub fn observe(
    docker: &Docker,
    docker_root: &Path,
    pins: &ReleasePins,
    places: &Places,
) -> Result<Absent, DockerError> {
    let observed = docker.observe()?;
    let read = || std::fs::read(file(places)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let note: Note = read().filter(|note: &Note| note.format == FORMAT).unwrap_or_default();
    let elsewhere = misplaced(&observed.storage, docker_root);
    let missing = pins.images().filter(|(_, image)| !observed.has_image(image));
    Ok(missing
        .map(|(name, image)| (name.to_owned(), why(image.config, &note, elsewhere.as_deref())))
        .collect())
}

fn why(image: Digest, note: &Note, elsewhere: Option<&str>) -> String {
    let noted = || note.images.get(&image).or(note.all.as_ref()).cloned();
    elsewhere.map(str::to_owned).or_else(noted).unwrap_or_else(|| {
        "docker has no record of it any more; `rackstep verify --repair --stop-services` writes it anew"
            .to_owned()
    })
}

/// Why Docker does not look at the records that are written for it.
fn misplaced(storage: &Storage, docker_root: &Path) -> Option<String> {
    if storage.kind == StoreKind::Containerd {
        return Some(
            "docker keeps its images in containerd's store, which cannot run them from the release: \
                     set features.containerd-snapshotter to false in /etc/docker/daemon.json"
                .to_owned(),
        );
    }
    if storage.driver != "overlay2" {
        return Some(format!(
            "docker stores images with {}, and only overlay2 can run them from the release: see storage-driver in \
             /etc/docker/daemon.json",
            storage.driver
        ));
    }
    (storage.data_root != docker_root).then(|| {
        format!(
            "docker keeps its data in {}, and its records were written in {}: see userns-remap and data-root in \
             /etc/docker/daemon.json",
            storage.data_root.display(),
            docker_root.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_that_looks_elsewhere_is_told_by_what_makes_it_so() {
        let root = Path::new("/var/lib/docker");
        let storage = |driver: &str, kind, data_root: &str| Storage {
            driver: driver.to_owned(),
            kind,
            data_root: data_root.into(),
        };
        assert_eq!(misplaced(&storage("overlay2", StoreKind::Classic, "/var/lib/docker"), root), None);
        for (storage, told) in [
            (storage("overlayfs", StoreKind::Containerd, "/var/lib/docker"), "containerd-snapshotter"),
            (storage("btrfs", StoreKind::Classic, "/var/lib/docker"), "stores images with btrfs"),
            (storage("overlay2", StoreKind::Classic, "/var/lib/docker/100000.100000"), "userns-remap"),
        ] {
            let why = misplaced(&storage, root).unwrap();
            assert!(why.contains(told), "{why}");
        }
    }

    #[test]
    fn the_reason_is_the_one_of_the_image_before_the_one_of_all() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let note = Note { format: 1, images: [(a, "tree".to_owned())].into(), all: Some("all".to_owned()) };
        assert_eq!(why(a, &note, None), "tree");
        assert_eq!(why(b, &note, None), "all");
        assert_eq!(why(a, &note, Some("elsewhere")), "elsewhere");
        assert!(why(a, &Note::default(), None).contains("verify --repair"));
    }
}

//! Makes a disk image of a release: the installer's own work on a file, then the form that was asked for.
//!
//! 1. **look**: the catalogue, if there is one, can be read and is this box's;
//! 2. **image**: a raw file in a directory of its own beside the result, by [`crate::imaging::install`];
//! 3. **form**: qcow2 by `qemu-img`, and for Vagrant the [`archive`] around it;
//! 4. **publish**: one rename puts the image into place, and a second one the catalogue that names it.
//!
//! Until the first rename nothing of it can be seen, whatever stops it. An older image of the same name is replaced as a
//! whole. It writes nothing that belongs to one machine, and no secret: a box's key is the one that everybody has, and
//! Vagrant replaces it when a machine starts.

mod archive;
pub mod plan;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::imaging::install::approve::{ApproveError, approve_file};
use crate::imaging::install::{InstallError, Job, Watcher, install};
use crate::lab::disk_image::plan::GIB;
use crate::lab::qemu_img;
use crate::model::Digest;
use crate::model::imaging::ImagingPlan;
use crate::model::vagrant::{BoxFile, BoxMetadata, BoxName, Catalogue};
use crate::rim::command::CommandError;
use crate::rim::files::{Durability, FileError, naming, write_atomic};

/// How a directory of work in progress begins; the process's id follows.
const WORK_PREFIX: &str = ".rackstep-box-";

/// The form of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A Vagrant box for libvirt, and its entry in a catalogue.
    Vagrant,
    /// A compressed qcow2 file.
    Qcow2,
    /// A sparse raw file.
    Raw,
}

/// What to make.
#[derive(Debug)]
pub struct Request<'a> {
    /// The disk, as for the installer.
    pub plan: &'a ImagingPlan,
    /// The form.
    pub format: Format,
    /// Name of box and files.
    pub name: &'a BoxName,
    /// Version of box and files.
    pub version: &'a str,
    /// For people, in a new catalogue.
    pub description: &'a str,
    /// Where the results go.
    pub output: &'a Path,
    /// Where the output directory is reached from: begins the box's address in the catalogue.
    pub url: &'a str,
    /// Can folders be brought to the machines? It takes rsync in the release.
    pub sync: bool,
    /// A directory for small files and mount points.
    pub scratch: &'a Path,
    /// Set from outside to stop it.
    pub stop: &'a AtomicBool,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The image or box.
    pub file: PathBuf,
    /// Its bytes; of a raw image those that it takes on the disk.
    pub bytes: u64,
    /// A box's digest and catalogue.
    pub catalogued: Option<(Digest, PathBuf)>,
}

/// Why there is no disk image.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    /// A file or directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The catalogue is not one.
    #[error("reading the catalogue {}", path.display())]
    Catalogue {
        /// The catalogue.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The catalogue is another box's.
    #[error("{} is the catalogue of {there:?}, not of {name:?}", path.display())]
    OtherBox {
        /// The catalogue.
        path: PathBuf,
        /// Whose it is.
        there: String,
        /// Whose it was to be.
        name: String,
    },
    /// The work file was not approved.
    #[error("preparing the image file")]
    Approve(#[source] ApproveError),
    /// The installer failed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// qemu-img failed.
    #[error("compressing the disk image")]
    Compress(#[source] CommandError),
    /// JSON could not be rendered.
    #[error("rendering {what}")]
    Render {
        /// Of what.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Somebody stopped it.
    #[error("stopped")]
    Stopped,
    /// The box is in place, the catalogue could not be brought up to date.
    #[error("{} is there, its catalogue does not name it", file.display())]
    Uncatalogued {
        /// The box.
        file: PathBuf,
        /// Why.
        #[source]
        source: Box<DiskImageError>,
    },
}

/// Makes it.
pub fn make(request: &Request<'_>, watcher: &dyn Watcher) -> Result<Made, DiskImageError> {
    fs::create_dir_all(request.output).map_err(naming("making directory", request.output))?;
    sweep(request.output);
    if request.format == Format::Vagrant {
        // Told before the long work, not after it.
        read_catalogue(request)?;
    }
    let work = tempfile::Builder::new()
        .prefix(&format!("{WORK_PREFIX}{}-", std::process::id()))
        .tempdir_in(request.output)
        .map_err(naming("making a work directory in", request.output))?;
    let result = make_in(work.path(), request, watcher);
    // What a stop breaks fails in its own words; the person at the terminal knows why.
    if request.stop.load(Ordering::Relaxed)
        && !matches!(result, Ok(_) | Err(DiskImageError::Uncatalogued { .. }))
    {
        return Err(DiskImageError::Stopped);
    }
    result
}

fn make_in(work: &Path, request: &Request<'_>, watcher: &dyn Watcher) -> Result<Made, DiskImageError> {
    let raw = work.join(&request.plan.disk.name);
    let approved = approve_file(request.plan, &raw).map_err(DiskImageError::Approve)?;
    // Without an address: the machines have none yet.
    let job = Job { plan: request.plan, uefi: None, address: "", scratch: request.scratch, secret: None };
    install(&job, approved, watcher)?;
    if request.format == Format::Raw {
        return publish(&raw, &name_file(request, "", "raw"), request, None);
    }

    let qcow2 = work.join(archive::DISK);
    compress(&raw, &qcow2, request, watcher)?;
    fs::remove_file(&raw).map_err(naming("removing", &raw))?;
    if request.format == Format::Qcow2 {
        return publish(&qcow2, &name_file(request, "", "qcow2"), request, None);
    }

    let packed = work.join("packed");
    let metadata = BoxMetadata::with_disk(request.plan.disk.size.div_ceil(GIB));
    let metadata = serde_json::to_string_pretty(&metadata)
        .map_err(|source| DiskImageError::Render { what: "the box's metadata", source })?;
    let digest = archive::write(&packed, &qcow2, &metadata, request, watcher)?;
    publish(&packed, &name_file(request, "-libvirt", "box"), request, Some(digest))
}

fn name_file(request: &Request<'_>, provider: &str, ending: &str) -> String {
    format!("{}-{}{provider}.{ending}", request.name.stem(), request.version)
}

fn compress(
    raw: &Path,
    qcow2: &Path,
    request: &Request<'_>,
    watcher: &dyn Watcher,
) -> Result<(), DiskImageError> {
    watcher.begin("compressing the disk", Some(100));
    let mut told = 0;
    let mut moved = |percent: u64| {
        watcher.advance(percent.saturating_sub(told));
        told = told.max(percent);
        !request.stop.load(Ordering::Relaxed)
    };
    qemu_img::compress(raw, qcow2, &mut moved).map_err(DiskImageError::Compress)?;
    watcher.end("");
    Ok(())
}

/// Puts a finished file into place, and the catalogue after it: whoever reads the catalogue finds what it names.
fn publish(
    file: &Path,
    name: &str,
    request: &Request<'_>,
    digest: Option<Digest>,
) -> Result<Made, DiskImageError> {
    if request.stop.load(Ordering::Relaxed) {
        return Err(DiskImageError::Stopped);
    }
    let place = request.output.join(name);
    let metadata = || -> io::Result<fs::Metadata> {
        let written = File::open(file)?;
        written.sync_all()?;
        written.metadata()
    };
    let metadata = metadata().map_err(naming("syncing", file))?;
    fs::rename(file, &place).map_err(naming("putting into place", &place))?;
    let bytes = match request.format {
        Format::Raw => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Format::Qcow2 | Format::Vagrant => metadata.len(),
    };
    let catalogued = match digest {
        None => None,
        Some(digest) => {
            let catalogue = enter(request, name, digest).map_err(|source| DiskImageError::Uncatalogued {
                file: place.clone(),
                source: Box::new(source),
            })?;
            Some((digest, catalogue))
        }
    };
    Ok(Made { file: place, bytes, catalogued })
}

/// Enters the box into its catalogue.
fn enter(request: &Request<'_>, file: &str, digest: Digest) -> Result<PathBuf, DiskImageError> {
    // Two makers of boxes in one directory take turns here, so that neither forgets the other's entry.
    let directory = File::open(request.output).map_err(naming("opening", request.output))?;
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| naming("locking", request.output)(errno.into()))?;
    let mut catalogue = read_catalogue(request)?
        .unwrap_or_else(|| Catalogue::new(request.name, request.description.to_owned()));
    let url = format!("{}/{file}", request.url.trim_end_matches('/'));
    catalogue.put(request.version, BoxFile::new(url, digest));
    let text = serde_json::to_string_pretty(&catalogue)
        .map_err(|source| DiskImageError::Render { what: "the catalogue", source })?;
    let path = catalogue_path(request);
    write_atomic(&path, (text + "\n").as_bytes(), 0o644, Durability::Durable)?;
    Ok(path)
}

fn catalogue_path(request: &Request<'_>) -> PathBuf {
    request.output.join(format!("{}.json", request.name.stem()))
}

/// The catalogue as it is; none, if there is none yet.
fn read_catalogue(request: &Request<'_>) -> Result<Option<Catalogue>, DiskImageError> {
    let path = catalogue_path(request);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(naming("reading", &path)(error).into()),
    };
    let catalogue: Catalogue = serde_json::from_slice(&bytes)
        .map_err(|source| DiskImageError::Catalogue { path: path.clone(), source })?;
    let name = request.name.to_string();
    if catalogue.name != name {
        return Err(DiskImageError::OtherBox { path, there: catalogue.name, name });
    }
    Ok(Some(catalogue))
}

/// Removes the work of processes that were killed.
fn sweep(output: &Path) {
    for entry in fs::read_dir(output).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(WORK_PREFIX).and_then(|rest| rest.split('-').next());
        let Some(process) = process.and_then(|digits| digits.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(process.to_string()).exists()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "removing abandoned work");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::install::tests_support::plan;

    fn with_request<R>(output: &Path, name: &str, act: impl FnOnce(&Request<'_>) -> R) -> R {
        let name: BoxName = name.parse().unwrap();
        act(&Request {
            plan: &plan(),
            format: Format::Vagrant,
            name: &name,
            version: "1.0.0",
            description: "a host",
            output,
            url: "http://boxes.example/",
            sync: true,
            scratch: output,
            stop: &AtomicBool::new(false),
        })
    }

    #[test]
    fn a_box_is_entered_once() {
        let dir = tempfile::tempdir().unwrap();
        with_request(dir.path(), "acme/host", |request| {
            let path = enter(request, "host-1.0.0-libvirt.box", Digest::of(b"1")).unwrap();
            enter(request, "host-1.0.0-libvirt.box", Digest::of(b"2")).unwrap();
            assert_eq!(path, dir.path().join("host.json"));
            let catalogue = read_catalogue(request).unwrap().unwrap();
            assert_eq!(catalogue.versions.len(), 1);
            let file = &catalogue.versions[0].providers[0];
            assert_eq!(file.url, "http://boxes.example/host-1.0.0-libvirt.box");
        });
    }

    #[test]
    fn somebody_elses_catalogue_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.json");
        for (text, told) in [
            (r#"{"name": "other/host"}"#, "is the catalogue of \"other/host\", not of \"acme/host\""),
            ("[]", "reading the catalogue"),
        ] {
            fs::write(&path, text).unwrap();
            let error = with_request(dir.path(), "acme/host", |request| read_catalogue(request).unwrap_err());
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn abandoned_work_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this id: it is above the kernel's limit.
        let abandoned = dir.path().join(format!("{WORK_PREFIX}4194399-x"));
        let ours = dir.path().join(format!("{WORK_PREFIX}{}-x", std::process::id()));
        for path in [&abandoned, &ours] {
            fs::create_dir(path).unwrap();
        }
        sweep(dir.path());
        assert!(!abandoned.exists() && ours.exists());
    }
}

//! Layers of container images, mounted straight from the objects of an ostree repo.
//!
//! A layer is an EROFS image of metadata through a loop device, under an overlay whose data-only lower layer is
//! `<repo>/objects`: what stands at its place is one mount, of type `overlay`, with the layer in `diff`. The loop device is
//! freed with the mount. (Not the image as a file: the kernel would count it as a file system of the stack, which has room
//! for a layer and a container's overlay and nothing else.)

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rayon::prelude::*;
use rustix::mount::{MountFlags, UnmountFlags};

use super::command::{self, CommandError};
use crate::model::Digest;

/// Directory of an image that holds its layer.
const DIFF: &str = "diff";
/// What the kernel's table of mounts calls ours.
const SOURCE: &str = "rackstep-layer";

/// Why a layer is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// The EROFS image could not be mounted: no loop device is left, or the kernel has no EROFS.
    #[error("mounting the metadata of layer {layer}")]
    Metadata {
        /// Its diff-id.
        layer: Digest,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The overlay could not be mounted.
    #[error("mounting layer {layer} from the objects of {objects}")]
    Overlay {
        /// Its diff-id.
        layer: Digest,
        /// The repo's objects.
        objects: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was mounted, and is empty.
    #[error("layer {layer} was mounted without its directory {DIFF}")]
    Empty {
        /// Its diff-id.
        layer: Digest,
    },
    /// A directory.
    #[error("{doing} {path}")]
    Io {
        /// What was done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A layer to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its diff-id.
    pub layer: Digest,
    /// Its image of metadata.
    pub tree: PathBuf,
}

/// A layer, and whether it is mounted now.
pub type Attempt = (Digest, Result<(), LayersError>);

/// The directory of mounted layers.
#[derive(Debug, Clone)]
pub struct Layers {
    dir: PathBuf,
    objects: PathBuf,
}

impl Layers {
    /// Layers below `dir` out of the objects of the bare repo at `repo`.
    pub fn new(dir: impl Into<PathBuf>, repo: &Path) -> Self {
        Self { dir: dir.into(), objects: repo.join("objects") }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a layer is mounted.
    pub fn place(&self, layer: Digest) -> PathBuf {
        self.dir.join(layer.hex())
    }

    /// The files of a layer that is mounted; nothing is there while it is not.
    pub fn files(&self, layer: Digest) -> PathBuf {
        self.place(layer).join(DIFF)
    }

    /// Layers that are mounted.
    pub fn mounted(&self) -> Result<Vec<Digest>, LayersError> {
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(table).map_err(io_error("reading", table))?;
        let mut layers: Vec<Digest> = text.lines().filter_map(|line| self.layer_of(line)).collect();
        layers.sort_unstable();
        layers.dedup();
        Ok(layers)
    }

    /// The layer that a line of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)) tells of.
    fn layer_of(&self, line: &str) -> Option<Digest> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut kind_and_source = file_system.split(' ');
        if (kind_and_source.next()?, kind_and_source.next()?) != ("overlay", SOURCE) {
            return None;
        }
        let place = Path::new(mount.split(' ').nth(4)?);
        (place.parent()? == self.dir).then(|| Digest::parse_hex(place.file_name()?.to_str()?).ok())?
    }

    /// Mounts what is not mounted yet, on all cores. Each layer by itself: what is wrong with one keeps no other away.
    pub fn mount(&self, wanted: &[Source]) -> Result<Vec<Attempt>, LayersError> {
        fs::create_dir_all(&self.dir).map_err(io_error("making", &self.dir))?;
        // Programs of a layer may be set-id: no user may reach them here.
        let only_root = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&self.dir, only_root).map_err(io_error("closing", &self.dir))?;
        let there = self.mounted()?;
        let missing: Vec<&Source> = wanted.iter().filter(|source| !there.contains(&source.layer)).collect();
        Ok(missing.par_iter().map(|source| (source.layer, self.mount_one(source))).collect())
    }

    fn mount_one(&self, source: &Source) -> Result<(), LayersError> {
        let layer = source.layer;
        let place = self.place(layer);
        let metadata = self.dir.join(format!(".{}", layer.hex()));
        for directory in [&place, &metadata] {
            match fs::create_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("making", directory)(error));
                }
                _ => {}
            }
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "ro,loop,nodev,nosuid"]).arg(&source.tree).arg(&metadata);
        command::run(&mut mount).map_err(|source| LayersError::Metadata { layer, source })?;
        let mounted = self.mount_overlay(&metadata, &place);
        // The overlay keeps it; only its name goes.
        let hidden = rustix::mount::unmount(&metadata, UnmountFlags::DETACH);
        let hidden = hidden.map_err(|errno| io_error("unmounting", &metadata)(errno.into()));
        mounted.map_err(|source| LayersError::Overlay { layer, objects: self.objects.clone(), source })?;
        hidden?;
        let _ = fs::remove_dir(&metadata);
        if self.files(layer).is_dir() {
            return Ok(());
        }
        self.unmount(layer)?;
        Err(LayersError::Empty { layer })
    }

    fn mount_overlay(&self, metadata: &Path, place: &Path) -> io::Result<()> {
        let lower = [metadata, &self.objects].map(escaped);
        let options = format!("lowerdir={}::{},metacopy=on,redirect_dir=follow", lower[0], lower[1]);
        let options = std::ffi::CString::new(options)?;
        // Device nodes and set-id programs of a layer are a container's business, which mounts it again by itself.
        rustix::mount::mount(SOURCE, place, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))?;
        Ok(())
    }

    /// Unmounts a layer. Containers that run from it keep it until they end.
    pub fn unmount(&self, layer: Digest) -> Result<(), LayersError> {
        let place = self.place(layer);
        rustix::mount::unmount(&place, UnmountFlags::DETACH)
            .map_err(|errno| io_error("unmounting", &place)(errno.into()))?;
        fs::remove_dir(&place).map_err(io_error("removing", &place))
    }
}

/// A path as overlay's options take it.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, '\\' | ':' | ',') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayersError + use<> {
    let path = path.to_owned();
    move |source| LayersError::Io { doing, path, source }
}

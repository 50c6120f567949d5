//! A host's files: the file systems of a disk image, mounted where only its launcher and the host see them.
//!
//! Loop devices are bound to their mounts (`losetup`'s autoclear): when the last process of launcher and host is gone, so are
//! mounts and loop devices, however the processes ended.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{major, minor};
use serde::Deserialize;

use super::spec::{HostSpec, Storage};
use super::{ContainerError, kernel};
use crate::rim::command;
use crate::rim::disk::mark::{Found, observe_mark};
use crate::rim::disk::target::Target;
use crate::rim::wait::poll;

/// Names of partitions, as `rim::disk::layout` gives them.
const BOOT: &str = "rackstep-boot";
const ROOT: &str = "rackstep-root";
/// A partition for `/var` alone, on disks that have one.
const STATE: &str = "rackstep-state";
/// The kernel lets go of a dead host's mounts in its own time.
const RELEASE: Duration = Duration::from_secs(30);
/// Block devices that are loops, in `/proc/devices`.
const LOOP_MAJOR: u32 = 7;

/// What a host boots from, mounted.
#[derive(Debug)]
pub struct Mounted {
    /// The physical root.
    pub sysroot: PathBuf,
    /// `/var`, if it has a file system of its own.
    pub state: Option<PathBuf>,
    /// Mount points, the last one mounted first.
    places: Vec<PathBuf>,
}

/// A partition: bytes from the image's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u64,
    size: u64,
}

/// Makes the host's files visible, in the namespace that the caller is in.
pub fn mount(spec: &HostSpec) -> Result<Mounted, ContainerError> {
    let image = match &spec.storage {
        Storage::Directory(directory) => {
            let sysroot =
                fs::canonicalize(directory).map_err(ContainerError::path("looking for", directory))?;
            return Ok(Mounted { sysroot, state: None, places: Vec::new() });
        }
        Storage::Disk(image) => image,
    };
    require_free(image)?;
    require_owner(image, &spec.name)?;
    let table = read_table(image)?;
    let span = |name| find(&table, name);
    let required = |name| span(name).ok_or(ContainerError::NoPartition { image: image.clone(), name });
    let (root, boot) = (required(ROOT)?, required(BOOT)?);
    let sysroot = HostSpec::sysroot_place(&spec.dir);
    let mut mounted = Mounted { sysroot: sysroot.clone(), state: None, places: Vec::new() };
    mounted.add(image, root, &sysroot)?;
    mounted.add(image, boot, &sysroot.join("boot"))?;
    if let Some(state) = span(STATE) {
        let place = HostSpec::state_place(&spec.dir);
        mounted.add(image, state, &place)?;
        mounted.state = Some(place);
    }
    Ok(mounted)
}

/// A disk that an installer of a rack marked (docs/decisions/0015) is mounted for the host that it was imaged for, and for
/// nobody else. An image that many machines are made of has no mark.
fn require_owner(image: &Path, name: &str) -> Result<(), ContainerError> {
    let unread = |source| ContainerError::Mark { image: image.to_owned(), source };
    let target = Target::open(image).map_err(unread)?;
    match observe_mark(&target, false).map_err(unread)? {
        Found::Nothing => Ok(()),
        found => found.require_installed(name).map(drop).map_err(|why| ContainerError::NotItsDisk {
            image: image.to_owned(),
            name: name.to_owned(),
            why,
        }),
    }
}

impl Mounted {
    fn add(&mut self, image: &Path, span: Span, place: &Path) -> Result<(), ContainerError> {
        fs::create_dir_all(place).map_err(ContainerError::path("making", place))?;
        let kind = kind_of(image, span)?;
        // Hosts made of one base have file systems of one identity, which XFS refuses to have twice.
        let twice = if kind == "xfs" { ",nouuid" } else { "" };
        let options = format!("loop,offset={},sizelimit={}{twice}", span.start, span.size);
        command::run(
            Command::new("mount").args(["-n", "-t", &kind, "-o", &options]).arg(image).arg(place),
        )
        .map_err(ContainerError::program(format!("mounting {} on {}", image.display(), place.display())))?;
        self.places.insert(0, place.to_owned());
        Ok(())
    }

    /// Lets go of everything; what was written is in the image.
    pub fn unmount(self) -> Result<(), ContainerError> {
        for place in &self.places {
            // Mounts of the host that has just ended may take a moment to go.
            let gone = poll(RELEASE, || {
                match rustix::mount::unmount(place, rustix::mount::UnmountFlags::empty()) {
                    Ok(()) => Ok(Some(())),
                    Err(rustix::io::Errno::BUSY) => Ok(None),
                    Err(errno) => Err(ContainerError::path("unmounting", place)(errno.into())),
                }
            })?;
            gone.ok_or_else(|| ContainerError::Unable(format!("{} stays busy", place.display())))?;
        }
        Ok(())
    }
}

/// sfdisk's JSON, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Listing {
    partitiontable: Table,
}

#[derive(Debug, Deserialize)]
struct Table {
    #[serde(default = "plain_sector")]
    sectorsize: u64,
    #[serde(default)]
    partitions: Vec<Partition>,
}

#[derive(Debug, Deserialize)]
struct Partition {
    start: u64,
    size: u64,
    #[serde(default)]
    name: String,
}

fn plain_sector() -> u64 {
    512
}

fn read_table(image: &Path) -> Result<Table, ContainerError> {
    let reading = || format!("reading the partition table of {}", image.display());
    let text = command::run_text(Command::new("sfdisk").arg("--json").arg(image))
        .map_err(ContainerError::program(reading()))?;
    serde_json::from_str(&text)
        .map(|listing: Listing| listing.partitiontable)
        .map_err(|source| ContainerError::Record { path: image.to_owned(), source })
}

fn find(table: &Table, name: &str) -> Option<Span> {
    let found = table.partitions.iter().find(|partition| partition.name == name)?;
    Some(Span { start: found.start * table.sectorsize, size: found.size * table.sectorsize })
}

fn kind_of(image: &Path, span: Span) -> Result<String, ContainerError> {
    let mut blkid = Command::new("blkid");
    blkid.args(["--probe", "--match-tag", "TYPE", "--output", "value"]);
    blkid.args(["--offset", &span.start.to_string(), "--size", &span.size.to_string()]).arg(image);
    let kind = command::run_text(&mut blkid)
        .map_err(ContainerError::program(format!("looking for a file system in {}", image.display())))?;
    Ok(kind.trim().to_owned())
}

/// Loop devices of this machine that hold `image`.
pub fn loops_of(image: &Path) -> Vec<String> {
    // The kernel knows it without the links that lead there.
    let image = &fs::canonicalize(image).unwrap_or_else(|_gone| image.to_owned());
    let holds = |entry: &fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end()) == image
    };
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten().filter(holds);
    devices.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Waits until nobody has `image` attached: two at once would destroy its file systems.
pub fn require_free(image: &Path) -> Result<(), ContainerError> {
    let free = poll(RELEASE, || Ok::<_, ContainerError>(loops_of(image).is_empty().then_some(())))?;
    free.ok_or_else(|| ContainerError::ImageInUse {
        image: image.to_owned(),
        device: loops_of(image).join(", "),
    })
}

/// Loses what the file systems of `image` have not synced, as a power cut does; gives how many there were. `root` shows the
/// launcher's mounts.
///
/// Only what lies on a loop device of this very image is shut down: anything else may be the machine's own.
pub fn cut(image: &Path, dir: &Path, root: &Path) -> Result<usize, ContainerError> {
    // A link in it would lead out of `root`.
    let dir = &fs::canonicalize(dir).map_err(ContainerError::path("looking for", dir))?;
    let mut shut = 0;
    let sysroot = HostSpec::sysroot_place(dir);
    let ours = loops_of(image);
    for place in [sysroot.join("boot"), sysroot, HostSpec::state_place(dir)] {
        let place = root.join(place.strip_prefix("/").unwrap_or(&place));
        let Ok(file) = fs::File::open(&place) else { continue };
        let device = file.metadata().map_err(ContainerError::path("looking at", &place))?.dev();
        let name = format!("loop{}", minor(device));
        if major(device) == LOOP_MAJOR && ours.contains(&name) {
            kernel::shut_file_system_down(&file)
                .map_err(ContainerError::path("cutting the power of", &place))?;
            shut += 1;
        }
    }
    Ok(shut)
}

/// A disk that begins as `base`: shared with it where the file system can (reflink), else a sparse copy. Whole or not at all.
pub fn copy_base(base: &Path, disk: &Path) -> Result<(), ContainerError> {
    // Whoever made it has let it go; but a namespace of somebody's may still have it mounted, and not have written all of it.
    require_free(base)?;
    let unfinished = disk.with_extension("new");
    command::run(Command::new("cp").args(["--reflink=auto", "--sparse=auto"]).arg(base).arg(&unfinished))
        .map_err(ContainerError::program(format!("copying {}", base.display())))?;
    fs::rename(&unfinished, disk).map_err(ContainerError::path("making", disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_found_by_name() {
        let text = r#"{"partitiontable": {"label": "gpt", "sectorsize": 512, "partitions": [
            {"node": "d1", "start": 2048, "size": 2048, "name": "rackstep-bios"},
            {"node": "d4", "start": 4096, "size": 8192, "name": "rackstep-root"}]}}"#;
        let listing: Listing = serde_json::from_str(text).unwrap();
        assert_eq!(find(&listing.partitiontable, ROOT), Some(Span { start: 2_097_152, size: 4_194_304 }));
        assert_eq!(find(&listing.partitiontable, BOOT), None);
    }
}

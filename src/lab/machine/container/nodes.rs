//! `/dev` of a host: a memory file system with the devices that its services know how to use.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, Dev, FileType, Mode, makedev, mknodat};
use rustix::mount::MountFlags;
use rustix::process::umask;

use super::ContainerError;

/// Numbers of character devices, from the kernel's `Documentation/admin-guide/devices.txt`.
const CHARACTER: [(&str, u32, u32, u32); 9] = [
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    // kubelet watches it for processes that ran out of memory.
    ("kmsg", 1, 11, 0o644),
    ("tty", 5, 0, 0o666),
    ("fuse", 10, 229, 0o666),
    ("net/tun", 10, 200, 0o666),
];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// A host mounts images from files (layers of services): the kernel gives it a free loop device of the machine's, whose node
/// must be there already, for nothing makes nodes in a host.
const LOOPS: u32 = 256;
const LOOP_MAJOR: u32 = 7;

/// Mounts `/dev` at `place`, an absolute path or one below the working directory.
pub fn mount(place: &Path, console: Option<&Path>) -> Result<(), ContainerError> {
    // A node's mode is its own.
    let usual = umask(Mode::empty());
    let made = fill(place, console);
    umask(usual);
    made
}

fn fill(place: &Path, console: Option<&Path>) -> Result<(), ContainerError> {
    let making = || ContainerError::path("making", place);
    super::init::mount_new("tmpfs", place, MountFlags::NOSUID, c"mode=755,size=4m")?;
    for directory in ["pts", "shm", "net"] {
        fs::create_dir(place.join(directory)).map_err(making())?;
    }
    for (name, major, minor, mode) in CHARACTER {
        make(&place.join(name), FileType::CharacterDevice, makedev(major, minor), mode).map_err(making())?;
    }
    make(&place.join("loop-control"), FileType::CharacterDevice, makedev(10, 237), 0o660).map_err(making())?;
    for number in 0..LOOPS {
        let name = format!("loop{number}");
        make(&place.join(name), FileType::BlockDevice, makedev(LOOP_MAJOR, number), 0o660)
            .map_err(making())?;
    }
    for (name, target) in LINKS {
        symlink(target, place.join(name)).map_err(making())?;
    }
    let terminals = c"newinstance,ptmxmode=666,mode=620,gid=5";
    super::init::mount_new("devpts", place.join("pts"), MountFlags::NOSUID | MountFlags::NOEXEC, terminals)?;
    super::init::mount_new("tmpfs", place.join("shm"), MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777")?;
    if let Some(console) = console {
        let place = place.join("console");
        fs::write(&place, "").map_err(making())?;
        super::init::bind(console, &place)?;
    }
    Ok(())
}

fn make(path: &Path, kind: FileType, device: Dev, mode: u32) -> io::Result<()> {
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device).map_err(Into::into)
}

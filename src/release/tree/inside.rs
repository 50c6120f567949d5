//! Paths inside a tree that is not the root of this machine.
//!
//! The tree of a host has links such as `/var/run` → `/run`. Followed by the running system they lead into *this* machine's
//! `/run`; so the kernel resolves every path with the tree as its root (`openat2`, `RESOLVE_IN_ROOT`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// A name in a directory of the tree, whatever links led there.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    /// Finds the place of `relative` in the tree at `root`; makes the directories above it, readable for all.
    pub fn find(root: &Path, relative: &Path) -> io::Result<Self> {
        let name = relative.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let directory = ensure_directory(root, relative.parent().unwrap_or(Path::new("")))?;
        Ok(Self { directory, name })
    }

    /// Its path for this process, as long as the place is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(&self.name)
    }

    /// Where it really is, relative to the tree.
    pub fn within(&self, root: &Path) -> io::Result<PathBuf> {
        let directory = fs::read_link(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))?;
        let root = fs::canonicalize(root)?;
        let inside = directory.strip_prefix(&root).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(inside.join(&self.name))
    }
}

/// Opens the directory `relative` of the tree at `root`; makes it, and those above it, if they are not there.
pub fn ensure_directory(root: &Path, relative: &Path) -> io::Result<OwnedFd> {
    let start = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let inside: PathBuf = relative.strip_prefix("/").unwrap_or(relative).components().collect();
    ensure(&start, &inside)
}

fn ensure(root: &OwnedFd, relative: &Path) -> io::Result<OwnedFd> {
    match open(root, relative) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    let parent = ensure(root, relative.parent().unwrap_or(Path::new("")))?;
    let name = relative.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    // A link that leads nowhere in the tree is in the way here, and is no directory to make.
    mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    let made = format!("/proc/self/fd/{}/{}", parent.as_raw_fd(), name.to_string_lossy());
    fs::set_permissions(made, fs::Permissions::from_mode(0o755))?;
    Ok(open(root, relative)?)
}

fn open(root: &OwnedFd, relative: &Path) -> rustix::io::Result<OwnedFd> {
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_into_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("var")).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../../../../outside", root.join("var/upward")).unwrap();
        symlink("/deep", root.join("var/run")).unwrap();
        fs::create_dir_all(root.join("deep")).unwrap();
        let place = Place::find(&root, Path::new("var/run/sub/file")).unwrap();
        fs::write(place.path(), "x").unwrap();
        assert_eq!(place.within(&root).unwrap(), Path::new("deep/sub/file"));
        assert!(root.join("deep/sub/file").is_file());
        for link in ["absolute/file", "var/upward/file"] {
            assert!(Place::find(&root, Path::new(link)).is_err(), "{link} leads nowhere in the tree");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        Place::find(&root, Path::new("/etc/conf")).unwrap();
        assert!(root.join("etc").is_dir());
    }
}

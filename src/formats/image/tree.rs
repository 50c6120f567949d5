//! A directory that names from a hostile archive cannot leave.
//!
//! Every part of a path is opened by itself, relative to the directory before it, and no symbolic link is followed. The
//! directories on the way to the last file stay open: archives list files directory by directory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, mkdirat, openat};
use rustix::io::Errno;

use super::skeleton::MAX_PATH;

/// Longest part of a path that file systems hold.
const MAX_PART: usize = 255;

/// Opens a directory, not a link to one.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Every directory has this mode: what the tar says of it is in the skeleton.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// A directory below which files are made and opened.
pub struct Tree {
    root: OwnedFd,
    way: Vec<(String, OwnedFd)>,
}

/// What came of making a file.
pub enum Created {
    /// A new, empty file.
    File(File),
    /// Something is in the way: a file of that name, or a file where a directory must be.
    InTheWay,
}

impl Tree {
    /// Opens an existing directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, way: Vec::new() })
    }

    /// Makes a directory unless it is there.
    pub fn create_dir(&mut self, path: &str) -> io::Result<()> {
        if !is_safe(path) {
            return Err(Errno::INVAL.into());
        }
        Ok(self.descend(path, true)?)
    }

    /// Makes a file, and the directories above it, unless something is in the way.
    pub fn create(&mut self, path: &str) -> io::Result<Created> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            self.with_parent(path, true, |dir, name| openat(dir, name, flags, Mode::from_raw_mode(0o644)));
        match opened {
            Ok(fd) => Ok(Created::File(File::from(fd))),
            // A directory in the way is EEXIST too, because of O_EXCL.
            Err(Errno::EXIST | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR) => Ok(Created::InTheWay),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file for reading.
    pub fn read(&mut self, path: &str) -> io::Result<File> {
        // NONBLOCK: a FIFO put in the way must not hang us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = self.with_parent(path, false, |dir, name| openat(dir, name, flags, Mode::empty()))?;
        Ok(File::from(fd))
    }

    fn with_parent<T>(
        &mut self,
        path: &str,
        create: bool,
        act: impl FnOnce(&OwnedFd, &str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if !is_safe(path) {
            return Err(Errno::INVAL);
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.descend(parent, create)?;
        act(self.way.last().map_or(&self.root, |(_, dir)| dir), name)
    }

    /// Makes `way` the directories of `parent`.
    fn descend(&mut self, parent: &str, create: bool) -> Result<(), Errno> {
        let parts = || parent.split('/').filter(|part| !part.is_empty());
        let shared = parts().zip(&self.way).take_while(|(part, (name, _))| part == name).count();
        self.way.truncate(shared);
        for part in parts().skip(shared) {
            let above = self.way.last().map_or(&self.root, |(_, dir)| dir);
            let dir = match openat(above, part, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if create => {
                    mkdirat(above, part, DIRECTORY_MODE)?;
                    let dir = openat(above, part, DIRECTORY, Mode::empty())?;
                    // The commit's checksum must not depend on the umask of whoever composes.
                    fchmod(&dir, DIRECTORY_MODE)?;
                    dir
                }
                opened => opened?,
            };
            self.way.push((part.to_owned(), dir));
        }
        Ok(())
    }
}

/// True when a path has only plain parts: none empty, `.` or `..`, none too long.
pub fn is_safe(path: &str) -> bool {
    path.len() <= MAX_PATH
        && path
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && part.len() <= MAX_PART && !part.contains('\0'))
}

/// Where a tar entry's file goes below `root`, or none if it cannot stand there under its name.
///
/// Leading `/` and `./` are spelling. Refused: `..`, what is not UTF-8 (ostree), `.wh.` and `.ostree-wh.` (marks that
/// union file systems and ostree checkouts act on).
pub fn tree_path(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let marks = parts.iter().any(|part| part.starts_with(".wh.") || part.starts_with(".ostree-wh."));
    let path = parts.join("/");
    (!marks && is_safe(&path)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_to_paths() {
        for (name, expected) in [
            (&b"usr/bin/env"[..], Some("usr/bin/env")),
            (b"./usr//bin/./env", Some("usr/bin/env")),
            (b"/etc/passwd", Some("etc/passwd")),
            (b"dir/", Some("dir")),
            (b"a b\n\t", Some("a b\n\t")),
            (b"", None),
            (b"./", None),
            (b"../etc/passwd", None),
            (b"a/../../b", None),
            (b"latin1-\xe9", None),
            (b"a/.wh.b", None),
            (b".ostree-wh.x/y", None),
            (b"...", Some("...")),
        ] {
            assert_eq!(tree_path(name).as_deref(), expected, "{name:?}");
        }
        assert_eq!(tree_path("x".repeat(256).as_bytes()), None);
        assert_eq!(tree_path("x/".repeat(2000).as_bytes()), None);
    }

    #[test]
    fn links_are_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        let mut tree = Tree::open(dir.path()).unwrap();
        assert!(matches!(tree.create("link/new"), Ok(Created::InTheWay)));
        assert!(matches!(tree.create("file"), Ok(Created::InTheWay)));
        assert!(tree.read("link/secret").is_err());
        assert!(tree.read("file").is_err());
        assert!(tree.read("../x").is_err());
        assert!(tree.create("/x").is_err());
        assert!(!outside.path().join("new").exists());
    }
}

//! A directory that names from a hostile archive cannot leave.
//!
//! Every part of a path is opened by itself, relative to the directory before it, and no symbolic link is followed. The
//! directory opened last is remembered: archives list files directory by directory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::skeleton::MAX_PATH;

/// Longest part of a path that file systems hold.
const MAX_PART: usize = 255;

/// A directory below which files are made and opened.
pub struct Tree {
    root: OwnedFd,
    last: Option<(String, OwnedFd)>,
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
        Ok(Self { root, last: None })
    }

    /// Makes a file, and the directories above it, unless something is in the way.
    pub fn create(&mut self, path: &str) -> io::Result<Created> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.with_parent(path, true, |dir, name| {
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))
        });
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
        let fd =
            self.with_parent(path, false, |dir, name| rustix::fs::openat(dir, name, flags, Mode::empty()))?;
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
        let Some((parent, name)) = path.rsplit_once('/') else {
            return act(&self.root, path);
        };
        match &self.last {
            Some((last, dir)) if last == parent => act(dir, name),
            _ => {
                let dir = self.descend(parent, create)?;
                let result = act(&dir, name);
                self.last = Some((parent.to_owned(), dir));
                result
            }
        }
    }

    fn descend(&self, parent: &str, create: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir: Option<OwnedFd> = None;
        for part in parent.split('/') {
            let above = dir.as_ref().unwrap_or(&self.root);
            let next = match rustix::fs::openat(above, part, flags, Mode::empty()) {
                Err(Errno::NOENT) if create => {
                    rustix::fs::mkdirat(above, part, Mode::from_raw_mode(0o755))?;
                    rustix::fs::openat(above, part, flags, Mode::empty())?
                }
                opened => opened?,
            };
            dir = Some(next);
        }
        dir.ok_or(Errno::INVAL)
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

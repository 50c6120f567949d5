//! Takes away checkouts, kernels and objects that nothing needs, around whatever will not go.
//!
//! libostree's cleanup ends at the first file that cannot be removed (an immutable one, a mount), and so does every
//! cleanup after it, also the one at the end of a flip. Therefore:
//!
//! 1. libostree cleans up; where it cannot, old checkouts and kernels are emptied here, file by file, and what is left of
//!    them moves to [`LEFT_DIR`], out of libostree's way: nothing there is a deployment or a boot entry;
//! 2. libostree prunes the repo; where it cannot, the objects that no ref and no deployment reaches go one by one;
//! 3. what stays is told by its path, and tried again by the next cleanup.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use glib::translate::IntoGlib as _;
use rustix::fs::{AtFlags, IFlags, Mode, OFlags, StatxAttributes, StatxFlags};

use super::{Sysroot, SysrootError, failed};

/// Below `ostree/` and `boot/`: what is left of old deployments because it cannot be removed.
pub const LEFT_DIR: &str = ".rackstep-left";

const NONE: Option<&gio::Cancellable> = gio::Cancellable::NONE;

/// Something that is not needed and cannot be removed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Stuck {
    /// Where it is.
    pub path: PathBuf,
    /// Why it stays.
    pub why: String,
}

/// What would not go, each inode once: objects and checked out files are links to each other.
#[derive(Debug, Default)]
struct Left {
    stuck: BTreeMap<PathBuf, String>,
    inodes: BTreeSet<(u64, u64)>,
}

impl Left {
    fn note(&mut self, path: &Path, error: &io::Error) {
        let (path, why) = culprit(path, error);
        let inode = fs::symlink_metadata(&path).map(|found| (found.dev(), found.ino()));
        if inode.is_ok_and(|inode| !self.inodes.insert(inode)) {
            return;
        }
        self.stuck.insert(path, why);
    }

    /// Empties and removes a directory, as far as that goes. Gives whether it is gone.
    fn remove_tree(&mut self, dir: &Path) -> bool {
        let device = fs::symlink_metadata(dir).map(|found| found.dev());
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let (device, entries) = match device.and_then(|device| Ok((device, entries?))) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(error) => {
                self.note(dir, &error);
                return false;
            }
        };
        let mut empty = true;
        for entry in entries {
            let path = entry.path();
            let is_gone = match entry.metadata() {
                Ok(found) if found.is_dir() && found.dev() != device => {
                    self.note(&path, &io::Error::other("another file system is mounted there"));
                    false
                }
                Ok(found) if found.is_dir() => self.remove_tree(&path),
                _ => self.remove(&path, |path| fs::remove_file(path)),
            };
            empty &= is_gone;
        }
        empty && self.remove(dir, |dir| fs::remove_dir(dir))
    }

    fn remove(&mut self, path: &Path, act: impl FnOnce(&Path) -> io::Result<()>) -> bool {
        match act(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                self.note(path, &error);
                false
            }
        }
    }
}

impl Sysroot {
    /// Removes the objects and checkouts that no deployment and no ref needs. Gives what would not go.
    pub fn cleanup(&self) -> Result<Vec<Stuck>, SysrootError> {
        let left = self.empty_left();
        let mut tried = left;
        if self.inner.prepare_cleanup(NONE).is_err() {
            self.set_aside(&mut tried)?;
            self.inner
                .prepare_cleanup(NONE)
                .map_err(|source| failed("cleaning up the sysroot".into(), source))?;
        }
        if self.inner.cleanup(NONE).is_err() {
            self.prune_around(&mut tried)?;
        }
        Ok(tried.stuck.into_iter().map(|(path, why)| Stuck { path, why }).collect())
    }

    fn left_dirs(&self) -> [PathBuf; 2] {
        ["ostree", "boot"].map(|dir| self.path.join(dir).join(LEFT_DIR))
    }

    /// Tries what an earlier cleanup left.
    fn empty_left(&self) -> Left {
        let mut left = Left::default();
        for dir in self.left_dirs() {
            left.remove_tree(&dir);
        }
        left
    }

    /// Empties everything that looks like a deployment or its kernel and is none, and moves the rest away.
    fn set_aside(&self, left: &mut Left) -> Result<(), SysrootError> {
        let [aside, boot_aside] = self.left_dirs();
        let deployments = self.inner.deployments();
        let needed: BTreeSet<PathBuf> = deployments
            .iter()
            .flat_map(|raw| {
                let kernel = format!("boot/ostree/{}-{}", raw.osname(), raw.bootcsum());
                [self.path.join(self.inner.deployment_dirpath(raw).as_str()), self.path.join(kernel)]
            })
            .collect();
        let mut checkouts = Vec::new();
        for stateroot in directories(&self.path.join("ostree/deploy"))? {
            checkouts.extend(directories(&stateroot.join("deploy"))?);
        }
        let kernels = directories(&self.path.join("boot/ostree"))?;
        let all =
            checkouts.iter().map(|dir| (dir, &aside)).chain(kernels.iter().map(|dir| (dir, &boot_aside)));
        for (dir, aside) in all.filter(|(dir, _)| !needed.contains(*dir)) {
            // libostree makes the root of a checkout immutable itself.
            let _ = make_mutable(dir);
            // Without its origin libostree takes a checkout for none of its own.
            let origin = PathBuf::from(format!("{}.origin", dir.display()));
            left.remove(&origin, |path| fs::remove_file(path));
            let mut here = Left::default();
            if here.remove_tree(dir) {
                continue;
            }
            let moved =
                move_into(dir, aside).map_err(|source| SysrootError::Aside { path: dir.clone(), source })?;
            // Told by the place where it is now.
            for (path, why) in here.stuck {
                let path = path.strip_prefix(dir).map(|rest| moved.join(rest)).unwrap_or(path);
                left.stuck.insert(path, why);
            }
            left.inodes.append(&mut here.inodes);
        }
        Ok(())
    }

    /// Removes every object that no ref and no deployment reaches, one by one, commits first: what is cut leaves no
    /// commit that seems whole.
    fn prune_around(&self, left: &mut Left) -> Result<(), SysrootError> {
        let doing = |source| failed("pruning the host's repo".into(), source);
        let repo = self.repo();
        let mut roots: HashSet<String> = repo.list_refs(None, NONE).map_err(doing)?.into_values().collect();
        roots.extend(self.inner.deployments().iter().map(|raw| raw.csum().to_string()));
        let mut needed = HashSet::new();
        for root in roots {
            needed.extend(repo.traverse_commit(&root, 0, NONE).map_err(doing)?);
        }
        let all = repo.list_objects(ostree::RepoListObjectsFlags::ALL.into_glib(), NONE).map_err(doing)?;
        let mut free: Vec<_> = all.into_keys().filter(|object| !needed.contains(object)).collect();
        free.sort_by_key(|object| object.object_type() != ostree::ObjectType::Commit);
        for object in free {
            let name = object.to_string();
            let (head, tail) = name.split_at(2);
            let path = self.repo_path().join("objects").join(head).join(tail);
            left.remove(&path, |path| fs::remove_file(path));
        }
        Ok(())
    }
}

/// Directories in `dir`; none if it is not there.
fn directories(dir: &Path) -> Result<Vec<PathBuf>, SysrootError> {
    let reading = |source| SysrootError::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(reading)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(reading)?;
        if entry.file_type().map_err(reading)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Moves `dir` into `aside`, under a name that is free.
fn move_into(dir: &Path, aside: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(aside)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let taken = |number: &u32| fs::symlink_metadata(aside.join(format!("{name}-{number}"))).is_ok();
    let number = (1..).find(|number| !taken(number)).unwrap_or_default();
    let moved = aside.join(format!("{name}-{number}"));
    fs::rename(dir, &moved)?;
    Ok(moved)
}

/// What keeps `path`, with the reason: itself, or the directory that it is in.
fn culprit(path: &Path, error: &io::Error) -> (PathBuf, String) {
    let immutable = |path: &&Path| is_immutable(path);
    if let Some(kept) = [Some(path), path.parent()].into_iter().flatten().find(immutable) {
        return (kept.to_owned(), "it is immutable (chattr -i lets it go)".to_owned());
    }
    (path.to_owned(), error.to_string())
}

/// Whether `chattr +i` or `+a` keeps it.
fn is_immutable(path: &Path) -> bool {
    let kept = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
    let found = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.intersects(kept))
}

fn make_mutable(dir: &Path) -> rustix::io::Result<()> {
    let directory =
        rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = rustix::fs::ioctl_getflags(&directory)?;
    rustix::fs::ioctl_setflags(&directory, flags - IFlags::IMMUTABLE)
}

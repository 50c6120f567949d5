//! Entries of a tar, applied one after the other as Docker's overlay2 driver unpacks them (moby, `pkg/archive`: `Unpack`,
//! `createTarFile` and the whiteout converter for overlays).

use std::collections::{BTreeMap, VecDeque};

use super::super::erofs::{self, Body, Inode};
use super::super::layer::entries::{Content, Entry, EntryKind};
use super::{DIFF, METACOPY, OPAQUE, REDIRECT, redirect};
use crate::model::Digest;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const OVERLAY: &[u8] = b"trusted.overlay.";
/// How many symbolic links a path may lead through, as Linux.
const LINKS_FOLLOWED: usize = 40;

/// Why an entry cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The path leads out of the layer, through something that is no directory, or in circles.
    #[error("entry {entry:?}: {path:?} leads nowhere")]
    Path {
        /// The entry.
        entry: String,
        /// The path.
        path: String,
    },
    /// A hard link to what is not there.
    #[error("entry {entry:?} is a hard link to {target:?}, which is not there")]
    NoTarget {
        /// The entry.
        entry: String,
        /// What it names.
        target: String,
    },
    /// A mark that deletes a name stands beside that very name.
    #[error("entry {0:?} deletes a name of its own layer")]
    Whiteout(String),
    /// A kind of entry that has no meaning in a layer.
    #[error("entry {entry:?} is of type {kind:?}, which images do not have")]
    Kind {
        /// The entry.
        entry: String,
        /// Its type byte.
        kind: char,
    },
    /// A sparse file in the PAX form: its data is not its content, so no object would hold what it shows.
    #[error(
        "entry {0:?} is a sparse file (GNU.sparse), which hosts cannot show: make the layer's tar without --sparse \
         (bsdtar: --no-read-sparse)"
    )]
    Sparse(String),
    /// More contents than were looked at.
    #[error("entry {0:?}: its content was not looked at")]
    Unknown(String),
}

/// The layer's root among the inodes.
pub(super) const ROOT: usize = 1;

/// The tree so far. Inode 0 is the image's own root, which holds the layer's root and nothing else.
pub(super) struct Applied {
    inodes: Vec<Inode>,
}

impl Applied {
    pub(super) fn new() -> Self {
        let body = Body::Names([(DIFF.as_bytes().to_vec(), ROOT)].into());
        Self { inodes: vec![Inode { body, ..implied_directory() }, implied_directory()] }
    }

    pub(super) fn finish(self) -> Vec<Inode> {
        self.inodes
    }

    /// Applies one entry; `object_of` gives the object of a content.
    pub(super) fn apply(
        &mut self,
        entry: Entry,
        object_of: impl Fn(&Content) -> Option<Digest>,
    ) -> Result<(), ApplyError> {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let told = lossy(&entry.name);
        let Some(mut parts) = clean(&entry.name) else {
            return Err(ApplyError::Path { path: told.clone(), entry: told });
        };
        let Some(name) = parts.pop() else {
            // Docker makes the root itself, and keeps it.
            (self.inodes[ROOT].mtime, self.inodes[ROOT].mtime_nsec) = entry.mtime;
            return Ok(());
        };
        let lost = || ApplyError::Path { entry: told.clone(), path: told.clone() };
        let parent = self.walk(&parts, true).ok_or_else(lost)?;
        if name == OPAQUE_NAME {
            self.inodes[parent].xattrs.insert(OPAQUE.to_vec(), b"y".to_vec());
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(parent, gone, &entry).ok_or(ApplyError::Whiteout(told));
        }
        match entry.kind {
            EntryKind::HardLink => self.hard_link(parent, name, &entry),
            EntryKind::Directory => {
                let index = match self.child(parent, &name).filter(|index| self.is_directory(*index)) {
                    Some(index) => index,
                    None => self.add(parent, name, Inode { mode: erofs::DIRECTORY, ..implied_directory() }),
                };
                let inode = &mut self.inodes[index];
                (inode.uid, inode.gid) = (entry.uid, entry.gid);
                inode.mode = erofs::DIRECTORY | entry.mode;
                (inode.mtime, inode.mtime_nsec) = entry.mtime;
                inode.xattrs.extend(attributes(&entry));
                Ok(())
            }
            EntryKind::Sparse => Err(ApplyError::Sparse(told)),
            EntryKind::Other(kind) => Err(ApplyError::Kind { entry: told, kind: char::from(kind) }),
            _ => {
                let object = match &entry.content {
                    Some(content) => Some(object_of(content).ok_or(ApplyError::Unknown(told))?),
                    None => None,
                };
                self.add(parent, name, inode_of(&entry, object));
                Ok(())
            }
        }
    }

    fn whiteout(&mut self, parent: usize, gone: &[u8], entry: &Entry) -> Option<()> {
        if gone.is_empty() || self.child(parent, gone).is_some() {
            return None;
        }
        let whiteout = Inode { mode: erofs::CHARACTER, uid: entry.uid, gid: entry.gid, ..empty() };
        self.add(parent, gone.to_vec(), whiteout);
        Some(())
    }

    fn hard_link(&mut self, parent: usize, name: Vec<u8>, entry: &Entry) -> Result<(), ApplyError> {
        let missing = || ApplyError::NoTarget {
            entry: String::from_utf8_lossy(&entry.name).into_owned(),
            target: String::from_utf8_lossy(&entry.link).into_owned(),
        };
        let mut parts = clean(&entry.link).ok_or_else(missing)?;
        let last = parts.pop().ok_or_else(missing)?;
        // Docker takes away what has the name before it makes the link.
        if let Body::Names(names) = &mut self.inodes[parent].body {
            names.remove(&name);
        }
        let beside = self.walk(&parts, false).ok_or_else(missing)?;
        let target =
            self.child(beside, &last).filter(|target| !self.is_directory(*target)).ok_or_else(missing)?;
        if let Body::Names(names) = &mut self.inodes[parent].body {
            names.insert(name, target);
        }
        let inode = &mut self.inodes[target];
        (inode.uid, inode.gid) = (entry.uid, entry.gid);
        // A change of owner takes capabilities away, and set-id bits, which come back with the mode.
        inode.xattrs.remove(b"security.capability".as_slice());
        if inode.mode & erofs::KIND != erofs::LINK {
            inode.mode = inode.mode & erofs::KIND | entry.mode;
            (inode.mtime, inode.mtime_nsec) = entry.mtime;
        }
        inode.xattrs.extend(attributes(entry));
        Ok(())
    }

    /// Gives a new inode a name, which it takes from whatever has it.
    fn add(&mut self, parent: usize, name: Vec<u8>, inode: Inode) -> usize {
        let index = self.inodes.len();
        self.inodes.push(inode);
        if let Body::Names(names) = &mut self.inodes[parent].body {
            names.insert(name, index);
        }
        index
    }

    fn child(&self, parent: usize, name: &[u8]) -> Option<usize> {
        match &self.inodes[parent].body {
            Body::Names(names) => names.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, index: usize) -> bool {
        matches!(self.inodes[index].body, Body::Names(_))
    }

    /// The directory that a path leads to, links on the way followed as if the layer were the root; `make`: what is missing.
    fn walk(&mut self, parts: &[Vec<u8>], make: bool) -> Option<usize> {
        let mut left: VecDeque<Vec<u8>> = parts.to_vec().into();
        let mut way = vec![ROOT];
        let mut followed = 0;
        while let Some(part) = left.pop_front() {
            let here = *way.last()?;
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let next = match self.child(here, &part) {
                Some(next) => next,
                None if make => self.add(here, part, implied_directory()),
                None => return None,
            };
            match &self.inodes[next].body {
                Body::Names(_) => way.push(next),
                Body::Target(target) => {
                    followed += 1;
                    if followed > LINKS_FOLLOWED {
                        return None;
                    }
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        left.push_front(part.to_vec());
                    }
                }
                Body::Nothing | Body::Elsewhere(_) => return None,
            }
        }
        way.pop()
    }
}

/// The parts of a path, spelled plainly; none if it leads out of the layer.
fn clean(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let absolute = path.first() == Some(&b'/');
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_none() && !absolute => return None,
            b".." => {}
            _ => parts.push(part.to_vec()),
        }
    }
    Some(parts)
}

fn inode_of(entry: &Entry, object: Option<Digest>) -> Inode {
    let kind = match entry.kind {
        EntryKind::Link => erofs::LINK,
        EntryKind::Character => erofs::CHARACTER,
        EntryKind::BlockDevice => erofs::BLOCK_DEVICE,
        EntryKind::Pipe => erofs::PIPE,
        _ => erofs::REGULAR,
    };
    let mut inode = Inode {
        mode: kind | if kind == erofs::LINK { 0o777 } else { entry.mode },
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime.0,
        mtime_nsec: entry.mtime.1,
        device: entry.device,
        xattrs: attributes(entry),
        body: Body::Nothing,
    };
    if kind == erofs::LINK {
        inode.body = Body::Target(entry.link.clone());
    }
    if let (Some(content), Some(object)) = (&entry.content, object) {
        inode.body = Body::Elsewhere(content.size);
        inode.xattrs.insert(METACOPY.to_vec(), Vec::new());
        inode.xattrs.insert(REDIRECT.to_vec(), redirect(object));
    }
    inode
}

/// Extended attributes that Linux lets such an entry have; marks of an overlay are escaped.
fn attributes(entry: &Entry) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let takes_user = matches!(entry.kind, EntryKind::File | EntryKind::Directory | EntryKind::HardLink);
    let fits = |name: &[u8]| !name.starts_with(b"user.") || takes_user;
    let escaped = |name: &[u8]| match name.strip_prefix(OVERLAY) {
        Some(rest) => [OVERLAY, b"overlay.", rest].concat(),
        None => name.to_vec(),
    };
    let fitting = entry.xattrs.iter().filter(|(name, _)| fits(name));
    fitting.map(|(name, value)| (escaped(name), value.clone())).collect()
}

fn empty() -> Inode {
    Inode {
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        device: (0, 0),
        xattrs: BTreeMap::new(),
        body: Body::Nothing,
    }
}

/// A directory that no entry speaks of.
fn implied_directory() -> Inode {
    Inode { mode: erofs::DIRECTORY | 0o755, body: Body::Names(BTreeMap::new()), ..empty() }
}

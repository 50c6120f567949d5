//! A layer as a mountable image of metadata, whose files lead to objects of an ostree repo.
//!
//! Mounted (EROFS) and put over `<repo>/objects` as a data-only lower layer of an overlay, it shows what Docker makes of the
//! layer's tar, without a second copy of any content:
//!
//! 1. entries are applied as Docker applies them ([`apply`]): later ones replace earlier ones, links on the way are followed
//!    inside the layer, owners of hard links count, directories that are only implied belong to root;
//! 2. a file with content gets `trusted.overlay.metacopy` and `trusted.overlay.redirect=/ab/cdef….file`;
//! 3. whiteouts and opaque marks are escaped (`trusted.overlay.overlay.…`), because the layer is itself an overlay, and the
//!    next overlay, a container's, must see them (`Documentation/filesystems/overlayfs.rst`, "Nested overlayfs mounts").

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use super::erofs::{self, Body, ErofsError, Inode};
use super::layer::SKELETON;
use super::layer::entries::{Content, Entries, EntryError};
use super::stream::CHUNK;
use crate::model::Digest;

mod apply;
pub mod sums;
#[cfg(test)]
mod tests;

pub use apply::ApplyError;
use apply::{Applied, ROOT};

/// File of a layer's directory: the image.
pub const TREE: &str = "tree";
/// The image's one directory: the layer. Whoever names it by its path finds nothing where the image is not mounted.
pub const DIFF: &str = "diff";
/// File of a layer's directory: sums of its contents, see [`sums`].
pub const SUMS: &str = "sums";

const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const WHITEOUT: &[u8] = b"trusted.overlay.overlay.whiteout";
const OPAQUE: &[u8] = b"trusted.overlay.overlay.opaque";

/// What is known of one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentFacts {
    /// Checksum of its object in an ostree repo.
    pub object: Digest,
    /// [`Crc64`](super::crc64::Crc64) of its bytes.
    pub crc: u64,
}

/// Why a layer has no image.
#[derive(Debug, thiserror::Error)]
pub enum LayerImageError {
    /// The skeleton cannot be read.
    #[error("reading {path}")]
    Read {
        /// The skeleton.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The skeleton's entries cannot be read.
    #[error("reading the entries of {path}")]
    Entries {
        /// The skeleton.
        path: PathBuf,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// Docker would not take the layer, or nothing here can show it.
    #[error("the layer in {dir} cannot be unpacked")]
    Apply {
        /// The layer's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: ApplyError,
    },
    /// The image's format cannot hold it.
    #[error("the layer in {dir} does not fit an EROFS image")]
    Erofs {
        /// The layer's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: ErofsError,
    },
}

/// An image and what Docker's records need besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The EROFS image.
    pub tree: Vec<u8>,
    /// Bytes of all files and links, each inode once: the size that Docker tells of a layer.
    pub size: u64,
}

/// Contents of the layer in `dir`, in the order of its tar.
pub fn contents(dir: &Path) -> Result<Vec<Content>, LayerImageError> {
    let (mut entries, path) = open(dir)?;
    let mut contents = Vec::new();
    loop {
        match entries.next_entry() {
            Ok(Some(entry)) => contents.extend(entry.content),
            Ok(None) => return Ok(contents),
            Err(source) => return Err(LayerImageError::Entries { path, source }),
        }
    }
}

/// Makes the image of the layer in `dir`. `facts` has one for each of its [`contents`], in their order.
pub fn render(dir: &Path, facts: &[ContentFacts]) -> Result<LayerImage, LayerImageError> {
    let (mut entries, path) = open(dir)?;
    let mut applied = Applied::new();
    while let Some(entry) =
        entries.next_entry().map_err(|source| LayerImageError::Entries { path: path.clone(), source })?
    {
        applied
            .apply(entry, |content| facts.get(content.number).map(|facts| facts.object))
            .map_err(|source| LayerImageError::Apply { dir: dir.to_owned(), source })?;
    }
    let mut inodes = applied.finish();
    let size = size_of(&inodes);
    mark_whiteouts(&mut inodes);
    let tree =
        erofs::render(&inodes).map_err(|source| LayerImageError::Erofs { dir: dir.to_owned(), source })?;
    Ok(LayerImage { tree, size })
}

fn open(dir: &Path) -> Result<(Entries<BufReader<File>>, PathBuf), LayerImageError> {
    let path = dir.join(SKELETON);
    let file = File::open(&path).map_err(|source| LayerImageError::Read { path: path.clone(), source })?;
    match Entries::new(BufReader::with_capacity(CHUNK, file)) {
        Ok(entries) => Ok((entries, path)),
        Err(source) => Err(LayerImageError::Entries { path, source }),
    }
}

/// Where an overlay over `<repo>/objects` finds the content of an object in a bare repo.
fn redirect(object: Digest) -> Vec<u8> {
    let hex = object.hex();
    format!("/{}/{}.file", &hex[..2], &hex[2..]).into_bytes()
}

/// Bytes of all inodes that names lead to, as Docker counts a layer's directory.
fn size_of(inodes: &[Inode]) -> u64 {
    reachable(inodes)
        .into_iter()
        .map(|index| match &inodes[index].body {
            Body::Elsewhere(size) => *size,
            Body::Target(target) => target.len() as u64,
            Body::Nothing | Body::Names(_) => 0,
        })
        .sum()
}

fn reachable(inodes: &[Inode]) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut left = vec![0];
    while let Some(index) = left.pop() {
        if let (true, Body::Names(names)) = (seen.insert(index), &inodes[index].body) {
            left.extend(names.values());
        }
    }
    seen
}

fn is_whiteout(inode: &Inode) -> bool {
    inode.mode & erofs::KIND == erofs::CHARACTER && inode.device == (0, 0)
}

/// Makes empty files with a mark of all whiteouts, and marks the directories that hold them.
///
/// A directory has one mark: `y` hides what is below it, so that whiteouts in it and under it have no use and go; `x` says
/// that it holds whiteouts. The root takes `x` for all of its layer. Overlays look for `y` in no layer's root.
fn mark_whiteouts(inodes: &mut [Inode]) {
    inodes[ROOT].xattrs.remove(OPAQUE);
    let mut left = vec![(ROOT, false)];
    let mut any = false;
    while let Some((index, hidden)) = left.pop() {
        let hidden = hidden || inodes[index].xattrs.contains_key(OPAQUE);
        let Body::Names(names) = inodes[index].body.clone() else { continue };
        for (name, child) in names {
            if is_whiteout(&inodes[child]) && hidden {
                if let Body::Names(names) = &mut inodes[index].body {
                    names.remove(&name);
                }
            } else if is_whiteout(&inodes[child]) {
                any = true;
                inodes[index].xattrs.insert(OPAQUE.to_vec(), b"x".to_vec());
                let whiteout = &mut inodes[child];
                whiteout.mode = erofs::REGULAR;
                whiteout.xattrs = [(WHITEOUT.to_vec(), Vec::new())].into();
            } else if is_marked(&inodes[child]) {
                // Another name of a whiteout that was turned already.
                inodes[index].xattrs.insert(OPAQUE.to_vec(), b"x".to_vec());
            } else {
                left.push((child, hidden));
            }
        }
    }
    if any {
        inodes[ROOT].xattrs.insert(OPAQUE.to_vec(), b"x".to_vec());
    }
}

fn is_marked(inode: &Inode) -> bool {
    inode.xattrs.contains_key(WHITEOUT)
}

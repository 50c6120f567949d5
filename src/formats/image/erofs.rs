//! Writes EROFS images that hold metadata alone.
//!
//! An image is a function of the inodes that it is given: same inodes, same bytes, whatever program, machine or library.
//! Written is the uncompressed form alone (`Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` of Linux; all
//! numbers little-endian), which kernels read since 5.16:
//!
//! 1. the superblock at byte 1024, then inodes of 64 bytes in 32-byte slots, each followed by its extended attributes and
//!    the last, partial block of its data (directories, links);
//! 2. whole blocks of directories and links behind all inodes;
//! 3. a regular file has its size and one chunk that is a hole: what it holds is elsewhere, and an overlay's business.

use std::collections::BTreeMap;

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Where the first inode stands: behind the superblock.
const FIRST_INODE: u64 = 1152;
/// Bytes of an extended inode.
const INODE: u64 = 64;
/// Bytes of the header of inline extended attributes.
const XATTR_HEADER: usize = 12;
/// Bytes of a directory entry without its name.
const DIRENT: usize = 12;

/// Where the superblock stands.
const SUPERBLOCK: usize = 1024;
/// The volume's name in the superblock: which writer of ours made it. Another form of the same tree takes another number.
const VOLUME: &[u8; 16] = b"rackstep tree 1\0";

const MAGIC: u32 = 0xe0f5_e1e2;
/// Inode times are times of last change of content.
const COMPAT_MTIME: u32 = 0x2;
/// Files may consist of chunks.
const INCOMPAT_CHUNKED: u32 = 0x4;

const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKS: u16 = 4;
const HOLE: u32 = u32::MAX;

/// Bits of a mode that say what an inode is.
pub const KIND: u32 = 0o170_000;
/// A regular file.
pub const REGULAR: u32 = 0o100_000;
/// A directory.
pub const DIRECTORY: u32 = 0o040_000;
/// A symbolic link.
pub const LINK: u32 = 0o120_000;
/// A character device.
pub const CHARACTER: u32 = 0o020_000;
/// A block device.
pub const BLOCK_DEVICE: u32 = 0o060_000;
/// A pipe.
pub const PIPE: u32 = 0o010_000;

/// What an inode has besides its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing: an empty file, a device, a pipe.
    Nothing,
    /// A regular file of so many bytes, which are not in the image.
    Elsewhere(u64),
    /// The target of a symbolic link.
    Target(Vec<u8>),
    /// Names, and the inodes that they lead to, by index.
    Names(BTreeMap<Vec<u8>, usize>),
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Kind and permissions, as in `stat`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of that second.
    pub mtime_nsec: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes by their full names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The rest.
    pub body: Body,
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErofsError {
    /// An extended attribute that the format cannot hold.
    #[error("extended attribute {name:?} of {bytes} bytes does not fit")]
    Xattr {
        /// Its name, lossily.
        name: String,
        /// Bytes of its value.
        bytes: usize,
    },
    /// A name that the format cannot hold.
    #[error("name {name:?} does not fit")]
    Name {
        /// The name, lossily.
        name: String,
    },
}

/// The image of the tree whose root is `inodes[0]`, a directory. Inodes that no name leads to are left out.
pub fn render(inodes: &[Inode]) -> Result<Vec<u8>, ErofsError> {
    let tree = Walked::new(inodes);
    let mut planned = Vec::with_capacity(tree.order.len());
    let mut at = FIRST_INODE;
    for (number, &index) in tree.order.iter().enumerate() {
        let plan = Planned::new(&inodes[index], number, &tree)?;
        at = plan.place_from(at);
        planned.push((at, plan));
        let (_, plan) = &planned[number];
        at += plan.size();
    }
    let places: Vec<u64> = planned.iter().map(|(place, _)| *place).collect();
    let mut blocks = at.div_ceil(BLOCK);
    let mut image = vec![0; (blocks * BLOCK) as usize];
    for (number, (place, plan)) in planned.iter().enumerate() {
        let data = plan.data(inodes, number, &tree, &places);
        let whole = plan.whole_blocks(data.len() as u64);
        let (far, near) = data.split_at((whole * BLOCK).min(data.len() as u64) as usize);
        let size = data.len() as u64;
        let inode = plan.render(&inodes[tree.order[number]], size, number, tree.links[number], blocks, near);
        image[*place as usize..*place as usize + inode.len()].copy_from_slice(&inode);
        if whole > 0 {
            image.extend_from_slice(far);
            blocks += whole;
            image.resize((blocks * BLOCK) as usize, 0);
        }
    }
    let superblock = superblock(places[0], tree.order.len() as u64, blocks);
    image[SUPERBLOCK..SUPERBLOCK + superblock.len()].copy_from_slice(&superblock);
    Ok(image)
}

/// Whether an image that begins with these bytes is as this writer makes them.
pub fn is_current(start: &[u8]) -> bool {
    start.get(SUPERBLOCK..SUPERBLOCK + 4) == Some(MAGIC.to_le_bytes().as_slice())
        && start.get(SUPERBLOCK + 64..SUPERBLOCK + 80) == Some(VOLUME)
}

/// The inodes that names lead to, in the order of the image: a directory, then what is below it, by name.
struct Walked {
    /// Indexes of inodes.
    order: Vec<usize>,
    /// Place in `order` by index.
    numbers: BTreeMap<usize, usize>,
    /// Number of the parent by number.
    parents: Vec<usize>,
    /// Link count by number.
    links: Vec<u32>,
}

impl Walked {
    fn new(inodes: &[Inode]) -> Self {
        let mut walked =
            Self { order: Vec::new(), numbers: BTreeMap::new(), parents: Vec::new(), links: Vec::new() };
        // Last in, first out, so names go in backwards.
        let mut left = vec![(0, 0)];
        while let Some((index, parent)) = left.pop() {
            if let Some(&number) = walked.numbers.get(&index) {
                walked.links[number] += 1;
                continue;
            }
            let number = walked.order.len();
            walked.order.push(index);
            walked.numbers.insert(index, number);
            walked.parents.push(parent);
            let Body::Names(names) = &inodes[index].body else {
                walked.links.push(1);
                continue;
            };
            let directories = names.values().filter(|child| inodes[**child].mode & KIND == DIRECTORY);
            walked.links.push(2 + directories.count() as u32);
            left.extend(names.values().rev().map(|child| (*child, number)));
        }
        walked
    }
}

/// How an inode will stand in the image.
struct Planned {
    xattrs: Vec<u8>,
    /// Bytes of data that stand behind the inode.
    near: u64,
    layout: u16,
    /// Names that begin a block of a directory.
    starts: Vec<usize>,
}

impl Planned {
    fn new(inode: &Inode, number: usize, tree: &Walked) -> Result<Self, ErofsError> {
        let xattrs = render_xattrs(&inode.xattrs)?;
        let room = BLOCK.saturating_sub(INODE + xattrs.len() as u64);
        let mut plan = Self { xattrs, near: 0, layout: LAYOUT_PLAIN, starts: Vec::new() };
        let size = match &inode.body {
            Body::Nothing => return Ok(plan),
            Body::Elsewhere(_) => {
                plan.layout = LAYOUT_CHUNKS;
                plan.near = 4;
                return Ok(plan);
            }
            Body::Target(target) => target.len() as u64,
            Body::Names(names) => {
                let entries = entries(names, number, tree);
                if let Some((name, _)) = entries.iter().find(|(name, _)| name.len() > 255 || name.is_empty())
                {
                    return Err(ErofsError::Name { name: String::from_utf8_lossy(name).into_owned() });
                }
                let (starts, size) = split_blocks(&entries);
                plan.starts = starts;
                size
            }
        };
        let tail = size % BLOCK;
        if tail > 0 && tail <= room {
            plan.layout = LAYOUT_INLINE;
            plan.near = tail;
        }
        Ok(plan)
    }

    fn size(&self) -> u64 {
        INODE + self.xattrs.len() as u64 + self.near
    }

    /// The next place for it: neither the inode itself nor data behind it may cross the end of a block.
    fn place_from(&self, at: u64) -> u64 {
        let place = at.next_multiple_of(32);
        let left = BLOCK - place % BLOCK;
        let near = if self.layout == LAYOUT_INLINE { self.size() } else { INODE };
        if near <= left { place } else { place.next_multiple_of(BLOCK) }
    }

    /// Blocks behind all inodes that `size` bytes of data take.
    fn whole_blocks(&self, size: u64) -> u64 {
        match self.layout {
            LAYOUT_INLINE => size / BLOCK,
            LAYOUT_PLAIN => size.div_ceil(BLOCK),
            _ => 0,
        }
    }

    fn data(&self, inodes: &[Inode], number: usize, tree: &Walked, places: &[u64]) -> Vec<u8> {
        match &inodes[tree.order[number]].body {
            Body::Nothing => Vec::new(),
            Body::Elsewhere(_) => HOLE.to_le_bytes().to_vec(),
            Body::Target(target) => target.clone(),
            Body::Names(names) => render_names(&entries(names, number, tree), &self.starts, |child| {
                (places[child] / 32, entry_kind(inodes[tree.order[child]].mode))
            }),
        }
    }

    fn render(
        &self,
        inode: &Inode,
        size: u64,
        number: usize,
        links: u32,
        blocks: u64,
        near: &[u8],
    ) -> Vec<u8> {
        let (size, union) = match &inode.body {
            Body::Nothing => (0, device(inode.device)),
            Body::Elsewhere(size) => (*size, chunk_bits(*size)),
            Body::Target(_) | Body::Names(_) => (size, blocks as u32),
        };
        let mut bytes = Vec::with_capacity(self.size() as usize);
        bytes.extend((1 | self.layout << 1).to_le_bytes());
        let xattr_count = if self.xattrs.is_empty() { 0 } else { (self.xattrs.len() - XATTR_HEADER) / 4 + 1 };
        bytes.extend((xattr_count as u16).to_le_bytes());
        bytes.extend((inode.mode as u16).to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(size.to_le_bytes());
        bytes.extend(union.to_le_bytes());
        bytes.extend((number as u32 + 1).to_le_bytes());
        bytes.extend(inode.uid.to_le_bytes());
        bytes.extend(inode.gid.to_le_bytes());
        bytes.extend(inode.mtime.to_le_bytes());
        bytes.extend(inode.mtime_nsec.to_le_bytes());
        bytes.extend(links.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(&self.xattrs);
        bytes.extend(near);
        bytes
    }
}

/// Names of a directory in the order of their bytes, as lookups expect it, with the numbers that they lead to.
fn entries<'a>(names: &'a BTreeMap<Vec<u8>, usize>, number: usize, tree: &Walked) -> Vec<(&'a [u8], usize)> {
    let mut entries: Vec<(&[u8], usize)> = names
        .iter()
        .map(|(name, index)| (name.as_slice(), tree.numbers.get(index).copied().unwrap_or(0)))
        .collect();
    entries.push((b".", number));
    entries.push((b"..", tree.parents[number]));
    entries.sort_unstable();
    entries
}

/// Which entries begin a block, and how many bytes all blocks take when the last one is not filled up.
fn split_blocks(entries: &[(&[u8], usize)]) -> (Vec<usize>, u64) {
    let mut starts = vec![0];
    let mut used = 0;
    for (number, (name, _)) in entries.iter().enumerate() {
        let size = (DIRENT + name.len()) as u64;
        if used + size > BLOCK {
            starts.push(number);
            used = 0;
        }
        used += size;
    }
    let whole = (starts.len() as u64 - 1) * BLOCK;
    (starts, whole + used)
}

/// The blocks of a directory, all but the last filled up. `inode_of` gives an entry's inode number and kind.
fn render_names(
    entries: &[(&[u8], usize)],
    starts: &[usize],
    inode_of: impl Fn(usize) -> (u64, u8),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (block, &start) in starts.iter().enumerate() {
        bytes.resize(block * BLOCK as usize, 0);
        let end = starts.get(block + 1).copied().unwrap_or(entries.len());
        let entries = &entries[start..end];
        let mut offset = entries.len() * DIRENT;
        for (name, child) in entries {
            let (inode, kind) = inode_of(*child);
            bytes.extend(inode.to_le_bytes());
            bytes.extend((offset as u16).to_le_bytes());
            bytes.extend([kind, 0]);
            offset += name.len();
        }
        bytes.extend(entries.iter().flat_map(|(name, _)| *name));
    }
    bytes
}

/// An inode's kind as directory entries tell it.
fn entry_kind(mode: u32) -> u8 {
    match mode & KIND {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER => 3,
        BLOCK_DEVICE => 4,
        PIPE => 5,
        LINK => 7,
        _ => 0,
    }
}

fn render_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, ErofsError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; XATTR_HEADER];
    for (name, value) in xattrs {
        let misfit =
            || ErofsError::Xattr { name: String::from_utf8_lossy(name).into_owned(), bytes: value.len() };
        let (index, rest) = name_index(name).ok_or_else(misfit)?;
        let length = u8::try_from(rest.len()).map_err(|_| misfit())?;
        let size = u16::try_from(value.len()).map_err(|_| misfit())?;
        bytes.extend([length, index]);
        bytes.extend(size.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    // The count of 32-bit words has 16 bits.
    match xattrs.iter().max_by_key(|(_, value)| value.len()) {
        Some((name, value)) if bytes.len() > 4 * usize::from(u16::MAX) => {
            Err(ErofsError::Xattr { name: String::from_utf8_lossy(name).into_owned(), bytes: value.len() })
        }
        _ => Ok(bytes),
    }
}

/// The prefixes that the format has numbers for.
fn name_index(name: &[u8]) -> Option<(u8, &[u8])> {
    const EXACT: [(&[u8], u8); 2] = [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    if let Some((_, index)) = EXACT.iter().find(|(exact, _)| *exact == name) {
        return Some((*index, b""));
    }
    PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// Linux' own encoding of a device number in 32 bits (`new_encode_dev`).
fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The exponent that makes one chunk of a file.
fn chunk_bits(size: u64) -> u32 {
    let blocks = size.div_ceil(BLOCK).max(1);
    (u64::BITS - (blocks - 1).leading_zeros()).min(31)
}

fn superblock(root: u64, inodes: u64, blocks: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(0u32.to_le_bytes()); // no checksum: the file's own digest is known
    bytes.extend(COMPAT_MTIME.to_le_bytes());
    bytes.extend([12, 0]); // 2^12 bytes a block
    bytes.extend(((root / 32) as u16).to_le_bytes());
    bytes.extend(inodes.to_le_bytes());
    bytes.extend([0; 12]); // build time, which only short inodes have
    bytes.extend((blocks as u32).to_le_bytes());
    bytes.extend([0; 8]); // inodes are counted from block 0; no shared attributes
    bytes.extend([0; 16]); // no UUID
    bytes.extend(VOLUME);
    bytes.extend(INCOMPAT_CHUNKED.to_le_bytes());
    bytes.resize(128, 0);
    bytes
}

//! The entries of a layer's tar, read out of its skeleton alone.
//!
//! What an entry says follows Go's `archive/tar`, as in [`split`](mod@super::split): a PAX record goes before the header's
//! field, and GNU's long names before both.

use std::io::BufRead;

use crate::formats::image::header::{Block, Header, HeaderError, padding};
use crate::formats::image::pax::{PaxError, PaxRecords};
use crate::formats::image::skeleton::{Record, SkeletonError, SkeletonReader};

use super::{ODD, ROOT};

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Link,
    /// A character device.
    Character,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A pipe.
    Pipe,
    /// A sparse file in the PAX form: its data is not what the file holds. (Docker does not take GNU's older form.)
    Sparse,
    /// Something that has no meaning in a layer, by its type byte.
    Other(u8),
}

/// The content of an entry, a file of the layer's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Counted from 0 over all contents of the layer.
    pub number: usize,
    /// Below the layer's directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// An entry, extended headers and all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as the tar spells it.
    pub name: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Permissions and set-id bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes by their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its content, if it has any.
    pub content: Option<Content>,
}

/// Why a skeleton does not tell its entries.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The skeleton is damaged.
    #[error(transparent)]
    Skeleton(#[from] SkeletonError),
    /// A header is none.
    #[error("after entry {after:?}")]
    Header {
        /// The last good entry.
        after: String,
        /// What is wrong.
        #[source]
        source: HeaderError,
    },
    /// An extended header is broken.
    #[error("extended header after entry {after:?}")]
    Pax {
        /// The last good entry.
        after: String,
        /// What is wrong.
        #[source]
        source: PaxError,
    },
    /// A number of an entry does not fit.
    #[error("entry {entry:?}: its {what} is no number that fits")]
    Number {
        /// The entry.
        entry: String,
        /// Which.
        what: &'static str,
    },
}

/// Reads entries.
pub struct Entries<R> {
    records: SkeletonReader<R>,
    /// A record that was read and not used.
    ahead: Option<Record>,
    contents: usize,
    name: Vec<u8>,
}

/// What extended headers said about the entry to come.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: PaxRecords,
}

impl<R: BufRead> Entries<R> {
    /// Begins with the skeleton's first line.
    pub fn new(skeleton: R) -> Result<Self, EntryError> {
        Ok(Self { records: SkeletonReader::new(skeleton)?, ahead: None, contents: 0, name: Vec::new() })
    }

    /// The next entry.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, EntryError> {
        let mut pending = Pending::default();
        loop {
            let block = match self.take()? {
                Record::Header(block) => block,
                Record::End { .. } => {
                    self.ahead = Some(Record::End { size: 0 });
                    return Ok(None);
                }
                Record::File { .. } | Record::Odd { .. } => {
                    self.contents += 1;
                    continue;
                }
                Record::Literal(_) | Record::Zeros(_) => continue,
            };
            let after = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            let header = Header::parse(&block)
                .map_err(|source| EntryError::Header { after: after(&self.name), source })?;
            let size =
                header.size().map_err(|source| EntryError::Header { after: after(&self.name), source })?;
            match header.type_byte() {
                b'x' => {
                    let data = self.data(size)?;
                    pending.pax = PaxRecords::parse(&data)
                        .map_err(|source| EntryError::Pax { after: after(&self.name), source })?;
                }
                b'g' => {
                    self.data(size)?;
                    pending = Pending::default();
                }
                b'L' => pending.long_name = Some(until_nul(self.data(size)?)),
                b'K' => pending.long_link = Some(until_nul(self.data(size)?)),
                _ => return self.entry(&block, pending).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &Block, pending: Pending) -> Result<Entry, EntryError> {
        let Pending { long_name, long_link, pax } = pending;
        let after = String::from_utf8_lossy(&self.name).into_owned();
        let header = Header::parse(block).map_err(|source| EntryError::Header { after, source })?;
        let name = long_name.or(pax.path).unwrap_or_else(|| header.name());
        let number = |what| EntryError::Number { entry: String::from_utf8_lossy(&name).into_owned(), what };
        let owner = |pax: Option<u64>, header: Option<u32>, what| {
            pax.map_or(header, |id| id.try_into().ok()).ok_or_else(|| number(what))
        };
        let (uid, gid) = (owner(pax.uid, header.uid(), "owner")?, owner(pax.gid, header.gid(), "group")?);
        let kind = match header.type_byte() {
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' if pax.sparse => EntryKind::Sparse,
            0 | b'0' | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Link,
            b'3' => EntryKind::Character,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Pipe,
            other => EntryKind::Other(other),
        };
        let device = match kind {
            EntryKind::Character | EntryKind::BlockDevice => {
                header.device().ok_or_else(|| number("device number"))?
            }
            _ => (0, 0),
        };
        // As Docker, which keeps no time before 1970.
        let mtime =
            pax.mtime.or(header.mtime().map(|seconds| (seconds, 0))).filter(|(seconds, _)| *seconds >= 0);
        let link = long_link.or(pax.link).unwrap_or_else(|| header.link());
        let content = self.content(header.type_byte() == b'S')?;
        self.name.clone_from(&name);
        Ok(Entry {
            name,
            kind,
            link,
            mode: header.mode(),
            uid,
            gid,
            mtime: mtime.unwrap_or((0, 0)),
            device,
            xattrs: pax.xattrs,
            content,
        })
    }

    /// The content that belongs to the header at hand; behind the header of an old sparse file its map comes first.
    fn content(&mut self, behind_map: bool) -> Result<Option<Content>, EntryError> {
        loop {
            let (path, size) = match self.take()? {
                Record::File { path, size } => (format!("{ROOT}/{path}"), size),
                Record::Odd { number, size } => (format!("{ODD}/{number}"), size),
                Record::Literal(_) if behind_map => continue,
                other => {
                    self.ahead = Some(other);
                    return Ok(None);
                }
            };
            let number = self.contents;
            self.contents += 1;
            return Ok(Some(Content { number, path, size }));
        }
    }

    /// Data of an extended header; what fills up its last block is dropped.
    fn data(&mut self, size: u64) -> Result<Vec<u8>, EntryError> {
        let whole = size + padding(size);
        let mut data = Vec::new();
        while (data.len() as u64) < whole {
            match self.take()? {
                Record::Literal(bytes) => data.extend(bytes),
                Record::Zeros(count) => {
                    let count = count.min(whole - data.len() as u64);
                    data.resize(data.len() + count as usize, 0);
                }
                // A tar may end before the last block is filled up.
                other => {
                    self.ahead = Some(other);
                    break;
                }
            }
        }
        data.truncate(size as usize);
        Ok(data)
    }

    fn take(&mut self) -> Result<Record, EntryError> {
        match self.ahead.take() {
            Some(record) => Ok(record),
            None => Ok(self.records.next_record()?),
        }
    }
}

fn until_nul(data: Vec<u8>) -> Vec<u8> {
    data.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

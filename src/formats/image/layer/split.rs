//! Taking a tar apart, in one pass over a stream.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{ODD, ROOT, SKELETON};
use crate::formats::image::header::{
    BLOCK, Block, Header, HeaderError, Kind, padding, sparse_extension_continues,
};
use crate::formats::image::pax::{PaxError, PaxRecords};
use crate::formats::image::skeleton::SkeletonWriter;
use crate::formats::image::stream::{CHUNK, Intake, IntakeError};
use crate::formats::image::tree::{Created, Tree, tree_path};
use crate::formats::image::{Limits, Ownership};
use crate::model::Digest;

/// What became of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitLayer {
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub size: u64,
    /// Entries, extended headers not counted.
    pub entries: u64,
    /// Files below `root`.
    pub files: u64,
    /// Files below `odd`.
    pub odd_files: u64,
    /// Bytes of all files.
    pub content: u64,
}

/// Why a tar cannot be taken apart.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The stream failed.
    #[error("reading the layer at byte {at}, after entry {after:?}")]
    Read {
        /// Offset in the tar.
        at: u64,
        /// The last entry that was seen.
        after: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer is larger than allowed.
    #[error("layer exceeds its limit of {limit} bytes in entry {entry:?}")]
    LayerTooLarge {
        /// [`Limits::layer_bytes`].
        limit: u64,
        /// Where it happened.
        entry: String,
    },
    /// The layer has more entries than allowed.
    #[error("layer exceeds its limit of {limit} entries at {entry:?}")]
    TooManyEntries {
        /// [`Limits::entries`].
        limit: u64,
        /// The entry after the last allowed.
        entry: String,
    },
    /// An extended header or a name is longer than allowed.
    #[error("{what} of {size} bytes after entry {after:?} exceeds its limit of {limit}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// As announced.
        size: u64,
        /// As allowed.
        limit: u64,
        /// The entry before.
        after: String,
    },
    /// A block that should be a header is none.
    #[error("no tar header at byte {at}, after entry {after:?}")]
    Header {
        /// Offset in the tar.
        at: u64,
        /// The last entry that was good.
        after: String,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// PAX records are broken.
    #[error("broken extended header at byte {at}, after entry {after:?}")]
    Pax {
        /// Offset in the tar.
        at: u64,
        /// The last entry that was good.
        after: String,
        /// What is wrong with it.
        #[source]
        source: PaxError,
    },
    /// The tar ends within an entry.
    #[error("tar ends at byte {at}, within entry {entry:?}")]
    Truncated {
        /// Bytes of the tar.
        at: u64,
        /// The entry.
        entry: String,
    },
    /// The layer's directory cannot be written.
    #[error("writing {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Takes `tar` apart into `dir`, which must be an empty directory.
///
/// The caller compares [`SplitLayer::diff_id`] with what it expects. After an error, `dir` holds rubbish.
pub fn split(
    tar: impl Read,
    dir: &Path,
    ownership: Ownership,
    limits: &Limits,
) -> Result<SplitLayer, SplitError> {
    let mut splitter = Splitter::new(tar, dir, ownership, limits)?;
    while splitter.entry()? {}
    splitter.tail()?;
    splitter.finish()
}

/// What extended headers said about the entry to come.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    pax: PaxRecords,
}

struct Splitter<'a, R> {
    intake: Intake<R>,
    dir: &'a Path,
    tree: Tree,
    skeleton: SkeletonWriter<BufWriter<File>>,
    ownership: Ownership,
    limits: &'a Limits,
    pending: Pending,
    /// Name of the entry at hand, or of the last one.
    name: Vec<u8>,
    entries: u64,
    files: u64,
    odd_files: u64,
    content: u64,
}

impl<'a, R: Read> Splitter<'a, R> {
    fn new(tar: R, dir: &'a Path, ownership: Ownership, limits: &'a Limits) -> Result<Self, SplitError> {
        let at = |name: &str| {
            let path = dir.join(name);
            move |source| SplitError::Write { path, source }
        };
        let mut tree = Tree::open(dir).map_err(at(""))?;
        tree.create_dir(ROOT).map_err(at(ROOT))?;
        let file = File::create_new(dir.join(SKELETON)).map_err(at(SKELETON))?;
        set_mode(&file, 0o644).map_err(at(SKELETON))?;
        let skeleton = SkeletonWriter::new(BufWriter::with_capacity(CHUNK, file)).map_err(at(SKELETON))?;
        Ok(Self {
            intake: Intake::new(tar, limits.layer_bytes),
            dir,
            tree,
            skeleton,
            ownership,
            limits,
            pending: Pending::default(),
            name: Vec::new(),
            entries: 0,
            files: 0,
            odd_files: 0,
            content: 0,
        })
    }

    /// Takes one header and what belongs to it; false when there is none.
    fn entry(&mut self) -> Result<bool, SplitError> {
        let at = self.intake.position();
        let mut block: Block = [0; BLOCK];
        let got = self.intake.read_up_to(&mut block).map_err(|error| self.read_error(error))?;
        if got < BLOCK || block == [0; BLOCK] {
            self.raw(&block[..got])?;
            return Ok(false);
        }
        let header_error = |after: &[u8], source| SplitError::Header { at, after: lossy(after), source };
        let header = Header::parse(&block).map_err(|source| header_error(&self.name, source))?;
        let size = header.size().map_err(|source| header_error(&self.name, source))?;
        self.skeleton.header(&block).map_err(|source| self.write_error(SKELETON, source))?;
        match header.kind(b"") {
            Kind::Pax => {
                let data = self.extension("extended header", size)?;
                self.pending.pax = PaxRecords::parse(&data).map_err(|source| SplitError::Pax {
                    at,
                    after: lossy(&self.name),
                    source,
                })?;
            }
            Kind::LongName => {
                let data = self.extension("long name", size)?;
                self.pending.long_name = data.split(|&b| b == 0).next().map(<[u8]>::to_vec);
            }
            Kind::LongLink => {
                self.extension("long link target", size)?;
            }
            Kind::PaxGlobal => {
                self.extension("global extended header", size)?;
                // As in Go: a global header ends what was pending.
                self.pending = Pending::default();
            }
            _ => self.real_entry(header, size)?,
        }
        Ok(true)
    }

    fn real_entry(&mut self, header: Header<'_>, size: u64) -> Result<(), SplitError> {
        let Pending { long_name, pax } = std::mem::take(&mut self.pending);
        let before = std::mem::take(&mut self.name);
        self.name = long_name.or(pax.path).unwrap_or_else(|| header.name());
        if self.name.len() > self.limits.name_bytes {
            return Err(SplitError::TooLong {
                what: "name",
                size: self.name.len() as u64,
                limit: self.limits.name_bytes as u64,
                after: lossy(&before),
            });
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(SplitError::TooManyEntries { limit: self.limits.entries, entry: lossy(&self.name) });
        }
        let size = pax.size.unwrap_or(size);
        let path = match header.kind(&self.name) {
            Kind::HeaderOnly => return Ok(()),
            Kind::File => tree_path(&self.name),
            Kind::OldSparse => {
                self.sparse_extensions(header)?;
                tree_path(&self.name)
            }
            _ => None,
        };
        // Before anything is written: a header alone can announce more than the disk holds.
        if size > self.limits.layer_bytes.saturating_sub(self.intake.position()) {
            return Err(self.read_error(IntakeError::Limit(self.limits.layer_bytes)));
        }
        if size > 0 {
            let metadata = Metadata {
                uid: pax.uid.map_or(header.uid(), |uid| uid.try_into().ok()),
                gid: pax.gid.map_or(header.gid(), |gid| gid.try_into().ok()),
                mode: header.mode(),
                capability: pax.capability,
            };
            self.content(path, size, &metadata)?;
        }
        self.padding(size)
    }

    /// The blocks that continue an old GNU sparse map.
    fn sparse_extensions(&mut self, header: Header<'_>) -> Result<(), SplitError> {
        let mut continues = header.sparse_continues();
        while continues {
            let mut block: Block = [0; BLOCK];
            let got = self.intake.read_up_to(&mut block).map_err(|error| self.read_error(error))?;
            if got < BLOCK {
                return Err(self.truncated());
            }
            self.raw(&block)?;
            continues = sparse_extension_continues(&block);
        }
        Ok(())
    }

    /// Data of an extended header, kept in the skeleton with its padding.
    fn extension(&mut self, what: &'static str, size: u64) -> Result<Vec<u8>, SplitError> {
        let limit = self.limits.extension_bytes;
        let length = usize::try_from(size).ok().filter(|_| size <= limit);
        let Some(length) = length else {
            return Err(SplitError::TooLong { what, size, limit, after: lossy(&self.name) });
        };
        let mut data = vec![0; length];
        if self.intake.read_up_to(&mut data).map_err(|error| self.read_error(error))? < length {
            return Err(self.truncated());
        }
        self.raw(&data)?;
        self.padding(size)?;
        Ok(data)
    }

    /// The bytes that fill up the last block; a tar may end before they do.
    fn padding(&mut self, size: u64) -> Result<(), SplitError> {
        let mut block: Block = [0; BLOCK];
        let fill = &mut block[..padding(size) as usize];
        let got = self.intake.read_up_to(fill).map_err(|error| self.read_error(error))?;
        self.raw(&block[..got])
    }

    /// Content of the entry at hand, into a file.
    fn content(&mut self, path: Option<String>, size: u64, metadata: &Metadata) -> Result<(), SplitError> {
        let (relative, file) = self.open_content(path, size)?;
        self.copy(&relative, &file, size)?;
        self.content += size;
        let applied = match self.ownership {
            Ownership::Apply => metadata.apply(&file),
            Ownership::Ignore => set_mode(&file, 0o644),
        };
        applied.map_err(|source| self.write_error(&relative, source))
    }

    fn open_content(&mut self, path: Option<String>, size: u64) -> Result<(String, File), SplitError> {
        if let Some(path) = path {
            let relative = format!("{ROOT}/{path}");
            match self.tree.create(&relative) {
                Err(source) => return Err(self.write_error(&relative, source)),
                Ok(Created::InTheWay) => {}
                Ok(Created::File(file)) => {
                    self.files += 1;
                    self.skeleton.file(&path, size).map_err(|source| self.write_error(SKELETON, source))?;
                    return Ok((relative, file));
                }
            }
        }
        let number = self.odd_files;
        let relative = format!("{ODD}/{number}");
        self.odd_files += 1;
        self.skeleton.odd(number, size).map_err(|source| self.write_error(SKELETON, source))?;
        match self.tree.create(&relative) {
            Ok(Created::File(file)) => Ok((relative, file)),
            Ok(Created::InTheWay) => Err(self.write_error(&relative, io::ErrorKind::AlreadyExists.into())),
            Err(source) => Err(self.write_error(&relative, source)),
        }
    }

    fn copy(&mut self, relative: &str, mut file: &File, size: u64) -> Result<(), SplitError> {
        let mut left = size;
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX);
            let bytes = match self.intake.peek(max) {
                Ok(bytes) => bytes,
                Err(error) => return Err(self.read_error(error)),
            };
            let count = bytes.len();
            if count == 0 {
                return Err(self.truncated());
            }
            if let Err(source) = file.write_all(bytes) {
                return Err(self.write_error(relative, source));
            }
            self.intake.take(count);
            left -= count as u64;
        }
        Ok(())
    }

    /// What stands behind the end mark, as it is.
    fn tail(&mut self) -> Result<(), SplitError> {
        loop {
            let count = match self.intake.peek(BLOCK) {
                Err(error) => return Err(self.read_error(error)),
                Ok([]) => return Ok(()),
                Ok(bytes) => {
                    let count = bytes.len();
                    if let Err(source) = self.skeleton.raw(bytes) {
                        return Err(self.write_error(SKELETON, source));
                    }
                    count
                }
            };
            self.intake.take(count);
        }
    }

    fn finish(self) -> Result<SplitLayer, SplitError> {
        let (diff_id, size) = self.intake.finish();
        let error = |source| SplitError::Write { path: self.dir.join(SKELETON), source };
        self.skeleton.finish(size).and_then(|mut file| file.flush()).map_err(error)?;
        Ok(SplitLayer {
            diff_id,
            size,
            entries: self.entries,
            files: self.files,
            odd_files: self.odd_files,
            content: self.content,
        })
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        self.skeleton.raw(bytes).map_err(|source| self.write_error(SKELETON, source))
    }

    fn read_error(&self, error: IntakeError) -> SplitError {
        match error {
            IntakeError::Read(source) => {
                SplitError::Read { at: self.intake.position(), after: lossy(&self.name), source }
            }
            IntakeError::Limit(limit) => SplitError::LayerTooLarge { limit, entry: lossy(&self.name) },
        }
    }

    fn write_error(&self, relative: &str, source: io::Error) -> SplitError {
        SplitError::Write { path: self.dir.join(relative), source }
    }

    fn truncated(&self) -> SplitError {
        SplitError::Truncated { at: self.intake.position(), entry: lossy(&self.name) }
    }
}

/// Owner, mode and capabilities that ostree takes into a file's checksum.
struct Metadata {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
    capability: Option<Vec<u8>>,
}

impl Metadata {
    fn apply(&self, file: &File) -> io::Result<()> {
        use rustix::fs::{Gid, Uid, XattrFlags, fchown, fsetxattr};
        // u32::MAX means "leave it"; such an owner, like one beyond 32 bits, becomes root.
        let known = |id: Option<u32>| id.filter(|&id| id != u32::MAX).unwrap_or(0);
        let (uid, gid) = (Uid::from_raw(known(self.uid)), Gid::from_raw(known(self.gid)));
        // In this order: chown takes set-id bits and capabilities away.
        fchown(file, Some(uid), Some(gid))?;
        set_mode(file, self.mode)?;
        if let Some(value) = &self.capability {
            match fsetxattr(file, "security.capability", value, XattrFlags::empty()) {
                // Not a capability that this kernel knows: it stays in the skeleton alone.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Sets a mode whatever the umask: the commit's checksum must not depend on it.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(mode))?)
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

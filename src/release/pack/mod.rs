//! Writing packs: a release made ready for the wire, on all cores.
//!
//! 1. Walk the commit; for an update leave out what the older commit has, and find for each new file an older one that
//!    it is likely to come from (`older`);
//! 2. deal the objects into shards of about equal size, directories first, files in the order of their paths, so that the
//!    same commit always gives the same shards;
//! 3. write the shards in parallel, files as a difference where that is smaller (`difference`); every object's digest is
//!    checked while it goes by;
//! 4. index and signature, then the list, which makes the pack known.

mod difference;
mod older;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use zstd::stream::raw::CParameter;

use crate::formats::atomic::UNFINISHED;
use crate::formats::image::stream::{Counting, Hashing};
use crate::formats::pack::index::{
    self, DIFFERENCES_FORMAT, Index, List, ListedPack, PACK_FORMAT, SHARDS_DIR, Shard,
};
use crate::formats::pack::record::{Record, RecordKind, RecordWriter};
use crate::model::{Commit, Digest, ObjectKind, ObjectName, Progress};
use crate::ostree::repo::{Mode, Repo, RepoError, write_atomically};
use crate::ostree::signature::SecretKey;
use crate::rim::budget::Budget;

use difference::Difference;
use older::Older;

/// For a whole pack. Level 3 takes a quarter of its time and gives 12 % more bytes; the levels up to 15 save another 1 %, in
/// up to four times the time.
pub const DEFAULT_LEVEL: i32 = 10;
/// Updates are smaller, go to every host, and often over slower links: more time is well spent.
pub const UPDATE_LEVEL: i32 = 18;
/// The widest window that readers allow, as a power of two: 0.5 % smaller than the level's own, in the same time.
const WINDOW_LOG: u32 = 23;
/// Window and tables of slow levels. Twice as much in each takes 16 to 40 MiB more a compressor, and makes shards of updates
/// 0.05 % smaller.
const SLOW_WINDOW_LOG: u32 = 22;
const TABLE_LOG: u32 = 21;
/// From this level on they are needed: those below ask for less themselves.
const SLOW_LEVEL: i32 = 13;
/// Readers allow a window of 8 MiB; levels above this one may ask for more.
pub const HIGHEST_LEVEL: i32 = 19;
/// A shard is closed when the objects in it take this many bytes in an archive repo, which is a little more than they take in it.
const SHARD_TARGET: u64 = 36 << 20;
/// The same for an update: its objects shrink to a part of that, and several shards are written at a time.
const UPDATE_SHARD_TARGET: u64 = 16 << 20;
/// Memory for all differences that are being made.
const DIFFERENCES_MEMORY: u64 = 88 << 20;
/// Memory for all compressors that are at work.
const COMPRESSORS_MEMORY: u64 = 96 << 20;
/// How much larger files are when a repo keeps them uncompressed.
const BARE_FACTOR: u64 = 3;
/// Bytes that are copied at a time.
const CHUNK: usize = 128 << 10;

/// How a pack is written.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// zstd level of a whole pack, 1 to [`HIGHEST_LEVEL`].
    pub level: i32,
    /// zstd level of an update.
    pub update_level: i32,
    /// Bytes of objects, as an archive repo keeps them, at which a shard is closed.
    pub shard_target: u64,
    /// The same for an update.
    pub update_shard_target: u64,
    /// Whether an update has differences.
    pub differences: bool,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            level: DEFAULT_LEVEL,
            update_level: UPDATE_LEVEL,
            shard_target: SHARD_TARGET,
            update_shard_target: UPDATE_SHARD_TARGET,
            differences: true,
        }
    }
}

/// A pack that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackReport {
    /// Its index.
    pub index: Index,
    /// Whether the index is signed.
    pub signed: bool,
}

/// Why a pack was not written.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The repo refused.
    #[error("packing commit {to}")]
    Repo {
        /// The commit.
        to: Commit,
        /// Why.
        #[source]
        source: RepoError,
    },
    /// A file of the pack could not be written.
    #[error("packing commit {to}: writing {path}")]
    Write {
        /// The commit.
        to: Commit,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the pack of `to`, whole or against `from`, into the repo that holds it.
pub fn write_pack(
    repo: &Repo,
    to: Commit,
    from: Option<Commit>,
    key: Option<&SecretKey>,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport, PackError> {
    let in_repo = |source| PackError::Repo { to, source };
    let _nothing_goes = repo.lock_for_packing().map_err(in_repo)?;
    let differences = options.differences && from.is_some();
    let (level, target) = match from {
        None => (options.level, options.shard_target),
        Some(_) => (options.update_level, options.update_shard_target),
    };
    let level = level.clamp(1, HIGHEST_LEVEL);
    let items = items_to_send(repo, to, from, differences).map_err(in_repo)?;
    let groups = deal(repo, &items, target);
    progress.begin("pack", Some(items.len() as u64));
    let dir = repo.path().join(SHARDS_DIR);
    fs::create_dir_all(&dir).map_err(|source| PackError::Write { to, path: dir.clone(), source })?;
    let packer = Packer {
        repo,
        to,
        dir: &dir,
        level,
        differences,
        making: Budget::new(DIFFERENCES_MEMORY),
        compressing: Budget::new(COMPRESSORS_MEMORY),
        progress,
    };
    let shards: Vec<Shard> =
        groups.par_iter().map(|group| packer.write_shard(group)).collect::<Result<_, PackError>>()?;
    let sum = |of: fn(&Shard) -> u64| shards.iter().map(of).sum();
    let index = Index {
        format: if differences { DIFFERENCES_FORMAT } else { PACK_FORMAT },
        to,
        from,
        objects: sum(|shard| shard.objects),
        bytes: sum(|shard| shard.size),
        raw: sum(|shard| shard.raw),
        shards,
    };
    publish(repo, &index, key).map_err(in_repo)?;
    progress.end(&format!(
        "{} objects, {} bytes in {} shards",
        index.objects,
        index.bytes,
        index.shards.len()
    ));
    Ok(PackReport { index, signed: key.is_some() })
}

/// An object to send.
struct Item {
    object: ObjectName,
    /// The file of the older release that it is likely to come from.
    older: Option<Digest>,
}

fn items_to_send(
    repo: &Repo,
    to: Commit,
    from: Option<Commit>,
    differences: bool,
) -> Result<Vec<Item>, RepoError> {
    let known: HashSet<ObjectName> = match from {
        Some(from) => repo.walk_objects(from)?.into_iter().collect(),
        None => HashSet::new(),
    };
    let older = from.filter(|_| differences).map(|from| Older::of(repo, from)).transpose()?;
    let mut items = Vec::new();
    repo.walk(to, &mut |path, object| {
        // The commit object travels by itself: it is checked before a pack is chosen.
        if object.kind != ObjectKind::Commit && !known.contains(&object) {
            let older = older.as_ref().filter(|_| object.kind == ObjectKind::File);
            items.push(Item { object, older: older.and_then(|older| older.find(path, &object.digest)) });
        }
    })?;
    // Stable: files stay in the order of their paths, where similar ones are near each other.
    items.sort_by_key(|item| item.object.kind == ObjectKind::File);
    Ok(items)
}

fn deal<'i>(repo: &Repo, items: &'i [Item], target: u64) -> Vec<&'i [Item]> {
    let mut groups = Vec::new();
    let (mut begin, mut size) = (0, 0);
    for (index, item) in items.iter().enumerate() {
        // A missing object is reported by whoever opens it.
        let bytes = fs::symlink_metadata(repo.object_path(&item.object)).map_or(0, |stat| stat.len());
        size += match repo.mode() {
            Mode::Archive => bytes,
            Mode::Bare => bytes / BARE_FACTOR,
        };
        if size >= target {
            groups.push(&items[begin..=index]);
            (begin, size) = (index + 1, 0);
        }
    }
    if begin < items.len() {
        groups.push(&items[begin..]);
    }
    groups
}

struct Packer<'p> {
    repo: &'p Repo,
    to: Commit,
    dir: &'p Path,
    level: i32,
    differences: bool,
    making: Budget,
    compressing: Budget,
    progress: &'p dyn Progress,
}

/// What is set beside the level.
fn parameters(level: i32) -> &'static [CParameter] {
    use CParameter::{ChainLog, HashLog, WindowLog};
    match level {
        ..SLOW_LEVEL => &[WindowLog(WINDOW_LOG)],
        _ => &[WindowLog(SLOW_WINDOW_LOG), ChainLog(TABLE_LOG), HashLog(TABLE_LOG)],
    }
}

/// Memory that zstd takes to compress a shard: its tables and twice its window.
fn compressor_bytes(level: i32) -> u64 {
    match level {
        ..=5 => 24 << 20,
        6..SLOW_LEVEL => 48 << 20,
        _ => 32 << 20,
    }
}

impl Packer<'_> {
    fn write_shard(&self, items: &[Item]) -> Result<Shard, PackError> {
        let _memory = self.compressing.lend(compressor_bytes(self.level));
        let writing = |source| PackError::Write { to: self.to, path: self.dir.to_owned(), source };
        let in_repo = |source| PackError::Repo { to: self.to, source };
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(self.dir).map_err(writing)?;
        let out = io::BufWriter::with_capacity(CHUNK, file.as_file().try_clone().map_err(writing)?);
        let hashed = Hashing::new(out);
        let mut encoder = zstd::Encoder::new(hashed, self.level).map_err(writing)?;
        for parameter in parameters(self.level) {
            encoder.set_parameter(*parameter).map_err(writing)?;
        }
        let counted = Counting::new(encoder);
        let mut records = RecordWriter::new(counted, self.differences).map_err(writing)?;
        let mut buffer = vec![0; CHUNK];
        let mut unpacked = 0;
        for Item { object, older } in items {
            unpacked += if object.kind == ObjectKind::File {
                let made =
                    older.map(|older| difference::make(self.repo, &object.digest, &older, &self.making));
                match made.transpose().map_err(in_repo)?.flatten() {
                    Some(Difference { kind, payload, unpacked }) => {
                        let length = payload.len() as u64;
                        let record = Record { kind, digest: object.digest, length };
                        records.begin(record).and_then(|to| to.write_all(&payload)).map_err(writing)?;
                        unpacked
                    }
                    None => self.write_file(&mut records, object, &mut buffer)?,
                }
            } else {
                let bytes = self.repo.read_metadata(object).map_err(in_repo)?;
                records
                    .begin(record_of(object, bytes.len() as u64))
                    .and_then(|to| to.write_all(&bytes))
                    .map_err(writing)?;
                bytes.len() as u64
            };
            self.progress.advance(1);
        }
        let (counted, count) = records.finish().map_err(writing)?;
        let raw = counted.count;
        let hashed = counted.inner.finish().map_err(writing)?;
        let (out, digest, size) = hashed.into_parts();
        out.into_inner().map_err(|error| writing(error.into_error()))?;
        let unpacked = self.differences.then_some(unpacked);
        let shard = Shard { digest, size, raw, objects: count, unpacked };
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(readable).and_then(|()| file.as_file().sync_all()).map_err(writing)?;
        file.persist(self.repo.path().join(shard.path())).map_err(|error| writing(error.error))?;
        Ok(shard)
    }

    fn write_file<W: Write>(
        &self,
        records: &mut RecordWriter<W>,
        object: &ObjectName,
        buffer: &mut [u8],
    ) -> Result<u64, PackError> {
        let path = self.repo.object_path(object);
        let in_repo = |source| PackError::Repo { to: self.to, source };
        let writing = |source| PackError::Write { to: self.to, path: self.dir.to_owned(), source };
        let mut file = self.repo.open_file(&object.digest).map_err(in_repo)?;
        let prefix = file.header.stream_prefix();
        let mut hasher = Sha256::new_with_prefix(&prefix);
        let out = records.begin(record_of(object, prefix.len() as u64 + file.size)).map_err(writing)?;
        out.write_all(&prefix).map_err(writing)?;
        let mut total = 0;
        loop {
            let count = file.content.read(buffer).map_err(|e| in_repo(RepoError::io("reading", &path, e)))?;
            if count == 0 {
                break;
            }
            total += count as u64;
            hasher.update(&buffer[..count]);
            out.write_all(&buffer[..count]).map_err(writing)?;
        }
        let got = Digest::from_bytes(hasher.finalize().into());
        if got != object.digest || total != file.size {
            return Err(in_repo(RepoError::Damaged { object: *object, got: got.hex() }));
        }
        Ok(prefix.len() as u64 + total)
    }
}

fn record_of(object: &ObjectName, length: u64) -> Record {
    Record { kind: RecordKind::Object(object.kind), digest: object.digest, length }
}

fn publish(repo: &Repo, index: &Index, key: Option<&SecretKey>) -> Result<(), RepoError> {
    let path = repo.path().join(index::index_path(index.to, index.from));
    let bytes = render(&path, index)?;
    let mut signature = path.clone().into_os_string();
    signature.push(".sig");
    let signature = PathBuf::from(signature);
    match key {
        Some(key) => {
            let text = base64::engine::general_purpose::STANDARD.encode(key.sign(&bytes));
            write_atomically(&signature, format!("{text}\n").as_bytes())?;
        }
        // An older signature would be about other bytes.
        None => match fs::remove_file(&signature) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RepoError::io("removing", &signature, error));
            }
            _ => {}
        },
    }
    write_atomically(&path, &bytes)?;
    let list_path = repo.path().join(index::list_path(index.to));
    let mut packs = listed_packs(repo, index.to);
    packs.retain(|pack| pack.from != index.from);
    packs.push(ListedPack { from: index.from, bytes: index.bytes });
    packs.sort_by_key(|pack| pack.from);
    let list = List { format: PACK_FORMAT, to: index.to, packs };
    write_atomically(&list_path, &render(&list_path, &list)?)
}

/// The packs of a release; none if there is no list, or none that hosts could read.
pub fn listed_packs(repo: &Repo, to: Commit) -> Vec<ListedPack> {
    let list = fs::read(repo.path().join(index::list_path(to))).ok();
    list.and_then(|bytes| List::parse(&bytes, to).ok()).map(|list| list.packs).unwrap_or_default()
}

fn render<T: serde::Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, RepoError> {
    serde_json::to_vec_pretty(value).map_err(|source| RepoError::io("rendering", path, source.into()))
}

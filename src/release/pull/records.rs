//! Objects out of a shard's records.
//!
//! 1. zstd and records are read as they come: nothing is held in memory but one chunk and zstd's window, and for a
//!    difference a piece of the older file;
//! 2. every object is checked against its own name on its way into the repo's staging;
//! 3. a difference that does not give its object, because the older file is damaged or missing here or another compressor
//!    made it, is passed over: the object comes by itself later.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use super::shards::ShardError;
use crate::formats::pack::index::Shard;
use crate::formats::pack::patch::{PatchReader, Pieces, Sums, apply_bytes};
use crate::formats::pack::record::{Record, RecordKind, RecordReader};
use crate::formats::pack::repack;
use crate::model::causes::in_one_line;
use crate::model::{Digest, ObjectKind, ObjectName};
use crate::ostree::repo::gvariant::FileHeader;
use crate::ostree::repo::{Batch, Content, Repo, RepoError};
use crate::rim::budget::Budget;

/// The largest window that a shard may ask for: 8 MiB, so that memory stays bounded whatever the shard says.
const WINDOW_LOG: u32 = 23;
/// Memory for all differences that are being applied.
const DIFFERENCES_MEMORY: u64 = 96 << 20;

/// Writes all objects of a shard into the batch and reads its stream to the end. Gives how many were written.
pub(super) fn unpack(
    shard: &Shard,
    compressed: &mut impl io::BufRead,
    batch: &Batch<'_>,
    taker: &Taker<'_>,
) -> Result<u64, ShardError> {
    let refuse = |reason: String| ShardError::Refused(format!("shard {}: {reason}", shard.digest));
    let broken = |error: io::Error| refuse(error.to_string());
    let mut objects = 0;
    // A shard that gives more than its index says would otherwise fill the disk.
    let mut room = shard.content();
    {
        let mut decoder = zstd::Decoder::with_buffer(&mut *compressed).map_err(broken)?.single_frame();
        decoder.window_log_max(WINDOW_LOG).map_err(broken)?;
        let mut records = RecordReader::new(decoder.take(shard.raw)).map_err(broken)?;
        while let Some(record) = records.next_record().map_err(broken)? {
            let taken = taker.take(record, &mut records, batch, &mut room).map_err(|error| match error {
                RepoError::Io { .. } | RepoError::DiskFull { .. } => ShardError::Repo(error),
                other => refuse(in_one_line(&other)),
            })?;
            objects += u64::from(taken);
        }
    }
    io::copy(compressed, &mut io::sink()).map_err(broken)?;
    Ok(objects)
}

/// Takes objects out of records.
pub(super) struct Taker<'t> {
    repo: &'t Repo,
    memory: Budget,
    /// Differences that gave their objects.
    pub differences: AtomicU64,
    /// Differences that did not.
    pub failed: AtomicU64,
}

impl<'t> Taker<'t> {
    pub fn new(repo: &'t Repo) -> Self {
        let memory = Budget::new(DIFFERENCES_MEMORY);
        Self { repo, memory, differences: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }

    /// Writes the record's object into the batch, out of `room` bytes. False: it has to come another way.
    fn take<R: Read>(
        &self,
        record: Record,
        records: &mut RecordReader<R>,
        batch: &Batch<'_>,
        room: &mut u64,
    ) -> Result<bool, RepoError> {
        let kind = match record.kind {
            RecordKind::Object(kind) => kind,
            RecordKind::FilePatch(_) | RecordKind::PackedPatch => ObjectKind::File,
        };
        let object = ObjectName::new(kind, record.digest);
        if self.repo.has(&object) {
            return Ok(true);
        }
        if let Some(sums) = record.kind.sums() {
            let packed = record.kind == RecordKind::PackedPatch;
            return self.take_difference(object, (sums, packed), records, batch, room);
        }
        let receiving = |source| RepoError::Source { object, source };
        *room = room.checked_sub(record.length).ok_or_else(|| receiving(too_much()))?;
        if kind != ObjectKind::File {
            let mut bytes = Vec::new();
            records.read_to_end(&mut bytes).map_err(receiving)?;
            return batch.write_metadata(&object, &bytes).map(|()| true);
        }
        let (header, prefix) = FileHeader::read(records).map_err(receiving)?;
        let size = record.length.saturating_sub(prefix.len() as u64);
        batch.write_file(record.digest, &prefix, Content { header: &header, stream: records, size })?;
        Ok(true)
    }

    /// Whatever is wrong with a difference or with what it is against costs this object alone.
    fn take_difference<R: Read>(
        &self,
        object: ObjectName,
        how: (Sums, bool),
        records: &mut RecordReader<R>,
        batch: &Batch<'_>,
        room: &mut u64,
    ) -> Result<bool, RepoError> {
        match self.apply(object, how, records, batch, room) {
            Ok(()) => {
                self.differences.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error @ (RepoError::Io { .. } | RepoError::DiskFull { .. })) => Err(error),
            Err(error) => {
                let reason = in_one_line(&error);
                tracing::warn!(object = %object.digest, %reason, "a difference is of no use here: the object comes by itself");
                self.failed.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
        }
    }

    fn apply<R: Read>(
        &self,
        object: ObjectName,
        (sums, packed): (Sums, bool),
        records: &mut RecordReader<R>,
        batch: &Batch<'_>,
        room: &mut u64,
    ) -> Result<(), RepoError> {
        let receiving = |source| RepoError::Source { object, source };
        let mut older = [0; 32];
        records.read_exact(&mut older).map_err(receiving)?;
        let (header, prefix) = FileHeader::read(records).map_err(receiving)?;
        let size = take_u64(records).map_err(receiving)?;
        let all = size.saturating_add(prefix.len() as u64);
        *room = room.checked_sub(all).ok_or_else(|| receiving(too_much()))?;
        let older_object = ObjectName::new(ObjectKind::File, Digest::from_bytes(older));
        let older = self.repo.open_file(&older_object.digest).map_err(|error| match error {
            // A bad sector under the older file is no reason to give up: the new one can be fetched.
            RepoError::Io { source, .. } => RepoError::Source { object: older_object, source },
            other => other,
        })?;
        let _memory;
        let mut stream: Box<dyn Read> = if packed {
            let inside = take_inside(records, size).map_err(receiving)?;
            // How much is inside of the older content is not known before it is read.
            _memory = self.memory.lend(apply_bytes(u64::MAX, inside) + repack::MEMORY);
            let pieces = Pieces::new(repack::inside(older.content).map_err(receiving)?, u64::MAX);
            let inside = PatchReader::new(sums, records, pieces, inside);
            Box::new(repack::compressed(inside).map_err(receiving)?)
        } else {
            _memory = self.memory.lend(apply_bytes(older.size, size));
            let pieces = Pieces::new(older.content, older.size);
            Box::new(PatchReader::new(sums, records, pieces, size))
        };
        batch.write_file(object.digest, &prefix, Content { header: &header, stream: &mut stream, size })
    }
}

/// How much is inside of a content of `size` bytes: what a record of kind 7 says before its segments.
fn take_inside(record: &mut impl Read, size: u64) -> io::Result<u64> {
    let mut compressor = [0; 4];
    record.read_exact(&mut compressor)?;
    let inside = take_u64(record)?;
    let (got, ours) = (u32::from_be_bytes(compressor), repack::compressor());
    let why = match inside {
        _ if got != ours => format!("compressed by {got}, here is {ours}"),
        _ if inside > size.saturating_mul(repack::FACTOR) => format!("{inside} bytes inside of {size}"),
        _ => return Ok(inside),
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

fn take_u64(record: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    record.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn too_much() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "more content than the index says")
}

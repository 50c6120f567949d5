//! Making a difference between a file object and an older one, if that is smaller than the object.
//!
//! 1. Both contents are read as streams, segment by segment, so that a file of any size takes the same memory;
//! 2. after each segment, difference and content are compressed by themselves, quickly: as soon as the difference is not
//!    clearly smaller, it is given up;
//! 3. what we compressed ourselves is taken apart, and the difference is one of what is inside;
//! 4. at the end both checksums must be right: a difference against damaged bytes would be of no use to anybody.

use std::io::{self, Read};

use crate::formats::image::stream::Hashing;
use crate::formats::pack::RecordKind;
use crate::formats::pack::patch::{self, Pieces, SEGMENT_LIMIT, Sums, append_segment};
use crate::formats::pack::repack;
use crate::model::{Digest, ObjectKind, ObjectName};
use crate::ostree::repo::{FileObject, Repo, RepoError};
use crate::rim::budget::Budget;

/// Smaller contents are sent whole: a record of a difference takes some 70 bytes itself.
const SMALLEST: u64 = 256;
/// A difference that grows larger than this is given up: it is held in memory.
const LARGEST: usize = 16 << 20;
/// zstd level at which difference and content are compared.
const COMPARE_LEVEL: i32 = 1;
/// Contents whose sizes differ by more than this factor have little in common.
const SIZE_FACTOR: u64 = 8;

/// Compressed contents smaller than this are not taken apart: that costs time on each host.
const SMALLEST_PACKED: u64 = 64 << 10;

/// A file object as a difference: the payload of a record of kind 6 or 7.
pub struct Difference {
    /// The record's kind.
    pub kind: RecordKind,
    /// The payload.
    pub payload: Vec<u8>,
    /// Bytes of the object in canonical form.
    pub unpacked: u64,
}

/// The difference between two file objects; nothing if the whole object is the better choice.
pub fn make(
    repo: &Repo,
    new: &Digest,
    older: &Digest,
    budget: &Budget,
) -> Result<Option<Difference>, RepoError> {
    if new == older {
        return Ok(None);
    }
    let file = repo.open_file(new)?;
    let before = repo.open_file(older)?;
    let (size, was) = (file.size, before.size);
    let fit = size.max(was) / SIZE_FACTOR <= size.min(was) && size.min(was) >= SMALLEST;
    if file.header.is_link() || before.header.is_link() || !fit {
        return Ok(None);
    }
    if let Some(made) = make_inside(repo, new, older, budget)? {
        return Ok(Some(made));
    }
    let _memory = budget.lend(patch::make_bytes(was, size) + LARGEST.min(size as usize) as u64);
    let (mut payload, unpacked) = begin(older, &file);
    let mut content = Checked::new(file);
    let mut pieces = Pieces::new(Checked::new(before), was);
    let Some(costs) = append(&mut payload, &mut content, size, &mut pieces, was, (repo, new))? else {
        return Ok(None);
    };
    content.require(new)?;
    if !is_sound(pieces.into_inner(), older) {
        return Ok(None);
    }
    let worth = costs.difference + older.as_bytes().len() < costs.whole;
    Ok(worth.then_some(Difference { kind: RecordKind::FilePatch(Sums::Runs), payload, unpacked }))
}

/// The difference of what is inside two contents that we compressed; nothing if they are others, or it is not smaller.
fn make_inside(
    repo: &Repo,
    new: &Digest,
    older: &Digest,
    budget: &Budget,
) -> Result<Option<Difference>, RepoError> {
    let mut packed = Vec::new();
    for digest in [new, older] {
        let mut file = repo.open_file(digest)?;
        let mut begin = [0; 4];
        let read = file.content.read_exact(&mut begin);
        if file.size < SMALLEST_PACKED || read.is_err() || !repack::looks_like_ours(begin) {
            return Ok(None);
        }
        packed.push(file.size);
    }
    let taking_apart = budget.lend(repack::MEMORY);
    let Some(size) = repack::is_ours(repo.open_file(new)?.content, repo.open_file(new)?.content) else {
        return Ok(None);
    };
    // An older content that cannot be read is no reason not to make the pack.
    let inside_older = || repack::inside(Checked::new(repo.open_file(older).ok()?)).ok();
    let count = |mut inside| io::copy(&mut inside, &mut io::sink()).ok();
    let Some(was) = inside_older().and_then(count) else { return Ok(None) };
    if size > packed[0].saturating_mul(repack::FACTOR) {
        return Ok(None);
    }
    drop(taking_apart);
    let _memory = budget.lend(repack::MEMORY + patch::make_bytes(was, size) + LARGEST as u64);
    let Some(before) = inside_older() else { return Ok(None) };
    let file = repo.open_file(new)?;
    let (mut payload, unpacked) = begin(older, &file);
    payload.extend(repack::compressor().to_be_bytes());
    payload.extend(size.to_be_bytes());
    let path = repo.object_path(&ObjectName::new(ObjectKind::File, *new));
    let content = repack::inside(Checked::new(file));
    let mut content = content.map_err(|source| RepoError::io("reading", &path, source))?;
    let mut pieces = Pieces::new(before, was);
    let Some(costs) = append(&mut payload, &mut content, size, &mut pieces, was, (repo, new))? else {
        return Ok(None);
    };
    content.into_inner().require(new)?;
    let worth = is_sound(pieces.into_inner().into_inner(), older) && (costs.difference as u64) < packed[0];
    Ok(worth.then_some(Difference { kind: RecordKind::PackedPatch, payload, unpacked }))
}

/// What both kinds of payload begin with, and the size of the object in canonical form.
fn begin(older: &Digest, file: &FileObject) -> (Vec<u8>, u64) {
    let prefix = file.header.stream_prefix();
    let payload = [older.as_bytes().as_slice(), &prefix, &file.size.to_be_bytes()].concat();
    (payload, prefix.len() as u64 + file.size)
}

/// Compressed bytes of a difference, and of all that it gives.
#[derive(Default)]
struct Costs {
    difference: usize,
    whole: usize,
}

/// Appends the segments that give `content` out of the older content; nothing if that is not smaller, or cannot be had.
fn append(
    payload: &mut Vec<u8>,
    content: &mut impl Read,
    size: u64,
    pieces: &mut Pieces<impl Read>,
    was: u64,
    (repo, new): (&Repo, &Digest),
) -> Result<Option<Costs>, RepoError> {
    let object = ObjectName::new(ObjectKind::File, *new);
    let mut costs = Costs::default();
    let mut at = 0;
    while at < size {
        let count = (size - at).min(SEGMENT_LIMIT.into());
        let mut segment = Vec::with_capacity(count as usize);
        let read = content.take(count).read_to_end(&mut segment);
        read.map_err(|source| RepoError::io("reading", &repo.object_path(&object), source))?;
        if segment.len() as u64 != count {
            return Err(RepoError::Damaged { object, got: "less content than its header says".into() });
        }
        let (from, taken) = patch::piece_for(at, count, size, was);
        // An older object that cannot be read is no reason not to make the pack.
        let Ok(piece) = pieces.take(from, taken) else { return Ok(None) };
        let begin = payload.len();
        append_segment(payload, from, piece, &segment);
        costs.difference += compressed(&payload[begin..]);
        costs.whole += compressed(&segment);
        if costs.difference >= costs.whole || payload.len() > LARGEST {
            return Ok(None);
        }
        at += count;
    }
    Ok(Some(costs))
}

/// Whether the older content is what its name says: a difference against other bytes would be of no use.
fn is_sound(content: Checked, older: &Digest) -> bool {
    let sound = content.require(older);
    if let Err(error) = &sound {
        tracing::warn!(%error, "no difference is made against it");
    }
    sound.is_ok()
}

fn compressed(bytes: &[u8]) -> usize {
    // Only an estimate is asked for: if it fails, the bytes count as they are.
    zstd::bulk::compress(bytes, COMPARE_LEVEL).map_or(bytes.len(), |compressed| compressed.len())
}

/// A file object's content, hashed on the way.
struct Checked(Hashing<Box<dyn Read + Send>>);

impl Checked {
    fn new(file: FileObject) -> Self {
        Self(Hashing::after(&file.header.stream_prefix(), file.content))
    }

    /// Reads what is left and compares the checksum.
    fn require(mut self, digest: &Digest) -> Result<(), RepoError> {
        let object = ObjectName::new(ObjectKind::File, *digest);
        io::copy(&mut self, &mut io::sink()).map_err(|source| RepoError::Source { object, source })?;
        let (got, _) = self.0.finish();
        if got == *digest { Ok(()) } else { Err(RepoError::Damaged { object, got: got.hex() }) }
    }
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

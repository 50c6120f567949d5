//! Making a difference between a file object and an older one, if that is smaller than the object.
//!
//! 1. Both contents are read as streams, segment by segment, so that a file of any size takes the same memory;
//! 2. after each segment, difference and content are compressed by themselves, quickly: as soon as the difference is not
//!    clearly smaller, it is given up;
//! 3. at the end both checksums must be right: a difference against damaged bytes would be of no use to anybody.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::engine::repo::{FileObject, Repo, RepoError};
use crate::exec::budget::Budget;
use crate::model::{Digest, ObjectKind, ObjectName};
use crate::pack::patch::{self, Pieces, SEGMENT_LIMIT, append_segment};

/// Smaller contents are sent whole: a record of a difference takes some 70 bytes itself.
const SMALLEST: u64 = 256;
/// A difference that grows larger than this is given up: it is held in memory.
const LARGEST: usize = 16 << 20;
/// zstd level at which difference and content are compared.
const COMPARE_LEVEL: i32 = 1;
/// Contents whose sizes differ by more than this factor have little in common.
const SIZE_FACTOR: u64 = 8;

/// A file object as a difference: the payload of a record of kind 6.
pub struct Difference {
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
    let _memory = budget.lend(patch::make_bytes(was, size) + LARGEST.min(size as usize) as u64);
    let reading = |digest: &Digest| {
        let path = repo.object_path(&ObjectName::new(ObjectKind::File, *digest));
        move |source| RepoError::io("reading", &path, source)
    };
    let prefix = file.header.stream_prefix();
    let mut payload = older.as_bytes().to_vec();
    payload.extend(&prefix);
    payload.extend(size.to_be_bytes());
    let mut content = Checked::new(file);
    let mut pieces = Pieces::new(Checked::new(before), was);
    let (mut at, mut whole_cost, mut cost) = (0, 0, 0);
    while at < size {
        let count = (size - at).min(SEGMENT_LIMIT.into());
        let mut segment = Vec::with_capacity(count as usize);
        (&mut content).take(count).read_to_end(&mut segment).map_err(reading(new))?;
        if segment.len() as u64 != count {
            let object = ObjectName::new(ObjectKind::File, *new);
            return Err(RepoError::Damaged { object, got: "less content than its header says".into() });
        }
        let (from, taken) = patch::piece_for(at, count, size, was);
        // An older object that cannot be read is no reason not to make the pack.
        let Ok(piece) = pieces.take(from, taken) else { return Ok(None) };
        let begin = payload.len();
        append_segment(&mut payload, from, piece, &segment);
        cost += compressed(&payload[begin..]);
        whole_cost += compressed(&segment);
        if cost >= whole_cost || payload.len() > LARGEST {
            return Ok(None);
        }
        at += count;
    }
    content.require(new)?;
    let sound = pieces.into_inner().require(older);
    if let Err(error) = sound {
        tracing::warn!(%error, "no difference is made against it");
        return Ok(None);
    }
    let worth = cost + older.as_bytes().len() < whole_cost;
    Ok(worth.then_some(Difference { payload, unpacked: prefix.len() as u64 + size }))
}

fn compressed(bytes: &[u8]) -> usize {
    // Only an estimate is asked for: if it fails, the bytes count as they are.
    zstd::bulk::compress(bytes, COMPARE_LEVEL).map_or(bytes.len(), |compressed| compressed.len())
}

/// A file object's content, hashed on the way.
struct Checked {
    inner: Box<dyn Read + Send>,
    hasher: Sha256,
}

impl Checked {
    fn new(file: FileObject) -> Self {
        Self { hasher: Sha256::new_with_prefix(file.header.stream_prefix()), inner: file.content }
    }

    /// Reads what is left and compares the checksum.
    fn require(mut self, digest: &Digest) -> Result<(), RepoError> {
        let object = ObjectName::new(ObjectKind::File, *digest);
        io::copy(&mut self, &mut io::sink()).map_err(|source| RepoError::Source { object, source })?;
        let got = Digest::from_bytes(self.hasher.finalize().into());
        if got == *digest { Ok(()) } else { Err(RepoError::Damaged { object, got: got.hex() }) }
    }
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

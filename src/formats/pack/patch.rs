//! A file's content against an older one: what a record of kind 5 or 6 holds after its header.
//!
//! ```text
//! content := segment*                                 until the content's size is reached
//! segment := size:u32be from:u64be taken:u32be commands:u32be runs:u32be values:u32be literals:u32be
//!            commands:[commands] runs:[runs] values:[values] literals:[literals]
//! ```
//!
//! 1. A segment gives `size` bytes out of the piece of the older content that begins at `from` and has `taken` bytes.
//!    Pieces never go back, so both contents can be streams, and no more than one piece and one segment is in memory;
//! 2. a command copies bytes of the piece, then takes literals; copied bytes get a difference added to each;
//! 3. differences are mostly zero: `runs` counts them, `values` has the others. A run of changed bytes is one little-endian
//!    number ([`Sums::Runs`]): addresses that all moved by so much then differ by the same bytes, carry or not, which
//!    makes `values` a tenth smaller. Byte by byte is how format 2 had it.
//!
//! Nothing is compressed here: the shard is. zstd with the older content as its prefix was rejected: a library that was
//! built again took twice the bytes, since nearly every instruction with an address in it breaks a match.

use std::io::{self, Read};

use super::matching::{stretches, table_bytes};

/// Bytes of content that one segment gives at most.
pub const SEGMENT_LIMIT: u32 = 8 << 20;
/// Bytes of the older content that one segment may refer to.
pub const PIECE_LIMIT: u32 = 24 << 20;
/// How far around the corresponding place a piece reaches, where the older content is larger than a piece.
const MARGIN: u64 = 8 << 20;
const HEADER: usize = 4 + 8 + 5 * 4;

/// How differences are added to copied bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// Each byte modulo 256: records of kind 5.
    Bytes,
    /// Each run of changed bytes as a little-endian number: records of kind 6, what is written today.
    Runs,
}

/// Memory that applying a difference between contents of these sizes may take.
pub fn apply_bytes(older: u64, size: u64) -> u64 {
    // Segment, literals, values; runs and commands are a fraction of it in what we write.
    older.min(PIECE_LIMIT.into()) + 4 * size.min(SEGMENT_LIMIT.into())
}

/// Memory that making a difference between contents of these sizes may take.
pub fn make_bytes(older: u64, size: u64) -> u64 {
    let piece = usize::try_from(older.min(PIECE_LIMIT.into())).unwrap_or(usize::MAX);
    apply_bytes(older, size) + table_bytes(piece)
}

/// The piece of the older content that the segment at `at` is made from: where it begins, and its size.
pub fn piece_for(at: u64, segment: u64, size: u64, older: u64) -> (u64, u32) {
    let limit = u64::from(PIECE_LIMIT);
    if older <= limit {
        return (0, older as u32);
    }
    // Where the segment would be if the content had grown or shrunk evenly.
    let scaled = |place: u64| (u128::from(place) * u128::from(older) / u128::from(size.max(1))) as u64;
    let begin = scaled(at).saturating_sub(MARGIN).min(older - limit);
    let end = (scaled(at + segment) + MARGIN).clamp(begin, older).min(begin + limit);
    (begin, (end - begin) as u32)
}

/// Appends the segment that gives `content` out of the piece of the older content at `from`.
pub fn append_segment(out: &mut Vec<u8>, from: u64, piece: &[u8], content: &[u8]) {
    let (mut commands, mut runs, mut values, mut literals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut at, mut expected, mut zeros, mut others) = (0usize, 0usize, 0u64, 0u64);
    let mut borrowed = false;
    for stretch in stretches(piece, content) {
        put_number(&mut commands, stretch.copied as u64);
        put_number(&mut commands, stretch.literals as u64);
        put_number(&mut commands, zigzag(stretch.older as i64 - expected as i64));
        expected = stretch.older + stretch.copied;
        let (copied, rest) = content[at..].split_at(stretch.copied);
        for (new, older) in copied.iter().zip(&piece[stretch.older.min(piece.len())..]) {
            if new != older {
                let (value, first) = new.overflowing_sub(*older);
                let (value, second) = value.overflowing_sub(borrowed.into());
                borrowed = first || second;
                others += 1;
                values.push(value);
                continue;
            }
            borrowed = false;
            if others > 0 {
                put_number(&mut runs, zeros);
                put_number(&mut runs, others);
                (zeros, others) = (0, 0);
            }
            zeros += 1;
        }
        literals.extend_from_slice(&rest[..stretch.literals]);
        at += stretch.copied + stretch.literals;
    }
    if others > 0 {
        put_number(&mut runs, zeros);
        put_number(&mut runs, others);
    }
    out.extend((content.len() as u32).to_be_bytes());
    out.extend(from.to_be_bytes());
    for length in [piece.len(), commands.len(), runs.len(), values.len(), literals.len()] {
        out.extend((length as u32).to_be_bytes());
    }
    for part in [commands, runs, values, literals] {
        out.extend(part);
    }
}

/// An older content, of which one piece at a time is in memory.
pub struct Pieces<R> {
    inner: R,
    size: u64,
    begin: u64,
    bytes: Vec<u8>,
}

impl<R: Read> Pieces<R> {
    /// Of a content of `size` bytes; begins with nothing in memory.
    pub fn new(inner: R, size: u64) -> Self {
        Self { inner, size, begin: 0, bytes: Vec::new() }
    }

    /// The piece at `from`; it may not begin or end before the last one did.
    pub fn take(&mut self, from: u64, taken: u32) -> io::Result<&[u8]> {
        let end = from.checked_add(taken.into()).ok_or_else(|| invalid("a piece beyond all files"))?;
        let had = self.begin + self.bytes.len() as u64;
        if taken > PIECE_LIMIT || from < self.begin || end < had || end > self.size {
            return Err(invalid(&format!("a piece of {taken} bytes at {from}")));
        }
        let dropped = (from - self.begin).min(self.bytes.len() as u64);
        self.bytes.drain(..dropped as usize);
        let skipped = from.saturating_sub(had);
        if io::copy(&mut (&mut self.inner).take(skipped), &mut io::sink())? != skipped {
            return Err(invalid("the older content ends early"));
        }
        self.begin = from;
        let missing = end - from - self.bytes.len() as u64;
        self.bytes.reserve_exact(missing as usize);
        if (&mut self.inner).take(missing).read_to_end(&mut self.bytes)? as u64 != missing {
            return Err(invalid("the older content ends early"));
        }
        Ok(&self.bytes)
    }

    /// The reader below, wherever it stands.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

/// The new content, as a stream.
pub struct PatchReader<P, O> {
    sums: Sums,
    patch: P,
    older: Pieces<O>,
    /// Bytes of content in segments to come.
    rest: u64,
    segment: Vec<u8>,
    given: usize,
}

impl<P: Read, O: Read> PatchReader<P, O> {
    /// `patch` are the segments of a content of `size` bytes.
    pub fn new(sums: Sums, patch: P, older: Pieces<O>, size: u64) -> Self {
        Self { sums, patch, older, rest: size, segment: Vec::new(), given: 0 }
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER];
        self.patch.read_exact(&mut header)?;
        let (numbers, from) = parse_header(&header);
        let [size, taken, commands, runs, values, literals] = numbers;
        let most = u64::from(size) * 2 + 64;
        if size == 0
            || size > SEGMENT_LIMIT
            || u64::from(size) > self.rest
            || u64::from(commands) > most
            || u64::from(runs) > most
            || values > size
            || literals > size
        {
            return Err(invalid(&format!("a segment of {size} bytes with parts of {numbers:?}")));
        }
        let piece = self.older.take(from, taken)?;
        let mut part = |length: u32| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            (&mut self.patch).take(length.into()).read_to_end(&mut bytes)?;
            if bytes.len() as u64 == u64::from(length) {
                Ok(bytes)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        };
        let parts = [part(commands)?, part(runs)?, part(values)?, part(literals)?];
        self.segment.clear();
        self.given = 0;
        apply(self.sums, piece, &parts, size as usize, &mut self.segment)?;
        self.rest -= u64::from(size);
        Ok(())
    }
}

impl<P: Read, O: Read> Read for PatchReader<P, O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.segment.len() && self.rest > 0 {
            self.next_segment()?;
        }
        let count = buffer.len().min(self.segment.len() - self.given);
        buffer[..count].copy_from_slice(&self.segment[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

fn parse_header(header: &[u8; HEADER]) -> ([u32; 6], u64) {
    let mut numbers = [0u32; 6];
    let mut from = 0u64;
    let (size, rest) = header.split_at(4);
    let (place, rest) = rest.split_at(8);
    for (number, bytes) in numbers.iter_mut().zip([size].into_iter().chain(rest.chunks_exact(4))) {
        *number = bytes.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte));
    }
    for byte in place {
        from = (from << 8) | u64::from(*byte);
    }
    (numbers, from)
}

fn apply(sums: Sums, piece: &[u8], parts: &[Vec<u8>; 4], size: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let [commands, runs, values, literals] = parts;
    let (mut commands, mut literals) = (commands.as_slice(), literals.as_slice());
    let mut differences = Differences { sums, runs, values, zeros: 0, others: 0, carried: false };
    let mut expected = 0i64;
    out.reserve_exact(size);
    while !commands.is_empty() {
        let copied = take_length(&mut commands)?;
        let fresh = take_length(&mut commands)?;
        let start = expected.wrapping_add(unzigzag(take_number(&mut commands)?));
        let begin = usize::try_from(start).map_err(|_| invalid("a copy before the piece"))?;
        let end = begin.checked_add(copied).ok_or_else(|| invalid("a copy beyond the piece"))?;
        if copied > 0 {
            let like = piece.get(begin..end).ok_or_else(|| invalid("a copy beyond the piece"))?;
            require(copied <= size - out.len(), "more content than announced")?;
            let first = out.len();
            out.extend_from_slice(like);
            differences.add(&mut out[first..])?;
        }
        let (taken, rest) =
            literals.split_at_checked(fresh).ok_or_else(|| invalid("literals that are not there"))?;
        require(fresh <= size - out.len(), "more content than announced")?;
        out.extend_from_slice(taken);
        literals = rest;
        expected = i64::try_from(end).map_err(|_| invalid("a copy beyond the piece"))?;
    }
    require(out.len() == size, "less content than announced")?;
    require(literals.is_empty() && differences.is_over(), "a segment with more than it needs")
}

/// Differences that are yet to be added.
struct Differences<'d> {
    sums: Sums,
    runs: &'d [u8],
    values: &'d [u8],
    zeros: usize,
    others: usize,
    /// Into the next byte of the run.
    carried: bool,
}

impl Differences<'_> {
    fn add(&mut self, mut copied: &mut [u8]) -> io::Result<()> {
        while !copied.is_empty() {
            if self.zeros == 0 && self.others == 0 {
                if self.runs.is_empty() {
                    return Ok(());
                }
                self.zeros = take_length(&mut self.runs)?;
                self.others = take_length(&mut self.runs)?;
                self.carried = false;
            }
            let same = self.zeros.min(copied.len());
            self.zeros -= same;
            copied = &mut copied[same..];
            if self.zeros > 0 {
                continue;
            }
            let changed = self.others.min(copied.len());
            let (values, rest) =
                self.values.split_at_checked(changed).ok_or_else(|| invalid("values that are not there"))?;
            let (now, after) = copied.split_at_mut(changed);
            for (byte, value) in now.iter_mut().zip(values) {
                let (sum, first) = byte.overflowing_add(*value);
                let (sum, second) = sum.overflowing_add(self.carried.into());
                self.carried = (first || second) && self.sums == Sums::Runs;
                *byte = sum;
            }
            (copied, self.values) = (after, rest);
            self.others -= changed;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.runs.is_empty() && self.values.is_empty() && self.zeros == 0 && self.others == 0
    }
}

/// Appends an unsigned LEB128 number.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> io::Result<u64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or_else(|| invalid("a number that is cut"))?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(invalid("a number of more than 63 bits"))
}

fn take_length(bytes: &mut &[u8]) -> io::Result<usize> {
    usize::try_from(take_number(bytes)?).map_err(|_| invalid("a length beyond memory"))
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn require(holds: bool, otherwise: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(invalid(otherwise)) }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(patch: &[u8], older: &[u8], size: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let pieces = Pieces::new(older, older.len() as u64);
        PatchReader::new(Sums::Runs, patch, pieces, size).take(size + 1).read_to_end(&mut out)?;
        Ok(out)
    }

    /// As the writer does it, but in segments of so many bytes.
    fn patch_by(segment: usize, older: &[u8], new: &[u8]) -> Vec<u8> {
        let mut patch = Vec::new();
        for (index, content) in new.chunks(segment).enumerate() {
            let at = (index * segment) as u64;
            let (from, taken) = piece_for(at, content.len() as u64, new.len() as u64, older.len() as u64);
            append_segment(&mut patch, from, &older[from as usize..][..taken as usize], content);
        }
        patch
    }

    /// By hand: what is written today must be readable for ever, and so must what format 2 had.
    #[test]
    fn both_kinds_of_sums() {
        let older = [[0xff, 0x00].as_slice(), &[7; 14]].concat();
        let numbers = [&[0, 0, 0, 16], [0; 8].as_slice(), &[0, 0, 0, 16, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 2]];
        let head = [&numbers.concat(), [0; 4].as_slice()].concat();
        // Copy 16 bytes, no literals, from the beginning; none stay, two change; by 1 and 0.
        let patch = [&head, [16, 0, 0].as_slice(), &[0, 2], &[1, 0]].concat();
        for (sums, begin) in [(Sums::Bytes, [0, 0]), (Sums::Runs, [0, 1])] {
            let mut out = Vec::new();
            let pieces = Pieces::new(older.as_slice(), 16);
            PatchReader::new(sums, patch.as_slice(), pieces, 16).read_to_end(&mut out).unwrap();
            assert_eq!(out, [begin.as_slice(), &[7; 14]].concat(), "{sums:?}");
        }
        assert_eq!(patch_by(16, &older, &[[0, 1].as_slice(), &[7; 14]].concat()), patch);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let older = vec![7u8; 100];
        let good = patch_by(1000, &older, &older);
        assert_eq!(read_all(&good, &older, 100).unwrap(), older);
        let with = |at: usize, bytes: &[u8]| {
            let mut patch = good.clone();
            patch[at..at + bytes.len()].copy_from_slice(bytes);
            patch
        };
        let cases = [
            ("no content", with(0, &[0; 4])),
            ("content beyond what is announced", with(0, &[0, 0, 0, 101])),
            ("content beyond the limit", with(0, &[0xff; 4])),
            ("piece outside", with(4, &[0, 0, 0, 0, 0, 0, 0, 1])),
            ("piece far outside", with(4, &[0xff; 8])),
            ("piece beyond the limit", with(12, &[0xff; 4])),
            ("commands beyond the limit", with(16, &[0xff; 4])),
            ("runs beyond the limit", with(20, &[0xff; 4])),
            ("values beyond the limit", with(24, &[0xff; 4])),
            ("literals beyond the limit", with(28, &[0xff; 4])),
            ("cut", good[..good.len() - 1].to_vec()),
            ("copy beyond the piece", with(HEADER, &[0x7f])),
            ("literals that are not there", with(HEADER + 1, &[1])),
            ("copy before the piece", with(HEADER + 2, &[1])),
        ];
        for (what, patch) in cases {
            assert!(read_all(&patch, &older, 100).is_err(), "{what}");
        }
        assert!(read_all(&good, &older[..99], 100).is_err(), "older content that is shorter");
        assert!(read_all(&good, &[], 100).is_err(), "no older content");
    }

    #[test]
    fn pieces_only_go_forwards() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut pieces = Pieces::new(bytes.as_slice(), 100);
        assert_eq!(pieces.take(0, 10).unwrap(), &bytes[..10]);
        assert_eq!(pieces.take(5, 20).unwrap(), &bytes[5..25]);
        assert_eq!(pieces.take(50, 10).unwrap(), &bytes[50..60]);
        assert!(pieces.take(49, 20).is_err());
        assert!(pieces.take(50, 9).is_err());
        assert!(pieces.take(90, 11).is_err());
        assert_eq!(pieces.take(100, 0).unwrap(), b"");
    }

    #[test]
    fn pieces_of_a_large_content_go_forwards_and_reach_its_end() {
        let limit = u64::from(PIECE_LIMIT);
        for (size, older) in
            [(200 << 20, 190 << 20), (30 << 20, 200 << 20), (200 << 20, limit + 1), (1, limit)]
        {
            let (mut begin, mut end, mut at) = (0, 0, 0);
            while at < size {
                let segment = (size - at).min(SEGMENT_LIMIT.into());
                let (from, taken) = piece_for(at, segment, size, older);
                assert!(from >= begin && from + u64::from(taken) >= end && u64::from(taken) <= limit);
                (begin, end) = (from, from + u64::from(taken));
                at += segment;
            }
            assert!(end <= older);
        }
    }

    /// An older content and one that was made from it: bytes changed, cut out, put in, moved.
    fn pair() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let edit = (0..4u8, any::<usize>(), 0..200usize, any::<u8>());
        let edits = proptest::collection::vec(edit, 0..12);
        (proptest::collection::vec(any::<u8>(), 0..3000), edits).prop_map(|(older, edits)| {
            let mut new = older.clone();
            for (kind, place, length, byte) in edits {
                let place = place % (new.len() + 1);
                let end = (place + length).min(new.len());
                match kind {
                    0 => new[place..end].iter_mut().step_by(7).for_each(|b| *b = b.wrapping_add(byte)),
                    1 => drop(new.drain(place..end)),
                    2 => drop(new.splice(place..place, std::iter::repeat_n(byte, length))),
                    _ => new.rotate_left(place),
                }
            }
            (older, new)
        })
    }

    proptest! {
        #[test]
        fn contents_survive((older, new) in pair(), segment in 1..4000usize) {
            let patch = patch_by(segment, &older, &new);
            prop_assert_eq!(read_all(&patch, &older, new.len() as u64).unwrap(), new.clone());
            prop_assert_eq!(patch_by(segment, &older, &new), patch, "the same again");
        }

        #[test]
        fn mutated_patches_are_an_error_or_as_long_as_announced(
            (older, new) in pair(),
            flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
        ) {
            let mut patch = patch_by(1000, &older, &new);
            for (place, byte) in flips {
                let length = patch.len();
                if length > 0 {
                    patch[place % length] = byte;
                }
            }
            if let Ok(out) = read_all(&patch, &older, new.len() as u64) {
                prop_assert_eq!(out.len(), new.len());
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_as_long_as_announced(
            patch in proptest::collection::vec(any::<u8>(), 0..300),
            size in 0..1000u64,
        ) {
            if let Ok(out) = read_all(&patch, &[1; 64], size) {
                prop_assert_eq!(out.len() as u64, size);
            }
        }
    }
}

//! Records of a shard, after decompression.
//!
//! ```text
//! shard  := magic record* end
//! magic  := "rackstep shard 1\n"       whole objects
//!         | "rackstep shard 2\n"       and records of kind 5; no longer written
//!         | "rackstep shard 3\n"       and records of the kinds 6 and 7
//! record := kind:u8 digest:[32] length:u64be payload:[length]
//! end    := 0:u8
//! ```

use std::io::{self, Read, Write};

use super::patch::Sums;
use crate::model::{Digest, ObjectKind};

/// What a shard begins with, once decompressed.
pub const MAGIC: &[u8; 17] = b"rackstep shard 1\n";
/// What a shard begins with that may have differences of the older kind in it.
pub const MAGIC_2: &[u8; 17] = b"rackstep shard 2\n";
/// What a shard begins with that may have differences in it.
pub const MAGIC_3: &[u8; 17] = b"rackstep shard 3\n";
/// A metadata object larger than this is refused: libostree's own limit is 10 MiB.
pub const METADATA_LIMIT: u64 = 10 << 20;

const END: u8 = 0;
const HEADER: usize = 1 + 32 + 8;

/// What a record's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// An object in its canonical form.
    Object(ObjectKind),
    /// A file object against an older one: the older one's digest, the canonical header, the content's size as
    /// u64be, then the segments of [`super::patch`].
    FilePatch(Sums),
    /// A compressed file against an older one: the older one's digest, the canonical header, the content's size as
    /// u64be, [`super::repack::compressor`] as u32be, the size of what is inside as u64be, then segments that give what
    /// is inside.
    PackedPatch,
}

impl RecordKind {
    const fn code(self) -> u8 {
        match self {
            Self::Object(ObjectKind::DirTree) => 1,
            Self::Object(ObjectKind::DirMeta) => 2,
            Self::Object(ObjectKind::Commit) => 3,
            Self::Object(ObjectKind::File) => 4,
            Self::FilePatch(Sums::Bytes) => 5,
            Self::FilePatch(Sums::Runs) => 6,
            Self::PackedPatch => 7,
        }
    }

    /// How sums of a difference are made; nothing where the payload is the object itself.
    pub const fn sums(self) -> Option<Sums> {
        match self {
            Self::Object(_) => None,
            Self::FilePatch(sums) => Some(sums),
            Self::PackedPatch => Some(Sums::Runs),
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Object(ObjectKind::DirTree),
            2 => Self::Object(ObjectKind::DirMeta),
            3 => Self::Object(ObjectKind::Commit),
            4 => Self::Object(ObjectKind::File),
            5 => Self::FilePatch(Sums::Bytes),
            6 => Self::FilePatch(Sums::Runs),
            7 => Self::PackedPatch,
            _ => return None,
        })
    }
}

/// The beginning of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the payload is.
    pub kind: RecordKind,
    /// The digest of the object that the payload yields.
    pub digest: Digest,
    /// Bytes of payload.
    pub length: u64,
}

/// Writes the records of one shard.
pub struct RecordWriter<W> {
    inner: W,
    records: u64,
}

impl<W: Write> RecordWriter<W> {
    /// Begins a shard, with or without differences.
    pub fn new(mut inner: W, differences: bool) -> io::Result<Self> {
        inner.write_all(if differences { MAGIC_3 } else { MAGIC })?;
        Ok(Self { inner, records: 0 })
    }

    /// Begins a record; exactly `record.length` bytes of payload must be written to what is given.
    pub fn begin(&mut self, record: Record) -> io::Result<&mut W> {
        let mut header = [0; HEADER];
        header[0] = record.kind.code();
        header[1..33].copy_from_slice(record.digest.as_bytes());
        header[33..].copy_from_slice(&record.length.to_be_bytes());
        self.inner.write_all(&header)?;
        self.records += 1;
        Ok(&mut self.inner)
    }

    /// Ends the shard; gives the writer below and the number of records.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.inner.write_all(&[END])?;
        Ok((self.inner, self.records))
    }
}

/// Reads the records of one shard.
pub struct RecordReader<R> {
    inner: R,
    /// The differences that the shard may have.
    differences: Option<Sums>,
    /// Payload of the current record that was not read yet.
    rest: u64,
}

impl<R: Read> RecordReader<R> {
    /// Begins to read a shard.
    pub fn new(mut inner: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        inner.read_exact(&mut magic)?;
        let differences = match &magic {
            MAGIC => None,
            MAGIC_2 => Some(Sums::Bytes),
            MAGIC_3 => Some(Sums::Runs),
            _ => return Err(invalid("not a shard of format 1, 2 or 3")),
        };
        Ok(Self { inner, differences, rest: 0 })
    }

    /// The next record; what was left of the one before is skipped. Nothing at the end of the shard.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        if self.rest > 0 {
            let expected = self.rest;
            let skipped = io::copy(&mut (&mut self.inner).take(expected), &mut io::sink())?;
            if skipped != expected {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rest = 0;
        }
        let mut header = [0; HEADER];
        self.inner.read_exact(&mut header[..1])?;
        if header[0] == END {
            return Ok(None);
        }
        let kind = RecordKind::from_code(header[0])
            .filter(|kind| kind.sums().is_none_or(|sums| self.differences == Some(sums)))
            .ok_or_else(|| invalid(&format!("record of kind {}", header[0])))?;
        self.inner.read_exact(&mut header[1..])?;
        let (digest, length) = header[1..].split_at(32);
        let as_digest = <[u8; 32]>::try_from(digest).map_err(|_| invalid("digest"))?;
        let length = u64::from_be_bytes(length.try_into().map_err(|_| invalid("length"))?);
        let is_file = kind.sums().is_some() || kind == RecordKind::Object(ObjectKind::File);
        if !is_file && length > METADATA_LIMIT {
            return Err(invalid(&format!("metadata object of {length} bytes")));
        }
        self.rest = length;
        Ok(Some(Record { kind, digest: Digest::from_bytes(as_digest), length }))
    }

    /// The reader below, after the end record.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

/// The payload of the current record; ends where the record ends.
impl<R: Read> Read for RecordReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.rest).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest -= count as u64;
        Ok(count)
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shard(records: &[(ObjectKind, &[u8])]) -> Vec<u8> {
        let mut writer = RecordWriter::new(Vec::new(), false).unwrap();
        for (kind, payload) in records {
            let length = payload.len() as u64;
            let record = Record { kind: RecordKind::Object(*kind), digest: Digest::of(payload), length };
            writer.begin(record).unwrap().write_all(payload).unwrap();
        }
        writer.finish().unwrap().0
    }

    #[test]
    fn records_survive_and_unread_payloads_are_skipped() {
        let bytes =
            shard(&[(ObjectKind::DirTree, b"tree"), (ObjectKind::File, b"skipped"), (ObjectKind::File, b"")]);
        let mut reader = RecordReader::new(bytes.as_slice()).unwrap();
        let first = reader.next_record().unwrap().unwrap();
        let mut payload = Vec::new();
        reader.read_to_end(&mut payload).unwrap();
        assert_eq!((first.digest, payload.as_slice()), (Digest::of(b"tree"), b"tree".as_slice()));
        assert_eq!(reader.next_record().unwrap().unwrap().length, 7);
        assert_eq!(reader.next_record().unwrap().unwrap().length, 0);
        assert_eq!(reader.next_record().unwrap(), None);
    }

    #[test]
    fn a_shard_that_is_cut_anywhere_is_an_error() {
        let bytes = shard(&[(ObjectKind::DirTree, b"tree"), (ObjectKind::File, b"file")]);
        for length in 0..bytes.len() {
            let read_all = || -> io::Result<()> {
                let mut reader = RecordReader::new(&bytes[..length])?;
                while reader.next_record()?.is_some() {}
                Ok(())
            };
            assert!(read_all().is_err(), "{length}");
        }
    }

    #[test]
    fn large_metadata_is_refused() {
        let mut bytes = shard(&[(ObjectKind::DirTree, b"tree")]);
        bytes[MAGIC.len() + 33] = 1;
        assert!(RecordReader::new(bytes.as_slice()).unwrap().next_record().is_err());
    }

    #[test]
    fn each_format_has_its_own_differences() {
        for (magic, kind, good) in [
            (MAGIC, 5, false),
            (MAGIC, 6, false),
            (MAGIC_2, 5, true),
            (MAGIC_2, 6, false),
            (MAGIC_2, 7, false),
            (MAGIC_3, 5, false),
            (MAGIC_3, 6, true),
            (MAGIC_3, 7, true),
            (MAGIC_3, 8, false),
        ] {
            let bytes = [magic.as_slice(), &[kind], &[0; 40]].concat();
            let mut reader = RecordReader::new(bytes.as_slice()).unwrap();
            assert_eq!(reader.next_record().is_ok(), good, "{kind}");
        }
        assert!(RecordReader::new(b"rackstep shard 4\n\0".as_slice()).is_err());
        let mut writer = RecordWriter::new(Vec::new(), true).unwrap();
        let kind = RecordKind::FilePatch(Sums::Runs);
        writer.begin(Record { kind, digest: Digest::of(b"x"), length: 0 }).unwrap();
        let bytes = writer.finish().unwrap().0;
        assert_eq!(RecordReader::new(bytes.as_slice()).unwrap().next_record().unwrap().unwrap().kind, kind);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_records(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [MAGIC.as_slice(), &tail].concat();
            let mut reader = RecordReader::new(bytes.as_slice()).unwrap();
            while let Ok(Some(_)) = reader.next_record() {}
        }
    }
}

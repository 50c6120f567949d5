//! The skeleton: everything of a layer's tar that is not file content, and where the content goes.
//!
//! A skeleton is a first line, [`MAGIC`], and records. Joining only follows records; it knows nothing of tar:
//!
//! 1. `Literal` and `Zeros` give bytes as they are;
//! 2. `Header` gives a 512-byte block as its difference to the previous block with the same byte 156 (the type): the
//!    headers of one layer are nearly alike, so one costs some 30 bytes;
//! 3. `File` and `Odd` stand for the content of a file of the layer's directory;
//! 4. `End` tells the tar's size, so that a cut skeleton is noticed.
//!
//! It is not compressed: ostree and packs compress what they send, and a pack can then take an unchanged record from
//! the skeleton of the previous release. It also keeps a commit's checksum free of a compressor's version.

use std::io::{self, BufRead, Write};

use super::header::{BLOCK, Block};

/// First line of a skeleton: the format's name and version.
pub const MAGIC: &[u8] = b"rackstep skeleton 1\n";

/// Longest `Literal`, so that a reader's memory is bounded.
pub const MAX_LITERAL: usize = 64 << 10;

/// Longest path in a `File`.
pub const MAX_PATH: usize = 3000;

mod op {
    pub const END: u8 = 0;
    pub const LITERAL: u8 = 1;
    pub const ZEROS: u8 = 2;
    pub const HEADER: u8 = 3;
    pub const FILE: u8 = 4;
    pub const ODD: u8 = 5;
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// These bytes.
    Literal(Vec<u8>),
    /// So many zeros.
    Zeros(u64),
    /// This block.
    Header(Box<Block>),
    /// The content of `root/<path>`.
    File {
        /// Below `root`, parts divided by '/'.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// The content of `odd/<number>`, a file whose name cannot stand below `root`.
    Odd {
        /// File name.
        number: u64,
        /// Bytes.
        size: u64,
    },
    /// Nothing follows.
    End {
        /// Bytes of the whole tar.
        size: u64,
    },
}

/// Why a skeleton cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    /// Reading failed, or the skeleton ends early.
    #[error("reading the skeleton")]
    Read(#[source] io::Error),
    /// Another format or version.
    #[error("not a skeleton of format 1")]
    Magic,
    /// A record makes no sense.
    #[error("skeleton record {record} is malformed: {why}")]
    Malformed {
        /// Counted from 0.
        record: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// What both sides remember: the last header of each type and the last path.
struct Memory {
    headers: Vec<Option<Box<Block>>>,
    path: Vec<u8>,
}

impl Memory {
    fn new() -> Self {
        Self { headers: vec![None; 256], path: Vec::new() }
    }

    fn header(&mut self, kind: u8) -> &mut Block {
        self.headers[usize::from(kind)].get_or_insert_with(|| Box::new([0; BLOCK]))
    }
}

/// Writes a skeleton.
pub struct SkeletonWriter<W> {
    out: W,
    memory: Memory,
    zeros: u64,
}

impl<W: Write> SkeletonWriter<W> {
    /// Starts with [`MAGIC`].
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out, memory: Memory::new(), zeros: 0 })
    }

    /// Gives bytes as they are, runs of zero blocks as their length.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().all(|&b| b == 0) {
            self.zeros += bytes.len() as u64;
            return Ok(());
        }
        self.flush_zeros()?;
        for chunk in bytes.chunks(MAX_LITERAL) {
            self.out.write_all(&[op::LITERAL])?;
            self.number(chunk.len() as u64)?;
            self.out.write_all(chunk)?;
        }
        Ok(())
    }

    /// Gives a header block.
    pub fn header(&mut self, block: &Block) -> io::Result<()> {
        self.flush_zeros()?;
        let kind = block[156];
        let runs = differing_runs(self.memory.header(kind), block);
        self.out.write_all(&[op::HEADER, kind])?;
        self.number(runs.len() as u64)?;
        let mut done = 0;
        for run in runs {
            self.number((run.start - done) as u64)?;
            self.number(run.len() as u64)?;
            self.out.write_all(&block[run.clone()])?;
            done = run.end;
        }
        *self.memory.header(kind) = *block;
        Ok(())
    }

    /// Stands for the content of `root/<path>`.
    pub fn file(&mut self, path: &str, size: u64) -> io::Result<()> {
        self.flush_zeros()?;
        let path = path.as_bytes();
        let shared = path.iter().zip(&self.memory.path).take_while(|(a, b)| a == b).count();
        self.out.write_all(&[op::FILE])?;
        self.number(shared as u64)?;
        self.number((path.len() - shared) as u64)?;
        self.out.write_all(&path[shared..])?;
        self.memory.path = path.to_vec();
        self.number(size)
    }

    /// Stands for the content of `odd/<number>`.
    pub fn odd(&mut self, number: u64, size: u64) -> io::Result<()> {
        self.flush_zeros()?;
        self.out.write_all(&[op::ODD])?;
        self.number(number)?;
        self.number(size)
    }

    /// Ends the skeleton of a tar of `size` bytes.
    pub fn finish(mut self, size: u64) -> io::Result<W> {
        self.flush_zeros()?;
        self.out.write_all(&[op::END])?;
        self.number(size)?;
        Ok(self.out)
    }

    fn flush_zeros(&mut self) -> io::Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros > 0 {
            self.out.write_all(&[op::ZEROS])?;
            self.number(zeros)?;
        }
        Ok(())
    }

    fn number(&mut self, mut value: u64) -> io::Result<()> {
        while value >= 0x80 {
            self.out.write_all(&[value as u8 | 0x80])?;
            value >>= 7;
        }
        self.out.write_all(&[value as u8])
    }
}

/// Where `new` differs from `old`; gaps too short to pay for a run of their own are bridged.
fn differing_runs(old: &Block, new: &Block) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..BLOCK).filter(|&at| old[at] != new[at]) {
        match runs.last_mut() {
            Some(run) if at - run.end <= 2 => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

/// Reads a skeleton.
pub struct SkeletonReader<R> {
    input: R,
    memory: Memory,
    record: u64,
}

impl<R: BufRead> SkeletonReader<R> {
    /// Checks [`MAGIC`].
    pub fn new(mut input: R) -> Result<Self, SkeletonError> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(|_| SkeletonError::Magic)?;
        if magic != MAGIC {
            return Err(SkeletonError::Magic);
        }
        Ok(Self { input, memory: Memory::new(), record: 0 })
    }

    /// The next record. Nothing may be asked for after [`Record::End`].
    pub fn next_record(&mut self) -> Result<Record, SkeletonError> {
        let record = match self.byte()? {
            op::END => {
                let size = self.number()?;
                if !self.input.fill_buf().map_err(SkeletonError::Read)?.is_empty() {
                    return Err(self.malformed("bytes follow the end"));
                }
                Record::End { size }
            }
            op::LITERAL => {
                let length = self.length(MAX_LITERAL, "literal too long")?;
                Record::Literal(self.bytes(length)?)
            }
            op::ZEROS => Record::Zeros(self.number()?),
            op::HEADER => self.header()?,
            op::FILE => self.file()?,
            op::ODD => Record::Odd { number: self.number()?, size: self.number()? },
            _ => return Err(self.malformed("unknown kind")),
        };
        self.record += 1;
        Ok(record)
    }

    fn header(&mut self) -> Result<Record, SkeletonError> {
        let kind = self.byte()?;
        let runs = self.length(BLOCK, "too many runs")?;
        let mut block = Box::new(*self.memory.header(kind));
        let mut at = 0;
        for _ in 0..runs {
            at += self.length(BLOCK - at, "run beyond the block")?;
            let length = self.length(BLOCK - at, "run beyond the block")?;
            self.input.read_exact(&mut block[at..at + length]).map_err(SkeletonError::Read)?;
            at += length;
        }
        *self.memory.header(kind) = *block;
        Ok(Record::Header(block))
    }

    fn file(&mut self) -> Result<Record, SkeletonError> {
        let shared = self.length(self.memory.path.len(), "shares more than there is")?;
        let own = self.length(MAX_PATH - shared.min(MAX_PATH), "path too long")?;
        let suffix = self.bytes(own)?;
        self.memory.path.truncate(shared);
        self.memory.path.extend(suffix);
        let path =
            String::from_utf8(self.memory.path.clone()).map_err(|_| self.malformed("path is not UTF-8"))?;
        Ok(Record::File { path, size: self.number()? })
    }

    fn malformed(&self, why: &'static str) -> SkeletonError {
        SkeletonError::Malformed { record: self.record, why }
    }

    fn byte(&mut self) -> Result<u8, SkeletonError> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(SkeletonError::Read)?;
        Ok(byte[0])
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, SkeletonError> {
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes).map_err(SkeletonError::Read)?;
        Ok(bytes)
    }

    fn length(&mut self, max: usize, why: &'static str) -> Result<usize, SkeletonError> {
        let value = self.number()?;
        usize::try_from(value).ok().filter(|&length| length <= max).ok_or_else(|| self.malformed(why))
    }

    fn number(&mut self) -> Result<u64, SkeletonError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("number beyond 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A skeleton of format 1, by hand: what is written today must be readable for ever.
    fn by_hand() -> (Vec<u8>, Vec<Record>) {
        let mut first = Box::new([0; BLOCK]);
        first[..3].copy_from_slice(b"a/b");
        first[156] = b'0';
        let mut second = first.clone();
        second[2] = b'c';
        second[511] = 1;
        let mut other = Box::new([0; BLOCK]);
        other[156] = b'5';
        let mut bytes = b"rackstep skeleton 1\n".to_vec();
        for record in [
            // Header of type '0': 2 runs; 0 on, 3 bytes; 153 (0x99 0x01) on, 1 byte.
            &b"\x03\x30\x02\x00\x03a/b\x99\x01\x01\x30"[..],
            // File: nothing shared, 3 bytes of path, size 300 (0xac 0x02).
            b"\x04\x00\x03a/b\xac\x02",
            // 212 (0xd4 0x01) zeros.
            b"\x02\xd4\x01",
            // Header of type '5' knows nothing of type '0'.
            b"\x03\x35\x01\x9c\x01\x01\x35",
            // Header of type '0' again: 2 on, 1 byte; 508 (0xfc 0x03) on, 1 byte.
            b"\x03\x30\x02\x02\x01c\xfc\x03\x01\x01",
            // File: 2 bytes shared, 1 byte of path, size 1.
            b"\x04\x02\x01c\x01",
            // 5 bytes as they are.
            b"\x01\x05bytes",
            // odd/7 of 9 bytes.
            b"\x05\x07\x09",
            // End of 2048 (0x80 0x10) bytes.
            b"\x00\x80\x10",
        ] {
            bytes.extend(record);
        }
        let records = vec![
            Record::Header(first),
            Record::File { path: "a/b".into(), size: 300 },
            Record::Zeros(212),
            Record::Header(other),
            Record::Header(second),
            Record::File { path: "a/c".into(), size: 1 },
            Record::Literal(b"bytes".to_vec()),
            Record::Odd { number: 7, size: 9 },
            Record::End { size: 2048 },
        ];
        (bytes, records)
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Record>, SkeletonError> {
        let mut reader = SkeletonReader::new(bytes)?;
        let mut records = Vec::new();
        while !matches!(records.last(), Some(Record::End { .. })) {
            records.push(reader.next_record()?);
        }
        Ok(records)
    }

    #[test]
    fn format_1_reads() {
        let (bytes, records) = by_hand();
        assert_eq!(read_all(&bytes).unwrap(), records);
    }

    #[test]
    fn format_1_is_written() {
        let (bytes, records) = by_hand();
        let mut writer = SkeletonWriter::new(Vec::new()).unwrap();
        let mut size = 0;
        for record in records {
            match record {
                Record::Literal(bytes) => writer.raw(&bytes).unwrap(),
                // In two parts: neighbouring zeros become one record.
                Record::Zeros(count) => {
                    writer.raw(&[0; 12]).unwrap();
                    writer.raw(&vec![0; count as usize - 12]).unwrap();
                }
                Record::Header(block) => writer.header(&block).unwrap(),
                Record::File { path, size } => writer.file(&path, size).unwrap(),
                Record::Odd { number, size } => writer.odd(number, size).unwrap(),
                Record::End { size: end } => size = end,
            }
        }
        assert_eq!(writer.finish(size).unwrap(), bytes);
    }

    #[test]
    fn a_cut_skeleton_is_noticed_wherever_it_is_cut() {
        let (bytes, _) = by_hand();
        for length in 0..bytes.len() {
            assert!(read_all(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn malformed_records() {
        for (record, why) in [
            (&b"\x06"[..], "unknown kind"),
            (b"\x00\x00\x00", "bytes follow the end"),
            (b"\x01\xff\xff\xff\xff\x0f", "literal too long"),
            (b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "number beyond 64 bits"),
            (b"\x03\x30\x01\x80\x04\x01", "run beyond the block"),
            (b"\x03\x30\x01\x81\x04", "run beyond the block"),
            (b"\x03\x30\x81\x04", "too many runs"),
            (b"\x04\x01\x00\x00", "shares more than there is"),
            (b"\x04\x00\xb9\x17", "path too long"),
            (b"\x04\x00\x01\xff\x00", "path is not UTF-8"),
        ] {
            let error = read_all(&[MAGIC, record].concat()).unwrap_err().to_string();
            assert_eq!(error, format!("skeleton record 0 is malformed: {why}"), "{record:?}");
        }
        assert!(matches!(read_all(b"rackstep skeleton 2\n\0\0"), Err(SkeletonError::Magic)));
    }
}

//! Streams that hash and count what passes through them, once per byte.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use crate::model::Digest;

/// Bytes moved at a time: large enough that a system call costs nothing beside them.
pub const CHUNK: usize = 256 << 10;

/// A buffered reader that hashes what it reads and refuses to read beyond a limit.
pub struct Intake<R> {
    inner: R,
    hash: Sha256,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    read: u64,
    limit: u64,
    /// What went wrong behind the bytes that are in the buffer: told when these are taken, so that its place is right.
    failed: Option<IntakeError>,
}

/// Why an [`Intake`] gives no more.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The source failed.
    #[error("reading")]
    Read(#[source] io::Error),
    /// There is more than the limit allows.
    #[error("more than {0} bytes")]
    Limit(u64),
}

impl<R: Read> Intake<R> {
    /// Reads at most `limit` bytes of `inner`.
    pub fn new(inner: R, limit: u64) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            read: 0,
            limit,
            failed: None,
        }
    }

    /// At most `max` bytes that are not taken yet; none only at the end.
    pub fn peek(&mut self, max: usize) -> Result<&[u8], IntakeError> {
        if self.start == self.end {
            self.fill()?;
        }
        Ok(&self.buffer[self.start..self.end.min(self.start.saturating_add(max))])
    }

    /// Takes bytes that were peeked at.
    pub fn take(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Fills `out` as far as there are bytes, and tells how far.
    pub fn read_up_to(&mut self, out: &mut [u8]) -> Result<usize, IntakeError> {
        let mut done = 0;
        while done < out.len() {
            let bytes = self.peek(out.len() - done)?;
            if bytes.is_empty() {
                break;
            }
            let count = bytes.len();
            out[done..done + count].copy_from_slice(bytes);
            self.take(count);
            done += count;
        }
        Ok(done)
    }

    /// Bytes taken so far.
    pub fn position(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// Digest and count of all bytes. The source must have been read to its end.
    pub fn finish(self) -> (Digest, u64) {
        (Digest::from_bytes(self.hash.finalize().into()), self.read)
    }

    fn fill(&mut self) -> Result<(), IntakeError> {
        self.start = 0;
        self.end = 0;
        // Readers that decompress return little at a time: gather a whole chunk, so that hashing and writing are in bulk.
        while self.failed.is_none() && self.end < self.buffer.len() {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.failed = Some(IntakeError::Read(error)),
            }
        }
        let allowed = self.limit - self.read;
        if self.end as u64 > allowed {
            // Fits usize, being less than `end`.
            self.end = allowed as usize;
            self.failed = Some(IntakeError::Limit(self.limit));
        }
        self.hash.update(&self.buffer[..self.end]);
        self.read += self.end as u64;
        match self.failed.take_if(|_| self.end == 0) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Hashes and counts what is read or written through it.
pub struct Hashing<T> {
    inner: T,
    hash: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    /// Passes everything on.
    pub fn new(inner: T) -> Self {
        Self::after(&[], inner)
    }

    /// The same, with a digest of `prefix` and what passes. The count leaves the prefix out.
    pub fn after(prefix: &[u8], inner: T) -> Self {
        Self { inner, hash: Sha256::new_with_prefix(prefix), count: 0 }
    }

    /// Bytes that have passed.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Digest and count of what has passed.
    pub fn finish(self) -> (Digest, u64) {
        let (_, digest, count) = self.into_parts();
        (digest, count)
    }

    /// The inner stream, which a buffered writer still has to flush, and digest and count of what has passed.
    pub fn into_parts(self) -> (T, Digest, u64) {
        (self.inner, Digest::from_bytes(self.hash.finalize().into()), self.count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Counts what is read or written through it.
pub struct Counting<T> {
    /// The stream below.
    pub inner: T,
    /// Bytes that have passed.
    pub count: u64,
}

impl<T> Counting<T> {
    /// Passes everything on.
    pub const fn new(inner: T) -> Self {
        Self { inner, count: 0 }
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

/// A writer that fails rather than pass more than it was told.
pub struct BoundedWriter<W> {
    inner: W,
    left: u64,
}

impl<W: Write> BoundedWriter<W> {
    /// Passes at most `limit` bytes on to `inner`.
    pub fn new(inner: W, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<W: Write> Write for BoundedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("more bytes than were announced"));
        }
        let count = self.inner.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A reader that fails at its end unless what passed has the expected digest and size.
pub struct VerifyingReader<R> {
    inner: R,
    hash: Sha256,
    seen: u64,
    expected: Digest,
    size: Option<u64>,
    verified: bool,
}

/// What came through is not what was named.
#[derive(Debug, thiserror::Error)]
#[error("blob {expected} came as {got}, {seen} bytes")]
pub struct WrongBlob {
    /// The digest that was asked for.
    pub expected: Digest,
    /// The digest of what came.
    pub got: Digest,
    /// Bytes that came.
    pub seen: u64,
}

impl<R: Read> VerifyingReader<R> {
    /// Expects `inner` to be the blob `expected`, of `size` bytes if known.
    pub fn new(inner: R, expected: Digest, size: Option<u64>) -> Self {
        Self { inner, hash: Sha256::new(), seen: 0, expected, size, verified: false }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.hash.update(&out[..count]);
        self.seen += count as u64;
        // A blob that never ends is cut at its announced size, not at the end of the disk.
        let too_long = self.size.is_some_and(|size| self.seen > size);
        if !self.verified && (too_long || (count == 0 && !out.is_empty())) {
            let got = Digest::from_bytes(std::mem::take(&mut self.hash).finalize().into());
            if too_long || got != self.expected {
                let wrong = WrongBlob { expected: self.expected, got, seen: self.seen };
                return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
            }
            self.verified = true;
        }
        Ok(count)
    }
}

//! One blob as a stream that survives cut connections.
//!
//! 1. A connection that ends too early, in silence or with an error, is made again from the byte where it ended;
//! 2. a server that does not know ranges gives the beginning again, which is skipped; 3. attempts are counted anew only
//!    after a good deal has come, so that their number is bounded by the blob's size.
//!
//! It does not look at the bytes: whoever reads checks the digest.

use std::io::{self, Read};

use reqwest::header::CONTENT_RANGE;

use super::{Registry, RegistryError};
use crate::model::Digest;
use crate::rim::fetch::{ATTEMPTS, Body, pause_before};

/// What must come before a cut counts as the first one again.
const PROGRESS: u64 = 4 << 20;

/// A blob, read like a file.
pub(super) struct Blob<'r> {
    registry: &'r Registry,
    digest: Digest,
    size: u64,
    at: u64,
    body: Option<Body<'r>>,
    failures: u32,
    /// Where `failures` began to count.
    since: u64,
}

impl<'r> Blob<'r> {
    /// Asks for the blob; a registry that does not have it says so here.
    pub(super) fn open(registry: &'r Registry, digest: Digest, size: u64) -> Result<Self, RegistryError> {
        let mut blob = Self { registry, digest, size, at: 0, body: None, failures: 0, since: 0 };
        while blob.body.is_none() {
            blob.connect()?;
        }
        Ok(blob)
    }

    /// Goes on from where the stream is; a failure that may pass leaves it without a connection.
    fn connect(&mut self) -> Result<(), RegistryError> {
        match self.request() {
            Ok(body) => self.body = Some(body),
            Err(error) => self.note_failure(error)?,
        }
        Ok(())
    }

    fn request(&self) -> Result<Body<'r>, RegistryError> {
        let rest = format!("blobs/{}", self.digest);
        let mut answer = self.registry.get(&rest, "*/*", self.at)?;
        if self.at == 0 {
            return Ok(answer.body);
        }
        if answer.status == 206 {
            let range = answer.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let range = range.unwrap_or_default();
            if !range.starts_with(&format!("bytes {}-", self.at)) {
                return Err(RegistryError::Range { url: rest, at: self.at, got: range.to_owned() });
            }
            return Ok(answer.body);
        }
        let skipped = io::copy(&mut (&mut answer.body).take(self.at), &mut io::sink());
        match (skipped, answer.body.failure.take()) {
            (_, Some(error)) => Err(error.into()),
            _ => Ok(answer.body),
        }
    }

    /// Forgets the connection after a failure; gives the failure back when it is final or one too many.
    fn note_failure(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if !error.is_passing() || self.is_enough() {
            return Err(error);
        }
        tracing::info!(blob = %self.digest, at = self.at, of = self.size, %error, "a download was cut; going on");
        pause_before(self.failures);
        Ok(())
    }

    /// Counts one more failure, and tells when there were too many of them.
    fn is_enough(&mut self) -> bool {
        self.body = None;
        if self.at - self.since >= PROGRESS {
            (self.failures, self.since) = (0, self.at);
        }
        self.failures += 1;
        self.failures >= ATTEMPTS
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // One byte beyond the announced size is read, so that its digest tells that there is more; no further.
        let left = usize::try_from((self.size + 1).saturating_sub(self.at)).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(0);
        }
        let room = out.len().min(left);
        let out = &mut out[..room];
        loop {
            let Some(body) = &mut self.body else {
                self.connect().map_err(io::Error::other)?;
                continue;
            };
            match body.read(out) {
                Ok(0) if self.at < self.size && !out.is_empty() => {
                    // An end that looks clean: a proxy that had to guess the length. The digest tells in the end.
                    if self.is_enough() {
                        return Ok(0);
                    }
                    pause_before(self.failures);
                }
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
                // All is there; how the connection ended does not matter.
                Err(_) if self.at >= self.size => return Ok(0),
                Err(error) => match body.failure.take() {
                    Some(failure) => self.note_failure(failure.into()).map_err(io::Error::other)?,
                    None => return Err(error),
                },
            }
        }
    }
}

//! `sums`: what Docker's records of a layer need and its skeleton does not tell, so that a host reads no content for them.
//!
//! The line `rackstep sums 1\n`, then big-endian numbers of 64 bits: the layer's size as Docker tells it, then the
//! [`Crc64`](super::super::crc64::Crc64) of each content in the order of the tar.

use super::ContentFacts;

/// First line: the format's name and version.
pub const MAGIC: &[u8] = b"rackstep sums 1\n";

/// The sums of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Bytes of all files and links.
    pub size: u64,
    /// One for each content.
    pub crcs: Vec<u64>,
}

impl Sums {
    /// The sums of a layer of `size` bytes with these contents.
    pub fn new(size: u64, facts: &[ContentFacts]) -> Self {
        Self { size, crcs: facts.iter().map(|facts| facts.crc).collect() }
    }

    /// The file's bytes.
    pub fn render(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.crcs.iter().flat_map(|crc| crc.to_be_bytes()));
        bytes
    }

    /// Reads the file's bytes; none if they are not of this format.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.strip_prefix(MAGIC)?.as_chunks::<8>() else { return None };
        let (size, crcs) = numbers.split_first()?;
        let number = |bytes: &[u8; 8]| u64::from_be_bytes(*bytes);
        Some(Self { size: number(size), crcs: crcs.iter().map(number).collect() })
    }
}

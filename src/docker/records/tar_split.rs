//! `tar-split.json.gz` of a layer (github.com/vbatts/tar-split, `tar/storage`), out of its skeleton and sums.
//!
//! Docker puts a layer's tar together with it for `save` and `push`: a line of JSON for each run of bytes that are no
//! content, and one for each file with its name, size and checksum.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::RecordError;
use super::files::io_error;
use crate::formats::image::layer::SKELETON;
use crate::formats::image::layer::entries::{Entries, EntryError};
use crate::formats::image::layer_image::SUMS;
use crate::formats::image::layer_image::sums::Sums;
use crate::formats::image::skeleton::{Record, SkeletonReader};

/// Longest run in one line.
const SEGMENT: usize = 1 << 20;
const FILE: u8 = 1;
const BYTES: u8 = 2;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_raw: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: String,
    position: u64,
}

/// The layer's size as Docker tells it.
pub(super) fn size(layer: &Path) -> Result<u64, RecordError> {
    Ok(read_sums(layer)?.size)
}

fn read_sums(layer: &Path) -> Result<Sums, RecordError> {
    let path = layer.join(SUMS);
    let bytes = fs::read(&path).map_err(io_error("reading", &path))?;
    Sums::parse(&bytes).ok_or(RecordError::Sums { path })
}

/// The file.
pub(super) fn render(layer: &Path) -> Result<Vec<u8>, RecordError> {
    let sums = read_sums(layer)?;
    let misfit = || RecordError::Sums { path: layer.join(SUMS) };
    let path = layer.join(SKELETON);
    let open = || File::open(&path).map(BufReader::new).map_err(io_error("reading", &path));
    let broken = |source| RecordError::Skeleton { path: path.clone(), source };
    let names = names(open()?).map_err(|source| RecordError::Entries { path: path.clone(), source })?;
    if names.len() != sums.crcs.len() {
        return Err(misfit());
    }
    let mut contents = names.iter().zip(&sums.crcs);
    let mut records = SkeletonReader::new(open()?).map_err(broken)?;
    let mut lines = Lines::new();
    loop {
        let written = match records.next_record().map_err(broken)? {
            Record::End { .. } => break,
            Record::Literal(bytes) => lines.bytes(&bytes),
            Record::Zeros(count) => lines.zeros(count),
            Record::Header(block) => lines.bytes(&block[..]),
            Record::File { size, .. } | Record::Odd { size, .. } => {
                let (name, crc) = contents.next().ok_or_else(misfit)?;
                lines.file(name, size, *crc)
            }
        };
        written.map_err(io_error("compressing", &path))?;
    }
    lines.finish().map_err(io_error("compressing", &path))
}

/// Names of all entries with content, as the tar spells them.
fn names(skeleton: BufReader<File>) -> Result<Vec<Vec<u8>>, EntryError> {
    let mut entries = Entries::new(skeleton)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry()? {
        if entry.content.is_some() {
            names.push(entry.name);
        }
    }
    Ok(names)
}

/// Lines in the making.
struct Lines {
    out: GzEncoder<Vec<u8>>,
    segment: Vec<u8>,
    position: u64,
}

impl Lines {
    fn new() -> Self {
        Self { out: GzEncoder::new(Vec::new(), Compression::fast()), segment: Vec::new(), position: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.segment.extend(bytes);
        if self.segment.len() < SEGMENT { Ok(()) } else { self.end_segment() }
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let some = count.min(SEGMENT as u64);
            self.segment.resize(self.segment.len() + some as usize, 0);
            self.bytes(&[])?;
            count -= some;
        }
        Ok(())
    }

    fn file(&mut self, name: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.end_segment()?;
        let text = std::str::from_utf8(name).ok();
        let raw = text.is_none().then(|| BASE64_STANDARD.encode(name));
        self.line(FILE, text, raw, Some(size), BASE64_STANDARD.encode(crc.to_be_bytes()))
    }

    fn end_segment(&mut self) -> io::Result<()> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let payload = BASE64_STANDARD.encode(&self.segment);
        self.segment.clear();
        self.line(BYTES, None, None, None, payload)
    }

    fn line(
        &mut self,
        kind: u8,
        name: Option<&str>,
        name_raw: Option<String>,
        size: Option<u64>,
        payload: String,
    ) -> io::Result<()> {
        let line = Line { kind, name, name_raw, size, payload, position: self.position };
        self.position += 1;
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        self.end_segment()?;
        self.out.finish()
    }
}

//! Layers come plain, gzipped or as zstd; what they are is seen from their first bytes, not from what they are called.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::formats::image::stream::CHUNK;

/// Largest zstd window that is accepted, as a power of two: what `zstd -d` accepts unasked (128 MiB).
const ZSTD_WINDOW: u32 = 27;

/// Reads a layer's tar, whatever it is compressed with.
pub fn decompress<'a>(blob: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut blob = BufReader::with_capacity(CHUNK, blob);
    let start = blob.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(Drained { decoder: MultiGzDecoder::new(blob), rest: |d| d.get_mut() }))
    } else if is_zstd(start) {
        let mut decoder = zstd::Decoder::with_buffer(blob)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        Ok(Box::new(Drained { decoder, rest: |d| d.get_mut() }))
    } else {
        Ok(Box::new(blob))
    }
}

/// A zstd frame, or a skippable one before it (RFC 8878, section 3.1.2), as parallel compressors and eStargz write.
pub fn is_zstd(start: &[u8]) -> bool {
    let skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    skippable || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// Reads the blob to its end before it tells that the tar has ended, so that the blob's digest is checked.
struct Drained<D, R> {
    decoder: D,
    rest: fn(&mut D) -> &mut R,
}

impl<D: Read, R: Read> Read for Drained<D, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(out)?;
        if count == 0 && !out.is_empty() {
            io::copy((self.rest)(&mut self.decoder), &mut io::sink())?;
        }
        Ok(count)
    }
}

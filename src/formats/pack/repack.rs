//! Contents that we compressed ourselves, such as an initramfs: sent as a difference of what is inside.
//!
//! 1. [`compress`] makes them, always in the same way; 2. whoever writes a pack takes both contents apart ([`inside`]),
//!    and makes sure with [`is_ours`] that the new one can be made again; 3. a host patches what is inside of the older
//!    one, and [`compressed`] gives the new one, byte for byte.
//!
//! Other bytes come out of another zstd, so a record names it: where it is not the reader's own, the object comes whole.

use std::io::{self, BufRead, Read, Write};

use crate::formats::image::stream::Counting;

/// zstd's level: one above costs a host more time in an upgrade than it saves in its boot.
const LEVEL: i32 = 6;
/// Most that inside may be larger than the compressed content: what claims more is not made by anybody.
pub const FACTOR: u64 = 16;
/// Memory of one compressor and one decompressor at this level.
pub const MEMORY: u64 = 24 << 20;
/// The largest window that is read, as in shards.
const WINDOW_LOG: u32 = 23;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Names the compressor in a record: zstd's version and the level.
pub fn compressor() -> u32 {
    zstd::zstd_safe::version_number() * 100 + LEVEL as u32
}

/// Compresses `content` into `out`; gives the bytes that were read.
pub fn compress(content: impl Read, out: &mut impl Write) -> io::Result<u64> {
    let mut counted = Counting::new(content);
    io::copy(&mut compressed(&mut counted)?, out)?;
    Ok(counted.count)
}

/// The content that has `inside` in it, as a stream.
///
/// Neither the size of reads nor that of `inside`, which nobody tells zstd, changes what comes out.
pub fn compressed<'r>(inside: impl Read + 'r) -> io::Result<impl Read + 'r> {
    zstd::stream::read::Encoder::new(inside, LEVEL)
}

/// What is inside of `content`, as a stream.
pub fn inside<R: Read>(content: R) -> io::Result<Inside<R>> {
    let mut decoder = zstd::Decoder::new(content)?.single_frame();
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(Inside(decoder))
}

/// What is inside of a compressed content.
pub struct Inside<R: Read>(zstd::Decoder<'static, io::BufReader<R>>);

impl<R: Read> Inside<R> {
    /// The reader below, somewhere behind what was read.
    pub fn into_inner(self) -> R {
        self.0.finish().into_inner()
    }
}

impl<R: Read> Read for Inside<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// Whether a content that begins like this may be ours: [`is_ours`] takes time.
pub fn looks_like_ours(begin: [u8; 4]) -> bool {
    begin == MAGIC
}

/// Whether [`compress`] would make this very content of what is inside; gives the size of that.
///
/// The content is given twice. Nothing that is wrong with it is an error here: it is not ours then.
pub fn is_ours(content: impl Read, same: impl Read) -> Option<u64> {
    let mut compared = Compared { like: io::BufReader::new(same) };
    let size = compress(inside(content).ok()?, &mut compared).ok()?;
    compared.like.fill_buf().ok()?.is_empty().then_some(size)
}

/// Fails at the first byte that differs.
struct Compared<R> {
    like: R,
}

impl<R: BufRead> Write for Compared<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let like = self.like.fill_buf()?;
        let count = like.len().min(bytes.len());
        if count == 0 || like[..count] != bytes[..count] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.like.consume(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(compress(content, &mut out).unwrap(), content.len() as u64);
        out
    }

    /// Some of it noise, some of it not.
    fn content(size: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..size).map(|at| if at / 5000 % 2 == 0 { next() } else { (at / 700) as u8 }).collect()
    }

    /// Gives as many bytes at a time as it is told to.
    struct Slowly<'b>(&'b [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len());
            self.0.read(&mut buffer[..count])
        }
    }

    #[test]
    fn what_is_ours_and_what_is_not() {
        for size in [0, 1, 100_000, 3_000_000] {
            let content = content(size);
            let ours = made(&content);
            assert_eq!(is_ours(ours.as_slice(), ours.as_slice()), Some(size as u64));
            let mut back = Vec::new();
            inside(ours.as_slice()).unwrap().read_to_end(&mut back).unwrap();
            assert_eq!(back, content);
        }
        let content = content(300_000);
        let ours = made(&content);
        let others: [(&str, Vec<u8>); 5] = [
            ("another level", zstd::encode_all(content.as_slice(), 19).unwrap()),
            ("no zstd", content.clone()),
            ("nothing", Vec::new()),
            ("cut", ours[..ours.len() - 1].to_vec()),
            ("more behind it", [ours.as_slice(), b"x"].concat()),
        ];
        for (what, other) in others {
            assert_eq!(is_ours(other.as_slice(), other.as_slice()), None, "{what}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn how_it_is_read_does_not_matter(size in 0..500_000usize, step in 1..200_000usize) {
            let content = content(size);
            let mut out = Vec::new();
            compressed(Slowly(&content, step)).unwrap().read_to_end(&mut out).unwrap();
            prop_assert_eq!(out, made(&content));
        }
    }
}

//! Reads the fields of a raw 512-byte tar header that decide how the stream goes on.
//!
//! Framing follows Go's `archive/tar`, because that is what dockerd reads layers with. Nothing is written here: the raw
//! bytes are kept elsewhere.

/// Bytes of a tar block.
pub const BLOCK: usize = 512;

/// Where the checksum stands.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// One raw header block.
pub type Block = [u8; BLOCK];

/// What an entry is, as far as framing and splitting care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with content that is worth sharing.
    File,
    /// A header alone: directory, link, device, FIFO. Its size field means nothing.
    HeaderOnly,
    /// PAX records for the next entry.
    Pax,
    /// PAX records for all following entries; readers in use ignore them.
    PaxGlobal,
    /// GNU: the next entry's name.
    LongName,
    /// GNU: the next entry's link target.
    LongLink,
    /// GNU sparse file of the old kind: extension blocks may follow the header.
    OldSparse,
    /// Anything else: its data is kept and not looked at.
    Other,
}

/// Why a block is not a tar header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The stored checksum is not the sum of the bytes.
    #[error("header checksum is {stored:?}, its bytes sum to {sum}")]
    Checksum {
        /// As parsed, if it is a number.
        stored: Option<u64>,
        /// Sum of the unsigned bytes.
        sum: u64,
    },
    /// A number does not parse, is negative or too large.
    #[error("{field} field is not a number that fits: {value:?}")]
    Number {
        /// Field name of the tar format.
        field: &'static str,
        /// Raw bytes, lossily.
        value: String,
    },
}

/// A header block that passed its checksum.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a>(&'a Block);

impl<'a> Header<'a> {
    /// Checks the checksum, as an unsigned or a signed sum of the bytes.
    pub fn parse(block: &'a Block) -> Result<Self, HeaderError> {
        let stored = parse_octal(&block[CHECKSUM]);
        // The checksum field itself counts as eight spaces.
        let rest = || block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
        let sum = 8 * 32 + rest().map(|&b| u64::from(b)).sum::<u64>();
        if stored == Some(sum) {
            return Ok(Self(block));
        }
        // Old Sun and Solaris writers summed signed chars; Go accepts both.
        let signed = 8 * 32 + rest().map(|&b| i64::from(b.cast_signed())).sum::<i64>();
        if stored.is_some() && stored == u64::try_from(signed).ok() {
            return Ok(Self(block));
        }
        Err(HeaderError::Checksum { stored, sum })
    }

    /// What an entry with the (full) `name` is.
    pub fn kind(self, name: &[u8]) -> Kind {
        match self.0[156] {
            // Before POSIX a directory was a file with a trailing slash.
            0 if name.ends_with(b"/") => Kind::HeaderOnly,
            0 | b'0' | b'7' => Kind::File,
            b'1'..=b'6' => Kind::HeaderOnly,
            b'x' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            b'S' => Kind::OldSparse,
            _ => Kind::Other,
        }
    }

    /// Bytes of data that follow the header, as its size field says.
    pub fn size(self) -> Result<u64, HeaderError> {
        self.number(124..136, "size")
    }

    /// Permission bits, set-id bits included.
    pub fn mode(self) -> u32 {
        // A broken mode does not matter for the bytes: such a file is kept with none.
        self.number(100..108, "mode").map_or(0, |mode| (mode & 0o7777) as u32)
    }

    /// Owner, if it fits 32 bits.
    pub fn uid(self) -> Option<u32> {
        self.number(108..116, "uid").ok()?.try_into().ok()
    }

    /// Group, if it fits 32 bits.
    pub fn gid(self) -> Option<u32> {
        self.number(116..124, "gid").ok()?.try_into().ok()
    }

    /// Where a link leads.
    pub fn link(self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    /// Seconds since 1970 of the last change; none if it does not parse or is before 1970.
    pub fn mtime(self) -> Option<i64> {
        self.number(136..148, "mtime").ok()?.try_into().ok()
    }

    /// The type byte.
    pub fn type_byte(self) -> u8 {
        self.0[156]
    }

    /// Major and minor number of a device; formats before ustar have none.
    pub fn device(self) -> Option<(u32, u32)> {
        if &self.0[257..262] != b"ustar" {
            return Some((0, 0));
        }
        let major = self.number(329..337, "devmajor").ok()?.try_into().ok()?;
        let minor = self.number(337..345, "devminor").ok()?.try_into().ok()?;
        Some((major, minor))
    }

    /// The name field, with ustar's prefix before it.
    pub fn name(self) -> Vec<u8> {
        let prefix = until_nul(&self.0[345..500]);
        // GNU headers ("ustar  ") keep times and sparse maps where POSIX has the prefix.
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", self.raw_name()].concat()
        } else {
            self.raw_name().to_vec()
        }
    }

    /// True when an old GNU sparse header is followed by an extension block.
    pub fn sparse_continues(self) -> bool {
        self.0[482] != 0
    }

    fn raw_name(self) -> &'a [u8] {
        until_nul(&self.0[..100])
    }

    fn number(self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, HeaderError> {
        let raw = &self.0[range];
        let value = if raw[0] & 0x80 != 0 { parse_base256(raw) } else { parse_octal(raw) };
        value.ok_or_else(|| HeaderError::Number { field, value: String::from_utf8_lossy(raw).into_owned() })
    }
}

/// True when an old GNU sparse extension block is followed by another.
pub fn sparse_extension_continues(block: &Block) -> bool {
    block[504] != 0
}

/// Bytes of zeros that fill `size` up to a whole block.
pub fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal digits between optional spaces and NULs; nothing at all is 0.
fn parse_octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|b| !matches!(b, b' ' | 0)).unwrap_or(field.len());
    let digits = until_nul(&field[start..]).trim_ascii_end();
    digits.iter().try_fold(0u64, |value, &b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// GNU's binary numbers: big-endian two's complement, top bit set as the mark. Negative ones are refused.
fn parse_base256(field: &[u8]) -> Option<u64> {
    if field[0] & 0x40 != 0 {
        return None;
    }
    field.iter().enumerate().try_fold(0u64, |value, (i, &b)| {
        let byte = if i == 0 { b & 0x3f } else { b };
        (value >> 56 == 0).then(|| value << 8 | u64::from(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"77777777777\0", Some(8_589_934_591)),
            (b"777777777777", Some(68_719_476_735)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"644\0junk", Some(0o644)),
            (b"6 4\0", None),
            (b"9\0", None),
            (b"-1\0", None),
        ] {
            assert_eq!(parse_octal(field), expected, "{field:?}");
        }
    }

    #[test]
    fn base256_numbers() {
        for (field, expected) in [
            (&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0][..], Some(8_589_934_592)),
            (&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], Some(9)),
            (&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(u64::MAX)),
            (&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
        ] {
            assert_eq!(parse_base256(field), expected, "{field:?}");
        }
    }

    #[test]
    fn padding_fills_blocks() {
        for (size, expected) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511), (u64::MAX, 1)] {
            assert_eq!(padding(size), expected, "{size}");
        }
    }
}

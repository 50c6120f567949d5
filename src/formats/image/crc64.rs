//! The checksum that Docker's records keep of each file of a layer: CRC-64/GO-ISO, Go's `crc64.ISO`.

use crc::{CRC_64_GO_ISO, Crc, Digest, Table};

static ISO: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

/// A checksum in the making.
#[derive(Clone)]
pub struct Crc64(Digest<'static, u64, Table<16>>);

impl Default for Crc64 {
    fn default() -> Self {
        Self(ISO.digest())
    }
}

impl Crc64 {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    pub fn sum(self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_as_go_makes_them() {
        // hash/crc64's own test table.
        for (text, expected) in [
            ("", 0),
            ("a", 0x3420_0000_0000_0000),
            ("ab", 0x36c4_2000_0000_0000),
            ("123456789", 0xb909_56c7_75a4_1001),
        ] {
            let mut crc = Crc64::default();
            crc.update(text.as_bytes());
            assert_eq!(crc.sum(), expected, "{text:?}");
        }
    }
}

//! The 64-bit checksum that Docker's records keep of each file of a layer: CRC-64/GO-ISO, Go's `crc64.ISO`.

const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

const TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let mut table = 1;
        while table < 8 {
            let before: u64 = tables[table - 1][byte];
            tables[table][byte] = tables[0][(before & 0xff) as usize] ^ before >> 8;
            table += 1;
        }
        byte += 1;
    }
    tables
}

/// A checksum in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc64 {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut value = self.0;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            // The first byte has the longest way to go.
            let mixed = chunk
                .iter()
                .enumerate()
                .fold(value, |mixed, (at, byte)| mixed ^ u64::from(*byte) << (8 * at));
            value = (0..8).fold(0, |sum, at| sum ^ TABLES[7 - at][(mixed >> (8 * at) & 0xff) as usize]);
        }
        for byte in chunks.remainder() {
            value = TABLES[0][((value ^ u64::from(*byte)) & 0xff) as usize] ^ value >> 8;
        }
        self.0 = value;
    }

    /// The checksum of all bytes so far.
    pub fn sum(self) -> u64 {
        !self.0
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

    #[test]
    fn parts_give_the_same_as_the_whole() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| (at * 7 % 251) as u8).collect();
        for cut in [0, 1, 7, 8, 9, 500, 999] {
            let mut crc = Crc64::default();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc.sum(), by_bit(&bytes));
        }
    }

    fn by_bit(bytes: &[u8]) -> u64 {
        let mut value = !0u64;
        for byte in bytes {
            value ^= u64::from(*byte);
            for _ in 0..8 {
                value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            }
        }
        !value
    }
}

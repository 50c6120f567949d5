//! Sizes as people write them: bytes, or a number with a unit.
//!
//! `G` and `GB` are 1000³ as on a disk's label, `GiB` is 1024³.

use serde::de::{Deserialize, Deserializer, Error, Unexpected};

const UNITS: [&str; 4] = ["K", "M", "G", "T"];

/// Parses `400G`, `1.5 TB`, `8GiB`, `1000`; none: it is no size.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let (base, unit) = match unit.strip_suffix('i') {
        Some(unit) => (1024_u64, unit),
        None => (1000, unit),
    };
    let factor = match UNITS.iter().position(|known| *known == unit) {
        Some(at) => base.pow(at as u32 + 1),
        None if unit.is_empty() && base == 1000 => 1,
        None => return None,
    };
    let Some((whole, part)) = number.split_once('.') else {
        return number.parse::<u64>().ok()?.checked_mul(factor);
    };
    let digits = u32::try_from(part.len()).ok().filter(|digits| (1..=9).contains(digits))?;
    let fraction = u128::from(part.parse::<u64>().ok()?) * u128::from(factor) / 10_u128.pow(digits);
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(u64::try_from(fraction).ok()?)
}

/// Reads a size that may be left out: a number of bytes, or a text for [`parse_size`].
pub fn read_option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Written {
        Bytes(u64),
        Text(String),
    }
    match Option::<Written>::deserialize(from)? {
        None => Ok(None),
        Some(Written::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Written::Text(text)) => parse_size(&text).map(Some).ok_or_else(|| {
            Error::invalid_value(Unexpected::Str(&text), &"a size such as 400G, 8GiB or bytes")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1000", Some(1000)),
            ("400G", Some(400_000_000_000)),
            ("1.92TB", Some(1_920_000_000_000)),
            ("8 GiB", Some(8_589_934_592)),
            ("0.5Mi", Some(524_288)),
            ("", None),
            ("G", None),
            ("4i", None),
            ("-4G", None),
            ("4g", None),
            ("1.G", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
    }
}

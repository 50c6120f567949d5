//! PAX extended headers: the records that change how an entry is framed or kept.
//!
//! A record is `<length> <key>=<value>\n`, the length counting itself. Records that do not matter here are skipped; the
//! raw bytes are kept elsewhere.

/// Records of one extended header that matter for splitting.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PaxRecords {
    /// The entry's name.
    pub path: Option<Vec<u8>>,
    /// Bytes of the entry's data in the archive.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<u64>,
    /// Group.
    pub gid: Option<u64>,
    /// `security.capability`, the one extended attribute that distribution packages set.
    pub capability: Option<Vec<u8>>,
    /// Where a link leads.
    pub link: Option<Vec<u8>>,
    /// Seconds since 1970, and nanoseconds, of the last change.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes by their full names, in order; the last one of a name counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether records of GNU tar say that the data is a sparse file, and so not the file's content.
    pub sparse: bool,
}

/// Why PAX records cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// Not `<length> <key>=<value>\n`.
    #[error("PAX record at byte {at} is malformed")]
    Malformed {
        /// Offset in the extended header's data.
        at: usize,
    },
    /// A number that decides framing does not parse.
    #[error("PAX record {key} is not a number: {value:?}")]
    Number {
        /// The record's key.
        key: &'static str,
        /// Its value, lossily.
        value: String,
    },
}

impl PaxRecords {
    /// Parses the data of an extended header.
    pub fn parse(data: &[u8]) -> Result<Self, PaxError> {
        let mut records = Self::default();
        let mut at = 0;
        while at < data.len() {
            let malformed = || PaxError::Malformed { at };
            let rest = &data[at..];
            let space = rest.iter().position(|&b| b == b' ').ok_or_else(malformed)?;
            let length = parse_decimal(&rest[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|&length| length > space + 1 && length <= rest.len())
                .ok_or_else(malformed)?;
            let record = rest[space + 1..length].strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
            records.take(&record[..equals], &record[equals + 1..])?;
            at += length;
        }
        Ok(records)
    }

    /// A later record replaces an earlier one; an empty value takes it back (POSIX pax, "Extended Header").
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = |key| {
            (!value.is_empty())
                .then(|| {
                    parse_decimal(value).ok_or_else(|| PaxError::Number {
                        key,
                        value: String::from_utf8_lossy(value).into_owned(),
                    })
                })
                .transpose()
        };
        match key {
            b"path" => self.path = text(),
            b"size" => self.size = number("size")?,
            // Owners do not decide framing, so an odd one is no reason to refuse the layer.
            b"uid" => self.uid = number("uid").unwrap_or_default(),
            b"gid" => self.gid = number("gid").unwrap_or_default(),
            b"linkpath" => self.link = text(),
            b"mtime" => self.mtime = parse_time(value),
            _ => self.take_attribute(key, value),
        }
        Ok(())
    }

    fn take_attribute(&mut self, key: &[u8], value: &[u8]) {
        if key.starts_with(b"GNU.sparse.") {
            self.sparse = true;
        }
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { return };
        if name == b"security.capability" {
            self.capability = (!value.is_empty()).then(|| value.to_vec());
        }
        self.xattrs.retain(|(known, _)| known != name);
        // As in Go, an empty value takes a record back.
        if !value.is_empty() {
            self.xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
}

/// Seconds with up to nine decimals; what is broken is no time.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut digits = fraction.to_owned();
    digits.truncate(9);
    let nanoseconds: u32 = format!("{digits:0<9}").parse().ok()?;
    // The fraction of a time before 1970 counts backwards.
    match (seconds.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((whole, nanoseconds)),
    }
}

/// A number as Go's `strconv.ParseInt` takes it, sign and all, if it is not negative.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    let number: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    number.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let data = b"12 path=a/b\n19 size=8589934592\n12 path=c=d\n9 size=7\n12 uid=1000\n10 gid=-1\n\
                     40 SCHILY.xattr.security.capability=\x01\0\0\n";
        let records = PaxRecords::parse(data).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"c=d"[..]));
        assert_eq!(PaxRecords::parse(b"11 size=+7\n+11 uid=+7\n"), PaxRecords::parse(b"9 size=7\n8 uid=7\n"));
        assert_eq!((records.size, records.uid, records.gid), (Some(7), Some(1000), None));
        assert_eq!(records.capability.as_deref(), Some(&b"\x01\0\0"[..]));
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1350244992.5", Some((1_350_244_992, 500_000_000))),
            ("17", Some((17, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("1.2345678919", Some((1, 234_567_891))),
            ("", None),
            ("1.x", None),
        ] {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in
            [&b"x"[..], b"5 a=b", b"99 a=b\n", b"6 a=bb", b"5 abc\n", b"0 a=b\n", b" a=b\n", b"10 size=-1\n"]
        {
            assert!(PaxRecords::parse(data).is_err(), "{data:?}");
        }
    }
}

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
            b"SCHILY.xattr.security.capability" => self.capability = text(),
            _ => {}
        }
        Ok(())
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
    fn malformed_records_are_refused() {
        for data in
            [&b"x"[..], b"5 a=b", b"99 a=b\n", b"6 a=bb", b"5 abc\n", b"0 a=b\n", b" a=b\n", b"10 size=-1\n"]
        {
            assert!(PaxRecords::parse(data).is_err(), "{data:?}");
        }
    }
}

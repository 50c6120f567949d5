//! Times as people read them, in UTC.

/// Seconds since 1970 as `2026-11-22 10:45 UTC`; `-` for a time beyond the calendar.
pub fn date(seconds: u64) -> String {
    utc(seconds, "%Y-%m-%d %H:%M UTC").unwrap_or_else(|| "-".to_owned())
}

/// Seconds since 1970 as `2026-11-22T10:45:09Z` (RFC 3339); a time beyond the calendar stays a number.
pub fn moment(seconds: u64) -> String {
    utc(seconds, "%Y-%m-%dT%H:%M:%SZ").unwrap_or_else(|| seconds.to_string())
}

fn utc(seconds: u64, format: &str) -> Option<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(time.strftime(format).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_826_000, "2000-02-29 12:06 UTC"),
            (1_700_000_000, "2023-11-14 22:13 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (u64::MAX, "-"),
        ] {
            assert_eq!(date(seconds), expected);
        }
        assert_eq!(moment(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(moment(u64::MAX), "18446744073709551615");
    }
}

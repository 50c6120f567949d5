//! Text that somebody else wrote, before people see it.

/// At most `longest` characters of it, in one line, without anything that moves a terminal's cursor or turns the direction of
/// reading: such characters stand as `\\u{1b}`.
pub fn printable(text: &str, longest: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(longest));
    for c in text.chars().take(longest) {
        let moves = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if moves { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    if text.chars().nth(longest).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_forges_a_line() {
        for (text, shown) in [
            ("disk 1 äß", "disk 1 äß"),
            ("ok\n11:47:01 one  done", "ok\\u{a}11:47:01 one  done"),
            ("\u{1b}[2K\r", "\\u{1b}[2K\\u{d}"),
            ("\u{202e}x", "\\u{202e}x"),
            ("0123456789abc", "0123456789…"),
        ] {
            assert_eq!(printable(text, if text.len() == 13 { 10 } else { 100 }), shown);
        }
    }
}

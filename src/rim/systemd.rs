//! What systemd tells of the machine's boot.

use std::process::Command;

use super::clock::now;
use super::command::run_text;

/// Seconds since the boot that is under way began; `None`: none is, or there is no systemd to ask.
///
/// Under way by systemctl(1), `is-system-running`: `initializing` or `starting`, until the queue of jobs is empty. A unit
/// that failed ends the boot as well, with `degraded`.
pub fn boot_under_way() -> Option<u64> {
    let mut ask = Command::new("systemctl");
    // It fails with every word but "running".
    let output = ask.arg("is-system-running").output().ok()?;
    if !is_booting(&String::from_utf8_lossy(&output.stdout)) {
        return None;
    }
    let mut ask = Command::new("systemctl");
    let text = run_text(ask.args(["show", "--timestamp=unix", "--property=UserspaceTimestamp"])).ok()?;
    let began = parse_unix(&text)?;
    Some(now().saturating_sub(began))
}

fn is_booting(word: &str) -> bool {
    matches!(word.trim(), "initializing" | "starting")
}

/// `Name=@SECONDS`, as `--timestamp=unix` prints it.
fn parse_unix(text: &str) -> Option<u64> {
    text.trim().split_once("=@")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_systemctl() {
        let words = ["initializing\n", "starting\n", "running\n", "degraded\n", "offline", "unknown", ""];
        assert_eq!(words.map(is_booting), [true, true, false, false, false, false, false]);
        for (text, expected) in [
            ("UserspaceTimestamp=@1790000000\n", Some(1_790_000_000)),
            ("UserspaceTimestamp=\n", None),
            ("UserspaceTimestamp=n/a\n", None),
        ] {
            assert_eq!(parse_unix(text), expected, "{text}");
        }
    }
}

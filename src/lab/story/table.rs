//! The last page: what was composed, what took how long and on what it ran, what was seen.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Composed, Observed, Story};

/// What was seen, and when.
pub type Seen<'a> = (&'a str, &'a Observed);

impl Story<'_> {
    /// What took how long, and on what it ran.
    pub fn render_timings(&self) -> String {
        let mut text = "\ntime\n".to_owned();
        for timing in self.timings() {
            let _ =
                writeln!(text, "  {:<38} {:>7.1} s  {}", timing.name, timing.took.as_secs_f64(), timing.on);
        }
        text
    }

    /// All of it.
    pub fn render_table(&self, releases: &[&Composed], seen: &[Seen<'_>]) -> String {
        let mut text = "\ncomposed\n".to_owned();
        for release in releases {
            let _ = writeln!(
                text,
                "  {} {}  {}",
                release.version,
                short(&release.commit),
                summary(&release.answer)
            );
        }
        text.push_str(&self.render_timings());
        let pulled = self.pulled.map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string());
        let _ = writeln!(text, "\nbytes pulled by the upgrade  {pulled}\n\nseen inside the host");
        let _ = writeln!(
            text,
            "  {:<20} {:<8} {:<12} {:<34} {:<10} keystone image Id",
            "", "release", "commit", "kernel", "keystone"
        );
        for (name, seen) in seen {
            let _ = writeln!(
                text,
                "  {name:<20} {:<8} {:<12} {:<34} {:<10} {}",
                seen.version,
                short(&seen.commit),
                seen.kernel,
                seen.keystone_version,
                seen.keystone_image.get(..19).unwrap_or(&seen.keystone_image)
            );
        }
        text
    }
}

fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

fn summary(answer: &Value) -> String {
    let Some(images) = answer["images"].as_object() else { return "composed by somebody else".to_owned() };
    let megabytes = answer["image_bytes"].as_u64().unwrap_or_default() / 1_000_000;
    format!("{} packages, {} images of {megabytes} MB", answer["packages"], images.len())
}

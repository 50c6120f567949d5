//! Rows of the table, kept as JSON.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Outcome;
use crate::measure::Measured;

/// The format number of the results.
const FORMAT: u32 = 1;

/// What a ratio must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    /// Peer ÷ ours must be at least this.
    Faster(f64),
    /// Ours ÷ peer must be at most this.
    AtMost(f64),
    /// Ours must be below this many bytes.
    Below(u64),
    /// Told, not judged.
    None,
}

/// One row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What is compared.
    pub what: String,
    /// Who with.
    pub peer: String,
    /// Our number.
    pub ours: f64,
    /// The peer's number.
    pub theirs: f64,
    /// `s` or `B`.
    pub unit: String,
    /// What the ratio must be.
    pub bar: Bar,
    /// What one must know to judge it.
    pub note: String,
}

impl Row {
    /// A comparison of times.
    pub fn seconds(what: &str, peer: &str, ours: f64, theirs: f64, bar: Bar) -> Self {
        Self::new(what, peer, ours, theirs, "s", bar)
    }

    /// A comparison of bytes.
    pub fn bytes(what: &str, peer: &str, ours: f64, theirs: f64, bar: Bar) -> Self {
        Self::new(what, peer, ours, theirs, "B", bar)
    }

    fn new(what: &str, peer: &str, ours: f64, theirs: f64, unit: &str, bar: Bar) -> Self {
        let (what, peer, unit) = (what.to_owned(), peer.to_owned(), unit.to_owned());
        Self { what, peer, ours, theirs, unit, bar, note: String::new() }
    }

    /// The same with a note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn reached(&self) -> Option<bool> {
        match self.bar {
            Bar::Faster(bar) => Some(self.theirs / self.ours >= bar),
            Bar::AtMost(bar) => Some(self.ours / self.theirs <= bar),
            Bar::Below(bar) => Some(self.ours < bar as f64),
            Bar::None => None,
        }
    }

    fn ratio(&self) -> String {
        match self.bar {
            Bar::Faster(_) => times(self.theirs / self.ours),
            Bar::AtMost(_) => times(self.ours / self.theirs),
            Bar::Below(_) => "-".to_owned(),
            Bar::None if self.theirs.is_finite() => times(self.ours / self.theirs),
            Bar::None => "-".to_owned(),
        }
    }

    fn bar_text(&self) -> String {
        match self.bar {
            Bar::Faster(bar) => format!("≥ {bar} × faster"),
            Bar::AtMost(bar) => format!("≤ {bar} ×"),
            Bar::Below(bar) => format!("< {} MiB", bar >> 20),
            Bar::None => "-".to_owned(),
        }
    }

    fn amount(&self, number: f64) -> String {
        if !number.is_finite() {
            return "-".to_owned();
        }
        match self.unit.as_str() {
            "s" => format!("{number:.2} s"),
            _ if number >= 1e8 => format!("{:.0} MB", number / 1e6),
            _ => format!("{:.1} MB", number / 1e6),
        }
    }
}

fn times(ratio: f64) -> String {
    if ratio >= 100.0 {
        format!("{ratio:.0} ×")
    } else if ratio >= 1.0 {
        format!("{ratio:.1} ×")
    } else {
        format!("{ratio:.3} ×")
    }
}

/// What one chapter measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chapter {
    /// Its name.
    pub name: String,
    /// Seconds since 1970.
    pub ended: u64,
    /// Load of the machine when it ended, over a minute: others who compute make times untrue.
    pub load: f64,
    /// The rows.
    pub rows: Vec<Row>,
    /// Everything that ran, for those who want to know more.
    pub runs: Vec<Measured>,
}

/// Writes a chapter's results.
pub fn keep(dir: &Path, chapter: &Chapter) -> Outcome<()> {
    fs::create_dir_all(dir)?;
    let told = json!({ "format": FORMAT, "chapter": chapter });
    fs::write(dir.join(format!("{}.json", chapter.name)), serde_json::to_vec_pretty(&told)?)?;
    Ok(())
}

/// Reads a chapter's results, if it was measured before.
pub fn kept(dir: &Path, name: &str) -> Option<Chapter> {
    let bytes = fs::read(dir.join(format!("{name}.json"))).ok()?;
    let told: Value = serde_json::from_slice(&bytes).ok()?;
    serde_json::from_value(told["chapter"].clone()).ok()
}

/// Renders the table.
pub fn render(chapters: &[Chapter]) -> String {
    let mut text = String::new();
    text.push_str("| chapter | what | ours | peer | | ratio | bar | |\n|---|---|---|---|---|---|---|---|\n");
    for chapter in chapters {
        for row in &chapter.rows {
            let verdict = match row.reached() {
                Some(true) => "reached",
                Some(false) => "**not reached**",
                None => "",
            };
            let note = if row.note.is_empty() { String::new() } else { format!(" ({})", row.note) };
            text.push_str(&format!(
                "| {} | {}{note} | {} | {} | {} | {} | {} | {verdict} |\n",
                chapter.name,
                row.what,
                row.amount(row.ours),
                row.amount(row.theirs),
                row.peer,
                row.ratio(),
                row.bar_text(),
            ));
        }
    }
    text
}

/// Talks to whoever waits.
#[allow(clippy::print_stderr)]
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints the answer.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints a step's answer.
pub fn answer(told: &Value) {
    print(&format!("{told}\n"));
}

//! The chapters, and what they share: each flow runs once, whoever asks for it.

mod bytes;
mod commit;
mod memory;
mod mounts;
mod session;
mod sizes;
mod transport;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::report::{self, Chapter, Row};
use crate::{Bench, Outcome, release};
use session::Session;

type Act = fn(&mut Session) -> Outcome<Vec<Row>>;

/// In the order in which they run; memory comes last because it looks at all that ran before.
const CHAPTERS: [(&str, Act); 6] = [
    ("commit", commit::run),
    ("bytes", bytes::run),
    ("mounts", mounts::run),
    ("sizes", sizes::run),
    ("transport", transport::run),
    ("memory", memory::run),
];

/// Runs the wanted chapters, all if none is named; `table` prints what earlier runs kept.
pub fn run(bench: &Bench, wanted: &[&str]) -> Outcome<()> {
    if let Some(unknown) =
        wanted.iter().find(|name| **name != "table" && !CHAPTERS.iter().any(|(own, _)| own == *name))
    {
        let known: Vec<&str> = CHAPTERS.iter().map(|(name, _)| *name).collect();
        return Err(format!("no chapter {unknown:?}; there are {}", known.join(", ")).into());
    }
    let results = bench.inputs.join("results").join(&bench.set);
    if wanted == ["table"] {
        let kept: Vec<Chapter> =
            CHAPTERS.iter().filter_map(|(name, _)| report::kept(&results, name)).collect();
        report::print(&report::render(&kept));
        return Ok(());
    }
    let releases = release::prepare(bench)?;
    let mut session = Session::new(bench, releases);
    let mut chapters = Vec::new();
    for (name, act) in CHAPTERS {
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        report::say(&format!("chapter {name}"));
        let before = session.runs.len();
        let rows = act(&mut session)?;
        let ended = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let runs = session.runs[before..].to_vec();
        let chapter = Chapter { name: name.to_owned(), ended, load: load(), rows, runs };
        report::keep(&results, &chapter)?;
        chapters.push(chapter);
    }
    report::say(&format!("results: {}", results.display()));
    report::print(&report::render(&chapters));
    Ok(())
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

//! The largest peak of each of our steps in this run.

use std::collections::BTreeMap;

use super::session::Session;
use crate::Outcome;
use crate::report::{Bar, Row};

const BAR: u64 = 256 << 20;

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    let mut peaks: BTreeMap<String, u64> = BTreeMap::new();
    for run in &session.runs {
        if let Some(peak) = run.peak_bytes {
            let most = peaks.entry(run.what.clone()).or_default();
            *most = peak.max(*most);
        }
    }
    let rows = peaks.into_iter().map(|(what, peak)| {
        let what = format!("peak of {}", what.trim_start_matches("rackstep: "));
        Row::bytes(&what, "", peak as f64, f64::NAN, Bar::Below(BAR))
    });
    Ok(rows.collect())
}

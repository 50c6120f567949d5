//! One thing at a time, in a process of its own: time, processor time, peak memory.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Outcome, report};

/// What one command took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// What ran.
    pub what: String,
    /// From start to end.
    pub seconds: f64,
    /// Processor time of the command and everything that it waited for; daemons that it asked are not in it.
    pub cpu_seconds: f64,
    /// Peak resident memory; of our own steps only.
    pub peak_bytes: Option<u64>,
    /// What a step of ours tells.
    pub told: Value,
}

impl Measured {
    /// A number that the step told.
    pub fn number(&self, key: &str) -> f64 {
        self.told[key].as_f64().unwrap_or(f64::NAN)
    }

    /// A text that the step told.
    pub fn text(&self, key: &str) -> &str {
        self.told[key].as_str().unwrap_or_default()
    }
}

/// Runs a step of ours in a process of its own.
pub fn step(arguments: &[&str]) -> Outcome<Measured> {
    let what = arguments.first().copied().unwrap_or_default();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("step").args(arguments).stdout(Stdio::piped());
    settle();
    let (begin, cpu) = (Instant::now(), cpu_of_children());
    let output = command.spawn()?.wait_with_output()?;
    let seconds = begin.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(format!("step {} failed: {}", arguments.join(" "), output.status).into());
    }
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let measured = Measured {
        what: format!("rackstep: {what}"),
        seconds,
        cpu_seconds: cpu_of_children() - cpu,
        peak_bytes: told["peak"].as_u64(),
        told,
    };
    tell(&measured);
    Ok(measured)
}

/// Runs a neighbour's command.
pub fn peer(what: &str, command: &mut Command) -> Outcome<Measured> {
    settle();
    let (begin, cpu) = (Instant::now(), cpu_of_children());
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let output = output.wait_with_output()?;
    let seconds = begin.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{what} failed: {}", said.trim()).into());
    }
    let measured = Measured {
        what: what.to_owned(),
        seconds,
        cpu_seconds: cpu_of_children() - cpu,
        peak_bytes: None,
        told: Value::Null,
    };
    tell(&measured);
    Ok(measured)
}

/// Writes out what earlier runs left in memory: nobody pays for another's bytes.
fn settle() {
    rustix::fs::sync();
}

fn tell(measured: &Measured) {
    let peak = measured.peak_bytes.map_or(String::new(), |bytes| format!(", peak {} MiB", bytes >> 20));
    report::say(&format!(
        "  {:<44} {:>8.2} s, {:.1} s of processor{peak}",
        measured.what, measured.seconds, measured.cpu_seconds
    ));
}

/// Seconds that children which ended took. Clock ticks are a hundredth of a second on Linux.
fn cpu_of_children() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    // Fields 16 and 17 of the line; the first after the name is field 3.
    let ticks: f64 =
        after_name.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Peak resident memory of this process.
pub fn own_peak() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

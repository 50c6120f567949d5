//! Runs a rollout: the host verbs over ssh, wave after wave.
//!
//! For each machine of a wave, all at once: 1. the verb (`rackstep upgrade --commit`, `rackstep rollback`), unless its next
//! boot is right already; 2. is the next boot the release that the rollout leads to? 3. a restart, unless that release runs
//! already; 4. healthy. A wave with a machine that is not ends the rollout: what was not touched stays as it is.
//!
//! It can be run again at any time: what is done is not done twice.

pub mod plan;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::health::{Heard, Wanted, ask, wait_until_healthy};
use super::{Host, Watcher};
use crate::lab::cluster::rollout::plan::{Act, RolloutPlan, next_boot, release_of};
use crate::lab::machine::Ssh;
use crate::model::Commit;
use crate::rim::wait::poll;

/// Lines of a failed verb that are told.
const LAST_LINES: usize = 6;

/// What became of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It runs the release, with everything that belongs to it.
    Healthy,
    /// It does not.
    Unhealthy,
    /// Its wave never began.
    Untouched,
}

/// One machine's part.
#[derive(Debug, Clone, Serialize)]
pub struct MachineReport {
    /// The machine.
    pub name: String,
    /// Its wave, from 1.
    pub wave: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// The release that it ran before, as far as it said.
    pub before: Option<Commit>,
    /// The release that it was to run.
    pub target: Option<Commit>,
    /// That release, or the one that it runs still, as people say it.
    pub release: Option<String>,
    /// Bytes that its upgrade pulled.
    pub bytes_pulled: Option<u64>,
    /// Was it restarted?
    pub restarted: bool,
    /// How long its part took.
    pub seconds: u64,
    /// Why it is not healthy.
    pub why: Option<String>,
}

/// A rollout that ended.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Every machine, in the plan's order.
    pub machines: Vec<MachineReport>,
    /// Is every machine healthy on the release?
    pub healthy: bool,
}

/// Runs `plan` on `hosts`, which are all of its machines.
pub fn run(plan: &RolloutPlan, hosts: &[Host<'_>], bound: Duration, watcher: &dyn Watcher) -> Report {
    let mut machines = Vec::new();
    let mut agreed = match &plan.act {
        Act::Upgrade { .. } => None,
        Act::Rollback { commit, .. } => Some(*commit),
    };
    let mut going = true;
    for (number, wave) in plan.waves.iter().enumerate() {
        let of_wave = |name: &String| hosts.iter().find(|host| host.name == *name);
        if !going || watcher.stopped() {
            machines.extend(wave.iter().map(|name| report(name, number + 1)));
            continue;
        }
        let reports: Vec<MachineReport> = std::thread::scope(|scope| {
            let threads: Vec<_> = wave
                .iter()
                .filter_map(of_wave)
                .map(|host| {
                    let act = &plan.act;
                    scope.spawn(move || move_machine(host, act, agreed, number + 1, bound, watcher))
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        going =
            reports.len() == wave.len() && reports.iter().all(|report| report.outcome == Outcome::Healthy);
        agreed = agreed.or_else(|| reports.iter().find_map(|report| report.target));
        machines.extend(reports);
    }
    let healthy = machines.iter().all(|report| report.outcome == Outcome::Healthy);
    Report { machines, healthy }
}

fn report(name: &str, wave: usize) -> MachineReport {
    MachineReport {
        name: name.to_owned(),
        wave,
        outcome: Outcome::Untouched,
        before: None,
        target: None,
        release: None,
        bytes_pulled: None,
        restarted: false,
        seconds: 0,
        why: None,
    }
}

fn move_machine(
    host: &Host<'_>,
    act: &Act,
    agreed: Option<Commit>,
    wave: usize,
    bound: Duration,
    watcher: &dyn Watcher,
) -> MachineReport {
    let began = Instant::now();
    let mut report = report(&host.name, wave);
    match try_to_move(host, act, agreed, bound, watcher, &mut report) {
        Ok(()) => {
            report.outcome = Outcome::Healthy;
            let release = report.release.as_deref().unwrap_or_default();
            watcher.end(&host.name, &format!("healthy on release {release}"));
        }
        Err(why) => {
            report.outcome = Outcome::Unhealthy;
            watcher.end(&host.name, &format!("not healthy: {why}"));
            report.why = Some(why);
        }
    }
    report.seconds = began.elapsed().as_secs();
    report
}

fn try_to_move(
    host: &Host<'_>,
    act: &Act,
    agreed: Option<Commit>,
    bound: Duration,
    watcher: &dyn Watcher,
    report: &mut MachineReport,
) -> Result<(), String> {
    let before = hear(host, report)?;
    report.before = before.status.booted;
    match act {
        Act::Upgrade { revision } => {
            let revision = revision.as_ref().map(|revision| format!(" {revision}")).unwrap_or_default();
            let answer =
                verb(host, "upgrade", &format!("rackstep upgrade --commit --json{revision}"), watcher)?;
            report.bytes_pulled = answer["bytes_pulled"].as_u64();
        }
        Act::Rollback { commit, .. } if next_boot(&before.status) != Some(*commit) => {
            verb(host, "rollback", "rackstep rollback --json", watcher)?;
        }
        Act::Rollback { .. } => {}
    }
    let after = hear(host, report)?;
    let target = next_boot(&after.status).ok_or("it has no next boot")?;
    if let Some(agreed) = agreed.filter(|agreed| *agreed != target) {
        return Err(format!(
            "its next boot is release {}, the rollout leads to {}; it was not restarted",
            release_of(&after.status, target),
            release_of(&after.status, agreed),
        ));
    }
    report.target = Some(target);
    let running = after.status.booted == Some(target);
    if !running {
        if watcher.stopped() {
            return Err("stopped before its restart".to_owned());
        }
        watcher.tell(&host.name, &format!("restarts into release {}", release_of(&after.status, target)));
        report.restarted = true;
        // The connection ends with the host: its exit status says nothing.
        let _ = host.ssh.run("systemctl reboot");
    }
    let boot = (!running).then_some(after.boot.as_str());
    let wanted = Wanted { release: Some(target), after: boot };
    let status = wait_until_healthy(host, wanted, bound, watcher, &mut || Ok(()))?;
    report.release = Some(release_of(&status, target));
    Ok(())
}

fn hear(host: &Host<'_>, report: &mut MachineReport) -> Result<Heard, String> {
    let heard = ask(&host.ssh)?;
    report.release = heard.status.booted.map(|booted| release_of(&heard.status, booted));
    Ok(heard)
}

/// Runs a host verb, telling each line that it says, and gives its answer.
fn verb(host: &Host<'_>, name: &str, command: &str, watcher: &dyn Watcher) -> Result<Value, String> {
    watcher.tell(&host.name, name);
    let mut last: Vec<String> = Vec::new();
    let ran = follow(&host.ssh, command, watcher, &mut |line| {
        watcher.tell(&host.name, &format!("{name}: {line}"));
        last.push(line.to_owned());
    });
    let failed = |why: String| format!("{name}: {why}");
    let (status, stdout) = ran.map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let words = last[last.len().saturating_sub(LAST_LINES)..].join("; ");
        return Err(failed(if words.is_empty() { status.to_string() } else { words }));
    }
    serde_json::from_str(&stdout).map_err(|error| failed(format!("an answer without meaning: {error}")))
}

/// Runs `command` on a machine until it ends or the watcher stops it; each line on stderr is told when it comes.
fn follow(
    ssh: &Ssh<'_>,
    command: &str,
    watcher: &dyn Watcher,
    line: &mut (dyn FnMut(&str) + Send),
) -> std::io::Result<(std::process::ExitStatus, String)> {
    /// Longer than any verb; a connection that died is noticed long before.
    const FOREVER: Duration = Duration::from_secs(24 * 3600);
    let mut child =
        ssh.command(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || {
            let mut text = String::new();
            stdout.map(|mut pipe| pipe.read_to_string(&mut text)).transpose().map(|_| text)
        });
        scope.spawn(move || {
            let lines = stderr.into_iter().flat_map(|pipe| BufReader::new(pipe).lines());
            lines
                .map_while(Result::ok)
                .filter(|text| !text.trim().is_empty())
                .for_each(|text| line(text.trim()));
        });
        let ended = poll(FOREVER, || {
            if watcher.stopped() {
                // The verb goes on there or not: either way the host's next boot is one whole release.
                let _ = child.kill();
            }
            child.try_wait()
        });
        let status = match ended? {
            Some(status) => status,
            None => child.kill().and_then(|()| child.wait())?,
        };
        let text = answer.join().unwrap_or_else(|_| Ok(String::new()))?;
        Ok((status, text))
    })
}

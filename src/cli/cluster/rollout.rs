//! `rackstep cluster upgrade` and `rackstep cluster rollback`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::board::Board;
use super::place::{DEFAULT_FILE, Machines, Patience, UNCHANGED, explain, find_machines, no_machine};
use crate::cli::disk_image::{absolute, stop_on_interrupt};
use crate::cli::{Failure, Kind, print_json};
use crate::lab::cluster::Host;
use crate::lab::cluster::observe::{Power, look};
use crate::lab::cluster::rollout::plan::{Act, RolloutPlan, plan_way_back};
use crate::lab::cluster::rollout::{MachineReport, Outcome, Report, run};
use crate::lab::cluster::serve::serve;
use crate::model::status::Status;
use crate::rack::repo::RepoServer;

/// The format number of `--json`.
const JSON_FORMAT: u32 = 1;

/// What both verbs take.
#[derive(Debug, Args)]
pub struct Common {
    /// The machines of this Vagrant project instead of a cluster file's
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    vagrant: Option<PathBuf>,
    /// Only these machines
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How many machines go together after the first [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    wave: Option<u16>,
    #[command(flatten)]
    patience: Patience,
    /// Show the waves and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as JSON, format 1
    #[arg(long)]
    json: bool,
}

/// Upgrade every machine: one first, then the others, each wave only after the one before it is healthy.
///
/// On each machine: `rackstep upgrade --commit`, a restart, and waiting until the release runs with every container of it.
/// Meanwhile the repo is served to the machines where they look for it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rackstep cluster upgrade\n  rackstep cluster upgrade 1.1.0 --wave 2\n  rackstep cluster upgrade 1.1.0 --vagrant . --repo /srv/rackstep/repo"
)]
pub struct UpgradeArguments {
    /// A commit, an unambiguous beginning of one, a version or a ref [default: the newest release that each machine follows]
    #[arg(value_name = "REV")]
    revision: Option<String>,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// The release repo to serve [default: the cluster file's]
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Bring every machine back to the release before, in waves.
///
/// On each machine: `rackstep rollback`, unless it runs that release already, a restart, and waiting until it is healthy.
/// A rollback, or an upgrade, that stopped half way is taken back to the release that all machines have in common.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  rackstep cluster rollback\n  rackstep cluster rollback --vagrant .")]
pub struct RollbackArguments {
    /// The cluster file
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Runs `upgrade`.
pub fn upgrade(arguments: &UpgradeArguments) -> Result<(), Failure> {
    if let Some(revision) = &arguments.revision {
        require_revision(revision)?;
    }
    let common = &arguments.common;
    let machines = common.find(&arguments.file, "upgrade")?;
    let repo = arguments.repo.clone().or_else(|| machines.repo.clone());
    let repo = repo.map(|repo| absolute(&repo)).transpose()?;
    ask_all(&machines)?;
    let act = Act::Upgrade { revision: arguments.revision.clone() };
    let network = machines.network;
    let serve = |hosts: &[Host<'static>]| match &repo {
        Some(repo) => serve(hosts, network, repo).map_err(explain),
        None => Ok(Vec::new()),
    };
    roll(machines, act, common, serve)
}

/// Runs `rollback`.
pub fn rollback(arguments: &RollbackArguments) -> Result<(), Failure> {
    let common = &arguments.common;
    let machines = common.find(&arguments.file, "rollback")?;
    let act = plan_way_back(&ask_all(&machines)?).map_err(|error| {
        Failure::new(Kind::Refused, error, UNCHANGED)
            .hint("`rackstep cluster ssh NAME -- rackstep rollback --reboot` is for one machine")
    })?;
    roll(machines, act, common, |_| Ok(Vec::new()))
}

impl Common {
    /// The machines that are meant.
    fn find(&self, file: &Path, verb: &str) -> Result<Machines, Failure> {
        let mut machines = find_machines(file, self.vagrant.as_deref(), verb)?;
        let known = |name: &String| machines.hosts.iter().any(|(host, _)| host.name == *name);
        if let Some(unknown) = self.only.iter().find(|name| !known(name)) {
            return Err(no_machine(&machines, unknown));
        }
        if !self.only.is_empty() {
            machines.hosts.retain(|(host, _)| self.only.contains(&host.name));
        }
        Ok(machines)
    }
}

/// It goes through a shell on each machine.
fn require_revision(text: &str) -> Result<(), Failure> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._/+~:-".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(good) {
        return Ok(());
    }
    let told = format!("{text:?} is no version, ref or commit");
    Err(Failure::new(Kind::BadInput, told, UNCHANGED))
}

/// What every machine says; refused, if one does not answer.
fn ask_all(machines: &Machines) -> Result<Vec<(String, Status)>, Failure> {
    let views = look(&machines.hosts);
    let mut statuses = Vec::new();
    for view in views {
        let told = match (view.power, view.status, view.trouble) {
            (_, Some(status), _) => {
                statuses.push((view.name, status));
                continue;
            }
            (Power::On, None, trouble) => {
                format!("{} does not answer: {}", view.name, trouble.unwrap_or_default())
            }
            (Power::Off | Power::Missing, ..) => format!("{} is off", view.name),
        };
        let hint = "all machines go together; `rackstep cluster up` brings up what is missing";
        return Err(Failure::new(Kind::Refused, told, UNCHANGED).hint(hint));
    }
    Ok(statuses)
}

fn roll(
    machines: Machines,
    act: Act,
    common: &Common,
    serve: impl FnOnce(&[Host<'static>]) -> Result<Vec<RepoServer>, Failure>,
) -> Result<(), Failure> {
    let Machines { hosts, name, .. } = machines;
    let hosts: Vec<Host<'static>> = hosts.into_iter().map(|(host, _)| host).collect();
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    let plan = RolloutPlan::new(act, &names, common.wave.map(usize::from));
    if common.dry_run {
        if common.json {
            return print_json(&serde_json::json!({ "format": JSON_FORMAT, "cluster": name, "plan": plan }));
        }
        for (index, line) in plan.lines().iter().enumerate() {
            say!("{:>3}. {line}", index + 1);
        }
        say!("state: {UNCHANGED}");
        return Ok(());
    }
    let servers = serve(&hosts)?;
    let stop = stop_on_interrupt();
    let board = Board::new(&stop);
    let report = run(&plan, &hosts, common.patience.bound(), &board);
    drop(servers);
    if common.json {
        print_json(&serde_json::json!({
            "format": JSON_FORMAT, "cluster": name, "plan": plan, "machines": report.machines, "healthy": report.healthy,
        }))?;
    } else {
        for line in render(&report) {
            say!("{line}");
        }
    }
    if report.healthy {
        return Ok(());
    }
    let kind = if stop.load(std::sync::atomic::Ordering::Relaxed) { Kind::Interrupted } else { Kind::Failed };
    Err(Failure::new(kind, first_trouble(&report), tell_state(&report))
        .hint("the same command goes on from here; `rackstep cluster rollback` goes back"))
}

fn render(report: &Report) -> Vec<String> {
    let line = |machine: &MachineReport| {
        let outcome = match machine.outcome {
            Outcome::Healthy => "healthy",
            Outcome::Unhealthy => "NOT HEALTHY",
            Outcome::Untouched => "untouched",
        };
        let release =
            machine.release.as_deref().map(|release| format!("release {release}")).unwrap_or_default();
        let pulled = machine.bytes_pulled.map(|bytes| format!(", pulled {bytes} bytes")).unwrap_or_default();
        let restarted = if machine.restarted { ", restarted" } else { "" };
        let took = match machine.outcome {
            Outcome::Untouched => String::new(),
            _ => format!("{} s{restarted}{pulled}", machine.seconds),
        };
        let (wave, name) = (machine.wave, &machine.name);
        format!("wave {wave}  {name:<14} {outcome:<12} {release:<28} {took}").trim_end().to_owned()
    };
    report.machines.iter().map(line).collect()
}

fn first_trouble(report: &Report) -> String {
    let found = report.machines.iter().find(|machine| machine.outcome == Outcome::Unhealthy);
    found.map_or_else(
        || "stopped".to_owned(),
        |machine| {
            let why = machine.why.as_deref().unwrap_or_default();
            format!("wave {} is not healthy: {}: {why}", machine.wave, machine.name)
        },
    )
}

/// What is where, in one line.
fn tell_state(report: &Report) -> String {
    let tell = |machine: &MachineReport| match (machine.outcome, &machine.release) {
        (Outcome::Untouched, _) => format!("{} was not touched", machine.name),
        (Outcome::Healthy, Some(release)) => format!("{} runs {release}", machine.name),
        (_, Some(release)) => format!("{} was last seen on {release}", machine.name),
        (_, None) => format!("{} says nothing", machine.name),
    };
    report.machines.iter().map(tell).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let machine = |name: &str, wave, outcome, release: Option<&str>, why: Option<&str>| MachineReport {
            name: name.to_owned(),
            wave,
            outcome,
            before: None,
            target: None,
            release: release.map(str::to_owned),
            bytes_pulled: (wave == 1).then_some(1234),
            restarted: wave < 3,
            seconds: 61,
            why: why.map(str::to_owned),
        };
        Report {
            machines: vec![
                machine("control", 1, Outcome::Healthy, Some("1.1.0 (bbbbbbbbbb)"), None),
                machine(
                    "compute-1",
                    2,
                    Outcome::Unhealthy,
                    Some("1.0.0 (aaaaaaaaaa)"),
                    Some("no answer yet"),
                ),
                machine("compute-2", 3, Outcome::Untouched, None, None),
            ],
            healthy: false,
        }
    }

    #[test]
    fn a_rollout_that_stopped_says_what_is_where() {
        assert_eq!(
            render(&report()).join("\n"),
            "wave 1  control        healthy      release 1.1.0 (bbbbbbbbbb)   61 s, restarted, pulled 1234 bytes\n\
             wave 2  compute-1      NOT HEALTHY  release 1.0.0 (aaaaaaaaaa)   61 s, restarted\n\
             wave 3  compute-2      untouched"
        );
        assert_eq!(first_trouble(&report()), "wave 2 is not healthy: compute-1: no answer yet");
        assert_eq!(
            tell_state(&report()),
            "control runs 1.1.0 (bbbbbbbbbb); compute-1 was last seen on 1.0.0 (aaaaaaaaaa); compute-2 was not touched"
        );
    }

    #[test]
    fn revisions_that_go_through_a_shell() {
        for good in ["1.1.0", "3f2a9c", "rackstep/x86_64/openstack-host", "2026.11.22~rc1"] {
            assert!(require_revision(good).is_ok(), "{good}");
        }
        for bad in ["", "--reboot", "1.0; reboot", "$(id)", "a b"] {
            assert!(require_revision(bad).is_err(), "{bad}");
        }
    }
}

//! `rackstep cluster status` and `rackstep cluster ssh`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use clap::Args;

use super::place::{DEFAULT_FILE, UNCHANGED, find_machines, no_machine};
use crate::cli::{Failure, Kind, print_json};
use crate::lab::cluster::observe::{MachineView, Power, look};
use crate::lab::cluster::rollout::plan::{next_boot, release_of};
use crate::model::status::Status;

/// The format number of `--json`.
const JSON_FORMAT: u32 = 1;

/// Show every machine: power, address, the release that runs and the one that waits, services.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The cluster file
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// The machines of this Vagrant project instead
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    vagrant: Option<PathBuf>,
    /// Print it as JSON, format 1; each machine's part is its `rackstep status --json`
    #[arg(long)]
    json: bool,
}

/// Log in to a machine, or run a command there.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rackstep cluster ssh control\n  rackstep cluster ssh compute-1 -- rackstep status"
)]
pub struct SshArguments {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// What to run there; it ends with that command's exit code
    #[arg(last = true)]
    command: Vec<String>,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// A machine of this Vagrant project instead
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    vagrant: Option<PathBuf>,
}

/// Runs `status`.
pub fn run(arguments: &StatusArguments) -> Result<(), Failure> {
    let machines = find_machines(&arguments.file, arguments.vagrant.as_deref(), "status")?;
    let views = look(&machines.hosts);
    if arguments.json {
        return print_json(
            &serde_json::json!({ "format": JSON_FORMAT, "cluster": machines.name, "platform": machines.platform, "machines": views }),
        );
    }
    for line in render(&views) {
        say!("{line}");
    }
    Ok(())
}

/// The machines as a table.
pub fn render(views: &[MachineView]) -> Vec<String> {
    let row = |cells: [&str; 6]| {
        let [name, power, address, runs, next, services] = cells;
        format!("{name:<14} {power:<8} {address:<16} {runs:<24} {next:<24} {services}").trim_end().to_owned()
    };
    let mut lines = vec![row(["machine", "power", "address", "runs", "next boot", "containers"])];
    for view in views {
        let power = match view.power {
            Power::On => "on",
            Power::Off => "off",
            Power::Missing => "missing",
        };
        let Some(status) = &view.status else {
            let trouble = view.trouble.as_deref().map(|_| "no answer").unwrap_or_default();
            lines.push(row([&view.name, power, &view.address, trouble, "", ""]));
            continue;
        };
        let release = |commit| release_of(status, commit);
        let next = next_boot(status).filter(|next| Some(*next) != status.booted).map(release);
        let runs = status.booted.map_or_else(|| "no release".to_owned(), release);
        let next = next.unwrap_or_else(|| "the same".to_owned());
        lines.push(row([&view.name, power, &view.address, &runs, &next, &tell_services(status)]));
    }
    lines
}

fn tell_services(status: &Status) -> String {
    let runs =
        status.services.iter().filter(|container| container.running == Some(container.expected)).count();
    let mut text = format!("{runs} of {} as pinned", status.services.len());
    let bad = status.services.iter().filter(|container| container.running != Some(container.expected));
    let bad: Vec<String> =
        bad.map(|container| format!("{}/{}", container.pod, container.container)).collect();
    if !bad.is_empty() {
        text.push_str(&format!("; not {}", bad.join(", ")));
    }
    text
}

/// Runs `ssh`: the client takes the place of this program.
pub fn ssh(arguments: &SshArguments) -> Result<(), Failure> {
    let machines = find_machines(&arguments.file, arguments.vagrant.as_deref(), "ssh")?;
    let found = machines.hosts.iter().find(|(host, _)| host.name == arguments.machine);
    let Some((host, power)) = found else { return Err(no_machine(&machines, &arguments.machine)) };
    if *power != Power::On {
        let told = format!("{} is off", host.name);
        return Err(Failure::new(Kind::Refused, told, UNCHANGED).hint("`rackstep cluster up` switches it on"));
    }
    let error = host.ssh.terminal(&arguments.command).exec();
    Err(Failure::new(Kind::Failed, format!("starting ssh: {error}"), UNCHANGED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_as_a_table() {
        let status = serde_json::json!({
            "format": 1, "host": "control", "kernel": "6.12", "waiting": [],
            "booted": "a".repeat(64),
            "deployments": [
                {"stateroot": "rackstep", "commit": "b".repeat(64), "serial": 0, "role": "staged", "next_boot": true,
                 "version": "1.1.0", "path": "", "images": []},
                {"stateroot": "rackstep", "commit": "a".repeat(64), "serial": 0, "role": "booted", "next_boot": false,
                 "version": "1.0.0", "path": "", "images": []}],
            "services": [{"pod": "db", "container": "db", "image": "db",
                          "expected": format!("sha256:{}", "1".repeat(64)), "running": null}],
        });
        let view = |name: &str, power, status: Option<Status>, trouble: Option<&str>| MachineView {
            name: name.to_owned(),
            power,
            address: "10.90.0.11".to_owned(),
            status,
            trouble: trouble.map(str::to_owned),
        };
        let views = [
            view("control", Power::On, Some(serde_json::from_value(status).unwrap()), None),
            view("compute-1", Power::On, None, Some("connection refused")),
            view("compute-2", Power::Off, None, None),
        ];
        let expected = "\
machine        power    address          runs                     next boot                containers
control        on       10.90.0.11       1.0.0 (aaaaaaaaaa)       1.1.0 (bbbbbbbbbb)       0 of 1 as pinned; not db/db
compute-1      on       10.90.0.11       no answer
compute-2      off      10.90.0.11";
        assert_eq!(render(&views).join("\n"), expected);
    }
}

//! `rackstep cluster exec`, `rackstep cluster logs` and `rackstep cluster cut`: one machine, from outside.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use super::place::{DEFAULT_FILE, UNCHANGED, explain, find_hypervisor, find_machines, no_machine};
use super::place::{read_file, require_root};
use crate::cli::{Failure, Kind};
use crate::lab::cluster::down::cut as cut_power;
use crate::lab::cluster::observe::Power;
use crate::lab::machine::container::Container;
use crate::model::cluster::Platform;

/// Run a command on a machine: in a container directly, though its network be out of order; elsewhere by ssh.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  rackstep cluster exec control -- journalctl -b -u kubelet")]
pub struct ExecArguments {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// What to run there; it ends with that command's exit code
    #[arg(last = true, required = true)]
    command: Vec<String>,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// Show what a machine said on its console, over all its boots.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rackstep cluster logs control\n  rackstep cluster logs control --follow --lines 50"
)]
pub struct LogsArguments {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// Go on as it says more
    #[arg(short = 'F', long)]
    follow: bool,
    /// How many of the last lines [default: all]
    #[arg(short = 'n', long)]
    lines: Option<u32>,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// Cut a machine's power: no process says good-bye, and what was not synced is lost.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  rackstep cluster cut control && rackstep cluster up")]
pub struct CutArguments {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// Runs `exec`: the command takes the place of this program.
pub fn exec(arguments: &ExecArguments) -> Result<(), Failure> {
    let machines = find_machines(&arguments.file, None, "exec")?;
    let found = machines.hosts.iter().find(|(host, _)| host.name == arguments.machine);
    let Some((host, power)) = found else { return Err(no_machine(&machines, &arguments.machine)) };
    let off = || {
        let told = format!("{} is off", host.name);
        Failure::new(Kind::Refused, told, UNCHANGED).hint("`rackstep cluster up` switches it on")
    };
    if *power != Power::On {
        return Err(off());
    }
    let mut command = match (machines.platform, &machines.home) {
        (Some(Platform::Container), Some(home)) => {
            let container = Container::find(&home.machine_dir(&host.name)).ok_or_else(off)?;
            container
                .command(&arguments.command)
                .map_err(|error| Failure::new(Kind::Failed, error, UNCHANGED))?
        }
        _ => host.ssh.terminal(&arguments.command),
    };
    let error = command.exec();
    Err(Failure::new(Kind::Failed, format!("starting {:?}: {error}", command.get_program()), UNCHANGED))
}

/// Runs `logs`: `tail` takes the place of this program.
pub fn logs(arguments: &LogsArguments) -> Result<(), Failure> {
    let named = read_file(&arguments.file)?;
    require_root("logs")?;
    let record = named.require_record()?;
    let name = &arguments.machine;
    if record.machines.iter().all(|machine| machine.name != *name) {
        let told = format!("cluster {} has no machine {name:?}", named.home.name);
        return Err(Failure::new(Kind::BadInput, told, UNCHANGED));
    }
    let console = named.home.machine_dir(name).join("console.log");
    if !console.exists() {
        let told = format!("{name} has not said anything yet: it was never on");
        return Err(Failure::new(Kind::Refused, told, UNCHANGED).hint("`rackstep cluster up` switches it on"));
    }
    let mut tail = Command::new("tail");
    tail.arg("--lines").arg(arguments.lines.map_or_else(|| "+1".to_owned(), |lines| lines.to_string()));
    if arguments.follow {
        tail.arg("--follow=name");
    }
    let error = tail.arg(console).exec();
    Err(Failure::new(Kind::Failed, format!("starting tail: {error}"), UNCHANGED))
}

/// Runs `cut`.
pub fn cut(arguments: &CutArguments) -> Result<(), Failure> {
    let named = read_file(&arguments.file)?;
    require_root("cut")?;
    let record = named.require_record()?;
    let hypervisor = find_hypervisor(Some(&record))?;
    let _lock = named.home.lock().map_err(explain)?;
    let name = &arguments.machine;
    let was_on = cut_power(&named.home, &hypervisor, name)
        .map_err(|error| Failure::new(Kind::Failed, error, format!("{name} may be on still")))?;
    if !was_on {
        say!("state: {name} is off; {UNCHANGED}");
        return Ok(());
    }
    say!("{}", lost(record.platform));
    say!("state: {name} is off; `rackstep cluster up` switches it on again");
    Ok(())
}

/// What is gone with the power.
fn lost(platform: Platform) -> &'static str {
    match platform {
        Platform::Container => {
            "its file systems were shut down without a flush, then every process of it was killed"
        }
        Platform::Qemu => "its QEMU was killed: what the machine kept in memory is gone",
        Platform::Libvirt => "libvirt ended its domain at once: what the machine kept in memory is gone",
    }
}

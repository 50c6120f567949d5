//! `rackstep cluster push`.

use std::path::PathBuf;

use clap::Args;

use super::place::{DEFAULT_FILE, UNCHANGED, explain, find_machines, no_machine};
use crate::cli::{Failure, Kind};
use crate::lab::cluster::observe::Power;
use crate::lab::cluster::push::{give_back, pack, push};

/// Put this very program in place of the release's on machines that run: for developers of rackstep's host code.
///
/// It lies in the machine's memory, over /usr/bin/rackstep: a restart brings the release's program back. Until then
/// `rackstep status` says that the release is unlocked.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  cargo build && target/debug/rackstep cluster push control\n  rackstep cluster exec control -- systemctl restart rackstep-boot\n  rackstep cluster push control --undo"
)]
pub struct PushArguments {
    /// Machines [default: all that are on]
    #[arg(value_name = "NAME")]
    machines: Vec<String>,
    /// Another program than this one
    #[arg(long, value_name = "FILE", conflicts_with = "undo")]
    program: Option<PathBuf>,
    /// Bring the release's own program back
    #[arg(long)]
    undo: bool,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// Runs the verb.
pub fn run(arguments: &PushArguments) -> Result<(), Failure> {
    let found = find_machines(&arguments.file, None, "push")?;
    let is_known = |name: &&String| found.hosts.iter().any(|(host, _)| host.name == **name);
    if let Some(unknown) = arguments.machines.iter().find(|name| !is_known(name)) {
        return Err(no_machine(&found, unknown));
    }
    let is_meant = |name: &String| arguments.machines.is_empty() || arguments.machines.contains(name);
    let hosts: Vec<_> = found
        .hosts
        .iter()
        .filter(|(host, power)| *power == Power::On && is_meant(&host.name))
        .map(|(host, _)| host)
        .collect();
    if hosts.is_empty() {
        return Err(Failure::new(Kind::Refused, "none of the machines is on", UNCHANGED)
            .hint("`rackstep cluster up` switches them on"));
    }
    if arguments.undo {
        for host in hosts {
            give_back(host).map_err(explain)?;
            say!("state: {} runs the release's own program", host.name);
        }
        return Ok(());
    }
    let own = || std::env::current_exe().map_err(|error| Failure::new(Kind::Failed, error, UNCHANGED));
    let program = arguments.program.clone().map_or_else(own, Ok)?;
    let parcel = pack(&program).map_err(explain)?;
    for host in hosts {
        let took = push(host, &parcel).map_err(explain)?;
        let megabytes = parcel.bytes / 1_000_000;
        say!(
            "state: {} runs {}, {megabytes} MB, after {:.1} s; its release is unlocked until it restarts",
            host.name,
            program.display(),
            took.as_secs_f64()
        );
    }
    Ok(())
}

//! `rackstep cluster down`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::board::Board;
use super::place::{DEFAULT_FILE, explain, find_hypervisor, read_file, require_root};
use crate::cli::disk_image::stop_on_interrupt;
use crate::cli::{Failure, Kind};
use crate::lab::cluster::down::{remove, switch_off};
use crate::lab::cluster::{ClusterError, Watcher as _};

/// A guest that hears its power button is off by then, emulated or not.
const SHUTDOWN: Duration = Duration::from_secs(5 * 60);

/// Remove a cluster: machines, disks, network.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rackstep cluster down\n  rackstep cluster down --keep-disks && rackstep cluster up     another day"
)]
pub struct Arguments {
    /// The cluster file
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Only switch the machines off, as their power buttons do; `up` switches them on again
    #[arg(long)]
    keep_disks: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let named = read_file(&arguments.file)?;
    require_root("down")?;
    let record = named.read_record()?;
    let hypervisor = find_hypervisor(record.as_ref())?;
    let home = &named.home;
    let lock = match home.lock() {
        Ok(lock) => lock,
        Err(ClusterError::Absent(name)) => {
            say!("state: there is no cluster {name}");
            return Ok(());
        }
        Err(error) => return Err(explain(error)),
    };
    let stop = stop_on_interrupt();
    let board = Board::new(&stop);
    let done = if arguments.keep_disks {
        switch_off(home, &hypervisor, SHUTDOWN, &board)
    } else {
        remove(home, &hypervisor, &board)
    };
    drop(lock);
    let name = &home.name;
    done.map_err(|error| {
        let kind = if board.stopped() { Kind::Interrupted } else { Kind::Failed };
        Failure::new(kind, error, format!("cluster {name} is there still, or a part of it"))
            .hint("the same command goes on from here")
    })?;
    if arguments.keep_disks {
        say!("state: cluster {name} is off; `rackstep cluster up` switches it on again");
    } else {
        say!("state: cluster {name} is gone");
    }
    Ok(())
}

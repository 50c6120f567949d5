//! `rackstep container-host`: the processes of hosts that are containers. Started by `rackstep cluster` and by each other.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, Kind};
use crate::lab::machine::container::{ContainerError, init, launcher, probe};

/// The processes of a host that is a container.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Run the host of a record until it powers itself off
    Launch {
        /// The record: container.json in the machine's directory
        record: PathBuf,
    },
    /// Become a host's process 1; orders come on stdin
    Init,
    /// Remove a control group once stdin ends
    Guard {
        /// The group
        group: PathBuf,
    },
    /// Try what hosts need, as process 1
    Probe,
}

/// Runs the part.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.part {
        Part::Launch { record } => launcher::run(record).map_err(tell),
        Part::Guard { group } => launcher::guard(group).map_err(tell),
        Part::Init => {
            // The launcher listens on stdout until this is systemd.
            let failure = tell(init::run());
            say!("{}", failure.render());
            Err(failure)
        }
        Part::Probe => {
            say!("{}", probe::inside());
            Ok(())
        }
    }
}

fn tell(error: ContainerError) -> Failure {
    let kind = if matches!(error, ContainerError::Refused { .. }) { Kind::Refused } else { Kind::Failed };
    Failure::new(kind, error, "the host is off")
}

//! `rackstep cluster`: a developer's cluster on this machine, or on machines that Vagrant made.

mod board;
mod down;
mod place;
mod rollout;
mod status;
mod up;

use clap::{Args, Subcommand};

use super::Failure;

/// Run a developer's cluster: the hosts that the racks run, on this machine.
///
/// Machines are libvirt's where it answers, QEMU's on a network namespace of the cluster's own elsewhere; they outlive
/// this program. `up` makes what is missing, `down` removes everything.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::Arguments),
    Status(status::StatusArguments),
    Ssh(status::SshArguments),
    Upgrade(rollout::UpgradeArguments),
    Rollback(rollout::RollbackArguments),
    Down(down::Arguments),
}

const EXAMPLES: &str = "\
A cluster.yaml:
  repo: /srv/rackstep/repo
  release: 1.0.0                           left out: the newest release of the repo's ref
  control: {memory: 4096, cpus: 2}         MiB
  compute: {count: 2, memory: 3072, cpus: 2}
  platform: libvirt                        or qemu, or auto (if left out): libvirt where it answers

Then, as root (networks, loop devices):
  rackstep cluster up                      makes what is missing, and waits until all services run
  rackstep cluster status
  rackstep cluster ssh control
  rackstep cluster ssh compute-1 -- rackstep status
  rackstep cluster upgrade                 one machine first, then the others; stops at one that is not healthy
  rackstep cluster rollback
  rackstep cluster down

Machines that Vagrant made of rackstep's boxes:
  rackstep cluster upgrade 1.1.0 --vagrant . --repo /srv/rackstep/repo";

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::Up(arguments) => up::run(arguments),
        Verb::Status(arguments) => status::run(arguments),
        Verb::Ssh(arguments) => status::ssh(arguments),
        Verb::Upgrade(arguments) => rollout::upgrade(arguments),
        Verb::Rollback(arguments) => rollout::rollback(arguments),
        Verb::Down(arguments) => down::run(arguments),
    }
}

//! `rackstep cluster`: a developer's cluster on this machine, or on machines that Vagrant made.

mod adopt;
mod board;
mod down;
mod machine;
mod place;
mod push;
mod rollout;
mod status;
mod up;

use clap::{Args, Subcommand};

use super::Failure;

/// Run a developer's cluster: the hosts that the racks run, on this machine.
///
/// Machines are libvirt's where it answers, else QEMU's, on a network namespace of the cluster's own; without KVM they are
/// containers on this machine's kernel. They outlive this program. `up` makes what is missing, `down` removes everything.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::Arguments),
    Adopt(adopt::AdoptArguments),
    Status(status::StatusArguments),
    Ssh(status::SshArguments),
    Exec(machine::ExecArguments),
    Logs(machine::LogsArguments),
    Cut(machine::CutArguments),
    Push(push::PushArguments),
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
  platform: container                      or libvirt, qemu, or auto (if left out): libvirt or QEMU where KVM works,
                                           else containers where they do, else libvirt or QEMU, emulated

Then, as root (networks, loop devices):
  rackstep cluster up                      makes what is missing, and waits until all services run
  rackstep cluster status
  rackstep cluster ssh control
  rackstep cluster ssh compute-1 -- rackstep status
  rackstep cluster logs control            its console
  rackstep cluster cut control             its power, without a shutdown; `up` switches it on again
  rackstep cluster upgrade                 one machine first, then the others; stops at one that is not healthy
  rackstep cluster rollback
  rackstep cluster down

Machines that Vagrant made of rackstep's boxes:
  rackstep cluster upgrade 1.1.0 --vagrant . --repo /srv/rackstep/repo";

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::Up(arguments) => up::run(arguments),
        Verb::Adopt(arguments) => adopt::run(arguments),
        Verb::Status(arguments) => status::run(arguments),
        Verb::Ssh(arguments) => status::ssh(arguments),
        Verb::Exec(arguments) => machine::exec(arguments),
        Verb::Logs(arguments) => machine::logs(arguments),
        Verb::Cut(arguments) => machine::cut(arguments),
        Verb::Push(arguments) => push::run(arguments),
        Verb::Upgrade(arguments) => rollout::upgrade(arguments),
        Verb::Rollback(arguments) => rollout::rollback(arguments),
        Verb::Down(arguments) => down::run(arguments),
    }
}

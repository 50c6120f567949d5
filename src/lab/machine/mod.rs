//! Virtual machines on a network of their own: for the machine tests, the demo and developer clusters.
//!
//! 1. [`Network`]: a network namespace with one bridge; the machine's own network is never touched;
//! 2. [`accelerator`]: KVM if a kernel really boots on it, otherwise TCG;
//! 3. [`MachineSpec`] says what a machine is made of and renders QEMU's arguments, purely;
//! 4. [`Machine`] has a power switch, a console that can be waited on, and [`Ssh`];
//! 5. whatever was started is stopped by its pid, when dropped and on Ctrl-C ([`interrupt`]); only what was asked to
//!    outlive the program does ([`Machine::attach`]), and is found again by the next one. [`Hypervisor`] says who runs
//!    those: QEMU, libvirt, or this machine's own kernel ([`container`]).
//!
//! It never waits by sleeping for a guessed time: every wait names a condition and a bound.

pub mod accelerator;
pub mod container;
mod domain;
mod guest;
mod hypervisor;
pub mod interrupt;
mod libvirt;
mod network;
mod qmp;
mod spec;
mod ssh;
pub mod tiny;

use std::io;
use std::time::Duration;

pub use guest::Machine;
pub use hypervisor::{Hypervisor, Running};
pub use libvirt::{Domain, Libvirt};
pub use network::Network;
pub use spec::{Boot, DiskFormat, DiskSpec, Firmware, MachineSpec};
pub use ssh::{Ssh, SshKey};

use crate::rim::command::CommandError;

/// Why a virtual machine or its network did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A program of the host failed.
    #[error("{what}")]
    Program {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// A file, socket or process operation failed.
    #[error("{what}")]
    Io {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program or file that machines need is not installed.
    #[error("{what} not found (looked for {looked}); Debian package: {package}")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        looked: String,
        /// What brings it.
        package: &'static str,
    },
    /// The condition did not come true in time.
    #[error("{machine}: {waited} did not happen within {} s{tail}", bound.as_secs())]
    Timeout {
        /// Machine or network.
        machine: String,
        /// What was waited for.
        waited: String,
        /// How long.
        bound: Duration,
        /// The end of the console, on lines of its own.
        tail: String,
    },
    /// The machine is off although it was waited on.
    #[error("{machine}: powered off while waiting for {waited}{tail}")]
    PoweredOff {
        /// Machine.
        machine: String,
        /// What was waited for.
        waited: String,
        /// The end of the console and of QEMU's own words.
        tail: String,
    },
    /// The guest's kernel gave up.
    #[error("{machine}: kernel panic while waiting for {waited}{tail}")]
    Panicked {
        /// Machine.
        machine: String,
        /// What was waited for.
        waited: String,
        /// The end of the console.
        tail: String,
    },
    /// QEMU refused a command on its control socket.
    #[error("{machine}: QMP {command}: {answer}")]
    Qmp {
        /// Machine.
        machine: String,
        /// The command.
        command: String,
        /// What QEMU said.
        answer: String,
    },
    /// A host that is a container.
    #[error(transparent)]
    Container(#[from] container::ContainerError),
    /// A text that had to be a number, an address or the like is not.
    #[error("{0}")]
    Input(String),
}

impl MachineError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn program(what: impl Into<String>) -> impl FnOnce(CommandError) -> Self {
        let what = what.into();
        move |source| Self::Program { what, source }
    }
}

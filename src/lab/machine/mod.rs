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
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use guest::Machine;
pub use hypervisor::{Hypervisor, Running};
pub use libvirt::{Domain, Libvirt};
pub use network::Network;
pub use spec::{Boot, DiskFormat, DiskSpec, Firmware, MachineSpec};
pub use ssh::{Ssh, SshKey};

use crate::rim::command::CommandError;

/// How often a condition is looked at: short against a boot, long against the work of looking.
const POLL: Duration = Duration::from_millis(150);

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

/// Looks at a condition until it gives a value; `None` when the bound is over.
pub fn poll<T, E>(bound: Duration, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let began = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(Some(value));
        }
        if began.elapsed() >= bound {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// As [`poll`], for a look that costs whoever is looked at: after each comes a pause of three times as long, within bounds.
/// Ends early, without a value, when `stopped` says so.
///
/// An emulated machine that has to answer ssh all the time does nothing else.
pub fn poll_gently<T, E>(
    bound: Duration,
    stopped: impl Fn() -> bool,
    mut look: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(10);
    let began = Instant::now();
    while !stopped() {
        let looked = Instant::now();
        if let Some(value) = look()? {
            return Ok(Some(value));
        }
        let pause = (looked.elapsed() * 3).clamp(SHORTEST, LONGEST);
        let paused = Instant::now();
        while paused.elapsed() < pause {
            if stopped() || began.elapsed() >= bound {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(None)
}

/// The cache directory of this program: `$XDG_CACHE_HOME/rackstep` or `~/.cache/rackstep`.
fn cache_dir() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("rackstep")
}

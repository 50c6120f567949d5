//! Who runs machines that outlive the program: where QEMU of our own and libvirt differ.
//!
//! | | network | machine |
//! | --- | --- | --- |
//! | QEMU | a namespace of its own | a process, known by its control socket |
//! | libvirt | an isolated network of libvirt's, here | a domain, known by its UUID |
//!
//! Whoever uses it asks for a [`Network`], for a [`super::Machine`] to switch on, and for what is [`Running`]; and never which
//! of both it is.

use std::path::PathBuf;
use std::time::Duration;

use super::accelerator::Accelerator;
use super::{Domain, Libvirt, MachineError, MachineSpec, Network, qmp};
use crate::model::cluster::Platform;
use crate::rim::process::Detached;

/// A killed QEMU is gone at once.
const DEATH: Duration = Duration::from_secs(30);

/// Who runs machines.
#[derive(Debug, Clone)]
pub enum Hypervisor {
    /// QEMU, started by us.
    Qemu,
    /// libvirt's daemon.
    Libvirt(Libvirt),
}

impl Hypervisor {
    /// The one of this machine.
    pub fn of(platform: Platform) -> Result<Self, MachineError> {
        match platform {
            Platform::Qemu => Ok(Self::Qemu),
            Platform::Libvirt => Libvirt::of_this_machine().map(Self::Libvirt),
        }
    }

    /// What it is.
    pub fn platform(&self) -> Platform {
        match self {
            Self::Qemu => Platform::Qemu,
            Self::Libvirt(_) => Platform::Libvirt,
        }
    }

    /// Can it run machines like this? Asked before anything is made.
    pub fn require(&self, accelerator: Accelerator) -> Result<(), MachineError> {
        match self {
            Self::Qemu => Ok(()),
            Self::Libvirt(libvirt) => libvirt.require(accelerator),
        }
    }

    /// The network `name`, if it is there.
    pub fn open_network(&self, name: &str) -> Result<Option<Network>, MachineError> {
        match self {
            Self::Qemu => Ok(Network::open(name)),
            Self::Libvirt(libvirt) => libvirt.open_network(name),
        }
    }

    /// Makes the network `name`, whose bridge has `address` (`10.90.0.1/24`).
    pub fn make_network(&self, name: &str, address: &str) -> Result<Network, MachineError> {
        match self {
            Self::Qemu => Network::keep(name, address),
            Self::Libvirt(libvirt) => libvirt.make_network(name, address),
        }
    }

    /// Removes the network `name`; one that is not there is fine.
    pub fn remove_network(&self, name: &str) -> Result<(), MachineError> {
        match self {
            Self::Qemu => {
                Network::remove(name);
                Ok(())
            }
            Self::Libvirt(libvirt) => libvirt.remove_network(name),
        }
    }

    /// The machine of `spec`, if it is on.
    pub fn find(&self, spec: &MachineSpec) -> Result<Option<Running>, MachineError> {
        match self {
            Self::Qemu => Ok(spec.find_process().map(|process| Running::Process {
                process,
                machine: spec.name.clone(),
                control: spec.control_path(),
            })),
            Self::Libvirt(libvirt) => Ok(libvirt.find(spec)?.map(Running::Domain)),
        }
    }
}

/// A machine that is on, or was a moment ago.
#[derive(Debug)]
pub enum Running {
    /// A QEMU in a session of its own.
    Process {
        /// The process.
        process: Detached,
        /// The machine's name.
        machine: String,
        /// Its control socket.
        control: PathBuf,
    },
    /// A domain.
    Domain(Domain),
}

impl Running {
    /// Is it on?
    pub fn is_alive(&self) -> Result<bool, MachineError> {
        match self {
            Self::Process { process, .. } => Ok(process.is_alive()),
            Self::Domain(domain) => domain.is_alive(),
        }
    }

    /// Cuts its power; one that is off is fine.
    pub fn power_cut(&self) -> Result<(), MachineError> {
        match self {
            Self::Process { process, machine, .. } => {
                process.kill(DEATH).map_err(MachineError::io(format!("cutting the power of {machine}")))
            }
            Self::Domain(domain) => domain.power_cut(),
        }
    }

    /// Presses its power button: a guest that listens shuts down.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        match self {
            Self::Process { machine, control, .. } => {
                qmp::execute(machine, control, "system_powerdown").map(drop)
            }
            Self::Domain(domain) => domain.press_power_button(),
        }
    }
}

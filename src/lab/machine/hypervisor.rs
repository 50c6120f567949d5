//! Who runs machines that outlive the program: where QEMU of our own, libvirt and containers differ.
//!
//! | | network | machine |
//! | --- | --- | --- |
//! | QEMU | a namespace of its own | a process, known by its control socket |
//! | libvirt | an isolated network of libvirt's, here | a domain, known by its UUID |
//! | containers | a namespace of its own | a launcher, known by its record's path |
//!
//! Whoever uses it asks for a [`Network`], for a [`super::Machine`] to switch on, and for what is [`Running`]; and never which
//! of them it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::accelerator::{self, Accelerator};
use super::container::{self, Container, HostSpec, Link, Storage};
use super::{Boot, DiskFormat, DiskSpec, Domain, Libvirt, MachineError, MachineSpec, Network, qmp};
use crate::model::cluster::{Driver, Platform};
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
    /// This machine's own kernel.
    Container,
}

impl Hypervisor {
    /// The one of this machine.
    pub fn of(platform: Platform) -> Result<Self, MachineError> {
        match platform {
            Platform::Qemu => Ok(Self::Qemu),
            Platform::Libvirt => Libvirt::of_this_machine().map(Self::Libvirt),
            Platform::Container => Ok(Self::Container),
        }
    }

    /// What it is.
    pub fn platform(&self) -> Platform {
        match self {
            Self::Qemu => Platform::Qemu,
            Self::Libvirt(_) => Platform::Libvirt,
            Self::Container => Platform::Container,
        }
    }

    /// How it runs machines; refused, if it cannot. Asked before anything is made: it may boot a kernel to find out.
    pub fn require(&self, driver: Driver) -> Result<Accelerator, MachineError> {
        if let Self::Container = self {
            container::probe::probe()?;
            return Ok(Accelerator::Native);
        }
        let accelerator = match driver {
            Driver::Auto => accelerator::choose()?,
            Driver::Kvm => Accelerator::Kvm,
            Driver::Qemu => accelerator::translated()?,
        };
        if let Self::Libvirt(libvirt) = self {
            libvirt.require(accelerator)?;
        }
        Ok(accelerator)
    }

    /// The disk of a new machine, which begins as `base`, a raw image that must not change from now on.
    pub fn make_disk(&self, disk: PathBuf, base: &Path, serial: &str) -> Result<(), MachineError> {
        match self {
            Self::Qemu | Self::Libvirt(_) => {
                DiskSpec::create_overlay(disk, base, DiskFormat::Raw, serial).map(drop)
            }
            Self::Container => Ok(container::storage::copy_base(base, &disk)?),
        }
    }

    /// The network `name`, if it is there.
    pub fn open_network(&self, name: &str) -> Result<Option<Network>, MachineError> {
        match self {
            Self::Qemu | Self::Container => Ok(Network::open(name)),
            Self::Libvirt(libvirt) => libvirt.open_network(name),
        }
    }

    /// Makes the network `name`, whose bridge has `address` (`10.90.0.1/24`).
    pub fn make_network(&self, name: &str, address: &str) -> Result<Network, MachineError> {
        match self {
            Self::Qemu | Self::Container => Network::keep(name, address),
            Self::Libvirt(libvirt) => libvirt.make_network(name, address),
        }
    }

    /// Removes the network `name`; one that is not there is fine.
    pub fn remove_network(&self, name: &str) -> Result<(), MachineError> {
        match self {
            Self::Qemu | Self::Container => {
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
            Self::Container => Ok(Container::find(&spec.dir).map(Running::Container)),
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
    /// A host on this machine's kernel.
    Container(Container),
}

/// Starts a host as a container: its first disk, its card and its credentials are the machine's.
pub(super) fn start_container(spec: &MachineSpec, network: &Network) -> Result<Container, MachineError> {
    let (Some(disk), Boot::Disk) = (spec.disks.first(), &spec.boot) else {
        let told = format!("{}: a container boots a release from its disk, and nothing else", spec.name);
        return Err(MachineError::Input(told));
    };
    let link = Link {
        network: network.name().to_owned(),
        // Within the 15 characters of an interface's name.
        outside: format!("ve{}", spec.mac.replace(':', "")),
        mac: spec.mac.clone(),
    };
    let host = HostSpec {
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        storage: Storage::Disk(disk.path.clone()),
        link: Some(link),
        credentials: spec.credentials.clone(),
        memory_mib: spec.memory_mib,
        cpus: spec.cpus,
    };
    Ok(container::start(&host)?)
}

impl Running {
    /// Is it on?
    pub fn is_alive(&self) -> Result<bool, MachineError> {
        match self {
            Self::Process { process, .. } => Ok(process.is_alive()),
            Self::Domain(domain) => domain.is_alive(),
            Self::Container(container) => Ok(container.is_alive()),
        }
    }

    /// Cuts its power; one that is off is fine.
    pub fn power_cut(&self) -> Result<(), MachineError> {
        match self {
            Self::Process { process, machine, .. } => {
                process.kill(DEATH).map_err(MachineError::io(format!("cutting the power of {machine}")))
            }
            Self::Domain(domain) => domain.power_cut(),
            Self::Container(container) => Ok(container.power_cut()?),
        }
    }

    /// Presses its power button: a guest that listens shuts down.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        match self {
            Self::Process { machine, control, .. } => {
                qmp::execute(machine, control, "system_powerdown").map(drop)
            }
            Self::Domain(domain) => domain.press_power_button(),
            Self::Container(container) => {
                container.press_power_button();
                Ok(())
            }
        }
    }
}

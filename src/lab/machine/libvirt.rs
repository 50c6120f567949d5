//! libvirt, by its own `virsh`.
//!
//! 1. The libvirt of this machine (`qemu:///system`, or what `LIBVIRT_DEFAULT_URI` says): disks and consoles are files here;
//! 2. a network: isolated, with an address for this machine on its bridge; addresses and names of the machines are given
//!    out by the same dnsmasq as on QEMU alone;
//! 3. a domain for each machine that is on ([`super::domain`]).
//!
//! Networks and domains are transient: what is switched off is gone from libvirt, so that nothing is kept in two places. A
//! domain is known by its UUID, which comes from its machine's directory: a domain of somebody else's is never touched,
//! whatever its name.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::accelerator::Accelerator;
use super::domain::{Place, render_domain, render_network};
use super::spec::Firmware;
use super::{MachineError, MachineSpec, Network};
use crate::model::Digest;
use crate::rim::command::{self, CommandError};

/// libvirt of this machine, unless the environment says otherwise.
const SYSTEM: &str = "qemu:///system";
/// Security drivers that know our files only by the rules of their packages.
const CONFINING: [&str; 2] = ["apparmor", "selinux"];

/// A libvirt.
#[derive(Debug, Clone)]
pub struct Libvirt {
    uri: String,
}

/// A domain that runs, or did a moment ago.
#[derive(Debug)]
pub struct Domain {
    libvirt: Libvirt,
    uuid: String,
    machine: String,
}

impl Libvirt {
    /// The one of this machine.
    pub fn of_this_machine() -> Result<Self, MachineError> {
        let named = std::env::var("LIBVIRT_DEFAULT_URI").ok().filter(|uri| !uri.is_empty());
        Self::at(named.as_deref().unwrap_or(SYSTEM))
    }

    /// The one at `uri`.
    pub fn at(uri: &str) -> Result<Self, MachineError> {
        if is_of_this_machine(uri) {
            return Ok(Self { uri: uri.to_owned() });
        }
        let told = format!("libvirt at {uri} is not the system's on this machine, where the disks are");
        Err(MachineError::Input(told))
    }

    /// Does it answer?
    pub fn require_answer(&self) -> Result<(), MachineError> {
        let asking = format!("asking libvirt at {} (libvirt-clients, libvirt-daemon-system)", self.uri);
        self.virsh(&["list", "--uuid"]).map(drop).map_err(MachineError::program(asking))
    }

    pub(super) fn require(&self, accelerator: Accelerator) -> Result<(), MachineError> {
        if accelerator == Accelerator::TcgSingle {
            let told = "libvirt emulates processors on several threads, which QEMU before 10 does wrong; `platform: qemu` \
                        takes one thread";
            return Err(MachineError::Input(told.to_owned()));
        }
        self.require_answer()
    }

    pub(super) fn open_network(&self, name: &str) -> Result<Option<Network>, MachineError> {
        let looking = MachineError::program(format!("looking for network {name} in libvirt"));
        let names = self.virsh(&["net-list", "--name"]).map_err(looking)?;
        Ok(has_line(&names, name).then(|| Network::here(name, bridge_of(name))))
    }

    pub(super) fn make_network(&self, name: &str, address: &str) -> Result<Network, MachineError> {
        let making = || format!("making network {name} with {address} in libvirt, which can have it once");
        let (address, prefix) = address.split_once('/').unwrap_or((address, "32"));
        let xml = render_network(name, &bridge_of(name), address, prefix);
        let mut file = tempfile::NamedTempFile::new().map_err(MachineError::io(making()))?;
        file.write_all(xml.as_bytes()).map_err(MachineError::io(making()))?;
        let path = file.path().to_string_lossy().into_owned();
        self.virsh(&["net-create", &path]).map_err(MachineError::program(making()))?;
        Ok(Network::here(name, bridge_of(name)))
    }

    pub(super) fn remove_network(&self, name: &str) -> Result<(), MachineError> {
        if self.open_network(name)?.is_none() {
            return Ok(());
        }
        let removing = MachineError::program(format!("removing network {name} from libvirt"));
        self.virsh(&["net-destroy", name]).map(drop).map_err(removing)
    }

    pub(super) fn find(&self, spec: &MachineSpec) -> Result<Option<Domain>, MachineError> {
        let domain = Domain { libvirt: self.clone(), uuid: uuid_of(&spec.dir), machine: spec.name.clone() };
        Ok(domain.is_alive()?.then_some(domain))
    }

    /// Switches the machine of `spec` on, beside the others on `network`.
    pub(super) fn start(
        &self,
        spec: &MachineSpec,
        network: &Network,
        accelerator: Accelerator,
    ) -> Result<Domain, MachineError> {
        if spec.firmware == Firmware::Uefi {
            return Err(MachineError::Input(format!("{}: machines on libvirt start by BIOS", spec.name)));
        }
        let starting = || format!("starting {} in libvirt", spec.name);
        let capabilities = self.virsh(&["capabilities"]).map_err(MachineError::program(starting()))?;
        let is_there = |model: &&str| capabilities.contains(&format!("<model>{model}</model>"));
        let confining: Vec<&str> = CONFINING.into_iter().filter(is_there).collect();
        let uuid = uuid_of(&spec.dir);
        let name = format!("{}-{}", network.name(), spec.name);
        let place = Place { name: &name, uuid: &uuid, bridge: network.bridge(), confining: &confining };
        let path = spec.dir.join("domain.xml");
        fs::write(&path, render_domain(spec, accelerator, place)).map_err(MachineError::io(starting()))?;
        self.virsh(&["create", &path.to_string_lossy()]).map_err(MachineError::program(starting()))?;
        Ok(Domain { libvirt: self.clone(), uuid, machine: spec.name.clone() })
    }

    fn virsh(&self, arguments: &[&str]) -> Result<String, CommandError> {
        let mut virsh = Command::new("virsh");
        virsh
            .args(["--quiet", "--connect", &self.uri])
            .args(arguments)
            .stdin(Stdio::null())
            .env("LC_ALL", "C");
        // A Ctrl-C is ours: what libvirt has begun is waited for, and then taken back.
        command::run_text(virsh.process_group(0))
    }
}

impl Domain {
    pub(super) fn is_alive(&self) -> Result<bool, MachineError> {
        let looking = MachineError::program(format!("looking for {} in libvirt", self.machine));
        let uuids = self.libvirt.virsh(&["list", "--uuid"]).map_err(looking)?;
        Ok(has_line(&uuids, &self.uuid))
    }

    pub(super) fn power_cut(&self) -> Result<(), MachineError> {
        let cut = self.libvirt.virsh(&["destroy", &self.uuid]);
        // It may have gone off by itself meanwhile.
        if cut.is_err() && !self.is_alive()? {
            return Ok(());
        }
        cut.map(drop).map_err(MachineError::program(format!("cutting the power of {}", self.machine)))
    }

    pub(super) fn press_power_button(&self) -> Result<(), MachineError> {
        let pressing = MachineError::program(format!("pressing the power button of {}", self.machine));
        self.libvirt.virsh(&["shutdown", &self.uuid, "--mode", "acpi"]).map(drop).map_err(pressing)
    }
}

fn has_line(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| line.trim() == wanted)
}

/// The system's daemon, by whatever socket, and not another machine's.
fn is_of_this_machine(uri: &str) -> bool {
    let without_socket = uri.split_once('?').map_or(uri, |(before, _)| before);
    matches!(without_socket, "qemu:///system" | "qemu+unix:///system")
}

/// An interface's name has room for 15 characters.
fn bridge_of(network: &str) -> String {
    format!("rs-{}", &Digest::of(network.as_bytes()).hex()[..10])
}

/// Always the same for a directory; version 8 of RFC 9562: made of what one likes.
fn uuid_of(dir: &Path) -> String {
    let hex = Digest::of(dir.as_os_str().as_encoded_bytes()).hex();
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirts_that_have_our_disks() {
        for good in
            ["qemu:///system", "qemu+unix:///system", "qemu+unix:///system?socket=/run/other/libvirt-sock"]
        {
            assert!(Libvirt::at(good).is_ok(), "{good}");
        }
        for bad in
            ["qemu:///session", "qemu+ssh://root@rack-1/system", "test:///default", "xen:///system", ""]
        {
            assert!(Libvirt::at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_libvirt_takes() {
        let bridge = bridge_of("rackstep-cluster-with-a-name-of-some-length");
        assert!(bridge.len() <= 15 && bridge.starts_with("rs-"), "{bridge}");
        assert_ne!(bridge, bridge_of("rackstep-cluster-dev"));
        let uuid = uuid_of(Path::new("/state/dev/machines/control"));
        assert_eq!(uuid, uuid_of(Path::new("/state/dev/machines/control")));
        assert_ne!(uuid, uuid_of(Path::new("/state/dev/machines/compute-1")));
        let sizes: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(sizes, [8, 4, 4, 4, 12], "{uuid}");
    }
}

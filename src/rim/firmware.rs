//! What the firmware and the kernel say of this machine: SMBIOS identity, UEFI or BIOS, memory, processors, boot arguments.

use std::fs;
use std::path::Path;

use crate::model::identity::{machine_serial, machine_uuid, normal_uuid};
use crate::model::imaging::SECRET_ARGUMENT;

/// What the firmware says of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// SMBIOS system UUID, lower case.
    pub uuid: Option<String>,
    /// SMBIOS system serial number.
    pub serial: Option<String>,
    /// True when started by UEFI.
    pub uefi: bool,
    /// Bytes of memory that the kernel has.
    pub memory: u64,
    /// Logical processors.
    pub cpus: u32,
}

/// Looks; what is not there is told as absent, never as an error.
pub fn observe_firmware() -> Firmware {
    observe_below(Path::new("/"))
}

fn observe_below(root: &Path) -> Firmware {
    let identity = |name: &str| {
        let text = fs::read_to_string(root.join("sys/class/dmi/id").join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    let memory = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    Firmware {
        uuid: identity("product_uuid")
            .filter(|uuid| machine_uuid(uuid).is_some())
            .and_then(|uuid| normal_uuid(&uuid)),
        serial: identity("product_serial").filter(|serial| machine_serial(serial).is_some()),
        uefi: root.join("sys/firmware/efi").exists(),
        memory: parse_memory(&memory),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
    }
}

fn parse_memory(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .map_or(0, |kib: u64| kib * 1024)
}

/// What the kernel's command line tells the installer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootArguments {
    /// `rackstep.server=`: base URL of the rack server.
    pub server: Option<String>,
    /// `rackstep.mac=`, or `BOOTIF=` as PXE loaders pass it: lower case, parts divided by '-'.
    pub mac: Option<String>,
    /// `rackstep.secret=`: what this attempt proves itself with.
    pub secret: Option<String>,
}

/// Reads the kernel's command line.
pub fn observe_boot_arguments() -> BootArguments {
    parse_boot_arguments(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Picks our arguments out of a kernel command line; a later one wins.
pub fn parse_boot_arguments(text: &str) -> BootArguments {
    let mut found = BootArguments::default();
    let mut bootif = None;
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some(("rackstep.server", url)) => found.server = Some(url.to_owned()),
            Some((SECRET_ARGUMENT, secret)) => found.secret = Some(secret.to_owned()),
            Some(("rackstep.mac", mac)) => found.mac = Some(normal_mac(mac)),
            // The first part is ARP's hardware type, 01 for Ethernet.
            Some(("BOOTIF", value)) => bootif = normal_mac(value).strip_prefix("01-").map(str::to_owned),
            _ => {}
        }
    }
    found.mac = found.mac.or(bootif);
    found
}

/// A MAC address as the rack server's paths have it: `52-54-00-12-34-56`.
pub fn normal_mac(text: &str) -> String {
    text.trim().to_lowercase().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_arguments() {
        let both =
            "BOOT_IMAGE=vmlinuz BOOTIF=01-52-54-00-AA-00-01 rackstep.server=http://10.0.0.1:8080 quiet";
        let found = parse_boot_arguments(both);
        assert_eq!(found.server.as_deref(), Some("http://10.0.0.1:8080"));
        assert_eq!(found.mac.as_deref(), Some("52-54-00-aa-00-01"));
        let ours = parse_boot_arguments("rackstep.mac=52:54:00:AA:00:02 BOOTIF=01-52-54-00-aa-00-01");
        assert_eq!(ours.mac.as_deref(), Some("52-54-00-aa-00-02"));
        assert_eq!(parse_boot_arguments("root=/dev/vda1"), BootArguments::default());
    }

    #[test]
    fn vendors_placeholders_are_no_identity() {
        let root = tempfile::tempdir().unwrap();
        let dmi = root.path().join("sys/class/dmi/id");
        fs::create_dir_all(&dmi).unwrap();
        fs::create_dir_all(root.path().join("sys/firmware/efi")).unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(dmi.join("product_uuid"), "4C4C4544-0042-3510-8052-B4C04F4D3732\n").unwrap();
        fs::write(dmi.join("product_serial"), "To Be Filled By O.E.M.\n").unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal:        4028836 kB\nMemFree: 1 kB\n").unwrap();
        let found = observe_below(root.path());
        assert_eq!(found.uuid.as_deref(), Some("4c4c4544-0042-3510-8052-b4c04f4d3732"));
        assert_eq!(found.serial, None);
        assert!(found.uefi);
        assert_eq!(found.memory, 4_125_528_064);
    }
}

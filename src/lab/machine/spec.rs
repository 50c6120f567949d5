//! What a virtual machine is made of, and QEMU's arguments for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::MachineError;
use super::accelerator::Accelerator;
use crate::rim::command;
use crate::rim::process::Detached;

/// Which firmware starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS; the network card's own iPXE.
    Bios,
    /// OVMF, with variables of its own that survive a power cut; its network boot, not the card's.
    Uefi,
}

/// What the machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The firmware's order: network card, then the first disk. What a racked machine does.
    NetworkThenDisk,
    /// The first disk only.
    Disk,
    /// A kernel given to QEMU.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initramfs: PathBuf,
        /// The kernel's arguments.
        arguments: String,
    },
}

/// How a disk's file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Sparse file. Flushes are ignored: QEMU writes straight into the host's page cache, which survives QEMU's death.
    Raw,
    /// Grows, has snapshots. Flushes are kept: its tables live in QEMU's memory until then.
    Qcow2,
}

impl DiskFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// One virtio disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The disk's file.
    pub path: PathBuf,
    /// How it is written.
    pub format: DiskFormat,
    /// The serial number that the guest sees (at most 20 characters).
    pub serial: String,
}

impl DiskSpec {
    /// An empty sparse disk of `size` bytes.
    pub fn create_raw(path: PathBuf, size: u64, serial: &str) -> Result<Self, MachineError> {
        fs::File::create(&path)
            .and_then(|file| file.set_len(size))
            .map_err(MachineError::io(format!("creating disk {}", path.display())))?;
        Ok(Self { path, format: DiskFormat::Raw, serial: serial.to_owned() })
    }

    /// An empty qcow2 disk of `size` bytes.
    pub fn create_qcow2(path: PathBuf, size: u64, serial: &str) -> Result<Self, MachineError> {
        command::run(
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(size.to_string()),
        )
        .map_err(MachineError::program(format!("creating disk {}", path.display())))?;
        Ok(Self { path, format: DiskFormat::Qcow2, serial: serial.to_owned() })
    }

    /// A qcow2 disk that begins as `base`, which must not change from now on. It is there whole or not at all.
    pub fn create_overlay(
        path: PathBuf,
        base: &Path,
        format: DiskFormat,
        serial: &str,
    ) -> Result<Self, MachineError> {
        let failed = || format!("creating disk {}", path.display());
        let unfinished = path.with_extension("new");
        command::run(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", format.name(), "-b"])
                .arg(base)
                .arg(&unfinished),
        )
        .map_err(MachineError::program(failed()))?;
        fs::rename(&unfinished, &path).map_err(MachineError::io(failed()))?;
        Ok(Self { path, format: DiskFormat::Qcow2, serial: serial.to_owned() })
    }
}

/// Everything about a machine but its network's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Name in messages and in QEMU's process list.
    pub name: String,
    /// Where its console log, control socket and firmware variables live; made when missing.
    pub dir: PathBuf,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// What it starts from.
    pub boot: Boot,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Its network card's address.
    pub mac: String,
    /// Its disks; the first one is booted.
    pub disks: Vec<DiskSpec>,
    /// SMBIOS system UUID.
    pub uuid: Option<String>,
    /// SMBIOS system serial number.
    pub serial: Option<String>,
    /// systemd's credentials, by name: what the guest is told of itself before anything of it runs.
    pub credentials: Vec<(String, String)>,
}

impl MachineSpec {
    /// A BIOS machine with one network card, two processors and 1 GiB, without a disk.
    pub fn new(name: &str, dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            dir: dir.into(),
            firmware: Firmware::Bios,
            boot: Boot::NetworkThenDisk,
            memory_mib: 1024,
            cpus: 2,
            mac: "52:54:00:00:00:01".to_owned(),
            disks: Vec::new(),
            uuid: None,
            serial: None,
            credentials: Vec::new(),
        }
    }

    /// Where all that came over the serial console is kept, over all power cycles.
    pub fn console_path(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub(super) fn control_path(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    pub(super) fn pid_path(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    /// The emulator of this machine, if it was started to outlive its program and runs.
    pub fn find_process(&self) -> Option<Detached> {
        // Its own control socket is in its arguments, and in nobody else's.
        Detached::find(&self.pid_path(), &escape(&self.control_path()))
    }

    pub(super) fn variables_path(&self) -> PathBuf {
        self.dir.join("uefi-variables.fd")
    }

    /// QEMU's arguments, for a card plugged into `tap`; `code` is the UEFI firmware.
    pub(super) fn render_arguments(
        &self,
        accelerator: Accelerator,
        tap: &str,
        code: Option<&Path>,
    ) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut add = |arguments: &[&str]| all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        add(&["-name", &self.name, "-nodefaults", "-no-user-config", "-display", "none"]);
        add(&accelerator.arguments());
        // graphics=off: SeaBIOS and what it starts (iPXE, GRUB) speak on the serial console.
        add(&[
            "-machine",
            "q35,graphics=off",
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &self.memory_mib.to_string(),
        ]);
        add(&["-chardev", &format!("file,id=console,append=on,path={}", escape(&self.console_path()))]);
        add(&["-serial", "chardev:console"]);
        add(&["-qmp", &format!("unix:{},server=on,wait=off", escape(&self.control_path()))]);
        // Key generation in the guest must not wait for entropy; newer OVMF needs it for network boot.
        add(&["-device", "virtio-rng-pci"]);
        if let Some(code) = code {
            add(&["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={}", escape(code))]);
            let variables = escape(&self.variables_path());
            add(&["-drive", &format!("if=pflash,unit=1,format=raw,file={variables}")]);
            // Between the first network boot and the disk OVMF would wait more than a minute for a DHCPv6 server.
            add(&["-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no"]);
        }
        if let Some(uuid) = &self.uuid {
            add(&["-uuid", uuid]);
        }
        if let Some(serial) = &self.serial {
            add(&["-smbios", &format!("type=1,serial={}", serial.replace(',', ",,"))]);
        }
        for (name, value) in &self.credentials {
            let value = value.replace(',', ",,");
            add(&["-smbios", &format!("type=11,value=io.systemd.credential:{name}={value}")]);
        }
        let from_network = self.boot == Boot::NetworkThenDisk;
        let mut card = format!("virtio-net-pci,netdev=net0,mac={}", self.mac);
        if !from_network {
            card.push_str(",romfile=");
        } else {
            card.push_str(",bootindex=0");
            if self.firmware == Firmware::Uefi {
                // Without the card's iPXE the firmware's own PXE is used, as on a real machine.
                card.push_str(",romfile=");
            }
        }
        add(&["-netdev", &format!("tap,id=net0,ifname={tap},script=no,downscript=no"), "-device", &card]);
        for (number, disk) in self.disks.iter().enumerate() {
            let cache = if disk.format == DiskFormat::Raw { "unsafe" } else { "writeback" };
            let (format, file) = (disk.format.name(), escape(&disk.path));
            let id = format!("disk{number}");
            add(&[
                "-drive",
                &format!("if=none,id={id},format={format},cache={cache},discard=unmap,file={file}"),
            ]);
            let serial = disk.serial.replace(',', ",,");
            let index = number + 1;
            add(&["-device", &format!("virtio-blk-pci,drive={id},serial={serial},bootindex={index}")]);
        }
        if let Boot::Kernel { kernel, initramfs, arguments } = &self.boot {
            let (kernel, initramfs) = (kernel.to_string_lossy(), initramfs.to_string_lossy());
            add(&["-kernel", &kernel, "-initrd", &initramfs, "-append", arguments]);
        }
        all
    }
}

/// A path as QEMU's option lists want it: commas doubled.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// OVMF's code and its template of variables.
pub(super) fn find_uefi() -> Result<(PathBuf, PathBuf), MachineError> {
    const PAIRS: [(&str, &str); 2] = [
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ];
    PAIRS
        .iter()
        .map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)))
        .find(|(code, variables)| code.exists() && variables.exists())
        .ok_or_else(|| MachineError::Missing {
            what: "UEFI firmware",
            looked: PAIRS.map(|(code, _)| code).join(", "),
            package: "ovmf",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_a_uefi_machine() {
        let mut spec = MachineSpec::new("control-1", "/m");
        spec.firmware = Firmware::Uefi;
        spec.uuid = Some("00000000-0000-0000-0000-000000000001".to_owned());
        spec.serial = Some("S1".to_owned());
        spec.disks.push(DiskSpec {
            path: "/m/a,b".into(),
            format: DiskFormat::Raw,
            serial: "disk-1".to_owned(),
        });
        let text = spec.render_arguments(Accelerator::Tcg, "tap0", Some(Path::new("/code.fd"))).join(" ");
        assert_eq!(
            text,
            "-name control-1 -nodefaults -no-user-config -display none \
             -accel tcg,thread=multi -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt -machine q35,graphics=off -smp 2 -m 1024 \
             -chardev file,id=console,append=on,path=/m/console.log -serial chardev:console \
             -qmp unix:/m/qmp.sock,server=on,wait=off -device virtio-rng-pci \
             -drive if=pflash,unit=0,format=raw,readonly=on,file=/code.fd \
             -drive if=pflash,unit=1,format=raw,file=/m/uefi-variables.fd \
             -fw_cfg name=opt/org.tianocore/IPv6PXESupport,string=no \
             -uuid 00000000-0000-0000-0000-000000000001 -smbios type=1,serial=S1 \
             -netdev tap,id=net0,ifname=tap0,script=no,downscript=no \
             -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,bootindex=0,romfile= \
             -drive if=none,id=disk0,format=raw,cache=unsafe,discard=unmap,file=/m/a,,b \
             -device virtio-blk-pci,drive=disk0,serial=disk-1,bootindex=1"
        );
    }
}

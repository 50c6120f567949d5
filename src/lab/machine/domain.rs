//! A machine and its network as libvirt wants to be told of them, in XML. Pure.
//!
//! The machine is the one that [`MachineSpec`] describes and QEMU's arguments make, as far as libvirt lets it be. What is
//! different: libvirt chooses the addresses of devices, the console is also on a terminal of its own (`virsh console`), and
//! the machine always has a UUID.

use std::fmt::Write as _;

use super::accelerator::{Accelerator, TRANSLATED};
use super::spec::{Boot, DiskFormat, MachineSpec};

/// Where a machine is in libvirt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The domain's name.
    pub name: &'a str,
    /// The domain's UUID.
    pub uuid: &'a str,
    /// The bridge that its card is plugged into.
    pub bridge: &'a str,
    /// Security drivers that would keep it from its files.
    pub confining: &'a [&'a str],
}

/// A network with no way out, and with an address of this machine on its bridge.
///
/// No DHCP and no names: the cluster's dnsmasq gives them out, on libvirt as elsewhere.
pub(super) fn render_network(name: &str, bridge: &str, address: &str, prefix: &str) -> String {
    let (name, bridge) = (escape(name), escape(bridge));
    format!(
        "<network>\n  <name>{name}</name>\n  <bridge name='{bridge}' stp='off' delay='0'/>\n  <dns enable='no'/>\n  \
         <ip address='{}' prefix='{}'/>\n</network>\n",
        escape(address),
        escape(prefix)
    )
}

/// The domain of a machine.
pub(super) fn render_domain(spec: &MachineSpec, accelerator: Accelerator, place: Place<'_>) -> String {
    let kind = if accelerator == Accelerator::Kvm { "kvm" } else { "qemu" };
    let mut lines = vec![
        format!("<domain type='{kind}'>"),
        format!("  <name>{}</name>", escape(place.name)),
        format!("  <uuid>{}</uuid>", escape(place.uuid)),
        format!("  <memory unit='MiB'>{}</memory>", spec.memory_mib),
        format!("  <vcpu>{}</vcpu>", spec.cpus),
    ];
    lines.push("  <os>\n    <type arch='x86_64' machine='q35'>hvm</type>".to_owned());
    lines.push(render_boot(&spec.boot));
    // SeaBIOS and what it starts (iPXE, GRUB) speak on the serial console.
    lines.push("    <bios useserial='yes'/>".to_owned());
    if !spec.credentials.is_empty() {
        lines.push("    <smbios mode='sysinfo'/>".to_owned());
    }
    lines.push("  </os>".to_owned());
    if !spec.credentials.is_empty() {
        lines.push("  <sysinfo type='smbios'>\n    <oemStrings>".to_owned());
        for (name, value) in &spec.credentials {
            let entry = escape(&format!("io.systemd.credential:{name}={value}"));
            lines.push(format!("      <entry>{entry}</entry>"));
        }
        lines.push("    </oemStrings>\n  </sysinfo>".to_owned());
    }
    // Without ACPI it would not hear its power button.
    lines.push("  <features>\n    <acpi/>\n  </features>".to_owned());
    lines.push(render_processor(accelerator));
    lines.push("  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>".to_owned());
    lines.push("  <devices>".to_owned());
    for (number, disk) in spec.disks.iter().enumerate() {
        let (format, cache) = match disk.format {
            DiskFormat::Raw => ("raw", "unsafe"),
            DiskFormat::Qcow2 => ("qcow2", "writeback"),
        };
        let letter = char::from(b'a' + u8::try_from(number).unwrap_or_default());
        lines.push("    <disk type='file' device='disk'>".to_owned());
        lines.push(format!("      <driver name='qemu' type='{format}' cache='{cache}' discard='unmap'/>"));
        lines.push(format!("      <source file='{}'/>", escape(&disk.path.to_string_lossy())));
        lines.push(format!("      <target dev='vd{letter}' bus='virtio'/>"));
        lines.push(format!("      <serial>{}</serial>\n    </disk>", escape(&disk.serial)));
    }
    let console = spec.console_path();
    lines.push(format!(
        "    <interface type='bridge'>\n      <mac address='{}'/>\n      <source bridge='{}'/>\n      \
         <model type='virtio'/>\n    </interface>",
        escape(&spec.mac),
        escape(place.bridge)
    ));
    lines.push(format!(
        "    <serial type='pty'>\n      <log file='{}' append='on'/>\n    </serial>",
        escape(&console.to_string_lossy())
    ));
    lines.push("    <rng model='virtio'>\n      <backend model='random'>/dev/urandom</backend>".to_owned());
    lines.push(
        "    </rng>\n    <controller type='usb' model='none'/>\n    <memballoon model='none'/>".to_owned(),
    );
    lines.push("  </devices>".to_owned());
    // As on QEMU alone: its files are root's, in a directory that nobody else may enter.
    lines.push("  <seclabel type='static' model='dac' relabel='no'>".to_owned());
    lines.push("    <label>+0:+0</label>\n  </seclabel>".to_owned());
    for model in place.confining {
        lines.push(format!("  <seclabel type='none' model='{}'/>", escape(model)));
    }
    lines.join("\n") + "\n</domain>\n"
}

fn render_boot(boot: &Boot) -> String {
    match boot {
        Boot::NetworkThenDisk => "    <boot dev='network'/>\n    <boot dev='hd'/>".to_owned(),
        Boot::Disk => "    <boot dev='hd'/>".to_owned(),
        Boot::Kernel { kernel, initramfs, arguments } => format!(
            "    <kernel>{}</kernel>\n    <initrd>{}</initrd>\n    <cmdline>{}</cmdline>",
            escape(&kernel.to_string_lossy()),
            escape(&initramfs.to_string_lossy()),
            escape(arguments)
        ),
    }
}

fn render_processor(accelerator: Accelerator) -> String {
    if accelerator == Accelerator::Kvm {
        return "  <cpu mode='host-passthrough'/>".to_owned();
    }
    let mut parts = TRANSLATED.split(",+");
    let mut text = format!(
        "  <cpu mode='custom' match='exact'>\n    <model fallback='forbid'>{}</model>",
        escape(parts.next().unwrap_or_default())
    );
    for feature in parts {
        let _ = write!(text, "\n    <feature policy='require' name='{}'/>", escape(feature));
    }
    text + "\n  </cpu>"
}

/// Text, or an attribute's value in either kind of quotes (XML 1.0, 2.4).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            // A reader would make blanks of them in an attribute.
            '\t' | '\n' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(character));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::machine::DiskSpec;

    const PLACE: Place<'_> = Place {
        name: "rackstep-cluster-dev-control",
        uuid: "3f2a9c01-5d47-8b57-8c1e-0a6f5f3f1b22",
        bridge: "rs-0123456789",
        confining: &[],
    };

    fn spec() -> MachineSpec {
        let mut spec = MachineSpec::new("control", "/home/o'neil & sons/<dev>");
        spec.boot = Boot::Disk;
        spec.memory_mib = 4096;
        spec.cpus = 3;
        spec.mac = "52:54:00:5a:00:0b".to_owned();
        let (path, serial) = (spec.dir.join("disk.qcow2"), "control".to_owned());
        spec.disks.push(DiskSpec { path, format: DiskFormat::Qcow2, serial });
        spec.credentials.push(("system.hostname".to_owned(), "control".to_owned()));
        spec
    }

    #[test]
    fn a_whole_domain() {
        assert_eq!(
            render_domain(&spec(), Accelerator::Tcg, PLACE),
            "<domain type='qemu'>
  <name>rackstep-cluster-dev-control</name>
  <uuid>3f2a9c01-5d47-8b57-8c1e-0a6f5f3f1b22</uuid>
  <memory unit='MiB'>4096</memory>
  <vcpu>3</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <boot dev='hd'/>
    <bios useserial='yes'/>
    <smbios mode='sysinfo'/>
  </os>
  <sysinfo type='smbios'>
    <oemStrings>
      <entry>io.systemd.credential:system.hostname=control</entry>
    </oemStrings>
  </sysinfo>
  <features>
    <acpi/>
  </features>
  <cpu mode='custom' match='exact'>
    <model fallback='forbid'>qemu64</model>
    <feature policy='require' name='ssse3'/>
    <feature policy='require' name='sse4.1'/>
    <feature policy='require' name='sse4.2'/>
    <feature policy='require' name='popcnt'/>
  </cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='writeback' discard='unmap'/>
      <source file='/home/o&apos;neil &amp; sons/&lt;dev&gt;/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>control</serial>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:5a:00:0b'/>
      <source bridge='rs-0123456789'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'>
      <log file='/home/o&apos;neil &amp; sons/&lt;dev&gt;/console.log' append='on'/>
    </serial>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <seclabel type='static' model='dac' relabel='no'>
    <label>+0:+0</label>
  </seclabel>
</domain>
"
        );
    }

    #[test]
    fn domains_by_kind() {
        let kvm = render_domain(&spec(), Accelerator::Kvm, PLACE);
        assert!(
            kvm.contains("<domain type='kvm'>") && kvm.contains("<cpu mode='host-passthrough'/>"),
            "{kvm}"
        );
        let mut spec = spec();
        spec.boot = Boot::Kernel {
            kernel: "/boot/vmlinuz".into(),
            initramfs: "/boot/initramfs".into(),
            arguments: "console=ttyS0 a=\"b\"".to_owned(),
        };
        spec.credentials.clear();
        let place = Place { confining: &["apparmor"], ..PLACE };
        let kernel = render_domain(&spec, Accelerator::Tcg, place);
        assert!(kernel.contains("<cmdline>console=ttyS0 a=&quot;b&quot;</cmdline>"), "{kernel}");
        assert!(kernel.contains("\n  <seclabel type='none' model='apparmor'/>\n</domain>\n"), "{kernel}");
        assert!(!kernel.contains("sysinfo") && !kernel.contains("<boot "), "{kernel}");
    }

    #[test]
    fn a_network_without_a_way_out() {
        assert_eq!(
            render_network("rackstep-cluster-dev", "rs-0123456789", "10.90.0.1", "24"),
            "<network>
  <name>rackstep-cluster-dev</name>
  <bridge name='rs-0123456789' stp='off' delay='0'/>
  <dns enable='no'/>
  <ip address='10.90.0.1' prefix='24'/>
</network>
"
        );
    }

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escape("a<b>&'c'\"d\"\n\te"), "a&lt;b&gt;&amp;&apos;c&apos;&quot;d&quot;&#10;&#9;e");
    }
}

//! dnsmasq's configuration: DHCP, and TFTP for the boot program.
//!
//! 1. BIOS and UEFI network ROMs get iPXE by TFTP, UEFI HTTP boot gets it by HTTP;
//! 2. iPXE itself gets its machine's script;
//! 3. known machines get their own address, others one of the range.

use std::fmt::Write;
use std::path::Path;

use super::ipxe::SCRIPT_QUERY;
use crate::model::rack::Rack;

/// iPXE for BIOS, in Debian's `ipxe`.
pub const BIOS_PROGRAM: &str = "undionly.kpxe";
/// iPXE for UEFI x64, which uses the firmware's own driver of the card it was loaded by.
pub const UEFI_PROGRAM: &str = "snponly.efi";

/// Client architectures (RFC 4578 and its successors): 7 and 9 are both in use for UEFI x64.
const BIOS: &[u16] = &[0];
const UEFI: &[u16] = &[7, 9];
const UEFI_HTTP: &[u16] = &[16];

/// Where dnsmasq finds and keeps its files.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// Holds [`BIOS_PROGRAM`] and [`UEFI_PROGRAM`].
    pub tftp: &'a Path,
    /// Leases, kept over restarts.
    pub leases: &'a Path,
}

/// The whole configuration file.
pub fn render_dnsmasq(rack: &Rack, files: Files<'_>) -> String {
    let network = &rack.network;
    let (first, last) = network.range;
    let (mask, server) = (network.address.mask(), network.server_url());
    let or_none = |name: &str, values: Vec<String>| {
        // An option without a value is not sent: dnsmasq would otherwise name itself.
        let values = values.iter().map(|value| format!(",{value}")).collect::<String>();
        format!("dhcp-option=option:{name}{values}")
    };
    let mut lines = vec![
        format!("# Rack {}: rendered by rackstep serve, overwritten at its next start.", rack.name),
        "port=0".to_owned(),
        format!("interface={}", network.interface),
        "except-interface=lo".to_owned(),
        "bind-interfaces".to_owned(),
        "no-hosts".to_owned(),
        "no-resolv".to_owned(),
        "log-dhcp".to_owned(),
        format!("dhcp-leasefile={}", files.leases.display()),
        "dhcp-authoritative".to_owned(),
        "# Pinging an address before it is offered costs three seconds per machine.".to_owned(),
        "no-ping".to_owned(),
        format!("dhcp-range={first},{last},{mask},1h"),
        or_none("router", network.gateway.iter().map(ToString::to_string).collect()),
        or_none("dns-server", network.dns.iter().map(ToString::to_string).collect()),
    ];
    for host in &rack.hosts {
        let Some(mac) = host.mac else { continue };
        let mut line = format!("dhcp-host={mac}");
        if let Some(own) = host.address {
            let _ = write!(line, ",{}", own.address);
        }
        let _ = write!(line, ",{}", host.name);
        lines.push(line);
    }
    lines.push("# Who asks.".to_owned());
    lines.push("dhcp-match=set:ipxe,175".to_owned());
    for (tag, architectures) in [("bios", BIOS), ("uefi", UEFI), ("uefi-http", UEFI_HTTP)] {
        for number in architectures {
            lines.push(format!("dhcp-match=set:{tag},option:client-arch,{number}"));
        }
    }
    lines.extend([
        "# What it boots.".to_owned(),
        "enable-tftp".to_owned(),
        format!("tftp-root={}", files.tftp.display()),
        format!("dhcp-boot=tag:!ipxe,tag:bios,{BIOS_PROGRAM}"),
        format!("dhcp-boot=tag:!ipxe,tag:uefi,{UEFI_PROGRAM}"),
        "dhcp-option-force=tag:!ipxe,tag:uefi-http,60,HTTPClient".to_owned(),
        format!("dhcp-boot=tag:!ipxe,tag:uefi-http,{server}/boot/{UEFI_PROGRAM}"),
        format!("dhcp-boot=tag:ipxe,{server}{SCRIPT_QUERY}"),
        "# Option 175.176: iPXE need not wait for a proxy's offer.".to_owned(),
        "dhcp-option-force=tag:ipxe,encap:175,176,1b".to_owned(),
    ]);
    lines.join("\n") + "\n"
}

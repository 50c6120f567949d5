//! dnsmasq's configuration: for a rack, DHCP and TFTP for the boot program; for a developer's cluster, DHCP and names.
//!
//! 1. BIOS and UEFI network ROMs get iPXE by TFTP, UEFI HTTP boot gets it by HTTP;
//! 2. iPXE itself gets its machine's script;
//! 3. known machines get their own address, or one that is kept for them; others one of the rest of the range.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;

use super::ipxe::SCRIPT_QUERY;
use crate::model::cluster::{ClusterMachine, DOMAIN, SERVER};
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
        "# One card has one lease, whatever it calls itself, and there are as many as addresses.".to_owned(),
        "dhcp-ignore-clid".to_owned(),
        format!("dhcp-lease-max={}", addresses(network.range) + u64::try_from(rack.hosts.len()).unwrap_or(0)),
    ];
    lines.extend(ranges(rack).into_iter().map(|range| format!("dhcp-range={range},{mask},1h")));
    lines.extend([
        or_none("router", network.gateway.iter().map(ToString::to_string).collect()),
        or_none("dns-server", network.dns.iter().map(ToString::to_string).collect()),
    ]);
    for (number, host) in rack.hosts.iter().enumerate() {
        let Some(mac) = host.mac else { continue };
        let mut line = format!("dhcp-host={mac}");
        // A name that dnsmasq would read as something else is sent as an option instead.
        if is_word(&host.name) {
            let _ = write!(line, ",set:host{number}");
        }
        if let Some(own) = host.address {
            let _ = write!(line, ",{}", own.address);
        }
        if !is_word(&host.name) {
            let _ = write!(line, ",{}", host.name);
        }
        lines.push(line);
        if is_word(&host.name) {
            lines.push(format!("dhcp-option-force=tag:host{number},option:hostname,\"{}\"", host.name));
        }
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

fn addresses((first, last): (Ipv4Addr, Ipv4Addr)) -> u64 {
    u64::from(last.to_bits().saturating_sub(first.to_bits())) + 1
}

/// The range; its first addresses are for the rack's own hosts that have none in the rack file, so that strangers cannot take
/// the last one. Hosts that are known by UUID or serial number alone are strangers to DHCP.
fn ranges(rack: &Rack) -> Vec<String> {
    let (first, last) = rack.network.range;
    let own = rack.hosts.iter().filter(|host| host.mac.is_some() && host.address.is_none()).count();
    match u32::try_from(own) {
        Ok(own @ 1..) if u64::from(own) < addresses((first, last)) => {
            let border = Ipv4Addr::from_bits(first.to_bits() + own);
            let before = Ipv4Addr::from_bits(border.to_bits() - 1);
            vec![format!("tag:known,{first},{before}"), format!("tag:!known,{border},{last}")]
        }
        _ => vec![format!("{first},{last}")],
    }
}

/// What dnsmasq(8) reads in a `dhcp-host` line as a lease time (`42`, `45m`, `infinite`) or an order (`ignore`).
fn is_word(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let number = name.strip_suffix(['s', 'm', 'h', 'd', 'w']).unwrap_or(&name);
    ["infinite", "ignore"].contains(&name.as_str())
        || (!number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
}

/// Where the DHCP and name server of a developer's cluster keeps its files.
#[derive(Debug, Clone, Copy)]
pub struct ClusterFiles<'a> {
    /// Its process id.
    pub pid: &'a Path,
    /// Leases, kept over restarts.
    pub leases: &'a Path,
}

/// The configuration for a developer's cluster: an address and a name for each of its machines, and for nobody else.
pub fn render_cluster_dnsmasq(
    interface: &str,
    machines: &[ClusterMachine],
    files: ClusterFiles<'_>,
) -> String {
    // The router leads nowhere; but the services of a machine announce the address that it has towards its default route.
    let mut lines = vec![
        "# Rendered by rackstep cluster up, overwritten by the next one.".to_owned(),
        format!("interface={interface}"),
        "except-interface=lo".to_owned(),
        "bind-interfaces".to_owned(),
        "no-hosts".to_owned(),
        "no-resolv".to_owned(),
        "# The cluster's directory is root's alone.".to_owned(),
        "user=root".to_owned(),
        format!("pid-file={}", files.pid.display()),
        format!("dhcp-leasefile={}", files.leases.display()),
        "dhcp-authoritative".to_owned(),
        "no-ping".to_owned(),
        format!("dhcp-range={SERVER},static,12h"),
        format!("dhcp-option=option:router,{SERVER}"),
        format!("dhcp-option=option:dns-server,{SERVER}"),
        format!("local=/{DOMAIN}/"),
    ];
    for ClusterMachine { name, address, mac, .. } in machines {
        lines.push(format!("dhcp-host={mac},{address},{name}"));
        lines.push(format!("host-record={name}.{DOMAIN},{name},{address}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_configuration() {
        let rack: Rack = serde_yaml_ng::from_str(
            "name: rack-a\n\
             network: {interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199], gateway: 10.77.0.254}\n\
             profiles: {control: {ref: a/b}}\n\
             hosts:\n\
             - {name: control-1, mac: '52:54:00:00:00:01', profile: control, address: 10.77.0.11/24}\n\
             - {name: control-2, mac: '52:54:00:00:00:02', profile: control}\n\
             - {name: control-3, serial: S3, profile: control}\n",
        )
        .unwrap();
        let files = Files { tftp: Path::new("/usr/lib/ipxe"), leases: Path::new("/state/leases") };
        let expected = "\
# Rack rack-a: rendered by rackstep serve, overwritten at its next start.
port=0
interface=rack0
except-interface=lo
bind-interfaces
no-hosts
no-resolv
log-dhcp
dhcp-leasefile=/state/leases
dhcp-authoritative
# Pinging an address before it is offered costs three seconds per machine.
no-ping
# One card has one lease, whatever it calls itself, and there are as many as addresses.
dhcp-ignore-clid
dhcp-lease-max=103
dhcp-range=tag:known,10.77.0.100,10.77.0.100,255.255.255.0,1h
dhcp-range=tag:!known,10.77.0.101,10.77.0.199,255.255.255.0,1h
dhcp-option=option:router,10.77.0.254
dhcp-option=option:dns-server
dhcp-host=52:54:00:00:00:01,10.77.0.11,control-1
dhcp-host=52:54:00:00:00:02,control-2
# Who asks.
dhcp-match=set:ipxe,175
dhcp-match=set:bios,option:client-arch,0
dhcp-match=set:uefi,option:client-arch,7
dhcp-match=set:uefi,option:client-arch,9
dhcp-match=set:uefi-http,option:client-arch,16
# What it boots.
enable-tftp
tftp-root=/usr/lib/ipxe
dhcp-boot=tag:!ipxe,tag:bios,undionly.kpxe
dhcp-boot=tag:!ipxe,tag:uefi,snponly.efi
dhcp-option-force=tag:!ipxe,tag:uefi-http,60,HTTPClient
dhcp-boot=tag:!ipxe,tag:uefi-http,http://10.77.0.1:8080/boot/snponly.efi
dhcp-boot=tag:ipxe,http://10.77.0.1:8080/boot/ipxe?mac=${mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}
# Option 175.176: iPXE need not wait for a proxy's offer.
dhcp-option-force=tag:ipxe,encap:175,176,1b
";
        assert_eq!(render_dnsmasq(&rack, files), expected);
    }

    #[test]
    fn names_that_are_words_are_sent_as_names() {
        for name in ["42", "1d", "7W", "45m", "ignore", "INFINITE"] {
            assert!(is_word(name), "{name}");
        }
        for name in ["db-1", "a1", "d", "1x", "42.rack", "ignored"] {
            assert!(!is_word(name), "{name}");
        }
        let rack: Rack = serde_yaml_ng::from_str(
            "name: r\nnetwork: {interface: lo, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199]}\n\
             profiles: {p: {ref: a/b}}\n\
             hosts:\n\
             - {name: '1d', mac: '52:54:00:ab:00:01', profile: p, address: 10.77.0.21/24}\n\
             - {name: '42', mac: '52:54:00:ab:00:02', profile: p}\n",
        )
        .unwrap();
        let text = render_dnsmasq(&rack, Files { tftp: Path::new("/t"), leases: Path::new("/l") });
        let expected = "dhcp-host=52:54:00:ab:00:01,set:host0,10.77.0.21\n\
                        dhcp-option-force=tag:host0,option:hostname,\"1d\"\n\
                        dhcp-host=52:54:00:ab:00:02,set:host1\n\
                        dhcp-option-force=tag:host1,option:hostname,\"42\"\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_developers_cluster() {
        let machine = ClusterMachine::new("control".into(), crate::model::cluster::Role::Control, 1, 1024, 1);
        let files = ClusterFiles { pid: Path::new("/c/dnsmasq.pid"), leases: Path::new("/c/leases") };
        let text = render_cluster_dnsmasq("rack0", &[machine], files);
        assert!(
            text.contains("\ninterface=rack0\n") && text.contains("\npid-file=/c/dnsmasq.pid\n"),
            "{text}"
        );
        assert!(
            text.ends_with(
                "dhcp-host=52:54:00:5a:00:0b,10.90.0.11,control\nhost-record=control.cluster.internal,control,10.90.0.11\n"
            ),
            "{text}"
        );
    }
}

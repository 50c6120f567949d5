//! Rack files: the network, profiles and hosts of one rack.
//!
//! 1. The YAML is read into the model's types, which parse addresses and refs; 2. what belongs together is checked.
//!
//! An error names file, line and the thing: a rack file that is half right would image the wrong machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::imaging::plan::SMALLEST_DISK;
use crate::model::identity::{
    machine_serial, machine_uuid, normal_path, normal_text, normal_uuid, normal_wwn,
};
use crate::model::place::{InputError, InputErrors, Place, SourceText};
use crate::model::rack::{NEWEST, Rack, RackHost};
use crate::ostree::signature::PublicKey;

/// Parses and checks a rack file, and tells everything that is wrong with it.
pub fn parse_rack(source: &SourceText) -> Result<Rack, InputErrors> {
    let rack: Rack = source.parse().map_err(|error| InputErrors(vec![error]))?;
    let mut faults = network_faults(source, &rack);
    if rack.profiles.is_empty() {
        faults.push(source.error("profiles", "profiles", "a rack needs a profile"));
    }
    for (name, profile) in &rack.profiles {
        let is_release = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace());
        if !is_release(&profile.release) {
            let message = format!("release of profile {name:?} must be {NEWEST:?}, a version or a commit");
            faults.push(source.error("profiles", name, message));
        }
        for bad in profile.kernel_arguments.iter().filter(|argument| !is_kernel_argument(argument)) {
            faults.push(source.error("profiles", bad, format!("{bad:?} is not one kernel argument")));
        }
    }
    faults.extend(key_faults(source, &rack));
    let mut seen = Seen::default();
    for host in &rack.hosts {
        faults.extend(host_faults(source, &rack, host));
        faults.extend(seen.require_new(source, host).err());
    }
    if faults.is_empty() { Ok(rack) } else { Err(InputErrors(faults)) }
}

/// A key that is none would be found out by the first host that trusts it, or when nobody can log in.
fn key_faults(source: &SourceText, rack: &Rack) -> Vec<InputError> {
    let mut faults = Vec::new();
    for key in rack.trusted_keys.iter().filter(|key| PublicKey::parse(key).is_none()) {
        let message =
            format!("{key:?} is not an ed25519 public key in base64, as `release sign` writes it to KEY.pub");
        faults.push(source.error("trusted_keys", key, message));
    }
    for key in rack.ssh_keys.iter().filter(|key| !is_ssh_key(key)) {
        let message = format!("{key:?} is not a line of authorized_keys (TYPE KEY COMMENT)");
        faults.push(source.error("ssh_keys", key, message));
    }
    let keys = source.parse::<BTreeMap<String, serde::de::IgnoredAny>>().unwrap_or_default();
    if !keys.contains_key("ssh_keys") {
        let message = "no ssh key: nobody could log in to a host. Add ssh_keys, or say `ssh_keys: []`";
        faults.push(InputError::of_file(&source.file, message));
    }
    faults
}

/// A line of sshd's AUTHORIZED_KEYS FILE FORMAT: perhaps options, then a type, and a key that begins with its type.
fn is_ssh_key(line: &str) -> bool {
    if line.trim().lines().count() != 1 {
        return false;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|pair| {
        let is_type = ["ssh-", "ecdsa-", "sk-"].iter().any(|start| pair[0].starts_with(start));
        is_type && BASE64.decode(pair[1]).is_ok_and(|key| begins_with(&key, pair[0].as_bytes()))
    })
}

/// Does the key's first string, its length before it (RFC 4253, 6.6), say `kind`, and does more follow?
fn begins_with(key: &[u8], kind: &[u8]) -> bool {
    let Some((length, rest)) = key.split_first_chunk::<4>() else { return false };
    u32::from_be_bytes(*length) as usize == kind.len()
        && rest.starts_with(kind)
        && rest.len() > kind.len() + 4
}

fn network_faults(source: &SourceText, rack: &Rack) -> Vec<InputError> {
    let network = &rack.network;
    let mut faults = Vec::new();
    let mut fail = |value: &str, message: String| faults.push(source.error("network", value, message));
    let (first, last) = network.range;
    for address in [first, last].into_iter().chain(network.gateway) {
        if !network.address.has_neighbour(address) {
            fail(&address.to_string(), format!("{address} is not in the network of {}", network.address));
        }
    }
    if first > last {
        fail(&first.to_string(), format!("the range goes backwards: {first} is after {last}"));
    }
    if (first..=last).contains(&network.address.address) {
        let message = format!("the range holds the server's own address {}", network.address.address);
        fail(&first.to_string(), message);
    }
    let is_interface = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if network.interface.is_empty()
        || network.interface.len() > 15
        || !network.interface.chars().all(is_interface)
    {
        fail(&network.interface, format!("{:?} is not an interface name", network.interface));
    }
    faults
}

fn host_faults(source: &SourceText, rack: &Rack, host: &RackHost) -> Vec<InputError> {
    let name = &host.name;
    let mut faults = Vec::new();
    let mut fail = |value: &str, message: String| faults.push(source.error("hosts", value, message));
    let is_label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if !name.split('.').all(is_label) {
        fail(name, format!("{name:?} is not a host name (letters, digits and '-')"));
    }
    if !rack.profiles.contains_key(&host.profile) {
        let known: Vec<&str> = rack.profiles.keys().map(String::as_str).collect();
        fail(
            &host.profile,
            format!(
                "host {name:?} has profile {:?}, which is not below profiles: {}",
                host.profile,
                known.join(", ")
            ),
        );
    }
    if host.mac.is_none() && host.uuid.is_none() && host.serial.is_none() {
        fail(name, format!("host {name:?} needs a mac, a uuid or a serial: by what would it be known?"));
    }
    if let Some(own) = host.address {
        let (first, last) = rack.network.range;
        let text = own.address.to_string();
        if !rack.network.address.has_neighbour(own.address) || own.prefix != rack.network.address.prefix {
            fail(
                &own.to_string(),
                format!("address {own} of host {name:?} is not in the network of {}", rack.network.address),
            );
        }
        if (first..=last).contains(&own.address) || own.address == rack.network.address.address {
            fail(
                &own.to_string(),
                format!("address {text} of host {name:?} is in the DHCP range or the server's own"),
            );
        }
    }
    faults.extend(require_identity(source, host).err());
    faults.extend(require_disk_rule(source, host).err());
    faults
}

/// A selector that is many machines' name, or nobody's, would image the wrong machine or none.
fn require_identity(source: &SourceText, host: &RackHost) -> Result<(), InputError> {
    let name = &host.name;
    let fail = |value: &str, message: String| Err(source.error("hosts", value, message));
    let way_out = "name the machine by its mac";
    if let Some(uuid) = &host.uuid {
        if normal_uuid(uuid).is_none() {
            return fail(
                uuid,
                format!("uuid {uuid:?} of host {name:?} is not a UUID: it would match no machine"),
            );
        }
        if machine_uuid(uuid).is_none() {
            return fail(
                uuid,
                format!("uuid {uuid} of host {name:?} is one that many boards have; {way_out}"),
            );
        }
    }
    match &host.serial {
        Some(serial) if machine_serial(serial).is_none() => fail(
            serial,
            format!("serial {serial:?} of host {name:?} is what vendors leave in place of one; {way_out}"),
        ),
        _ => Ok(()),
    }
}

/// A rule that can match no disk is a mistake, whatever the machine has.
fn require_disk_rule(source: &SourceText, host: &RackHost) -> Result<(), InputError> {
    let (name, disk) = (&host.name, &host.disk);
    let fail = |value: &str, message: String| Err(source.error("hosts", value, message));
    for (field, value) in [("serial", &disk.serial), ("model", &disk.model)] {
        if value.as_deref().is_some_and(|text| normal_text(text).is_empty()) {
            return fail(name, format!("disk rule of host {name:?}: an empty {field} matches no disk"));
        }
    }
    if let Some(wwn) = disk.wwn.as_ref().filter(|wwn| normal_wwn(wwn).is_none()) {
        let message = format!(
            "disk rule of host {name:?}: {wwn:?} is not a world-wide name (hexadecimal digits, as in 0x5000c500a1b2c3d4)"
        );
        return fail(wwn, message);
    }
    if let Some(path) = disk.path.as_ref().filter(|path| normal_path(path).is_none()) {
        let message = format!("disk rule of host {name:?}: {path:?} is not a link below /dev/disk/by-path");
        return fail(path, message);
    }
    if let Some(most) = disk.max_size.filter(|most| *most < SMALLEST_DISK) {
        let message = format!(
            "disk rule of host {name:?}: max_size is under the {} GiB that a host needs",
            SMALLEST_DISK >> 30
        );
        return fail(&most.to_string(), message);
    }
    if let (Some(least), Some(most)) = (disk.min_size, disk.max_size)
        && least > most
    {
        return fail(&least.to_string(), format!("disk rule of host {name:?}: min_size is over max_size"));
    }
    Ok(())
}

fn is_kernel_argument(text: &str) -> bool {
    crate::model::kernel_argument::problem_of(text).is_none()
}

/// The last line that holds `thing`, whatever the case: the second one of two.
fn last_place(source: &SourceText, thing: &str) -> Place {
    let thing = thing.to_ascii_lowercase();
    let found = source.text.lines().enumerate().filter_map(|(number, line)| {
        line.to_ascii_lowercase().find(&thing).map(|column| (number + 1, column + 1))
    });
    Place { file: source.file.clone(), position: found.last() }
}

#[derive(Default)]
struct Seen {
    names: BTreeSet<String>,
    selectors: BTreeSet<String>,
    addresses: BTreeSet<Ipv4Addr>,
}

impl Seen {
    fn require_new(&mut self, source: &SourceText, host: &RackHost) -> Result<(), InputError> {
        let twice = |thing: String| {
            Err(InputError { place: last_place(source, &thing), message: format!("{thing} is there twice") })
        };
        if !self.names.insert(host.name.to_ascii_lowercase()) {
            return twice(host.name.clone());
        }
        // Kept as they are compared, told as they are written.
        let selectors = [
            host.mac.map(|mac| (mac.to_string(), mac.to_string())),
            host.uuid.clone().map(|uuid| (machine_uuid(&uuid).unwrap_or_default(), uuid)),
            host.serial.clone().map(|serial| (machine_serial(&serial).unwrap_or_default(), serial)),
        ];
        for (selector, written) in selectors.into_iter().flatten() {
            if !self.selectors.insert(selector) {
                return twice(written);
            }
        }
        match host.address {
            Some(own) if !self.addresses.insert(own.address) => twice(own.to_string()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD_UUID: &str = "6f8f0a0c-0000-4000-8000-000000000002";
    const SELECTOR: &str = "uuid: 6f8f0a0c-0000-4000-8000-000000000002";

    const GOOD: &str = r#"name: rack-a
network: {interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199], gateway: 10.77.0.1}
repo: /srv/rackstep/repo
ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"]
profiles:
  control:
    ref: rackstep/x86_64/openstack-host
    kernel_arguments: ["console=ttyS0,115200n8"]
hosts:
  - {name: control-1, mac: "52:54:00:00:00:01", profile: control, address: 10.77.0.11/24, disk: {serial: disk-1}}
  - name: control-2
    uuid: 6f8f0a0c-0000-4000-8000-000000000002
    profile: control
"#;

    fn parse(text: &str) -> Result<Rack, InputErrors> {
        parse_rack(&SourceText::new("rack.yaml", text))
    }

    #[test]
    fn the_example_is_a_good_rack() {
        let text = include_str!("../../pxe/rack.example.yaml");
        let rack = parse(text).unwrap();
        assert_eq!(rack.hosts.len(), 3);
    }

    #[test]
    fn a_good_rack() {
        let rack = parse(GOOD).unwrap();
        assert_eq!(rack.network.server_url(), "http://10.77.0.1:8080");
        assert_eq!(rack.profiles["control"].release, "newest");
        let mac = "52:54:00:00:00:01".parse().unwrap();
        assert_eq!(rack.find_host(mac, None, None).unwrap().name, "control-1");
        let other = "52:54:00:00:00:09".parse().unwrap();
        assert!(rack.find_host(other, None, None).is_none());
        let uuid = Some("6F8F0A0C-0000-4000-8000-000000000002");
        assert_eq!(rack.find_host(other, uuid, None).unwrap().name, "control-2");
    }

    #[test]
    fn wrong_racks_name_file_line_and_thing() {
        let table = [
            ("52:54:00:00:00:01", "52:54:00:00:00", "rack.yaml:10:", "not a MAC address"),
            (
                "10.77.0.11/24",
                "10.78.0.11/24",
                "rack.yaml:10:",
                "address 10.78.0.11/24 of host \"control-1\" is not in the network",
            ),
            ("10.77.0.11/24", "10.77.0.120/24", "rack.yaml:10:", "in the DHCP range"),
            (
                "profile: control, ",
                "profile: compute, ",
                "rack.yaml:10:",
                "profile \"compute\", which is not below profiles: control",
            ),
            ("gateway: 10.77.0.1}", "gateway: 10.78.0.1}", "rack.yaml:2:", "10.78.0.1 is not in the network"),
            ("[10.77.0.100, 10.77.0.199]", "[10.77.0.199, 10.77.0.100]", "rack.yaml:2:", "backwards"),
            ("control-2", "control-1", "rack.yaml:11:", "control-1 is there twice"),
            ("control-2", "control_2", "rack.yaml:11:", "not a host name"),
            (
                "    uuid: 6f8f0a0c-0000-4000-8000-000000000002\n",
                "",
                "rack.yaml:11:",
                "needs a mac, a uuid or a serial",
            ),
            ("disk: {serial: disk-1}", "disk: {seral: disk-1}", "rack.yaml:10:", "seral"),
            ("name: rack-a\n", "", "rack.yaml:1:", "missing field `name`"),
            ("rackstep/x86_64/openstack-host", "../x", "rack.yaml:7:", "is not a ref"),
            ("AAAAC3NzaC1lZDI1", "AAAA", "rack.yaml:4:", "is not a line of authorized_keys"),
            ("ssh_keys: [\"", "ssh_keys: [\"no-pty,", "rack.yaml:4:", "is not a line of authorized_keys"),
            (
                "ssh_keys:",
                "trusted_keys: [c2hvcnQ=]\nssh_keys:",
                "rack.yaml:4:",
                "is not an ed25519 public key",
            ),
            (GOOD_UUID, "03000200-0400-0500-0006-000700080009", "rack.yaml:12:", "many boards have"),
            (GOOD_UUID, "\"{FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF}\"", "rack.yaml:12:", "many boards have"),
            (GOOD_UUID, "6f8f0a0c", "rack.yaml:12:", "is not a UUID: it would match no machine"),
            (
                SELECTOR,
                "serial: To be filled by O.E.M.",
                "rack.yaml:12:",
                "leave in place of one; name the machine by its mac",
            ),
            ("{serial: disk-1}", "{serial: \" \"}", "rack.yaml:10:", "an empty serial matches no disk"),
            ("{serial: disk-1}", "{wwn: disk-1}", "rack.yaml:10:", "\"disk-1\" is not a world-wide name"),
            ("{serial: disk-1}", "{path: /dev/sda}", "rack.yaml:10:", "not a link below /dev/disk/by-path"),
            ("{serial: disk-1}", "{max_size: 1000}", "rack.yaml:10:", "under the 8 GiB that a host needs"),
        ];
        for (from, to, place, message) in table {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(message), "{from} → {to}: {error}");
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let text = GOOD
            .replace("10.77.0.199]", "10.78.0.199]")
            .replace("profile: control, address", "profile: contrl, address")
            .replace(GOOD_UUID, "6f8f0a0c")
            .replace("ssh_keys: [", "# [");
        let told = parse(&text).unwrap_err().to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 4, "{told}");
        for (line, fault) in lines.iter().zip([
            "10.78.0.199 is not in the network",
            "rack.yaml: no ssh key: nobody could log in",
            "has profile \"contrl\"",
            "uuid \"6f8f0a0c\" of host \"control-2\" is not a UUID",
        ]) {
            assert!(line.contains(fault), "{line}, expected {fault}");
        }
        let silent = GOOD.replace("ssh_keys: [\"ssh", "ssh_keys: [] # [\"ssh");
        assert!(parse(&silent).is_ok(), "nobody is let in, as said");
        let large = GOOD.replace("{serial: disk-1}", "{min_size: 400G, max_size: 1.92TB}");
        let disk = parse(&large).unwrap().hosts[0].disk.clone();
        assert_eq!((disk.min_size, disk.max_size), (Some(400_000_000_000), Some(1_920_000_000_000)));
        let options =
            GOOD.replace("[\"ssh-", "['from=\"10.0.0.1,10.0.0.2\",no-pty ssh-").replace(" me\"]", " me']");
        assert!(parse(&options).is_ok(), "{options}");
    }

    /// Two spellings of one identity are one: the swapped byte order, braces, blanks.
    #[test]
    fn one_identity_belongs_to_one_host() {
        let table = [
            (
                "uuid: 4c4c4544-0042-3510-8052-b4c04f4e3533",
                "uuid: \"{44454C4C-4200-1035-8052-B4C04F4E3533}\"",
            ),
            ("uuid: 4c4c4544004235108052b4c04f4e3544", "uuid: 4C4C4544-0042-3510-8052-B4C04F4E3544"),
            ("serial: \"SGH 123 ABC \"", "serial: sgh  123 abc"),
            ("serial: \"AB&CD=1+1%20#x\"", "serial: \"ab&cd=1 1%20#x\""),
        ];
        for (one, other) in table {
            let text = format!("{GOOD}  - {{name: a, {one}, profile: control}}\n");
            assert!(parse(&text).is_ok(), "{one}");
            let error = parse(&format!("{text}  - {{name: b, {other}, profile: control}}\n"))
                .unwrap_err()
                .to_string();
            assert!(error.contains("is there twice"), "{one}, {other}: {error}");
        }
    }
}

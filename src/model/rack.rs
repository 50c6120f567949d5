//! A rack: its network, its hosts, and how each of them is imaged.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Ref;
use super::identity::{machine_serial, machine_uuid};
use super::imaging::DiskRule;

/// A network card's hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// Why a text is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a MAC address (six pairs of hexadecimal digits, divided by ':' or '-'; in YAML in quotes)"
)]
pub struct ParseMacError(pub String);

impl Mac {
    /// The card of an emulated machine: QEMU's vendor, then `last`.
    pub const fn emulated(last: [u8; 3]) -> Self {
        Self([0x52, 0x54, 0x00, last[0], last[1], last[2]])
    }

    /// Parts divided by '-', as iPXE's `${mac:hexhyp}` prints it: the form in URLs.
    pub fn hyphenated(&self) -> String {
        self.join("-")
    }

    fn join(&self, divider: &str) -> String {
        self.0.map(|byte| format!("{byte:02x}")).join(divider)
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.to_owned());
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let mut bytes = [0; 6];
        if parts.len() != bytes.len() {
            return Err(wrong());
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            hex::decode_to_slice(part, std::slice::from_mut(byte)).map_err(|_| wrong())?;
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// An IPv4 address with the prefix of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressWithPrefix {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the network part, 1 to 30.
    pub prefix: u8,
}

/// Why a text is not an address with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 address with prefix (such as 10.77.0.1/24)")]
pub struct ParseAddressError(pub String);

impl AddressWithPrefix {
    /// The network mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix)))
    }

    /// Is `other` an address of the same network, and neither its first nor its last one?
    pub fn has_neighbour(&self, other: Ipv4Addr) -> bool {
        let (mask, ours, theirs) = (self.mask().to_bits(), self.address.to_bits(), other.to_bits());
        ours & mask == theirs & mask && theirs & !mask != 0 && theirs | mask != u32::MAX
    }
}

impl FromStr for AddressWithPrefix {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix))?;
            Some(Self { address: address.parse().ok()?, prefix })
        };
        parse().ok_or_else(|| ParseAddressError(text.to_owned()))
    }
}

impl fmt::Display for AddressWithPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for AddressWithPrefix {
    type Error = ParseAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AddressWithPrefix> for String {
    fn from(address: AddressWithPrefix) -> Self {
        address.to_string()
    }
}

/// The network on which machines are imaged; its DHCP is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RackNetwork {
    /// The interface that DHCP answers on.
    pub interface: String,
    /// The rack server's address there.
    pub address: AddressWithPrefix,
    /// Port of the rack server's HTTP.
    #[serde(default = "default_port")]
    pub port: u16,
    /// First and last address for machines without one of their own.
    pub range: (Ipv4Addr, Ipv4Addr),
    /// Default gateway.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
}

const fn default_port() -> u16 {
    8080
}

impl RackNetwork {
    /// The rack server's base URL.
    pub fn server_url(&self) -> String {
        format!("http://{}:{}", self.address.address, self.port)
    }

    /// The release repo's base URL.
    pub fn repo_url(&self) -> String {
        format!("{}/repo", self.server_url())
    }
}

/// How hosts of one kind boot and what they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The ref that its hosts follow.
    #[serde(rename = "ref")]
    pub follows: Ref,
    /// `newest`, a version, or a commit.
    #[serde(default = "newest")]
    pub release: String,
    /// Kernel arguments of the installer and of the installed host.
    #[serde(default)]
    pub kernel_arguments: Vec<String>,
}

/// The word for "the newest release of the ref".
pub const NEWEST: &str = "newest";

fn newest() -> String {
    NEWEST.to_owned()
}

/// One machine that is ours to image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RackHost {
    /// Host name.
    pub name: String,
    /// Selector: the network card that it boots by.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Selector: SMBIOS system UUID.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Selector: SMBIOS system serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// The profile's name.
    pub profile: String,
    /// Its static address; none: by DHCP.
    #[serde(default)]
    pub address: Option<AddressWithPrefix>,
    /// Which disk it is imaged to.
    #[serde(default)]
    pub disk: DiskRule,
    /// Raised by one to have an imaged machine imaged again, once.
    #[serde(default)]
    pub reimage: u32,
}

/// A rack file, validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rack {
    /// The rack's name.
    pub name: String,
    /// Its network.
    pub network: RackNetwork,
    /// The release repo; `--repo` overrides it.
    #[serde(default)]
    pub repo: Option<PathBuf>,
    /// ed25519 public keys, base64, that hosts trust.
    #[serde(default)]
    pub trusted_keys: Vec<String>,
    /// Lines for root's `authorized_keys`.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Kinds of hosts.
    pub profiles: BTreeMap<String, Profile>,
    /// The machines.
    pub hosts: Vec<RackHost>,
}

impl Rack {
    /// The host that a machine is: by MAC address, else by UUID, else by serial number, in whichever spelling.
    pub fn find_host(&self, mac: Mac, uuid: Option<&str>, serial: Option<&str>) -> Option<&RackHost> {
        let same = |ours: &Option<String>, theirs: Option<&str>, normal: fn(&str) -> Option<String>| {
            let theirs = theirs.and_then(normal);
            theirs.is_some() && ours.as_deref().and_then(normal) == theirs
        };
        let by = |is: &dyn Fn(&RackHost) -> bool| self.hosts.iter().find(|host| is(host));
        by(&|host| host.mac == Some(mac))
            .or_else(|| by(&|host| same(&host.uuid, uuid, machine_uuid)))
            .or_else(|| by(&|host| same(&host.serial, serial, machine_serial)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        for good in ["52:54:00:00:00:01", "52-54-00-00-00-01"] {
            let mac: Mac = good.parse().unwrap();
            assert_eq!(
                (mac.to_string(), mac.hyphenated().as_str()),
                ("52:54:00:00:00:01".into(), "52-54-00-00-00-01")
            );
        }
        for bad in [
            "",
            "52:54:00:00:00",
            "52:54:00:00:00:0g",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "5:4:0:0:0:1",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn neighbours() {
        let ours: AddressWithPrefix = "10.77.0.1/24".parse().unwrap();
        assert_eq!(ours.mask(), Ipv4Addr::new(255, 255, 255, 0));
        for (other, expected) in
            [("10.77.0.11", true), ("10.77.1.11", false), ("10.77.0.0", false), ("10.77.0.255", false)]
        {
            assert_eq!(ours.has_neighbour(other.parse().unwrap()), expected, "{other}");
        }
        for bad in ["10.77.0.1", "10.77.0.1/33", "10.77.0/24", "fd00::1/64"] {
            assert!(bad.parse::<AddressWithPrefix>().is_err(), "{bad}");
        }
    }
}

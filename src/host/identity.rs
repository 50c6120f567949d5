//! Who a machine is when its configuration leaves that open: one disk image, many machines.
//!
//! The name is the kernel's host name, the address that of the default route. Both are observed anew whenever they are
//! needed and never written down: a machine that is renamed, or gets another lease, is right again at its next boot.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::readiness::node_name;
use crate::model::HostConfig;

/// An address outside every network (RFC 5737): the way to it is the default route. Nothing is sent there.
const FAR_AWAY: (&str, u16) = ("192.0.2.1", 9);
/// Announced when there is no network: the host's own services still find each other.
const ALONE: &str = "127.0.0.1";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// The host's name.
pub fn name_of(config: &HostConfig) -> String {
    if config.name.is_empty() { node_name() } else { config.name.clone() }
}

/// The host's address as it is now; none: it has none.
pub fn address_of(config: &HostConfig) -> Option<String> {
    if config.address.is_empty() { own_address() } else { Some(config.address.clone()) }
}

/// Fills in what the configuration leaves open; waits `patience` at most for an address.
pub fn complete(mut config: HostConfig, patience: Duration) -> HostConfig {
    config.name = name_of(&config);
    if config.address.is_empty() {
        config.address = await_address(patience).unwrap_or_else(|| {
            tracing::warn!(address = ALONE, "no default route; services announce the host's own address");
            ALONE.to_owned()
        });
    }
    config
}

fn await_address(patience: Duration) -> Option<String> {
    let began = Instant::now();
    loop {
        match own_address() {
            None if began.elapsed() < patience => std::thread::sleep(LOOK),
            found => return found,
        }
    }
}

/// The address that this machine has towards its default route.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(FAR_AWAY).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_stays() {
        let config = |name: &str, address: &str| HostConfig {
            format: crate::model::host::HOST_FORMAT,
            name: name.into(),
            address: address.into(),
            follows: "a".parse().unwrap(),
            repo: String::new(),
            trusted_keys: vec![],
            rack_server: None,
            kernel_arguments: vec![],
            mac: None,
        };
        let given = config("control-1", "10.77.0.11");
        assert_eq!(complete(given.clone(), Duration::ZERO), given);
        let observed = complete(config("", ""), Duration::ZERO);
        assert_eq!(observed.name, node_name());
        assert!(observed.address.parse::<std::net::IpAddr>().is_ok(), "{}", observed.address);
    }
}

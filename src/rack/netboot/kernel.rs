//! Kernel arguments of the installer.

use crate::model::imaging::SECRET_ARGUMENT;
use crate::model::rack::{AddressWithPrefix, Mac, RackNetwork};

/// The first process in a release's initramfs when a machine is to be imaged.
pub const INSTALLER: &str = "/usr/lib/rackstep/installer-init";

/// One machine's attempt.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The card that it booted by.
    pub mac: Mac,
    /// Its address while it is imaged.
    pub address: AddressWithPrefix,
    /// What it proves itself with.
    pub secret: &'a str,
}

/// The arguments in one line; the network is told, so that the installer asks no DHCP server.
pub fn render_arguments(network: &RackNetwork, machine: Machine<'_>, profile_arguments: &[String]) -> String {
    let mut all = vec![
        format!("rdinit={INSTALLER}"),
        format!("rackstep.server={}", network.server_url()),
        format!("rackstep.mac={}", machine.mac),
        format!("rackstep.ip={}", machine.address),
        format!("{SECRET_ARGUMENT}={}", machine.secret),
    ];
    all.extend(network.gateway.map(|gateway| format!("rackstep.gateway={gateway}")));
    all.extend(network.dns.first().map(|server| format!("rackstep.dns={server}")));
    all.extend(profile_arguments.iter().cloned());
    all.join(" ")
}

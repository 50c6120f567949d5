//! Kernel arguments of the installer.

use crate::model::rack::{AddressWithPrefix, Mac, RackNetwork};

/// The first process in a release's initramfs when a machine is to be imaged.
pub const INSTALLER: &str = "/usr/lib/rackstep/installer-init";

/// The arguments in one line; the network is told, so that the installer asks no DHCP server.
pub fn render_arguments(
    network: &RackNetwork,
    mac: Mac,
    address: AddressWithPrefix,
    profile_arguments: &[String],
) -> String {
    let mut all = vec![
        format!("rdinit={INSTALLER}"),
        format!("rackstep.server={}", network.server_url()),
        format!("rackstep.mac={mac}"),
        format!("rackstep.ip={address}"),
    ];
    all.extend(network.gateway.map(|gateway| format!("rackstep.gateway={gateway}")));
    all.extend(network.dns.first().map(|server| format!("rackstep.dns={server}")));
    all.extend(profile_arguments.iter().cloned());
    all.join(" ")
}

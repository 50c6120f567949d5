//! The network of a cluster: its bridge, and addresses and names on it. The same on QEMU and on libvirt.

use super::{ClusterError, Home};
use crate::lab::machine::{Hypervisor, Network};
use crate::model::cluster::{BRIDGE_ADDRESS, ClusterMachine};
use crate::rack::netboot::dnsmasq::{ClusterFiles, render_cluster_dnsmasq};
use crate::rim::dnsmasq;
use crate::rim::files::{Durability, naming, write_atomic};

use std::path::PathBuf;
use std::time::Duration;

/// A killed process is gone at once.
const DEATH: Duration = Duration::from_secs(30);

/// The network, if it is there.
pub fn open(home: &Home, hypervisor: &Hypervisor) -> Result<Option<Network>, ClusterError> {
    Ok(hypervisor.open_network(&home.network_name())?)
}

/// Makes the network; nothing of an earlier one serves on it.
pub(super) fn make(home: &Home, hypervisor: &Hypervisor) -> Result<Network, ClusterError> {
    end_dhcp(home)?;
    Ok(hypervisor.make_network(&home.network_name(), BRIDGE_ADDRESS)?)
}

/// Removes the network and what serves on it; a network that is not there is fine.
pub(super) fn remove(home: &Home, hypervisor: &Hypervisor) -> Result<(), ClusterError> {
    end_dhcp(home)?;
    Ok(hypervisor.remove_network(&home.network_name())?)
}

/// DHCP and names for all machines; started anew when there are others than before.
pub(super) fn ensure_dhcp(
    home: &Home,
    network: &Network,
    machines: &[ClusterMachine],
) -> Result<(), ClusterError> {
    let (pid, leases) = (pid_path(home), home.dir.join("dnsmasq.leases"));
    let text =
        render_cluster_dnsmasq(network.bridge(), machines, ClusterFiles { pid: &pid, leases: &leases });
    let changed = write_atomic(&home.dhcp_path(), text.as_bytes(), 0o600, Durability::Volatile)?;
    if changed {
        end_dhcp(home)?;
    }
    if dnsmasq::find(&home.dhcp_path(), &pid).is_some() {
        return Ok(());
    }
    dnsmasq::start(network.command(dnsmasq::program()), &home.dhcp_path()).map_err(ClusterError::Dhcp)
}

fn end_dhcp(home: &Home) -> Result<(), ClusterError> {
    match dnsmasq::find(&home.dhcp_path(), &pid_path(home)) {
        Some(old) => Ok(old.kill(DEATH).map_err(naming("ending dnsmasq of", &home.dir))?),
        None => Ok(()),
    }
}

fn pid_path(home: &Home) -> PathBuf {
    home.dir.join("dnsmasq.pid")
}

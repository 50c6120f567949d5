//! What the installer tells the rack server before it touches anything.

use std::net::UdpSocket;

use crate::model::imaging::Inventory;
use crate::rim::disk::DiskError;
use crate::rim::disk::observe::observe_disks;
use crate::rim::firmware::observe_firmware;

/// Looks at this machine.
pub fn observe_inventory() -> Result<Inventory, DiskError> {
    let firmware = observe_firmware();
    let disks = observe_disks()?.into_iter().map(|seen| seen.disk).collect();
    Ok(Inventory {
        uuid: firmware.uuid,
        serial: firmware.serial,
        uefi: firmware.uefi,
        memory: firmware.memory,
        cpus: firmware.cpus,
        disks,
    })
}

/// The address by which this machine reaches `url`, if it does. No packet is sent.
pub fn observe_own_address(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let server = (url.host_str()?.trim_matches(['[', ']']), url.port_or_known_default()?);
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_address_towards_this_machine() {
        assert_eq!(observe_own_address("http://127.0.0.1:8080/x").as_deref(), Some("127.0.0.1"));
        assert_eq!(observe_own_address("not a url"), None);
    }
}

//! Which card a request came from, as the kernel's neighbour table has it: what a machine says of itself proves nothing.
//!
//! The table is filled by ARP (RFC 826) before the server can answer at all. An attacker that forges frames forges this too;
//! one that can only ask, by whatever URL, no longer gets another machine's secret.

use std::net::IpAddr;

use crate::model::rack::Mac;

/// `ATF_COM` of `linux/if_arp.h`: the entry is complete.
const COMPLETE: u32 = 2;

/// The card that has `peer`'s address; none where the kernel has no such neighbour (behind a router, or this machine).
pub(super) fn card_of(peer: IpAddr) -> Option<Mac> {
    let IpAddr::V4(peer) = peer else { return None };
    // Format: proc_net(5) and `net/ipv4/arp.c`.
    find(&std::fs::read_to_string("/proc/self/net/arp").ok()?, &peer.to_string())
}

fn find(table: &str, peer: &str) -> Option<Mac> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (address, _kind, flags, card) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
        if address != peer || flags & COMPLETE == 0 {
            return None;
        }
        card.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
10.77.0.11       0x1         0x2         52:54:00:00:00:01     *        rack0
10.77.0.1        0x1         0x0         00:00:00:00:00:00     *        rack0
10.77.0.110      0x1         0x6         52:54:00:00:00:0a     *        rack0
";

    #[test]
    fn complete_entries_alone_tell_a_card() {
        for (peer, card) in [
            ("10.77.0.11", Some("52:54:00:00:00:01")),
            ("10.77.0.110", Some("52:54:00:00:00:0a")),
            ("10.77.0.1", None),
            ("10.77.0.12", None),
        ] {
            assert_eq!(find(TABLE, peer), card.map(|card| card.parse().unwrap()), "{peer}");
        }
    }
}

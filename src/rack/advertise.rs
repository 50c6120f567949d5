//! Answers router solicitations with an advertisement that offers nothing: lifetime 0, no prefix.
//!
//! Debian's iPXE configures IPv6 beside IPv4 and waits 16 s per stage when no router answers at all. dnsmasq advertises
//! only on interfaces that have a routable IPv6 address, which a rack's network need not have. Format: RFC 4861, 4.2.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, netdevice, socket_with, sockopt};
use tokio::net::UdpSocket;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
/// Type 134; code, checksum (filled in by the kernel), hop limit, flags, router lifetime and timers all zero.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Neighbour discovery drops packets that could have come through a router.
const HOPS: u8 = 255;

/// Answers solicitations on one interface, until dropped or the socket fails.
pub(super) async fn answer_solicitations(interface: &str) -> io::Result<()> {
    let (socket, index) = open(interface)?;
    loop {
        let mut packet = [0_u8; 256];
        let (length, from) = socket.recv_from(&mut packet).await?;
        let is_ours = match from {
            // A source of `::` (no address yet) has no scope: answered too, on our interface alone.
            SocketAddr::V6(from) => from.scope_id() == index || from.ip().is_unspecified(),
            SocketAddr::V4(_) => false,
        };
        if length > 0 && packet[0] == SOLICITATION && is_ours {
            let to = SocketAddrV6::new(ALL_NODES, 0, 0, index);
            if let Err(error) = socket.send_to(&ADVERTISEMENT, SocketAddr::V6(to)).await {
                tracing::debug!(%error, interface, "sending a router advertisement");
            }
        }
    }
}

/// A raw ICMPv6 socket; std and tokio have no type of that name, but a datagram socket is all that it is.
fn open(interface: &str) -> io::Result<(UdpSocket, u32)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
    let index = netdevice::name_to_index(&socket, interface)?;
    sockopt::set_ipv6_multicast_hops(&socket, HOPS.into())?;
    sockopt::set_ipv6_multicast_if(&socket, index)?;
    sockopt::set_ipv6_add_membership(&socket, &ALL_ROUTERS, index)?;
    Ok((UdpSocket::from_std(socket.into())?, index))
}

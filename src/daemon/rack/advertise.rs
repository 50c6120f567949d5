//! Answers router solicitations with an advertisement that offers nothing: lifetime 0, no prefix.
//!
//! Debian's iPXE configures IPv6 beside IPv4 and waits 16 s per stage when no router answers at all. dnsmasq advertises
//! only on interfaces that have a routable IPv6 address, which a rack's network need not have. Format: RFC 4861, 4.2.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, netdevice, recvfrom, sendto,
    socket_with, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
    let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
    loop {
        let mut ready = socket.readable().await?;
        let mut packet = [0_u8; 256];
        let received = recvfrom(socket.get_ref(), &mut packet, RecvFlags::DONTWAIT);
        let (_, length, from) = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                ready.clear_ready();
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
        let from: Option<SocketAddrV6> = from.and_then(|from| from.try_into().ok());
        // A source of `::` (no address yet) has no scope: answered too, on our interface alone.
        let is_ours = from.is_some_and(|from| from.scope_id() == index || from.ip().is_unspecified());
        if length > 0 && packet[0] == SOLICITATION && is_ours {
            let to = SocketAddrV6::new(ALL_NODES, 0, 0, index);
            if let Err(errno) = sendto(socket.get_ref(), &ADVERTISEMENT, SendFlags::DONTWAIT, &to) {
                tracing::debug!(%errno, interface, "sending a router advertisement");
            }
        }
    }
}

fn open(interface: &str) -> io::Result<(OwnedFd, u32)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
    let index = netdevice::name_to_index(&socket, interface)?;
    sockopt::set_ipv6_multicast_hops(&socket, HOPS.into())?;
    sockopt::set_ipv6_multicast_if(&socket, index)?;
    sockopt::set_ipv6_add_membership(&socket, &ALL_ROUTERS, index)?;
    Ok((socket, index))
}

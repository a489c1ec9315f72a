//! By which of the host's addresses and interfaces things leave, whether they still can, and word of
//! changes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use crate::netlink::Netlink;
use crate::sys;

/// By which of the host's addresses and interfaces something leaves; the default leaves both to the
/// routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub address: Option<IpAddr>,
    /// The interface's index; 0: as routed.
    pub interface: u32,
}

impl Source {
    /// Has a stream socket leave so. A source that is gone is no way to anywhere (`ENETUNREACH`).
    pub(crate) fn apply(self, fd: &OwnedFd) -> rustix::io::Result<()> {
        if let Some(address) = self.address {
            // The port is chosen by the connect, which knows the destination: far more of them.
            sys::set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            net::bind(fd, &SocketAddr::new(address, 0)).map_err(|errno| match errno {
                Errno::ADDRNOTAVAIL => Errno::NETUNREACH,
                errno => errno,
            })?;
        }
        // After the address, which may be another interface's.
        bind_interface(fd, self.interface)
    }
}

fn bind_interface(fd: impl AsFd, interface: u32) -> rustix::io::Result<()> {
    if interface == 0 {
        return Ok(());
    }
    let index = i32::try_from(interface).map_err(|_| Errno::NODEV)?;
    sys::set_int(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index)
}

/// The index of the interface with this name; sockets may be bound to it.
///
/// # Errors
/// There is none (`ENODEV`); or this process may not bind to one (`EPERM`): before Linux 5.7, only
/// root may.
pub fn interface(name: &str) -> io::Result<u32> {
    let fd = probe(IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
    let index = net::netdevice::name_to_index(&fd, name)?;
    bind_interface(&fd, index)?;
    Ok(index)
}

/// The number of the interface by which IPv6 leaves for the world; none where it does not.
pub fn outward_interface_v6() -> Option<u32> {
    // An address of the world, any: nothing is sent there.
    const SOMEWHERE: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
    let route = Netlink::open().and_then(|kernel| kernel.route(SOMEWHERE.into(), Vec::new()));
    route.ok().filter(|route| route.header.kind == RouteType::Unicast)?.attributes.iter().find_map(
        |attribute| match attribute {
            RouteAttribute::Oif(interface) => Some(*interface),
            _ => None,
        },
    )
}

/// The way that a TCP connection's packets go. Rules may tell by each part of it (`ip rule`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    local: SocketAddr,
    peer: SocketAddr,
    /// The interface that it is bound to; 0: none.
    interface: u32,
    /// The mark that its packets have; 0: none.
    mark: u32,
}

impl Path {
    pub(crate) fn new(local: SocketAddr, peer: SocketAddr, interface: u32, mark: u32) -> Self {
        Self { local, peer, interface, mark }
    }

    /// Where it begins.
    pub fn local(&self) -> IpAddr {
        self.local.ip()
    }

    /// Where it leads.
    pub fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Whether the address that it begins at is still one of this host's, or the kernel does not tell.
    pub fn has_address(&self) -> bool {
        let mut local = self.local;
        local.set_port(0);
        let bound = probe(local.ip()).and_then(|fd| net::bind(fd, &local));
        !matches!(bound, Err(Errno::ADDRNOTAVAIL))
    }

    /// Whether it still has a route, or the kernel does not tell.
    ///
    /// Connecting a socket would not do: rules tell TCP and ports apart, and a connect may be refused by
    /// more than routes.
    pub fn has_route(&self, kernel: &Netlink) -> bool {
        let scope = |addr: SocketAddr| match addr {
            SocketAddr::V6(addr) => addr.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let bound = [self.interface, scope(self.peer), scope(self.local)].into_iter().find(|it| *it != 0);
        let mut attributes = vec![
            RouteAttribute::Source(self.local().into()),
            number(RTA_IP_PROTO, &[net::ipproto::TCP.as_raw().get().to_le_bytes()[0]]),
            number(RTA_SPORT, &self.local.port().to_be_bytes()),
            number(RTA_DPORT, &self.peer.port().to_be_bytes()),
        ];
        attributes.extend((self.mark != 0).then_some(RouteAttribute::Mark(self.mark)));
        let Some(interface) = bound else { return is_way(&kernel.route(self.peer(), attributes)) };
        attributes.push(RouteAttribute::Oif(interface));
        let route = kernel.route(self.peer(), attributes.clone());
        if self.peer.is_ipv4() || route.as_ref().is_ok_and(|route| leaves_by(route, interface)) {
            return is_way(&route);
        }
        // Of IPv6, the kernel takes the interface for a wish as long as there is a source.
        attributes.retain(|it| !matches!(it, RouteAttribute::Source(_)));
        is_way(&route) && is_way(&kernel.route(self.peer(), attributes))
    }
}

/// Attributes of a request for a route (linux/rtnetlink.h).
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;

fn number(kind: u16, value: &[u8]) -> RouteAttribute {
    RouteAttribute::Other(DefaultNla::new(kind, value.to_vec()))
}

/// Whether a kernel's answer may be a way; what says nothing about routes may.
fn is_way(answer: &io::Result<RouteMessage>) -> bool {
    match answer {
        Ok(route) => {
            !matches!(route.header.kind, RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole)
        }
        Err(error) => !matches!(
            Errno::from_io_error(error),
            // Of IPv4, routes that refuse are told as errors: a prohibition is `EACCES`, a blackhole `EINVAL`
            // (as is a source that may be bound to and is no address, `ip_nonlocal_bind`).
            Some(
                Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL
                // The interface has gone, or is down.
                | Errno::NODEV | Errno::NETDOWN
            )
        ),
    }
}

fn leaves_by(route: &RouteMessage, interface: u32) -> bool {
    route.attributes.contains(&RouteAttribute::Oif(interface))
}

/// A socket to ask the kernel with.
fn probe(like: IpAddr) -> rustix::io::Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(net::ipproto::UDP))
}

/// A socket that becomes readable when interfaces, addresses, routes or rules change in this thread's
/// network namespace. What it says is in the words of rtnetlink(7).
///
/// # Errors
/// No descriptors are left, or this process may not.
pub fn changes() -> io::Result<OwnedFd> {
    // `RTNLGRP_LINK` and the groups of addresses, routes and rules of IPv4 and IPv6 (linux/rtnetlink.h):
    // group n is bit n - 1.
    const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
    let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (group - 1));
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Protocol 0 is `NETLINK_ROUTE`.
    let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    Ok(fd)
}

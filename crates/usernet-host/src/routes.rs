//! By which of the host's addresses and interfaces things leave, whether they still can, and word of
//! changes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use usernet_core::host::HostError;

use crate::error::host_error;
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

/// Whether `address` is one of this host's: sockets may be bound to it.
pub fn has_address(address: IpAddr) -> bool {
    probe(address).is_ok_and(|fd| net::bind(fd, &SocketAddr::new(address, 0)).is_ok())
}

/// The way that a connection's packets go. Connections of one way live and die together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    local: SocketAddr,
    peer: SocketAddr,
    /// The interface that it is bound to; 0: none.
    interface: u32,
}

/// What a way lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The address that it begins at is not of this host (or not yet: its uniqueness is being checked).
    Address,
    /// There is no route.
    Route,
}

impl Path {
    pub(crate) fn new(mut local: SocketAddr, mut peer: SocketAddr, interface: u32) -> Self {
        local.set_port(0);
        // Any will do: nothing is sent there.
        peer.set_port(9);
        Self { local, peer, interface }
    }

    /// Where it begins.
    pub fn local(&self) -> IpAddr {
        self.local.ip()
    }

    /// Where it leads.
    pub fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// What it lacks now; `None`: nothing, or the kernel does not tell. It is asked by connecting a UDP
    /// socket, which sends nothing.
    pub fn lost(&self) -> Option<Lost> {
        let fd = probe(self.local.ip()).ok()?;
        match net::bind(&fd, &self.local) {
            Ok(()) => {}
            Err(Errno::ADDRNOTAVAIL) => return Some(Lost::Address),
            Err(_) => return None,
        }
        let connected = bind_interface(&fd, self.interface).and_then(|()| net::connect(&fd, &self.peer));
        match connected {
            // A blackhole, or a source that may be bound to and is no address (`ip_nonlocal_bind`).
            Err(Errno::INVAL) => Some(Lost::Route),
            Err(errno) => match host_error(errno) {
                HostError::NetUnreachable | HostError::HostUnreachable | HostError::Prohibited => {
                    Some(Lost::Route)
                }
                _ => None,
            },
            Ok(()) => None,
        }
    }
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

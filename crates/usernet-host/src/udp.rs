//! The host end of a guest's UDP port, and host ports that are forwarded to a guest over UDP.
//!
//! The sockets are never connected: one serves every peer of a guest's port (endpoint-independent
//! mapping, RFC 4787 §4.1). What peers and routers refuse is told through the error queue
//! ([`UdpEnd::take_error`], when an event says `error`) with the address that it belongs to, and
//! never fails a send to another.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use usernet_core::host::HostError;

use crate::datagram::{self, QueuedError};
use crate::error::host_error;
use crate::inbox::Inbox;
use crate::outbox::{Outbox, Unsent};
use crate::sys;

/// Bytes of payload that may wait in a socket, about: what comes in some milliseconds, in which a
/// worker may not have its turn. The host may give less (`net.core.rmem_max`).
const RECEIVE_BUFFER: usize = 512 << 10;

/// A UDP socket.
#[derive(Debug)]
pub struct UdpEnd {
    fd: OwnedFd,
    addr: SocketAddr,
}

impl UdpEnd {
    /// Opens a socket at `source` (the unspecified address of a family, to leave it to the routes)
    /// and at `port`, where that is 1024 or above and free; at any free port otherwise.
    ///
    /// # Errors
    /// No descriptors or ports are left, or `source` is no address of this host.
    pub fn open(source: IpAddr, port: u16) -> Result<Self, HostError> {
        let wanted = SocketAddr::new(source, if port < 1024 { 0 } else { port });
        Self::bind(wanted)
            .or_else(|errno| match errno {
                Errno::ADDRINUSE | Errno::ACCESS => Self::bind(SocketAddr::new(source, 0)),
                errno => Err(errno),
            })
            .map_err(host_error)
    }

    /// Opens the socket of a forward rule at `addr`; port 0 takes any free one. What it receives
    /// says to which local address it came ([`Batch::origin`](crate::inbox::Batch::origin)).
    ///
    /// # Errors
    /// The address is in use, is not of this host, or is not allowed.
    pub fn forward(addr: SocketAddr) -> io::Result<Self> {
        let end = Self::bind(addr)?;
        let (level, name) = match addr {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        };
        sys::set_int(&end.fd, level, name, 1)?;
        Ok(end)
    }

    /// What it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Says whether what is sent from now on may be cut on its way. Where it may not, a datagram that is
    /// longer than the first link takes is lost ([`HostError::TooLong`]), and the error queue tells its MTU
    /// and that of every narrower one. A socket of a forward leaves it to this host.
    ///
    /// # Errors
    /// The host knows of no such thing.
    pub fn dont_fragment(&self, on: bool) -> Result<(), HostError> {
        datagram::dont_fragment(&self.fd, self.addr.is_ipv4(), on).map_err(host_error)
    }

    /// Has it told how far the errors have come that come back from now on ([`Offender::ttl`]). Every
    /// datagram costs a little more then.
    ///
    /// [`Offender::ttl`]: usernet_core::wire::Offender::ttl
    ///
    /// # Errors
    /// The host knows of no such thing.
    pub fn report_hops(&self) -> Result<(), HostError> {
        datagram::report_ttl(&self.fd, self.addr.is_ipv4()).map_err(host_error)
    }

    /// Keeps from this host itself what is sent to groups from now on.
    ///
    /// # Errors
    /// The host knows of no such thing.
    pub fn leave_host_out(&self) -> Result<(), HostError> {
        let (level, name) = match self.addr {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
        };
        sys::set_int(&self.fd, level, name, 0).map_err(host_error)
    }

    /// Sends what is in the outbox, and tells `unsent` of what is lost: no route, not allowed, too
    /// long, or ([`HostError::Exhausted`]) no room in the send buffer. The outbox is empty then.
    pub fn send(&self, outbox: &mut Outbox<'_>, unsent: impl FnMut(Unsent)) {
        outbox.send(&self.fd, unsent);
    }

    /// Takes in what has come, up to the inbox's room.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self, inbox: &mut Inbox) -> Result<(), HostError> {
        inbox.receive(&self.fd)
    }

    /// Takes the oldest error from the queue, and puts the start of the payload that it is about
    /// into `payload`; `None` when there is none.
    pub fn take_error(&self, payload: &mut [u8]) -> Option<QueuedError> {
        datagram::take_error(&self.fd, payload)
    }

    fn bind(addr: SocketAddr) -> rustix::io::Result<Self> {
        let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = net::socket_with(family, SocketType::DGRAM, flags, Some(net::ipproto::UDP))?;
        if addr.is_ipv6() {
            net::sockopt::set_ipv6_v6only(&fd, true)?;
        }
        datagram::report_errors(&fd, family, true)?;
        datagram::report_tos(&fd, addr.is_ipv4())?;
        // Datagrams of one sender and one size may come joined. A kernel that cannot (Linux before 5.0)
        // hands in each of them.
        let _ = sys::set_int(&fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        net::sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER)?;
        net::bind(&fd, &addr)?;
        let addr = SocketAddr::try_from(net::getsockname(&fd)?)?;
        Ok(Self { fd, addr })
    }
}

impl AsFd for UdpEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

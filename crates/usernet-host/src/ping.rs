//! The host end of a guest's pings: an unprivileged ICMP echo socket.
//!
//! Such a socket (`SOCK_DGRAM` with `IPPROTO_ICMP`, or `IPPROTO_ICMPV6`) sends echo requests and is
//! given the replies to them. Its port is the identifier: the kernel writes it into what is sent and
//! makes the checksum. Who may open one is up to the host ([`ping_allowed`]).

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use usernet_core::host::HostError;

use crate::datagram::{self, Envelope, QueuedError, Received};
use crate::error::host_error;

const GROUP_RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";

/// A ping socket.
#[derive(Debug)]
pub struct PingEnd {
    fd: OwnedFd,
    ipv4: bool,
    ident: u16,
}

/// Why this process may not open ping sockets. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingForbidden {
    /// What the host said.
    pub error: HostError,
    /// The groups that may, first and last, as `net.ipv4.ping_group_range` has them.
    pub range: Option<String>,
}

/// Says whether this process may open ping sockets, by opening one.
///
/// # Errors
/// It may not: none of its groups is in `net.ipv4.ping_group_range`. That holds for root too.
pub fn ping_allowed() -> Result<(), PingForbidden> {
    match PingEnd::open(Ipv4Addr::UNSPECIFIED.into(), 0) {
        Ok(_) => Ok(()),
        Err(error) => {
            let range = std::fs::read_to_string(GROUP_RANGE).ok();
            let range = range.map(|range| range.split_whitespace().collect::<Vec<_>>().join(" "));
            Err(PingForbidden { error, range })
        }
    }
}

impl PingForbidden {
    /// The command that mends it, to be run as root.
    pub const MEND: &str = "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"";
}

impl fmt::Display for PingForbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.error, &self.range) {
            (HostError::Prohibited, Some(range)) => write!(
                f,
                "guests cannot ping the outside: net.ipv4.ping_group_range is \"{range}\" and holds none of this \
                 process's groups; to allow it, run as root: {}",
                Self::MEND
            ),
            (error, _) => write!(f, "guests cannot ping the outside: no ICMP socket: {error}"),
        }
    }
}

impl std::error::Error for PingForbidden {}

impl PingEnd {
    /// Opens a socket at `source` (the unspecified address of a family, to leave it to the routes; for
    /// IPv6, the kernel takes the address of a request's [`Envelope`] for nothing) for echo requests with
    /// the identifier `ident`, or any other where that is in use or 0.
    ///
    /// # Errors
    /// [`HostError::Prohibited`]: this process may not; [`HostError::NetUnreachable`]: `source` is no
    /// address of this host; or no descriptors are left.
    pub fn open(source: IpAddr, ident: u16) -> Result<Self, HostError> {
        Self::bind(source, ident)
            .or_else(|errno| match errno {
                Errno::ADDRINUSE => Self::bind(source, 0),
                errno => Err(errno),
            })
            // A source that is gone is no way to anywhere.
            .map_err(|errno| if errno == Errno::ADDRNOTAVAIL { Errno::NETUNREACH } else { errno })
            .map_err(host_error)
    }

    /// The identifier that its requests leave with, and that replies come with.
    pub fn ident(&self) -> u16 {
        self.ident
    }

    /// Says whether what is sent from now on may be cut on its way; see
    /// [`UdpEnd::dont_fragment`](crate::udp::UdpEnd::dont_fragment).
    ///
    /// # Errors
    /// The host knows of no such thing.
    pub fn dont_fragment(&self, on: bool) -> Result<(), HostError> {
        datagram::dont_fragment(&self.fd, self.ipv4, on).map_err(host_error)
    }

    /// Sends an echo request: an ICMP message from its header on. Identifier and checksum are
    /// filled in.
    ///
    /// # Errors
    /// It could not be sent: no route, not allowed, too long, or it is no echo request.
    pub fn send(&self, iov: &[IoSlice<'_>], envelope: &Envelope) -> Result<(), HostError> {
        datagram::send(&self.fd, iov, envelope)
    }

    /// Takes in one echo reply, an ICMP message from its header on; `None` when there is none, and
    /// an event tells of the next.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self, iov: &mut [IoSliceMut<'_>]) -> Result<Option<Received>, HostError> {
        datagram::receive(&self.fd, iov)
    }

    /// Takes the oldest error from the queue (time exceeded, unreachable), and puts the start of the
    /// request that it is about into `request`; `None` when there is none.
    pub fn take_error(&self, request: &mut [u8]) -> Option<QueuedError> {
        datagram::take_error(&self.fd, request)
    }

    fn bind(source: IpAddr, ident: u16) -> rustix::io::Result<Self> {
        let (family, protocol) = match source {
            IpAddr::V4(_) => (AddressFamily::INET, net::ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, net::ipproto::ICMPV6),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
        // On by default here, and it would let two sockets share an identifier, of which one gets
        // all replies.
        net::sockopt::set_socket_reuseaddr(&fd, false)?;
        datagram::report_errors(&fd, family, true)?;
        datagram::report_tos(&fd, source.is_ipv4())?;
        datagram::report_ttl(&fd, source.is_ipv4())?;
        net::bind(&fd, &SocketAddr::new(source, ident))?;
        let ident = SocketAddr::try_from(net::getsockname(&fd)?)?.port();
        Ok(Self { fd, ipv4: source.is_ipv4(), ident })
    }
}

impl AsFd for PingEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

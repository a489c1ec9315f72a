//! What UDP and ping sockets share: control messages both ways, and the error queue.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::result;

use libc::c_int;
use rustix::io::{Errno, Result};
use rustix::net::AddressFamily;
use socket2::{MsgHdr, SockAddr, SockRef};
use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::host::HostError;
use usernet_core::wire::{IcmpError, Offender};

use crate::error::host_error;
use crate::routes::Source;
use crate::sys;

/// Where a datagram goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// To whom. A ping socket ignores the port.
    pub to: SocketAddr,
    /// By what it leaves (`IP_PKTINFO`), where that is not what the socket is bound to.
    pub from: Source,
    /// Hops it may take, 1 to 255; `None`: the host's default.
    pub ttl: Option<u8>,
    /// DSCP and ECN, as they stand in the IP header.
    pub tos: u8,
}

/// What is known of a datagram that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes put into the buffers.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// The local address that it came to, and that an answer should leave by. Only where it was
    /// asked for: by [`crate::udp::UdpEnd::forward`].
    pub to: Option<IpAddr>,
    /// Hops that it had left, where that was asked for.
    pub ttl: Option<u8>,
    /// DSCP and ECN, as they stood in the IP header.
    pub tos: u8,
    /// Bytes in each of the datagrams that the kernel has joined (`UDP_GRO`), the last may be
    /// shorter; 0: it is one datagram.
    pub segment: u16,
}

/// Bad news of a datagram (or of a connect) that was sent earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// Where it had gone. A ping has no port.
    pub to: SocketAddr,
    /// What it comes to.
    pub error: HostError,
    /// The ICMP message that brought it; `None`: this host itself found out.
    pub icmp: Option<Icmp>,
    /// The MTU in bytes of the way there, where this host itself found that it was too long; 0 otherwise.
    pub mtu: u32,
    /// How many bytes of what was sent were put into the buffer: UDP payload, or an ICMP message
    /// from its header on.
    pub len: usize,
}

/// Who said what about a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// What it said.
    pub error: IcmpError,
    /// The router or host that sent it.
    pub offender: Option<Offender>,
}

/// Turns the error queue on or off (`IP_RECVERR`).
pub(crate) fn report_errors(fd: impl AsFd, family: AddressFamily, on: bool) -> Result<()> {
    let (level, name) = match family {
        AddressFamily::INET6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        _ => (libc::IPPROTO_IP, libc::IP_RECVERR),
    };
    sys::set_int(fd, level, name, on.into())
}

/// Sets DSCP, and ECN where that is not the kernel's own, of what is sent.
pub(crate) fn set_tos(fd: impl AsFd, ipv4: bool, tos: u8) -> Result<()> {
    let name = if ipv4 { libc::IP_TOS } else { libc::IPV6_TCLASS };
    sys::set_int(fd, ip_level(ipv4), name, tos.into())
}

/// Says whether what is sent may be cut on its way. Where it may not, this host's own knowledge of the
/// way is no matter: whoever sends finds out for themselves, by what the error queue says.
pub(crate) fn dont_fragment(fd: impl AsFd, ipv4: bool, on: bool) -> Result<()> {
    let (name, probe, dont) = if ipv4 {
        (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE, libc::IP_PMTUDISC_DONT)
    } else {
        (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_DONT)
    };
    sys::set_int(fd, ip_level(ipv4), name, if on { probe } else { dont })
}

/// Has the hops told that are left of what comes in, errors too.
pub(crate) fn report_ttl(fd: impl AsFd, ipv4: bool) -> Result<()> {
    let name = if ipv4 { libc::IP_RECVTTL } else { libc::IPV6_RECVHOPLIMIT };
    sys::set_int(fd, ip_level(ipv4), name, 1)
}

/// Has the IP header's DSCP and ECN told of what comes in.
pub(crate) fn report_tos(fd: impl AsFd, ipv4: bool) -> Result<()> {
    let name = if ipv4 { libc::IP_RECVTOS } else { libc::IPV6_RECVTCLASS };
    sys::set_int(fd, ip_level(ipv4), name, 1)
}

/// Sends one message, which the kernel cuts into datagrams where `segment` is not 0.
pub(crate) fn send_once(fd: impl AsFd, iov: &[IoSlice<'_>], envelope: &Envelope, segment: u16) -> Result<()> {
    let to = SockAddr::from(envelope.to);
    let control = Control::new(envelope, segment);
    let header = MsgHdr::new().with_addr(&to).with_buffers(iov).with_control(control.as_ref());
    match SockRef::from(&fd).sendmsg(&header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// Sends one datagram.
///
/// An error that came back for an earlier one, to whomever, waits in the socket and is told to the
/// next call, which then does nothing else. It says nothing about this datagram, and the error
/// queue keeps it, so a failed call is made once more.
pub(crate) fn send(fd: impl AsFd, iov: &[IoSlice<'_>], envelope: &Envelope) -> result::Result<(), HostError> {
    let send = || send_once(&fd, iov, envelope, 0);
    send().or_else(|_| send()).map_err(|errno| unsent(errno, envelope))
}

/// Why a datagram could not be sent.
pub(crate) fn unsent(errno: Errno, envelope: &Envelope) -> HostError {
    match errno {
        // No address of this host (any more).
        Errno::INVAL if envelope.from.address.is_some() => HostError::NetUnreachable,
        errno => host_error(errno),
    }
}

/// Takes in one datagram; `None` when there is none. An error that waits for an earlier datagram is
/// passed over, as in [`send`].
pub(crate) fn receive(
    fd: impl AsFd,
    iov: &mut [IoSliceMut<'_>],
) -> result::Result<Option<Received>, HostError> {
    let mut control = [0; 128];
    let mut receive = || sys::receive(&fd, iov, &mut control, libc::MSG_DONTWAIT);
    let message = match receive().or_else(|errno| if errno == Errno::AGAIN { Err(errno) } else { receive() })
    {
        Ok(message) => message,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(host_error(errno)),
    };
    Ok(Received::parse(&message, control.get(..message.control).unwrap_or_default()))
}

impl Received {
    /// Reads a message and what came with it; `None` when it has no sender, as every datagram has.
    pub(crate) fn parse(message: &sys::Message, control: &[u8]) -> Option<Self> {
        let mut received =
            Self { len: message.len, from: message.from?, to: None, ttl: None, tos: 0, segment: 0 };
        for (level, kind, data) in controls(control) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // in_pktinfo: interface, the local address, the header's destination; 4 bytes each.
                    received.to = array(data, 4).map(|address: [u8; 4]| Ipv4Addr::from(address).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    received.to = array(data, 0).map(|address: [u8; 16]| Ipv6Addr::from(address).into());
                }
                // Of IPv4 it is one byte.
                (libc::IPPROTO_IP, libc::IP_TOS) => received.tos = data.first().copied().unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    received.tos = int(data).and_then(|tos| u8::try_from(tos).ok()).unwrap_or(0);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    received.segment = int(data).and_then(|segment| u16::try_from(segment).ok()).unwrap_or(0);
                }
                _ => received.ttl = ttl(level, kind, data).or(received.ttl),
            }
        }
        Some(received)
    }

    /// Where it is from, and how it came.
    pub fn origin(&self) -> Origin {
        Origin { from: self.from, to: self.to, tos: self.tos }
    }

    /// How many datagrams it is, and how long.
    pub fn datagrams(&self) -> Datagrams {
        Datagrams { len: self.len, segment: self.segment }
    }
}

/// Takes the oldest error from the queue, with the start of what was sent in `payload`; `None` when
/// there is none.
pub(crate) fn take_error(fd: impl AsFd, payload: &mut [u8]) -> Option<QueuedError> {
    let mut control = [0; 256];
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    loop {
        let message = sys::receive(&fd, &mut [IoSliceMut::new(payload)], &mut control, flags).ok()?;
        let controls = || controls(control.get(..message.control).unwrap_or_default());
        let ttl = controls().find_map(|(level, kind, data)| ttl(level, kind, data));
        let mut errors = controls().filter(|(level, kind, _)| {
            matches!(
                (*level, *kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            )
        });
        // Anything else in the queue (a time stamp) is not for us.
        let found = errors.next().and_then(|(_, _, data)| parse_error(data, &message, ttl));
        if found.is_some() {
            return found;
        }
    }
}

/// Reads a `sock_extended_err`: error number (4 bytes), origin, type, code, padding, information
/// (4 bytes), data (4 bytes), and behind it the offender's socket address.
fn parse_error(data: &[u8], message: &sys::Message, ttl: Option<u8>) -> Option<QueuedError> {
    let errno = Errno::from_raw_os_error(int(data)?);
    let [origin, kind, code, _] = array(data, 4)?;
    let info = u32::from_ne_bytes(array(data, 8)?);
    let offender = data.get(16..).and_then(socket_address).map(|addr| Offender { addr, ttl });
    let error = match origin {
        libc::SO_EE_ORIGIN_ICMP => Some(IcmpError::V4 { kind, code, info }),
        libc::SO_EE_ORIGIN_ICMP6 => Some(IcmpError::V6 { kind, code, info }),
        libc::SO_EE_ORIGIN_LOCAL => None,
        _ => return None,
    };
    // RFC 1812 §5.2.7.1: network, host, and communication administratively prohibited, which the
    // error numbers do not tell from unreachable. ICMPv6 has a number of its own for it.
    let prohibited = origin == libc::SO_EE_ORIGIN_ICMP && kind == 3 && matches!(code, 9 | 10 | 13);
    Some(QueuedError {
        to: message.from?,
        error: if prohibited { HostError::Prohibited } else { host_error(errno) },
        icmp: error.map(|error| Icmp { error, offender }),
        mtu: if error.is_none() && errno == Errno::MSGSIZE { info } else { 0 },
        len: message.len,
    })
}

/// Hops left, if that is what a control message says.
fn ttl(level: c_int, kind: c_int, data: &[u8]) -> Option<u8> {
    let told =
        matches!((level, kind), (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT));
    u8::try_from(int(data).filter(|_| told)?).ok()
}

/// The address in a `sockaddr_in` or `sockaddr_in6`.
fn socket_address(data: &[u8]) -> Option<IpAddr> {
    match c_int::from(u16::from_ne_bytes(array(data, 0)?)) {
        libc::AF_INET => array(data, 4).map(|address: [u8; 4]| address.into()),
        libc::AF_INET6 => array(data, 8).map(|address: [u8; 16]| address.into()),
        _ => None,
    }
}

/// Control messages to send. Each is a `cmsghdr` (the length of header and data as a `size_t`, level,
/// type), the data, and padding to a whole number of `size_t`.
pub(crate) struct Control {
    buffer: [u8; 112],
    len: usize,
}

impl Control {
    pub(crate) fn new(envelope: &Envelope, segment: u16) -> Self {
        let mut control = Self { buffer: [0; 112], len: 0 };
        let ipv4 = envelope.to.is_ipv4();
        if envelope.from != Source::default() {
            control.push_source(envelope.from, ipv4);
        }
        if let Some(ttl) = envelope.ttl {
            let kind = if ipv4 { libc::IP_TTL } else { libc::IPV6_HOPLIMIT };
            control.push(ip_level(ipv4), kind, &c_int::from(ttl).to_ne_bytes());
        }
        if envelope.tos != 0 {
            let kind = if ipv4 { libc::IP_TOS } else { libc::IPV6_TCLASS };
            control.push(ip_level(ipv4), kind, &c_int::from(envelope.tos).to_ne_bytes());
        }
        if segment != 0 {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        control
    }

    #[inline(never)]
    fn push_source(&mut self, Source { address, interface }: Source, ipv4: bool) {
        let interface = interface.to_ne_bytes();
        if ipv4 {
            // in_pktinfo: interface (0: as routed), the local address (0: likewise), unused.
            let mut data = [0; 12];
            data[..4].copy_from_slice(&interface);
            if let Some(IpAddr::V4(address)) = address {
                data[4..8].copy_from_slice(&address.octets());
            }
            self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
        } else {
            // in6_pktinfo: the local address, interface.
            let mut data = [0; 20];
            if let Some(IpAddr::V6(address)) = address {
                data[..16].copy_from_slice(&address.octets());
            }
            data[16..].copy_from_slice(&interface);
            self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
        }
    }

    fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let len = CMSG_HEADER + data.len();
        let header = [level.to_ne_bytes(), kind.to_ne_bytes()];
        let parts = [&len.to_ne_bytes(), header.as_flattened(), data];
        let (_, free) = self.buffer.split_at_mut(self.len);
        for (to, from) in free.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        self.len += len.next_multiple_of(size_of::<usize>());
    }
}

impl AsRef<[u8]> for Control {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

/// Length, level and type.
const CMSG_HEADER: usize = size_of::<usize>() + 2 * size_of::<c_int>();

/// The control messages in a buffer: level, type, data.
fn controls(mut buffer: &[u8]) -> impl Iterator<Item = (c_int, c_int, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(array(buffer, 0)?);
        let level = int(buffer.get(size_of::<usize>()..)?)?;
        let kind = int(buffer.get(size_of::<usize>() + size_of::<c_int>()..)?)?;
        let data = buffer.get(CMSG_HEADER..len)?;
        buffer = buffer.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some((level, kind, data))
    })
}

fn ip_level(ipv4: bool) -> c_int {
    if ipv4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn int(data: &[u8]) -> Option<c_int> {
    array(data, 0).map(c_int::from_ne_bytes)
}

fn array<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}

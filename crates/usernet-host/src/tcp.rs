//! The host end of a TCP flow.
//!
//! # What is received
//!
//! Bytes stay in the socket's receive queue until the guest has acknowledged them. [`TcpEnd::peek`]
//! copies from any place in the queue, [`TcpEnd::discard`] drops from its front; places are offsets
//! from that front. The kernel keeps a peek offset of its own for a socket (`SO_PEEK_OFF`): a peek
//! moves it on, a discard moves it back. It is followed here, so that a system call is spent on it
//! only for going back.
//!
//! Where the kernel cannot do that (IPv4 before Linux 6.9, IPv6 before 6.12, Unix sockets), a ring
//! of up to 256 KiB stands in, behind the same face.
//!
//! # What is sent
//!
//! [`TcpEnd::write`] takes what fits the send buffer and no more. [`TcpEnd::send_space`] says ahead
//! what will fit, so that the window offered to the guest can follow it.
//!
//! # The end
//!
//! Dropping the end closes it: the peer sees FIN, provided that everything which it had sent was
//! discarded. With bytes left in the receive queue the kernel sends a reset instead (RFC 9293 §3.6.1)
//! and drops what it had yet to send. [`TcpEnd::reset`] resets on purpose.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown,
    SocketFlags, SocketType, sockopt,
};
use usernet_core::host::{HostError, PeekEnd};

use crate::epoll::Event;
use crate::error::host_error;
use crate::ring::Ring;
use crate::routes::{Path, Source};
use crate::{datagram, sys};

/// Slices that one system call takes (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;
/// What a write uses of the send buffer at least, in bytes: the kernel's own share of it.
const LEAST_USED: u32 = 2048;

/// The host end of a TCP flow: a TCP socket, or a Unix stream socket with a service at its other
/// end.
#[derive(Debug)]
pub struct TcpEnd {
    fd: OwnedFd,
    kind: Kind,
    queue: Queue,
    /// The last event told of room to write and of no error: a connect that was under way has succeeded.
    writable: bool,
    /// The peer's FIN was told by an event, so no event will tell the end of the stream again.
    read_closed: bool,
    /// There has been urgent data, at whose mark the kernel cuts reads short.
    urgent: bool,
    /// What [`TcpEnd::send_space`] last said, and what was used of it since, in bytes.
    space: u32,
    used: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp(AddressFamily),
    Unix,
}

/// Where bytes that the guest has not yet acknowledged wait.
#[derive(Debug)]
enum Queue {
    /// In the socket; `offset` is the kernel's peek offset, and none before the first peek behind
    /// the front: without one, every peek begins there.
    Kernel {
        offset: Option<u32>,
    },
    Ring(Ring),
}

/// For which sockets the kernel can peek at an offset (`SO_PEEK_OFF`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeekSupport {
    /// TCP over IPv4: since Linux 6.9.
    pub ipv4: bool,
    /// TCP over IPv6: since Linux 6.12.
    pub ipv6: bool,
}

impl PeekSupport {
    /// Asks the kernel, the first time.
    pub fn probe() -> Self {
        static SUPPORT: OnceLock<PeekSupport> = OnceLock::new();
        *SUPPORT.get_or_init(|| {
            let try_family = |family| {
                open(family).is_ok_and(|fd| sys::set_int(&fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).is_ok())
            };
            Self { ipv4: try_family(AddressFamily::INET), ipv6: try_family(AddressFamily::INET6) }
        })
    }

    fn of(self, family: AddressFamily) -> bool {
        match family {
            AddressFamily::INET => self.ipv4,
            AddressFamily::INET6 => self.ipv6,
            _ => false,
        }
    }
}

impl TcpEnd {
    /// Begins to connect to `to`, by segments with this DSCP (as it stands in an IP header). The outcome is
    /// told by an event; [`TcpEnd::finish_connect`] says which.
    ///
    /// # Errors
    /// Nothing can be sent there, or no descriptors or ports are left.
    pub fn connect(to: SocketAddr, source: Source, dscp: u8) -> Result<Self, HostError> {
        Self::try_connect(to, source, dscp).map_err(host_error)
    }

    /// Takes a connected TCP socket, as accepted.
    ///
    /// # Errors
    /// It is no TCP socket.
    pub fn from_tcp(fd: impl Into<OwnedFd>) -> Result<Self, HostError> {
        let fd = fd.into();
        let configure = || {
            rustix::io::ioctl_fionbio(&fd, true)?;
            let family = sockopt::socket_domain(&fd)?;
            Ok(Self::new(Kind::Tcp(family), configure(&fd, family)?, fd))
        };
        configure().map_err(host_error)
    }

    /// Takes one end of a Unix stream socket pair; the other belongs to a service.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn from_unix(stream: UnixStream) -> Result<Self, HostError> {
        let fd = OwnedFd::from(stream);
        rustix::io::ioctl_fionbio(&fd, true).map_err(host_error)?;
        Ok(Self::new(Kind::Unix, Queue::Ring(Ring::default()), fd))
    }

    /// Says how the connect went, after an event: `Ok(true)` when it has succeeded, `Ok(false)`
    /// when it is still under way.
    ///
    /// # Errors
    /// It failed. ICMP from the way there tells more than the error number does, so it decides
    /// where there was any.
    pub fn finish_connect(&mut self) -> Result<bool, HostError> {
        if !self.writable {
            let outcome = sockopt::socket_error(&self.fd).map_err(host_error)?;
            if let Err(errno) = outcome {
                let told = datagram::take_error(&self.fd, &mut []);
                return Err(told.map_or_else(|| host_error(errno), |queued| queued.error));
            }
            let Ok(Some(_)) = net::getpeername(&self.fd) else { return Ok(false) };
        }
        if let Kind::Tcp(family) = self.kind {
            // From here on, an ICMP error would end the connection instead of being ridden out.
            let _ = datagram::report_errors(&self.fd, family, false);
        }
        Ok(true)
    }

    /// Notes what an event says of the stream. Every event of the descriptor must pass here before
    /// the peek that it leads to.
    pub fn note(&mut self, event: Event) {
        self.writable = event.writable() && !event.error() && !event.hang_up();
        self.read_closed |= event.read_closed() || event.hang_up();
        self.urgent |= event.urgent();
    }

    /// Copies bytes into `iov`, from offset `at` of those that were not yet discarded. Returns how
    /// many, and why no more.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn peek(&mut self, at: u32, iov: &mut [IoSliceMut<'_>]) -> Result<(u32, PeekEnd), HostError> {
        let count = iov.len().min(IOV_MAX);
        let iov = iov.get_mut(..count).unwrap_or_default();
        let (len, end) = match &mut self.queue {
            Queue::Kernel { offset } => {
                let short = match (self.urgent, self.read_closed) {
                    (true, _) => PeekEnd::More,
                    (false, true) => PeekEnd::Eof,
                    (false, false) => PeekEnd::Empty,
                };
                peek_socket(&self.fd, offset, at, short, iov)
            }
            Queue::Ring(ring) => ring.peek(&self.fd, at as usize, iov),
        }
        .map_err(host_error)?;
        Ok((u32::try_from(len).unwrap_or(u32::MAX), end))
    }

    /// Drops `len` bytes from the front; they were peeked before. Returns whether a peek that ended
    /// in [`PeekEnd::Empty`] may now go on though no event will tell (a ring that was full).
    ///
    /// # Errors
    /// The connection is broken, or fewer bytes are there.
    pub fn discard(&mut self, len: u32) -> Result<bool, HostError> {
        match &mut self.queue {
            Queue::Kernel { offset } => {
                let mut left = len as usize;
                while left > 0 {
                    // Never less than is there, but for urgent data, at whose mark a read stops.
                    match sys::discard(&self.fd, left).map_err(host_error)? {
                        0 => return Err(HostError::Reset),
                        dropped => left = left.saturating_sub(dropped),
                    }
                }
                *offset = offset.map(|offset| offset.saturating_sub(len));
                Ok(false)
            }
            Queue::Ring(ring) => Ok(ring.discard(len as usize)),
        }
    }

    /// Writes what fits of `iov`, from its start; returns how many bytes that was. After less than
    /// was offered, an event tells when there is room.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self, iov: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let mut written = 0;
        for chunk in iov.chunks(IOV_MAX) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match net::sendmsg(&self.fd, chunk, &mut SendAncillaryBuffer::default(), flags) {
                Ok(len) => {
                    written += len;
                    self.used =
                        self.used.saturating_add(u32::try_from(len).unwrap_or(u32::MAX).max(LEAST_USED));
                    if len < chunk.iter().map(|slice| slice.len()).sum() {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                // What was taken is told now, the error by the next call.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(host_error(errno)),
            }
        }
        Ok(written)
    }

    /// How many bytes a write would take now, on the safe side.
    ///
    /// It is the send buffer less what is queued there, both of which the kernel counts with the
    /// memory that holds the bytes. For TCP that adds 1 to 2 % to writes of any size (small ones
    /// share a buffer), so a sixteenth is taken off. A Unix socket spends a buffer on each write, and
    /// adds half to those of 1460 bytes, so half is taken off; a service that is sent single bytes
    /// takes fewer yet.
    pub fn send_space(&mut self) -> u32 {
        let free = sys::memory(&self.fd).map_or(0, |memory| {
            let free = |queued: u32| memory.send_buffer.saturating_sub(queued);
            match self.kind {
                Kind::Tcp(_) => free(memory.queued) / 16 * 15,
                // What is written lies with the receiver, and counts as allocated.
                Kind::Unix => free(memory.allocated) / 2,
            }
        });
        (self.space, self.used) = (free, 0);
        free
    }

    /// [`TcpEnd::send_space`], when so much of the room was used since it was last asked for that
    /// there may be much more of it by now. Until then there is what it said, less what was written.
    pub fn send_space_anew(&mut self) -> Option<u32> {
        (self.used >= self.space / 8).then(|| self.send_space())
    }

    /// Ends what is sent: the peer sees FIN behind everything written.
    pub fn shutdown_write(&mut self) {
        // Refused only where the connection is gone, of which an event tells.
        let _ = net::shutdown(&self.fd, Shutdown::Write);
    }

    /// The way that its packets go: to `to`, where it was told to connect, or to whoever connected.
    /// `None`: it is over, or goes nowhere but to the host's loopback or a service of this process.
    pub fn path(&self, to: Option<SocketAddr>) -> Option<Path> {
        if self.kind == Kind::Unix {
            return None;
        }
        let peer = to.or_else(|| net::getpeername(&self.fd).ok().flatten()?.try_into().ok())?;
        let local = SocketAddr::try_from(net::getsockname(&self.fd).ok()?).ok()?;
        let option = |name| sys::get_int(&self.fd, libc::SOL_SOCKET, name).unwrap_or(0);
        let (interface, mark) = (option(libc::SO_BINDTOIFINDEX), option(libc::SO_MARK));
        (!peer.ip().is_loopback())
            .then(|| Path::new(local, peer, interface.unsigned_abs(), mark.cast_unsigned()))
    }

    /// Breaks the connection: the peer sees a reset (a service behind a Unix socket sees the end of
    /// the stream), and what was not yet sent is dropped.
    pub fn reset(self) {
        // SO_LINGER with a time of 0 makes the close that follows a reset (tcp(7)).
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }

    fn new(kind: Kind, queue: Queue, fd: OwnedFd) -> Self {
        Self { fd, kind, queue, writable: false, read_closed: false, urgent: false, space: 0, used: 0 }
    }

    fn try_connect(to: SocketAddr, source: Source, dscp: u8) -> rustix::io::Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = open(family)?;
        let queue = configure(&fd, family)?;
        let end = Self::new(Kind::Tcp(family), queue, fd);
        // In SYN_SENT the error queue is the only place that tells "prohibited" from "unreachable".
        datagram::report_errors(&end.fd, family, true)?;
        if dscp != 0 {
            datagram::set_tos(&end.fd, to.is_ipv4(), dscp)?;
        }
        source.apply(&end.fd)?;
        match net::connect(&end.fd, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(end),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for TcpEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    net::socket_with(family, SocketType::STREAM, flags, Some(net::ipproto::TCP))
}

/// What every TCP socket gets: segments leave as the guest sent them, and urgent data comes in line.
fn configure(fd: &OwnedFd, family: AddressFamily) -> rustix::io::Result<Queue> {
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_oobinline(fd, true)?;
    Ok(if PeekSupport::probe().of(family) {
        Queue::Kernel { offset: None }
    } else {
        Queue::Ring(Ring::default())
    })
}

/// `short`: what it means when less came than there was room for.
fn peek_socket(
    fd: &OwnedFd,
    offset: &mut Option<u32>,
    at: u32,
    short: PeekEnd,
    iov: &mut [IoSliceMut<'_>],
) -> rustix::io::Result<(usize, PeekEnd)> {
    let room: usize = iov.iter().map(|slice| slice.len()).sum();
    if room == 0 {
        // Reading nothing would look like the end of the stream.
        return Ok((0, PeekEnd::More));
    }
    if at != offset.unwrap_or(0) {
        let to = i32::try_from(at).map_err(|_| Errno::OVERFLOW)?;
        sys::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, to)?;
        *offset = Some(at);
    }
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let len = match net::recvmsg(fd, iov, &mut RecvAncillaryBuffer::default(), flags) {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN) => return Ok((0, PeekEnd::Empty)),
        Err(errno) => return Err(errno),
    };
    let moved = u32::try_from(len).unwrap_or(u32::MAX);
    *offset = offset.map(|offset| offset.saturating_add(moved));
    let end = match len {
        0 => PeekEnd::Eof,
        len if len < room => short,
        _ => PeekEnd::More,
    };
    Ok((len, end))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::epoll::{Events, Interest, Poll};

    /// What a kernel that cannot peek TCP sockets gets.
    #[test]
    fn a_ring_stands_in_for_a_tcp_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut end = TcpEnd::from_tcp(listener.accept().unwrap().0).unwrap();
        end.queue = Queue::Ring(Ring::default());
        peer.write_all(b"request").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();

        let poll = Poll::new().unwrap();
        poll.add(&end, 0, Interest::Read).unwrap();
        let mut events = Events::with_capacity(1);
        while !end.read_closed {
            poll.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
            end.note(events.iter().next().expect("the end of the stream is told"));
        }
        let mut bytes = [0; 20];
        let mut peek = |end: &mut TcpEnd, at| {
            let (len, why) = end.peek(at, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
            (bytes[..len as usize].to_vec(), why)
        };
        assert_eq!(peek(&mut end, 0), (b"request".to_vec(), PeekEnd::Eof));
        end.discard(5).unwrap();
        assert_eq!(peek(&mut end, 1), (b"t".to_vec(), PeekEnd::Eof));
        end.discard(2).unwrap();
        assert_eq!(peek(&mut end, 0), (vec![], PeekEnd::Eof));
    }
}

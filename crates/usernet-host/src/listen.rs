//! Host ports that are forwarded to a guest, over TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{self, SocketFlags};
use socket2::{Domain, Protocol, Socket, Type};
use usernet_core::host::HostError;

use crate::error::host_error;
use crate::tcp::TcpEnd;

/// Connections that may wait to be accepted; `net.core.somaxconn` may make it fewer.
const BACKLOG: i32 = 1024;

/// A listening socket of a forward rule.
#[derive(Debug)]
pub struct TcpForward {
    fd: OwnedFd,
    addr: SocketAddr,
}

/// What [`TcpForward::accept`] found.
#[derive(Debug)]
pub enum Accept {
    /// A connection.
    Accepted(Accepted),
    /// Nobody waits; an event tells of the next one.
    Empty,
    /// No descriptors or memory are left. Connections wait, and **no event tells of them again**:
    /// accept once more after a while, or when a flow has ended.
    Exhausted,
}

/// A connection to a forwarded port.
#[derive(Debug)]
pub struct Accepted {
    /// The host end of the flow.
    pub end: TcpEnd,
    /// Who connected.
    pub peer: SocketAddr,
    /// The address that they connected to.
    pub to: SocketAddr,
}

impl TcpForward {
    /// Listens on `addr`; port 0 takes any free one. An IPv6 address is only that: `[::]` leaves
    /// IPv4 to a rule of its own.
    ///
    /// # Errors
    /// The address is in use, is not of this host, or is not allowed.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // Connections that an earlier run left in TIME_WAIT do not keep the port.
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let addr = socket.local_addr()?.as_socket().unwrap_or(addr);
        Ok(Self { fd: socket.into(), addr })
    }

    /// What it listens on, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts a connection.
    ///
    /// # Errors
    /// The listener itself is broken.
    pub fn accept(&self) -> Result<Accept, HostError> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            return match net::acceptfrom_with(&self.fd, flags) {
                Ok((fd, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let to = net::getsockname(&fd).ok().and_then(|to| SocketAddr::try_from(to).ok());
                    let (Some(peer), Some(to)) = (peer, to) else { continue };
                    // Fails only for a connection that is gone already.
                    let Ok(end) = TcpEnd::from_tcp(fd) else { continue };
                    Ok(Accept::Accepted(Accepted { end, peer, to }))
                }
                Err(Errno::AGAIN) => Ok(Accept::Empty),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Ok(Accept::Exhausted),
                Err(errno @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK)) => Err(host_error(errno)),
                // Any other is the error of the one connection that was taken from the queue
                // (accept(2)): the next one may be well.
                Err(_) => continue,
            };
        }
    }
}

impl AsFd for TcpForward {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

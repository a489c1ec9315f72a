//! vhost-user: a guest in another process, whose front end (QEMU, User Mode Linux) speaks with us over a Unix
//! socket.
//!
//! The front end shares the guest's memory and says where the rings are; from then on frames move between
//! them and the host's sockets ([`crate::virtio`]), and the socket is silent until something changes.
//!
//! Messages are as in QEMU's `docs/interop/vhost-user.rst`. In-flight descriptors are not logged
//! (`INFLIGHT_SHMFD`): chains are given back in the order in which they were taken, and nothing is done with
//! a chain after that, so where a ring goes on is what its used index says, whoever died.

mod message;
mod session;

use std::io;
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;

use crate::Link;
use crate::virtio::Device;
pub use session::{Session, SessionError};

/// A network device of `pairs` queue pairs for the front end at the other end of `stream`, whose guest is to
/// use this `mtu`: a link for each pair, and the conversation, which has to be held ([`Session::run`]) for
/// any of them to come to life.
///
/// # Errors
/// No descriptors are left.
pub fn device(stream: UnixStream, pairs: NonZeroU16, mtu: u16) -> io::Result<(Vec<Link>, Session)> {
    let (device, mut links) = Device::new(pairs)?;
    links.iter_mut().for_each(|link| link.kind = "vhost-user");
    Ok((links, Session::new(stream, device, mtu)?))
}

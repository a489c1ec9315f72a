//! Where the flows of a user network meet the host.
//!
//! Everything here is non-blocking and owned by one worker thread, which drives it from an
//! edge-triggered [`epoll::Poll`]:
//!
//! | a flow of | meets the host in | made by |
//! |---|---|---|
//! | TCP, outward | [`tcp::TcpEnd`] | [`tcp::TcpEnd::connect`] |
//! | TCP, forwarded in | [`tcp::TcpEnd`] | [`listen::TcpForward::accept`] |
//! | TCP, to a service of ours | [`tcp::TcpEnd`] | [`tcp::TcpEnd::from_unix`] |
//! | UDP, outward | [`udp::UdpEnd`] | [`udp::UdpEnd::open`] |
//! | UDP, forwarded in | [`udp::UdpEnd`] | [`udp::UdpEnd::forward`] |
//! | ICMP echo | [`ping::PingEnd`] | [`ping::PingEnd::open`] |
//!
//! Payload is never held here where the kernel can hold it: a TCP end is *peeked* into the guest's
//! buffers and *discarded* when the guest has acknowledged, so the socket's receive queue is the
//! retransmission buffer. [`kept::Kept`] holds what a guest sent out of order.
//!
//! By which address and interface something leaves is said by a [`Source`]; whether a connection's [`Path`]
//! is still there, the kernel is asked, and [`changes`] tells when to.
//!
//! Nothing here decides: destinations are classified, retries timed and errors turned into packets
//! elsewhere. What the host refuses comes out as a [`usernet_core::host::HostError`].

mod addresses;
mod datagram;
pub mod epoll;
mod error;
pub mod inbox;
pub mod kept;
pub mod limits;
pub mod listen;
mod netlink;
pub mod outbox;
pub mod ping;
mod ring;
mod routes;
mod sys;
pub mod tcp;
pub mod udp;

pub use addresses::{Interface, addresses, interfaces, own};
pub use datagram::{Envelope, Icmp, QueuedError, Received};
pub use netlink::Netlink;
pub use routes::{Path, Source, changes, interface, outward_interface_v6};

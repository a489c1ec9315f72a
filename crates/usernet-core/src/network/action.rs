//! What the core answers with.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::drops::DropReason;
use crate::offload::Offload;
use crate::port::{PortId, WorkerId};
use crate::table::{Endpoint, FlowId};
use crate::tcp::SeqNumber;
use crate::wire::{Headers, ICMP_HEADER_LEN, IpHeader, MacAddr};

/// What to do with the bytes of a guest's frame. Every frame has exactly one verdict.
#[derive(Debug)]
#[must_use]
pub enum Verdict {
    /// Nothing: whatever the frame asked for follows among the outputs.
    Done,
    /// Write `payload` to the flow's host end, behind what the same batch holds for it already; at
    /// the end of the batch report all of it with [`crate::host::HostEvent::Wrote`].
    Tcp {
        /// The flow.
        flow: FlowId,
        /// Bytes of the frame.
        payload: Range<usize>,
        /// The position of the first.
        at: SeqNumber,
    },
    /// Keep `payload` for the flow: it came out of order.
    Keep {
        /// The flow.
        flow: FlowId,
        /// Bytes of the frame.
        payload: Range<usize>,
        /// The position of the first.
        at: SeqNumber,
    },
    /// Send `payload` as a datagram, or as several.
    Udp {
        /// The flow. Its socket is opened with the first datagram.
        flow: FlowId,
        /// By which socket.
        via: UdpVia,
        /// To whom.
        to: SocketAddr,
        /// Bytes of the frame.
        payload: Range<usize>,
        /// Bytes of each datagram that `payload` is to be cut into, the last may be shorter; 0: it is
        /// one. There are [`super::MAX_DATAGRAMS`] at most.
        segment: u16,
        /// How.
        delivery: Delivery,
    },
    /// Send an ICMP echo request: `header`, whose checksum the host makes, and `payload`.
    Ping {
        /// The flow. Its socket is opened with the first request.
        flow: FlowId,
        /// The identifier that the socket is to have if it can.
        ident: u16,
        /// To whom.
        to: IpAddr,
        /// The header, of the kind of IP of `to`.
        header: [u8; ICMP_HEADER_LEN],
        /// Bytes of the frame.
        payload: Range<usize>,
        /// How.
        delivery: Delivery,
    },
    /// Have `payload`, a DNS message, answered; hand the answer to
    /// [`super::Network::dns_answer`], or none.
    Dns {
        /// Who asks.
        query: DnsQuery,
        /// Bytes of the frame.
        payload: Range<usize>,
    },
    /// Send `headers` and `payload` back to the port that the frame came from.
    Reply {
        /// The headers.
        headers: Headers,
        /// Bytes of the frame.
        payload: Range<usize>,
    },
    /// Hand the frame as it is to one other guest.
    Relay(PortId),
    /// Hand the frame as it is to these guests.
    Flood(Vec<PortId>),
    /// Hand in this frame as one that came from the same guest, when all that came before it has been
    /// done: it is what the fragments that came make, and leaves nothing undone.
    Reassembled(Vec<u8>),
    /// Hand the frame to another worker, which has its flow.
    HandOver(WorkerId),
    /// Nothing; the reason has been counted.
    Dropped(DropReason),
}

/// The socket that a datagram leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpVia {
    /// The flow's own, with the guest's port number where it can be had.
    Own {
        /// The guest's port.
        guest_port: u16,
    },
    /// The socket of a forwarded port.
    Forward {
        /// The forward's number.
        forward: u32,
        /// The host's address that the peer knows.
        local: Option<IpAddr>,
    },
}

/// How a packet of a guest is to travel on: as its IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Hops that it may take yet, 1 to 255.
    pub ttl: u8,
    /// DSCP and ECN, as they stand in an IP header.
    pub tos: u8,
    /// Nobody may cut it; the guest is told when it is too long for the way.
    pub dont_fragment: bool,
}

impl From<&IpHeader> for Delivery {
    fn from(ip: &IpHeader) -> Self {
        Self { ttl: ip.ttl.saturating_sub(1).max(1), tos: ip.tos, dont_fragment: ip.dont_fragment }
    }
}

/// Who asked the DNS server something.
#[derive(Clone, Copy, Debug)]
pub struct DnsQuery {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
    pub(super) guest: Endpoint,
}

/// Where the host end of a TCP flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host to connect to.
    Host(SocketAddr),
    /// The DNS service of this process.
    Dns,
}

/// What else the driver has to do.
#[derive(Debug)]
#[must_use]
pub enum Output {
    /// Give a whole frame to a guest.
    Frame {
        /// The guest.
        port: PortId,
        /// The frame.
        frame: Vec<u8>,
        /// What it leaves undone.
        offload: Offload,
    },
    /// Give a frame without payload to a guest.
    Headers {
        /// The guest.
        port: PortId,
        /// The frame.
        headers: Headers,
    },
    /// Do something for a TCP flow.
    Tcp {
        /// The flow.
        flow: FlowId,
        /// What.
        op: TcpOp,
    },
    /// Send a datagram to a group of the host's network, by the UDP flow's own socket, whose port is any
    /// but the guest's.
    Multicast {
        /// The flow. Its socket is opened with the first datagram.
        flow: FlowId,
        /// The group and its port.
        to: SocketAddr,
        /// How.
        delivery: Delivery,
        /// The datagram.
        payload: Vec<u8>,
    },
    /// Close the socket of a UDP or ping flow, which is no more.
    Close(FlowId),
    /// Hand the host end of a TCP flow over to another worker, which has its guest, as a connection that
    /// was just accepted, then call [`super::Network::rehomed`].
    Rehome {
        /// The flow.
        flow: FlowId,
        /// The worker.
        to: WorkerId,
        /// The guest's end.
        guest: Endpoint,
        /// The host's peer.
        peer: Endpoint,
    },
    /// Tell the other workers that an address has been found: [`super::Network::found`].
    Found(IpAddr),
    /// The leases are others than before.
    LeasesChanged,
    /// Two guests were given one MAC address.
    MacConflict {
        /// The guest that came later; it was given an address of its own.
        port: PortId,
        /// The guest that came first.
        other: PortId,
        /// The MAC address.
        mac: MacAddr,
    },
}

/// What the driver does for a TCP flow; see [`crate::tcp::Output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOp {
    /// Connect the host end; answer with `Connected` or `Failed`.
    Connect {
        /// To where.
        target: Target,
        /// The DSCP that the guest's SYN came with, as it stands in an IP header.
        dscp: u8,
    },
    /// Peek host bytes into the link of `port`; answer with [`super::Network::tcp_peeked`].
    Peek {
        /// The guest.
        port: PortId,
        /// Bytes from the front of what has not been discarded.
        at: u32,
        /// Bytes.
        max: u32,
        /// Payload bytes of one wire packet.
        segment: u16,
    },
    /// Drop bytes from the front of the host end's queue.
    Discard {
        /// Bytes.
        len: u32,
    },
    /// Write kept bytes; answer with [`super::Network::tcp_wrote_kept`].
    WriteKept {
        /// The position of the first.
        at: SeqNumber,
        /// Bytes.
        len: u32,
    },
    /// End the stream to the host.
    ShutdownWrite,
    /// Report the room for sending now, and when the host end becomes writable.
    WatchSendSpace,
    /// Close the host end in order.
    Close,
    /// Close the host end so that its peer sees a reset.
    Reset,
}

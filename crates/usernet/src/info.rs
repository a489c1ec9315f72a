//! What a network tells about itself. All of it serialises, for APIs and tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// A guest's place on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    /// The port's number.
    pub port: u32,
    /// What it was called when it was attached.
    pub name: String,
    /// The kind of link: `stream`, `tap`, `vhost-user`.
    pub kind: String,
    /// The addresses that the network knows of it: those that it leases, that it made itself (SLAAC), and
    /// that it was given by hand.
    pub addresses: Vec<IpAddr>,
    /// What has passed, all queues together.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Frames of this guest that were dropped.
    pub drops: u64,
    /// What has passed by each of its queues, or pairs of queues, in their order.
    pub queues: Vec<QueueInfo>,
    /// Why nothing moves until the guest sets its device up anew, if so: it has made this mistake.
    pub trouble: Option<String>,
}

impl PortInfo {
    /// Adds what the worker that has another queue of the same guest knows.
    pub(crate) fn add(&mut self, other: Self) {
        self.traffic += other.traffic;
        self.drops += other.drops;
        self.queues.extend(other.queues);
        self.queues.sort_by_key(|queue| queue.queue);
    }
}

/// A queue of a guest, or a pair of them: one for each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its number, from 0 on.
    pub queue: usize,
    /// The number of the worker that serves it, from 0 on.
    pub worker: usize,
    /// Whether the guest uses it: one may be offered more pairs than its driver takes.
    pub in_use: bool,
    /// What has passed by it.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// How much has passed between a guest and the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames from the guest (a super-frame counts once).
    pub rx_frames: u64,
    /// Bytes from the guest.
    pub rx_bytes: u64,
    /// Frames to the guest (a super-frame counts once).
    pub tx_frames: u64,
    /// Bytes to the guest.
    pub tx_bytes: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
    }
}

/// An address that a guest holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// The guest's port.
    pub port: u32,
    /// The address.
    pub address: IpAddr,
    /// The MAC address, as `52:54:00:12:34:56`.
    pub mac: String,
    /// The host name that the guest gave.
    pub hostname: Option<String>,
    /// Seconds until the lease ends; none: it lasts as long as the guest is there.
    pub expires_in: Option<u64>,
}

/// A flow through the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The guest's port; none while its guest has not been found.
    pub port: Option<u32>,
    /// The guest's end (for ICMP, the identifier stands for the port).
    pub guest: SocketAddr,
    /// The other end, as the guest sees it; none for a UDP flow, which may have many.
    pub peer: Option<SocketAddr>,
    /// Who began it: `guest` or `host`.
    pub origin: String,
    /// The state, in RFC 9293's words for TCP.
    pub state: String,
    /// Payload bytes from the guest that the host took.
    pub bytes_out: u64,
    /// Payload bytes to the guest (TCP: acknowledged by it).
    pub bytes_in: u64,
    /// Seconds since the last packet.
    pub idle: u64,
}

/// A host port that is forwarded to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardInfo {
    /// What [`crate::Handle::remove_forward`] takes.
    pub id: u32,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where the host listens; the port is the real one where the rule said 0.
    pub host: SocketAddr,
    /// The guest's address and port.
    pub guest: SocketAddr,
    /// Connections (TCP) or datagrams (UDP) forwarded so far.
    pub accepted: u64,
}

/// How often frames were dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropInfo {
    /// The reason's name.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// What a guest needs to know to configure its interface by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Its place on the IPv4 network; none where that is off.
    pub ipv4: Option<GuestAddress<Ipv4Addr>>,
    /// Its place on the IPv6 network; none where that is off.
    pub ipv6: Option<GuestAddress<Ipv6Addr>>,
    /// The DNS servers, one of each kind of IP that is on; none on a restricted network.
    pub dns: Vec<IpAddr>,
    /// The MTU in bytes.
    pub mtu: u16,
    /// The domains to search.
    pub search: Vec<String>,
}

/// A guest's address of one kind of IP, and the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress<A> {
    /// The guest's address.
    pub address: A,
    /// The length of the network's prefix in bits.
    pub prefix_len: u8,
    /// The gateway, an address of the same network; none on a restricted one, where it leads nowhere.
    pub gateway: Option<A>,
}

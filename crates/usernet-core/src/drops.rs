//! Why a frame was not carried, as values that are counted.

use std::fmt;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a frame, or a part of one, was dropped. Every drop has a reason and every reason a counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason's name in tables, logs and metrics: lower case with hyphens.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends before its Ethernet header does.
    EthernetHeader => "ethernet-header",
    /// An EtherType that the network does not carry.
    EtherType => "ether-type",
    /// A source MAC address that is multicast, broadcast or the gateway's own.
    SourceMac => "source-mac",
    /// A destination MAC address that is no guest of this network.
    UnknownMac => "unknown-mac",
    /// A malformed ARP packet.
    Arp => "arp",
    /// A malformed IP header, or one that disagrees with the frame's length.
    IpHeader => "ip-header",
    /// An IPv6 extension header that is refused, one too many, or longer than what is looked at.
    ExtensionHeader => "extension-header",
    /// A malformed message of neighbour discovery, or one about what is not its sender's to say.
    Ndp => "ndp",
    /// A router advertisement or redirect from a guest.
    RogueRouter => "rogue-router",
    /// An IP version or transport protocol that the network does not carry.
    Protocol => "protocol",
    /// A source address outside of the network, or one of its own.
    SourceAddress => "source-address",
    /// A destination that is never sent outside: 0.0.0.0/8, 127.0.0.0/8, 240.0.0.0/4, their mapped
    /// forms, `::` and `::1`.
    ForbiddenDestination => "forbidden-destination",
    /// A destination inside of the network that nobody answers to.
    NoSuchGuest => "no-such-guest",
    /// Multicast or broadcast that the network does not carry outside.
    Multicast => "multicast",
    /// A fragment that is none: empty, not of whole units of 8 bytes, beyond the longest packet, or a
    /// first one that ends in its headers; or one between guests whose protocol cannot be told.
    Fragment => "fragment",
    /// A fragment that overlaps another or contradicts its end, and any other of the packet, which is
    /// refused as a whole (RFC 5722).
    FragmentOverlap => "fragment-overlap",
    /// A packet whose fragments had not all come when newer ones needed the room.
    FragmentLimit => "fragment-limit",
    /// A packet whose fragments did not all come in time.
    FragmentTimeout => "fragment-timeout",
    /// A packet for the outside whose time to live has run out here.
    TtlExpired => "ttl-expired",
    /// A malformed TCP header.
    TcpHeader => "tcp-header",
    /// A segment of no known flow; answered with RST unless it was one.
    NoFlow => "no-flow",
    /// A segment outside of the window (RFC 9293 §3.10.7.4).
    OutsideWindow => "outside-window",
    /// A segment or fragment whose bytes were all received before.
    Duplicate => "duplicate",
    /// A segment that acknowledges what was never sent, or lacks its ACK.
    BadAck => "bad-ack",
    /// A RST or SYN that is not exactly in place (RFC 5961), answered with a challenge ACK.
    Challenged => "challenged",
    /// Out-of-order bytes for which no bound had room.
    OutOfOrderFull => "out-of-order-full",
    /// Bytes that the host's socket did not take: the guest sends them again.
    HostFull => "host-full",
    /// A flow that a bound has no room for.
    FlowLimit => "flow-limit",
    /// A connect while too many are pending for this guest.
    PendingLimit => "pending-limit",
    /// A connection whose address the host has no more, or no route for; it was reset.
    HostChanged => "host-changed",
    /// The host is out of descriptors, ports or memory.
    HostExhausted => "host-exhausted",
    /// A malformed UDP header.
    UdpHeader => "udp-header",
    /// A super-frame that contradicts the headers in it, or is to be cut into too many datagrams.
    UdpSegmentation => "udp-segmentation",
    /// A datagram that the host's socket refused.
    UdpSend => "udp-send",
    /// A datagram from a host peer that the guest never sent to, or an error about one (RFC 4787 REQ-8).
    UdpFiltered => "udp-filtered",
    /// A malformed ICMP header, or a type that the network does not carry.
    Icmp => "icmp",
    /// An echo that the host does not let us send (`net.ipv4.ping_group_range`).
    PingForbidden => "ping-forbidden",
    /// An echo reply from a host that the guest never pinged, or an error about one.
    PingFiltered => "ping-filtered",
    /// An echo request that the host's socket refused.
    PingSend => "ping-send",
    /// A malformed DHCP message.
    Dhcp => "dhcp",
    /// A DHCP message that asks nothing of this server.
    DhcpIgnored => "dhcp-ignored",
    /// The DHCP pool is exhausted, or the guest's port holds all that it may.
    DhcpExhausted => "dhcp-exhausted",
    /// A DNS query while too many of this guest's are unanswered.
    DnsLimit => "dns-limit",
    /// The destination guest's link had no room.
    LinkFull => "link-full",
    /// A packet for a guest whose MAC address is not known yet.
    Unresolved => "unresolved",
    /// A frame or connection for another worker that is too far behind.
    WorkerBusy => "worker-busy",
    /// Refused by the network's own policy.
    Policy => "policy",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A counter for each [`DropReason`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one drop.
    pub fn count(&mut self, reason: DropReason) {
        self.count_many(reason, 1);
    }

    /// Counts several drops for one reason.
    pub fn count_many(&mut self, reason: DropReason, drops: usize) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += drops as u64;
        }
    }

    /// How often `reason` has occurred.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// The reasons that have occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().zip(&self.0).filter(|(_, n)| **n > 0).map(|(reason, n)| (*reason, *n))
    }
}

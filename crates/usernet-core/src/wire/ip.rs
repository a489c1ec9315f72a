//! IP headers, and IPv4's on the wire (RFC 791); IPv6's are in `ipv6.rs`.
//!
//! The value is ours because smoltcp's `Ipv4Repr` loses DSCP and ECN.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{IpProtocol, Ipv4Packet};

use crate::drops::DropReason;

/// The bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// Where in the type of service, or the traffic class, DSCP lies (RFC 2474); the rest is ECN (RFC 3168).
pub const DSCP: u8 = 0xfc;

/// An IP header, as far as a relay cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// The source.
    pub src: IpAddr,
    /// The destination.
    pub dst: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// DSCP (high six bits) and ECN (low two): the type of service, or the traffic class.
    pub tos: u8,
    /// Whether the packet is a fragment.
    pub fragment: bool,
    /// Whether nobody on the way may cut it: IPv4's "don't fragment"; of IPv6, unless its sender has.
    pub dont_fragment: bool,
}

impl IpHeader {
    /// The header of a packet that begins here: 64 hops, neither DSCP nor ECN, whole and to stay so.
    pub fn new(src: IpAddr, dst: IpAddr, protocol: u8) -> Self {
        Self { src, dst, protocol, ttl: 64, tos: 0, fragment: false, dont_fragment: true }
    }

    /// Reads an IPv4 header at the start of `bytes`, which may end anywhere behind it, of a packet
    /// that has `available` bytes in its frame. Returns the header, its length with options and the
    /// length of the transport's header and payload.
    ///
    /// # Errors
    /// [`DropReason::IpHeader`] when a length in it contradicts another.
    pub fn parse_v4(bytes: &[u8], available: usize) -> Result<(Self, usize, usize), DropReason> {
        if bytes.len() < IPV4_HEADER_LEN {
            return Err(DropReason::IpHeader);
        }
        let packet = Ipv4Packet::new_unchecked(bytes);
        let header_len = usize::from(packet.header_len());
        let total_len = usize::from(packet.total_len());
        if packet.version() != 4
            || header_len < IPV4_HEADER_LEN
            || header_len > bytes.len()
            || total_len < header_len
            || total_len > available
        {
            return Err(DropReason::IpHeader);
        }
        let header = Self {
            src: IpAddr::V4(packet.src_addr()),
            dst: IpAddr::V4(packet.dst_addr()),
            protocol: packet.next_header().into(),
            ttl: packet.hop_limit(),
            tos: packet.dscp() << 2 | packet.ecn(),
            fragment: packet.more_frags() || packet.frag_offset() > 0,
            dont_fragment: packet.dont_frag(),
        };
        Ok((header, header_len, total_len - header_len))
    }

    /// The source of an IPv4 packet, whatever else is wrong with it.
    pub fn source_v4(bytes: &[u8]) -> Option<IpAddr> {
        (bytes.len() >= IPV4_HEADER_LEN).then(|| IpAddr::V4(Ipv4Packet::new_unchecked(bytes).src_addr()))
    }

    /// Writes an IPv4 header without options for `payload_len` bytes of transport header and
    /// payload, with its checksum. It is whole, and has no identification.
    ///
    /// # Panics
    /// When `bytes` is shorter than 20, or an address is not IPv4.
    pub fn emit_v4(&self, bytes: &mut [u8], payload_len: usize) {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        packet.set_version(4);
        packet.set_header_len(20);
        packet.set_dscp(self.tos >> 2);
        packet.set_ecn(self.tos & 3);
        packet.set_total_len(u16::try_from(IPV4_HEADER_LEN + payload_len).unwrap_or(u16::MAX));
        packet.set_ident(0);
        packet.clear_flags();
        packet.set_dont_frag(self.dont_fragment);
        packet.set_more_frags(false);
        packet.set_frag_offset(0);
        packet.set_hop_limit(self.ttl);
        packet.set_next_header(IpProtocol::from(self.protocol));
        packet.set_src_addr(v4(self.src));
        packet.set_dst_addr(v4(self.dst));
        packet.fill_checksum();
    }
}

fn v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(_) => unreachable!("IPv6 packets have a header of their own"),
    }
}

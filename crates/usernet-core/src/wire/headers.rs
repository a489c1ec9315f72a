//! The headers in front of a payload that lies elsewhere.

use std::net::IpAddr;
use std::ops::Deref;

use smoltcp::wire::checksum;

use super::{
    ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, ICMP_HEADER_LEN, IPV4_HEADER_LEN,
    IPV6_HEADER_LEN, IpHeader, MacAddr, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader,
};
use crate::offload::{Checksum, Offload, SegmentKind, Segmentation};

/// The bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;
/// Ethernet, IPv4 and TCP headers of a data segment.
pub const TCP_FRAME_HEADERS: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + super::TCP_HEADER_LEN;
/// Ethernet, IPv4 and UDP headers of a datagram.
pub const UDP_FRAME_HEADERS: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + UDP_HEADER_LEN;

/// By how much an IPv6 header is longer than an IPv4 one.
pub const IPV6_MORE: usize = IPV6_HEADER_LEN - IPV4_HEADER_LEN;

/// Room for Ethernet, IP and transport headers with all options.
const CAPACITY: usize = 128;

/// Ethernet, IP and transport headers, as bytes, and what they leave undone.
#[derive(Clone, Copy)]
pub struct Headers {
    bytes: [u8; CAPACITY],
    len: u8,
    /// What is left for the link to finish.
    pub offload: Offload,
}

impl Deref for Headers {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Headers").field("bytes", &&**self).field("offload", &self.offload).finish()
    }
}

impl Headers {
    /// TCP over IP in front of `len` payload bytes, in wire packets of `segment` bytes.
    pub fn tcp(dst: MacAddr, src: MacAddr, ip: &IpHeader, tcp: &TcpHeader, len: usize, segment: u16) -> Self {
        let mut headers = Self::ip(dst, src, ip, tcp.len() + len);
        let at = usize::from(headers.len);
        headers.len += u8::try_from(tcp.len()).unwrap_or(0);
        if let Some(room) = headers.bytes.get_mut(at..) {
            tcp.emit(room);
        }
        headers.partial_checksum(ip, PROTOCOL_TCP, at, 16, tcp.len() + len);
        let kind = if ip.dst.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
        headers.segmentation(kind, len, segment);
        headers
    }

    /// UDP over IP in front of `len` payload bytes, in datagrams of `segment` bytes.
    pub fn udp(
        dst: MacAddr,
        src: MacAddr,
        ip: &IpHeader,
        (src_port, dst_port): (u16, u16),
        len: usize,
        segment: u16,
    ) -> Self {
        let mut headers = Self::ip(dst, src, ip, UDP_HEADER_LEN + len);
        let at = usize::from(headers.len);
        let udp_len = u16::try_from(UDP_HEADER_LEN + len).unwrap_or(u16::MAX);
        headers.push(&src_port.to_be_bytes());
        headers.push(&dst_port.to_be_bytes());
        headers.push(&udp_len.to_be_bytes());
        headers.push(&[0, 0]);
        headers.partial_checksum(ip, PROTOCOL_UDP, at, 6, UDP_HEADER_LEN + len);
        headers.segmentation(SegmentKind::Udp, len, segment);
        headers
    }

    /// ICMP over IP: `icmp` is its header, checksum included, in front of `len` payload bytes. ICMPv6's
    /// checksum covers the addresses too, and is made anew.
    pub fn icmp(dst: MacAddr, src: MacAddr, ip: &IpHeader, icmp: &[u8; ICMP_HEADER_LEN], len: usize) -> Self {
        let mut headers = Self::ip(dst, src, ip, icmp.len() + len);
        let at = usize::from(headers.len);
        headers.push(icmp);
        if ip.dst.is_ipv6() {
            headers.partial_checksum(ip, PROTOCOL_ICMPV6, at, 2, icmp.len() + len);
        }
        headers
    }

    /// The packet as an ICMP error quotes it: from its IP header on, with its checksum, as far as
    /// `payload` goes.
    pub fn quote(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = [self.get(ETHERNET_HEADER_LEN..).unwrap_or_default(), payload].concat();
        if let Checksum::Partial { start, offset } = self.offload.checksum {
            let start = usize::from(start) - ETHERNET_HEADER_LEN;
            let sum = !checksum::data(packet.get(start..).unwrap_or_default());
            if let Some(field) =
                packet.get_mut(start + usize::from(offset)..).and_then(<[u8]>::first_chunk_mut)
            {
                *field = sum.to_be_bytes();
            }
        }
        packet
    }

    fn ip(dst: MacAddr, src: MacAddr, ip: &IpHeader, payload_len: usize) -> Self {
        let mut headers = Self { bytes: [0; CAPACITY], len: 0, offload: Offload::default() };
        if ip.dst.is_ipv4() {
            headers.push(&EthernetHeader { dst, src, ethertype: ETHERTYPE_IPV4 }.to_bytes());
            let mut header = [0; IPV4_HEADER_LEN];
            ip.emit_v4(&mut header, payload_len);
            headers.push(&header);
        } else {
            headers.push(&EthernetHeader { dst, src, ethertype: ETHERTYPE_IPV6 }.to_bytes());
            let mut header = [0; IPV6_HEADER_LEN];
            ip.emit_v6(&mut header, payload_len);
            headers.push(&header);
        }
        headers
    }

    /// Headers that are there already.
    pub(super) fn copied(bytes: &[u8]) -> Self {
        let mut headers = Self { bytes: [0; CAPACITY], len: 0, offload: Offload::default() };
        headers.push(bytes);
        headers
    }

    /// From the IP header on.
    pub(super) fn ip_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(ETHERNET_HEADER_LEN..).unwrap_or_default()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        if let Some(room) = self.bytes.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += u8::try_from(bytes.len()).unwrap_or(0);
        }
    }

    fn segmentation(&mut self, kind: SegmentKind, len: usize, segment: u16) {
        if len > usize::from(segment) {
            let header_len = u16::from(self.len);
            self.offload.segmentation = Some(Segmentation { kind, size: segment, header_len });
        }
    }

    /// Puts the pseudo-header's sum into the checksum field, for the link to finish.
    fn partial_checksum(&mut self, ip: &IpHeader, protocol: u8, start: usize, offset: usize, len: usize) {
        let sum = pseudo_header_sum(ip.src, ip.dst, protocol, len);
        if let Some(field) = self.bytes.get_mut(start + offset..start + offset + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        let narrow = |n| u16::try_from(n).unwrap_or(0);
        self.offload.checksum = Checksum::Partial { start: narrow(start), offset: narrow(offset) };
    }
}

/// The folded, not inverted sum of the pseudo-header (RFC 9293 §3.1).
pub(super) fn pseudo_header_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u16 {
    checksum::pseudo_header(&src.into(), &dst.into(), protocol.into(), u32::try_from(len).unwrap_or(0))
}

/// A checksum field after a 16-bit word that it covers has changed (RFC 1624 §3, equation 3).
pub fn update_checksum(field: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!field) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_updated_checksum_is_the_one_computed_anew() {
        let mut packet = [8u8, 0, 0, 0, 0x12, 0x34, 0, 1, 0xde, 0xad];
        let sum = !checksum::data(&packet);
        packet[0] = 0;
        let updated = update_checksum(sum, 0x0800, 0);
        assert_eq!(updated, !checksum::data(&packet));
    }
}

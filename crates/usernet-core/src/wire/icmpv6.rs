//! ICMPv6 messages (RFC 4443).

use std::net::Ipv6Addr;

use super::headers::pseudo_header_sum;
use super::{
    ETHERTYPE_IPV6, EthernetHeader, IPV6_HEADER_LEN, IPV6_MIN_MTU, IpHeader, MacAddr, PROTOCOL_ICMPV6,
};
use smoltcp::wire::checksum;

/// Type of an echo request.
pub const ICMPV6_ECHO: u8 = 128;
/// Type of an echo reply.
pub const ICMPV6_ECHO_REPLY: u8 = 129;
/// The types that speak of multicast groups: query, report, done (RFC 2710), report (RFC 3810).
pub const ICMPV6_LISTENER: [u8; 4] = [130, 131, 132, 143];
/// How many bytes of a packet an error of either family quotes at most: it is no longer than the least MTU
/// (RFC 4443 §2.4 (c)).
pub const ICMP_MAX_QUOTE: usize = IPV6_MIN_MTU as usize - IPV6_HEADER_LEN - 8;

/// Whether a type is an error's (RFC 4443 §2.1).
pub const fn is_icmpv6_error(kind: u8) -> bool {
    kind < 128
}

/// A whole frame from `src` that answers `request`, an echo request, whatever its checksum was: that counts
/// the destination, which may have been a group.
pub(crate) fn echo_reply_v6(
    to: MacAddr,
    from: MacAddr,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    mut request: Vec<u8>,
) -> Vec<u8> {
    if let Some(header) = request.first_chunk_mut() {
        *header = [ICMPV6_ECHO_REPLY, 0, 0, 0];
    }
    frame(to, from, &IpHeader::new(src.into(), dst.into(), PROTOCOL_ICMPV6), request)
}

/// A whole frame with `message`, whose checksum field it fills.
pub(super) fn frame(to: MacAddr, from: MacAddr, ip: &IpHeader, mut message: Vec<u8>) -> Vec<u8> {
    let sum = pseudo_header_sum(ip.src, ip.dst, PROTOCOL_ICMPV6, message.len());
    let sum = !checksum::combine(&[sum, checksum::data(&message)]);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let mut header = [0; IPV6_HEADER_LEN];
    ip.emit_v6(&mut header, message.len());
    let ethernet = EthernetHeader { dst: to, src: from, ethertype: ETHERTYPE_IPV6 }.to_bytes();
    [&ethernet[..], &header, &message].concat()
}

//! ICMP messages that the network itself sends (RFC 792, RFC 4443).

use std::net::IpAddr;

use smoltcp::wire::checksum;

use super::{EthernetHeader, IpHeader, MacAddr, PROTOCOL_ICMP, PROTOCOL_ICMPV6, icmpv6};

/// The bytes of an ICMP header.
pub const ICMP_HEADER_LEN: usize = 8;
/// Type of an echo request.
pub const ICMP_ECHO: u8 = 8;
/// Type of an echo reply.
pub const ICMP_ECHO_REPLY: u8 = 0;

/// What the network tells a guest about a packet that it could not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Network unreachable; of IPv6, no route to the destination.
    NetUnreachable,
    /// Host unreachable.
    HostUnreachable,
    /// Port unreachable.
    PortUnreachable,
    /// Communication administratively prohibited (RFC 1812 §5.2.7.1).
    Prohibited,
    /// Time to live exceeded in transit.
    TimeExceeded,
    /// Beyond the scope of the source address (IPv6 only).
    BeyondScope,
    /// The byte of the packet that is at fault (IPv6 only).
    ParameterProblem {
        /// The code.
        code: u8,
        /// Where the byte lies, counted from the start of the IP header.
        pointer: u32,
    },
    /// Any other message, as it came from the network.
    Other {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The second word of the header: the MTU where there is one.
        info: u32,
    },
}

impl IcmpError {
    fn words(self) -> (u8, u8, u32) {
        match self {
            Self::NetUnreachable | Self::BeyondScope => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::PortUnreachable => (3, 3, 0),
            Self::Prohibited => (3, 13, 0),
            Self::TimeExceeded => (11, 0, 0),
            Self::ParameterProblem { pointer, .. } => (12, 0, pointer << 24),
            Self::Other { kind, code, info } => (kind, code, info),
        }
    }

    fn words_v6(self) -> (u8, u8, u32) {
        match self {
            Self::NetUnreachable => (1, 0, 0),
            Self::Prohibited => (1, 1, 0),
            Self::BeyondScope => (1, 2, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::TimeExceeded => (3, 0, 0),
            Self::ParameterProblem { code, pointer } => (4, code, pointer),
            Self::Other { kind, code, info } => (kind, code, info),
        }
    }

    /// A whole frame from `src` that quotes the start of the packet, its IP header and at least the
    /// first 8 bytes behind it.
    pub fn frame(self, to: MacAddr, from: MacAddr, src: IpAddr, dst: IpAddr, quoted: &[u8]) -> Vec<u8> {
        // RFC 1812 §4.3.2.3: as much as fits in 576 bytes.
        let (words, most) =
            if dst.is_ipv4() { (self.words(), 548) } else { (self.words_v6(), icmpv6::MAX_QUOTE) };
        let (kind, code, info) = words;
        let quoted = quoted.get(..quoted.len().min(most)).unwrap_or_default();
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend_from_slice(&info.to_be_bytes());
        icmp.extend_from_slice(quoted);
        if dst.is_ipv6() {
            let ip = IpHeader { src, dst, protocol: PROTOCOL_ICMPV6, ttl: 64, tos: 0, fragment: false };
            return icmpv6::frame(to, from, &ip, icmp);
        }
        let sum = !checksum::data(&icmp);
        if let Some(field) = icmp.get_mut(2..4) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        // RFC 1812 §4.3.2.5: precedence 6.
        let ip = IpHeader { src, dst, protocol: PROTOCOL_ICMP, ttl: 64, tos: 0xc0, fragment: false };
        let mut header = [0; super::IPV4_HEADER_LEN];
        ip.emit_v4(&mut header, icmp.len());
        let mut frame =
            EthernetHeader { dst: to, src: from, ethertype: super::ETHERTYPE_IPV4 }.to_bytes().to_vec();
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&icmp);
        frame
    }
}

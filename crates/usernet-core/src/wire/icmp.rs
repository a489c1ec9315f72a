//! ICMP errors (RFC 792, RFC 4443), and what one family says in the words of the other (RFC 7915).

use std::net::IpAddr;

use smoltcp::wire::checksum;

use super::{
    ETHERTYPE_IPV4, EthernetHeader, IPV4_HEADER_LEN, IPV6_MIN_MTU, IpHeader, MacAddr, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, icmpv6,
};

/// The bytes of an ICMP header.
pub const ICMP_HEADER_LEN: usize = 8;
/// Type of an echo request.
pub const ICMP_ECHO: u8 = 8;
/// Type of an echo reply.
pub const ICMP_ECHO_REPLY: u8 = 0;
/// RFC 1812 §4.3.2.3: an error is no longer than 576 bytes.
const MAX_QUOTE: usize = 576 - IPV4_HEADER_LEN - ICMP_HEADER_LEN;

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// The code of "fragmentation needed and DF set", among those of [`UNREACHABLE`].
const FRAGMENTATION_NEEDED: u8 = 4;
const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER_PROBLEM: u8 = 4;

/// By how much the MTU of a path differs for packets of the two families: as their headers do.
const MTU_DIFFERENCE: u32 = 20;

/// What a guest is told about a packet that did not arrive, in the words of whichever family it speaks.
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
    /// Fragment reassembly time exceeded.
    ReassemblyTime,
    /// Beyond the scope of the source address (IPv6 only).
    BeyondScope,
    /// The byte of the packet that is at fault (IPv6 only).
    ParameterProblem {
        /// The code.
        code: u8,
        /// Where the byte lies, counted from the start of the IP header.
        pointer: u32,
    },
    /// What an ICMP message from the network said.
    V4 {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The MTU in bytes, or where the byte at fault lies.
        info: u32,
    },
    /// What an ICMPv6 message from the network said.
    V6 {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The MTU in bytes, or where the byte at fault lies.
        info: u32,
    },
}

/// The router or host that sent an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offender {
    /// Its address.
    pub addr: IpAddr,
    /// Hops that the error had left here, where that is known.
    pub ttl: Option<u8>,
}

impl IcmpError {
    /// A packet to `dst` was longer than the `mtu` bytes that the way there takes (RFC 1191, RFC 8201).
    pub fn too_big(dst: IpAddr, mtu: u32) -> Self {
        match dst {
            IpAddr::V4(_) => {
                let info = mtu.min(u32::from(u16::MAX));
                Self::V4 { kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, info }
            }
            IpAddr::V6(_) => Self::V6 { kind: V6_TOO_BIG, code: 0, info: mtu },
        }
    }

    /// Type, code and information of the ICMP message; `None` when it has no word for it. What the network
    /// says that is no error, as a redirect, is for the host alone.
    fn in_v4(self) -> Option<(u8, u8, u32)> {
        Some(match self {
            Self::NetUnreachable | Self::BeyondScope => (UNREACHABLE, 0, 0),
            Self::HostUnreachable => (UNREACHABLE, 1, 0),
            Self::PortUnreachable => (UNREACHABLE, 3, 0),
            Self::Prohibited => (UNREACHABLE, 13, 0),
            Self::TimeExceeded => (TIME_EXCEEDED, 0, 0),
            Self::ReassemblyTime => (TIME_EXCEEDED, 1, 0),
            Self::ParameterProblem { .. } => return None,
            Self::V4 { kind: kind @ (UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM), code, info } => {
                (kind, code, info)
            }
            Self::V4 { .. } => return None,
            Self::V6 { kind, code, info } => v6_to_v4(kind, code, info)?,
        })
    }

    /// As [`IcmpError::in_v4`], of the ICMPv6 message.
    fn in_v6(self) -> Option<(u8, u8, u32)> {
        Some(match self {
            Self::NetUnreachable => (V6_UNREACHABLE, 0, 0),
            Self::Prohibited => (V6_UNREACHABLE, 1, 0),
            Self::BeyondScope => (V6_UNREACHABLE, 2, 0),
            Self::HostUnreachable => (V6_UNREACHABLE, 3, 0),
            Self::PortUnreachable => (V6_UNREACHABLE, 4, 0),
            Self::TimeExceeded => (V6_TIME_EXCEEDED, 0, 0),
            Self::ReassemblyTime => (V6_TIME_EXCEEDED, 1, 0),
            Self::ParameterProblem { code, pointer } => (V6_PARAMETER_PROBLEM, code, pointer),
            Self::V6 { kind: kind @ V6_UNREACHABLE..=V6_PARAMETER_PROBLEM, code, info } => (kind, code, info),
            Self::V6 { .. } => return None,
            Self::V4 { kind, code, info } => v4_to_v6(kind, code, info)?,
        })
    }

    /// A whole frame, from and to where `ip` says, that quotes the start of the packet, its IP header and at
    /// least the first 8 bytes behind it; `None` when the guest's family has no word for the error.
    pub fn frame(self, to: MacAddr, from: MacAddr, ip: IpHeader, quoted: &[u8]) -> Option<Vec<u8>> {
        let ipv4 = ip.dst.is_ipv4();
        let (words, most) =
            if ipv4 { (self.in_v4(), MAX_QUOTE) } else { (self.in_v6(), icmpv6::ICMP_MAX_QUOTE) };
        let (kind, code, info) = words?;
        // The pointer of ICMP is the first byte of its word, the MTU the last two.
        let info = if ipv4 && kind == PARAMETER_PROBLEM { info << 24 } else { info };
        let quoted = quoted.get(..quoted.len().min(most)).unwrap_or_default();
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend_from_slice(&info.to_be_bytes());
        icmp.extend_from_slice(quoted);
        if !ipv4 {
            return Some(icmpv6::frame(to, from, &IpHeader { protocol: PROTOCOL_ICMPV6, ..ip }, icmp));
        }
        let sum = !checksum::data(&icmp);
        if let Some(field) = icmp.get_mut(2..4) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        // RFC 1812 §4.3.2.5: precedence 6.
        let ip = IpHeader { protocol: PROTOCOL_ICMP, tos: 0xc0, ..ip };
        let mut header = [0; IPV4_HEADER_LEN];
        ip.emit_v4(&mut header, icmp.len());
        let ethernet = EthernetHeader { dst: to, src: from, ethertype: ETHERTYPE_IPV4 }.to_bytes();
        Some([&ethernet[..], &header, &icmp].concat())
    }
}

/// RFC 7915 §4.2.
fn v4_to_v6(kind: u8, code: u8, info: u32) -> Option<(u8, u8, u32)> {
    Some(match (kind, code) {
        // The protocol is unreachable: its number lies in the "next header" field.
        (UNREACHABLE, 2) => (V6_PARAMETER_PROBLEM, 1, 6),
        (UNREACHABLE, 3) => (V6_UNREACHABLE, 4, 0),
        // Less is no IPv6 link's, and 0 an old router's.
        (UNREACHABLE, FRAGMENTATION_NEEDED) => {
            (V6_TOO_BIG, 0, info.saturating_add(MTU_DIFFERENCE).max(u32::from(IPV6_MIN_MTU)))
        }
        (UNREACHABLE, 9 | 10 | 13 | 15) => (V6_UNREACHABLE, 1, 0),
        (UNREACHABLE, 0..=12) => (V6_UNREACHABLE, 0, 0),
        (TIME_EXCEEDED, 0 | 1) => (V6_TIME_EXCEEDED, code, 0),
        (PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = match info {
                0 | 1 => info,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            };
            (V6_PARAMETER_PROBLEM, 0, pointer)
        }
        _ => return None,
    })
}

/// RFC 7915 §5.2.
fn v6_to_v4(kind: u8, code: u8, info: u32) -> Option<(u8, u8, u32)> {
    Some(match (kind, code) {
        (V6_UNREACHABLE, 0 | 2 | 3) => (UNREACHABLE, 1, 0),
        (V6_UNREACHABLE, 1) => (UNREACHABLE, 10, 0),
        (V6_UNREACHABLE, 4) => (UNREACHABLE, 3, 0),
        (V6_TOO_BIG, _) => {
            let mtu = info.saturating_sub(MTU_DIFFERENCE).min(u32::from(u16::MAX));
            (UNREACHABLE, FRAGMENTATION_NEEDED, mtu)
        }
        (V6_TIME_EXCEEDED, 0 | 1) => (TIME_EXCEEDED, code, 0),
        (V6_PARAMETER_PROBLEM, 0) => {
            let pointer = match info {
                0 | 1 => info,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            (PARAMETER_PROBLEM, 0, pointer)
        }
        (V6_PARAMETER_PROBLEM, 1) => (UNREACHABLE, 2, 0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest of one family is told when the network speaks the other.
    #[test]
    fn each_family_is_told_in_its_own_words() {
        let of_v4 = |kind, code, info| IcmpError::V4 { kind, code, info };
        let of_v6 = |kind, code, info| IcmpError::V6 { kind, code, info };
        for (v4, v6) in [
            ((3, 0, 0), Some((1, 0, 0))),
            ((3, 1, 0), Some((1, 0, 0))),
            ((3, 2, 0), Some((4, 1, 6))),
            ((3, 3, 0), Some((1, 4, 0))),
            ((3, 4, 1400), Some((2, 0, 1420))),
            ((3, 4, 576), Some((2, 0, 1280))),
            ((3, 4, 0), Some((2, 0, 1280))),
            ((3, 4, u32::MAX), Some((2, 0, u32::MAX))),
            ((3, 5, 0), Some((1, 0, 0))),
            ((3, 8, 0), Some((1, 0, 0))),
            ((3, 9, 0), Some((1, 1, 0))),
            ((3, 10, 0), Some((1, 1, 0))),
            ((3, 12, 0), Some((1, 0, 0))),
            ((3, 13, 0), Some((1, 1, 0))),
            ((3, 14, 0), None),
            ((3, 15, 0), Some((1, 1, 0))),
            ((3, 16, 0), None),
            ((4, 0, 0), None),
            ((5, 1, 0), None),
            ((11, 0, 0), Some((3, 0, 0))),
            ((11, 1, 0), Some((3, 1, 0))),
            ((12, 0, 8), Some((4, 0, 7))),
            ((12, 0, 4), None),
            ((12, 1, 0), None),
            ((12, 2, 2), Some((4, 0, 4))),
        ] {
            assert_eq!(of_v4(v4.0, v4.1, v4.2).in_v6(), v6, "ICMP {v4:?}");
        }
        for (v6, v4) in [
            ((1, 0, 0), Some((3, 1, 0))),
            ((1, 1, 0), Some((3, 10, 0))),
            ((1, 2, 0), Some((3, 1, 0))),
            ((1, 3, 0), Some((3, 1, 0))),
            ((1, 4, 0), Some((3, 3, 0))),
            ((1, 5, 0), None),
            ((2, 0, 1280), Some((3, 4, 1260))),
            ((2, 0, 3), Some((3, 4, 0))),
            ((2, 0, u32::MAX), Some((3, 4, 65_535))),
            ((3, 0, 0), Some((11, 0, 0))),
            ((3, 1, 0), Some((11, 1, 0))),
            ((4, 0, 7), Some((12, 0, 8))),
            ((4, 0, 3), None),
            ((4, 1, 6), Some((3, 2, 0))),
            ((4, 2, 40), None),
            ((137, 0, 0), None),
        ] {
            assert_eq!(of_v6(v6.0, v6.1, v6.2).in_v4(), v4, "ICMPv6 {v6:?}");
        }
    }

    /// Within one family errors pass as they are, and nothing else does.
    #[test]
    fn only_errors_pass() {
        for kind in 0..=u8::MAX {
            let (v4, v6) =
                (IcmpError::V4 { kind, code: 99, info: 7 }, IcmpError::V6 { kind, code: 99, info: 7 });
            assert_eq!(v4.in_v4(), [3, 11, 12].contains(&kind).then_some((kind, 99, 7)));
            assert_eq!(v6.in_v6(), (1..=4).contains(&kind).then_some((kind, 99, 7)));
        }
    }

    #[test]
    fn a_quote_is_cut_where_its_family_says() {
        let (mac, quoted) = (MacAddr([2; 6]), [0x5a; 2000]);
        for (addr, len, info) in [("10.0.2.2", 14 + 576, [0, 0, 5, 0]), ("fd00::2", 14 + 1280, [0, 0, 5, 20])]
        {
            let addr: IpAddr = addr.parse().unwrap();
            let error = IcmpError::too_big(IpAddr::V4([192, 0, 2, 1].into()), 1280);
            let frame = error.frame(mac, mac, IpHeader::new(addr, addr, 0), &quoted).unwrap();
            assert_eq!(frame.len(), len);
            let at = if addr.is_ipv4() { 14 + 20 } else { 14 + 40 };
            assert_eq!(frame[at + 4..at + 8], info);
        }
    }
}

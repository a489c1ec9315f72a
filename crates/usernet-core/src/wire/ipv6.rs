//! IPv6 headers and the extension headers behind them (RFC 8200).
//!
//! All that lies in front of the transport header is walked once: the hop-by-hop and destination options
//! and the routing header are skipped by RFC 8200's rules, and what those rules refuse comes with the
//! parameter problem that its sender is told (RFC 4443 §3.4). The walk ends at a fragment header, which
//! says that what follows is not the whole packet; an atomic fragment (RFC 6946) is the whole one.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, Ipv6Packet};

use super::IpHeader;
use crate::drops::DropReason;

/// The bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER_LEN: usize = 40;
/// What every link of IPv6 takes at least, in bytes (RFC 8200 §5).
pub const IPV6_MIN_MTU: u16 = 1280;
/// Next-header number of a fragment header (RFC 8200 §4.5): 8 bytes, and what they cut follows.
pub const PROTOCOL_IPV6_FRAGMENT: u8 = 44;
/// Next-header number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Where the first next-header field lies.
const NEXT_HEADER_AT: usize = 6;
/// RFC 8200 §4.1 has use for six.
const MAX_EXTENSIONS: usize = 8;

/// Codes of a parameter problem (RFC 4443 §3.4).
const ERRONEOUS_FIELD: u8 = 0;
const UNKNOWN_NEXT_HEADER: u8 = 1;
const UNKNOWN_OPTION: u8 = 2;

/// Why an IPv6 packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Error {
    /// It is dropped in silence.
    Dropped(DropReason),
    /// Its sender is told which of its bytes is at fault.
    Problem {
        /// The header of the packet.
        header: IpHeader,
        /// The code of the parameter problem.
        code: u8,
        /// The byte at fault, counted from the start of the IPv6 header.
        pointer: u32,
        /// Whether it is said even of a packet that went to a group.
        of_group: bool,
    },
}

impl From<Ipv6Error> for DropReason {
    fn from(error: Ipv6Error) -> Self {
        match error {
            Ipv6Error::Dropped(reason) => reason,
            Ipv6Error::Problem { .. } => Self::ExtensionHeader,
        }
    }
}

impl IpHeader {
    /// Reads an IPv6 header and its extension headers at the start of `bytes`, which may end anywhere
    /// behind them, of a packet that has `available` bytes in its frame. Returns the header, its length
    /// with extension headers and the length of the transport's header and payload. Of a fragment, the
    /// fragment header counts as transport, and the protocol is [`PROTOCOL_IPV6_FRAGMENT`].
    ///
    /// # Errors
    /// A length contradicts another, or an extension header is refused.
    pub fn parse_v6(bytes: &[u8], available: usize) -> Result<(Self, usize, usize), Ipv6Error> {
        let malformed = Ipv6Error::Dropped(DropReason::IpHeader);
        if bytes.len() < IPV6_HEADER_LEN {
            return Err(malformed);
        }
        let packet = Ipv6Packet::new_unchecked(bytes);
        let total_len = IPV6_HEADER_LEN + usize::from(packet.payload_len());
        if packet.version() != 6 || total_len > available {
            return Err(malformed);
        }
        let mut header = Self {
            src: IpAddr::V6(packet.src_addr()),
            dst: IpAddr::V6(packet.dst_addr()),
            protocol: packet.next_header().into(),
            ttl: packet.hop_limit(),
            tos: packet.traffic_class(),
            fragment: false,
            dont_fragment: true,
        };
        let len = header.walk(bytes, total_len)?;
        Ok((header, len, total_len - len))
    }

    /// Walks to the transport header; returns where it lies.
    fn walk(&mut self, bytes: &[u8], total_len: usize) -> Result<usize, Ipv6Error> {
        let (mut at, mut named_at) = (IPV6_HEADER_LEN, NEXT_HEADER_AT);
        for _ in 0..=MAX_EXTENSIONS {
            match self.protocol {
                // RFC 8200 §4.1: hop-by-hop options come first or not at all.
                HOP_BY_HOP if at > IPV6_HEADER_LEN => {
                    return Err(self.problem(UNKNOWN_NEXT_HEADER, named_at, false));
                }
                // Whom it would say something to is not the one who is spoken to here.
                AUTHENTICATION => return Err(self.problem(UNKNOWN_NEXT_HEADER, named_at, false)),
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | PROTOCOL_IPV6_FRAGMENT => {}
                _ => return Ok(at),
            }
            let extension = extension(self.protocol, bytes, at, total_len)?;
            match (self.protocol, extension) {
                (PROTOCOL_IPV6_FRAGMENT, [_, _, hi, lo, ..]) => {
                    // Who sends fragments lets a packet be cut.
                    self.dont_fragment = false;
                    // The offset in the high 13 bits, "more fragments" in the lowest.
                    if u16::from_be_bytes([*hi, *lo]) & 0xfff9 != 0 {
                        self.fragment = true;
                        return Ok(at);
                    }
                }
                // RFC 8200 §4.4, RFC 5095 §3: type 0 is as unknown as all others.
                (ROUTING, [_, _, _, segments_left, ..]) => {
                    if *segments_left != 0 {
                        return Err(self.problem(ERRONEOUS_FIELD, at + 2, false));
                    }
                }
                _ => self.check_options(extension, at)?,
            }
            self.protocol = extension.first().copied().unwrap_or_default();
            named_at = at;
            at += extension.len();
        }
        Err(Ipv6Error::Dropped(DropReason::ExtensionHeader))
    }

    /// RFC 8200 §4.2: the two high bits of an option that is not known say what is to be done.
    fn check_options(&self, extension: &[u8], at: usize) -> Result<(), Ipv6Error> {
        let mut next = 2;
        while let Some(kind) = extension.get(next) {
            if *kind == 0 {
                next += 1;
                continue;
            }
            let len = extension.get(next + 1).map_or(usize::MAX, |len| usize::from(*len));
            let end = next.saturating_add(2).saturating_add(len);
            if end > extension.len() {
                return Err(self.problem(ERRONEOUS_FIELD, at + next, false));
            }
            match kind >> 6 {
                0 => next = end,
                1 => return Err(Ipv6Error::Dropped(DropReason::ExtensionHeader)),
                action => return Err(self.problem(UNKNOWN_OPTION, at + next, action == 2)),
            }
        }
        Ok(())
    }

    fn problem(&self, code: u8, pointer: usize, of_group: bool) -> Ipv6Error {
        Ipv6Error::Problem { header: *self, code, pointer: u32::try_from(pointer).unwrap_or(0), of_group }
    }

    /// Says of a packet that its transport protocol is unknown (RFC 8200 §4).
    pub fn unknown_protocol(&self) -> Ipv6Error {
        self.problem(UNKNOWN_NEXT_HEADER, NEXT_HEADER_AT, false)
    }

    /// Writes an IPv6 header without extension headers for `payload_len` bytes of transport header and
    /// payload. The flow label is 0.
    ///
    /// # Panics
    /// When `bytes` is shorter than 40, or an address is not IPv6.
    pub fn emit_v6(&self, bytes: &mut [u8], payload_len: usize) {
        let mut packet = Ipv6Packet::new_unchecked(bytes);
        packet.set_version(6);
        packet.set_traffic_class(self.tos);
        packet.set_flow_label(0);
        packet.set_payload_len(u16::try_from(payload_len).unwrap_or(u16::MAX));
        packet.set_next_header(IpProtocol::from(self.protocol));
        packet.set_hop_limit(self.ttl);
        packet.set_src_addr(v6(self.src));
        packet.set_dst_addr(v6(self.dst));
    }
}

/// The extension header at `at`: whole, inside of the packet and of what was copied of it.
fn extension(kind: u8, bytes: &[u8], at: usize, total_len: usize) -> Result<&[u8], Ipv6Error> {
    let copied = Ipv6Error::Dropped(DropReason::ExtensionHeader);
    let first = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>).ok_or(copied)?;
    let units = if kind == PROTOCOL_IPV6_FRAGMENT { 0 } else { usize::from(first[1]) };
    let end = at + 8 + 8 * units;
    if end > total_len {
        return Err(Ipv6Error::Dropped(DropReason::IpHeader));
    }
    bytes.get(at..end).ok_or(copied)
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V6(addr) => addr,
        IpAddr::V4(_) => unreachable!("IPv4 packets have a header of their own"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet to the gateway with these bytes behind its header, the first of kind `next`.
    fn packet(next: u8, rest: &[u8]) -> Vec<u8> {
        let header = IpHeader {
            ttl: 9,
            tos: 0xb9,
            ..IpHeader::new("fd00::15".parse().unwrap(), "fd00::2".parse().unwrap(), next)
        };
        let mut bytes = vec![0; IPV6_HEADER_LEN];
        header.emit_v6(&mut bytes, rest.len());
        bytes.extend_from_slice(rest);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<(IpHeader, usize, usize), Ipv6Error> {
        IpHeader::parse_v6(bytes, bytes.len())
    }

    fn problem(bytes: &[u8]) -> (u8, u32, bool) {
        match parse(bytes) {
            Err(Ipv6Error::Problem { code, pointer, of_group, .. }) => (code, pointer, of_group),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let (header, len, transport) = parse(&packet(17, &[0; 12])).unwrap();
        assert_eq!((header.protocol, header.ttl, header.tos, len, transport), (17, 9, 0xb9, 40, 12));
        assert_eq!(header.src.to_string(), "fd00::15");
        // Ethernet pads; a length that the frame does not have is refused.
        let mut padded = packet(17, &[0; 12]);
        padded.extend([0; 6]);
        assert_eq!(parse(&padded).unwrap().2, 12);
        padded[5] = 99;
        assert_eq!(parse(&padded), Err(Ipv6Error::Dropped(DropReason::IpHeader)));
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport() {
        let mut rest = vec![60, 0, 5, 2, 0, 0, 1, 0]; // hop-by-hop: router alert, PadN
        rest.extend([43, 1, 1, 12]); // destination options: PadN over two units
        rest.extend([0; 12]);
        rest.extend([44, 0, 0, 0, 0, 0, 0, 0]); // routing, no segments left
        rest.extend([6, 0, 0, 0, 1, 2, 3, 4]); // an atomic fragment
        rest.extend([7; 20]);
        let (header, len, transport) = parse(&packet(HOP_BY_HOP, &rest)).unwrap();
        assert_eq!((header.protocol, header.fragment, len, transport), (6, false, 80, 20));
    }

    #[test]
    fn a_fragment_ends_the_walk_at_its_header() {
        for field in [[0, 1], [0x05, 0xa8]] {
            let mut rest = vec![44, 0, 1, 4, 0, 0, 0, 0, 17, 0, field[0], field[1], 1, 2, 3, 4];
            rest.extend([9; 24]);
            let (header, len, transport) = parse(&packet(DESTINATION_OPTIONS, &rest)).unwrap();
            assert!(header.fragment);
            assert_eq!((header.protocol, len, transport), (PROTOCOL_IPV6_FRAGMENT, 48, 32));
        }
    }

    #[test]
    fn what_the_rules_refuse_is_named() {
        let options = |kind| [17, 0, kind, 0, 1, 2, 0, 0];
        assert_eq!(problem(&packet(HOP_BY_HOP, &options(0x80))), (UNKNOWN_OPTION, 42, true));
        assert_eq!(problem(&packet(HOP_BY_HOP, &options(0xc0))), (UNKNOWN_OPTION, 42, false));
        let dropped = Err(Ipv6Error::Dropped(DropReason::ExtensionHeader));
        assert_eq!(parse(&packet(DESTINATION_OPTIONS, &options(0x40))), dropped);
        assert!(parse(&packet(DESTINATION_OPTIONS, &options(0x3f))).is_ok());
        // An option that reaches beyond its header.
        assert_eq!(problem(&packet(HOP_BY_HOP, &[17, 0, 1, 5, 0, 0, 0, 0])), (ERRONEOUS_FIELD, 42, false));
        // Routing type 0 with somewhere to go (RFC 5095), and any other.
        assert_eq!(problem(&packet(ROUTING, &[17, 0, 0, 1, 0, 0, 0, 0])), (ERRONEOUS_FIELD, 42, false));
        assert_eq!(problem(&packet(ROUTING, &[17, 0, 4, 1, 0, 0, 0, 0])), (ERRONEOUS_FIELD, 42, false));
        // Hop-by-hop options that are not the first, and an authentication header.
        let late = [[0, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]].concat();
        assert_eq!(problem(&packet(DESTINATION_OPTIONS, &late)), (UNKNOWN_NEXT_HEADER, 40, false));
        assert_eq!(problem(&packet(AUTHENTICATION, &[0; 24])), (UNKNOWN_NEXT_HEADER, 6, false));
    }

    #[test]
    fn a_chain_that_is_too_long_or_cut_is_dropped() {
        let dropped = |reason| Err(Ipv6Error::Dropped(reason));
        let many = [[60, 0, 1, 4, 0, 0, 0, 0]; MAX_EXTENSIONS + 1].concat();
        assert_eq!(parse(&packet(DESTINATION_OPTIONS, &many)), dropped(DropReason::ExtensionHeader));
        // It ends behind the packet, or behind what was copied of it.
        assert_eq!(
            parse(&packet(DESTINATION_OPTIONS, &[17, 9, 1, 4, 0, 0, 0, 0])),
            dropped(DropReason::IpHeader)
        );
        let long =
            packet(DESTINATION_OPTIONS, &[17, 40, 1, 4].into_iter().chain([0; 400]).collect::<Vec<_>>());
        assert_eq!(IpHeader::parse_v6(&long[..242], long.len()), dropped(DropReason::ExtensionHeader));
        assert_eq!(IpHeader::parse_v6(&long[..42], long.len()), dropped(DropReason::ExtensionHeader));
        assert_eq!(parse(&long[..39]), dropped(DropReason::IpHeader));
    }
}

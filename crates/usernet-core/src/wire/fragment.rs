//! IP fragments: where one lies in its packet, and how a packet is cut into them (RFC 791 §3.2, RFC 8200
//! §4.5).

use std::ops::Range;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use super::{
    ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, PROTOCOL_IPV6_FRAGMENT,
};
use crate::offload::Fragmentation;

/// The bytes of an IPv6 fragment header: next header, reserved, offset (13 bits) with "more" in the lowest
/// of 16, identification (32 bits).
pub(crate) const FRAGMENT_HEADER_LEN: usize = 8;
/// What offsets count in, in bytes: all fragments but the last are whole units.
const UNIT: usize = 8;

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// The packet's identification; of IPv4, 16 bits.
    pub ident: u32,
    /// Where its data begin in the packet's, in bytes.
    pub offset: usize,
    /// Whether other fragments lie behind it.
    pub more: bool,
}

impl Fragment {
    /// Reads an IPv4 header; `None` when it is cut.
    pub(crate) fn parse_v4(header: &[u8]) -> Option<Self> {
        let packet = Ipv4Packet::new_unchecked(header.get(..IPV4_HEADER_LEN)?);
        let (ident, offset) = (packet.ident().into(), packet.frag_offset().into());
        Some(Self { ident, offset, more: packet.more_frags() })
    }

    /// Reads an IPv6 fragment header, and the number of the header behind it; `None` when it is cut.
    pub(crate) fn parse_v6(header: &[u8]) -> Option<(Self, u8)> {
        let [next, _, hi, lo, ident @ ..] = *header.first_chunk::<FRAGMENT_HEADER_LEN>()?;
        let field = u16::from_be_bytes([hi, lo]);
        let (ident, offset) = (u32::from_be_bytes(ident), usize::from(field & 0xfff8));
        Some((Self { ident, offset, more: field & 1 != 0 }, next))
    }
}

/// Cuts a finished frame of the network's own, which has neither IPv4 options nor extension headers, into
/// fragments: the headers of each and its data. A packet that fits goes whole.
pub fn fragments(frame: &[u8], how: Fragmentation) -> impl Iterator<Item = (Headers, &[u8])> {
    let ipv4 = frame.get(12..ETHERNET_HEADER_LEN) == Some(&ETHERTYPE_IPV4.to_be_bytes()[..]);
    let (ip_len, extension) =
        if ipv4 { (IPV4_HEADER_LEN, 0) } else { (IPV6_HEADER_LEN, FRAGMENT_HEADER_LEN) };
    let (header, data) = frame.split_at_checked(ETHERNET_HEADER_LEN + ip_len).unwrap_or((frame, &[]));
    let mtu = usize::from(how.mtu);
    let fits = ip_len + data.len() <= mtu;
    let most = if fits { data.len() } else { mtu.saturating_sub(ip_len + extension) / UNIT * UNIT };
    let most = most.max(UNIT);
    data.chunks(most).enumerate().map(move |(index, part)| {
        let mut headers = Headers::copied(header);
        let at = index * most..index * most + part.len();
        if !fits && ipv4 {
            cut_v4(&mut headers, how.ident, at, data.len());
        } else if !fits {
            cut_v6(&mut headers, how.ident, at, data.len());
        }
        (headers, part)
    })
}

/// Makes the headers of a packet with `len` bytes of data those of its fragment with the bytes `at`.
fn cut_v4(headers: &mut Headers, ident: u32, at: Range<usize>, len: usize) {
    let mut ip = Ipv4Packet::new_unchecked(headers.ip_mut());
    ip.set_total_len(narrow(IPV4_HEADER_LEN + at.len()));
    ip.set_ident(narrow((ident & 0xffff) as usize));
    ip.set_dont_frag(false);
    ip.set_more_frags(at.end < len);
    ip.set_frag_offset(narrow(at.start));
    ip.fill_checksum();
}

fn cut_v6(headers: &mut Headers, ident: u32, at: Range<usize>, len: usize) {
    let mut ip = Ipv6Packet::new_unchecked(headers.ip_mut());
    let next = ip.next_header().into();
    ip.set_payload_len(narrow(FRAGMENT_HEADER_LEN + at.len()));
    ip.set_next_header(IpProtocol::from(PROTOCOL_IPV6_FRAGMENT));
    let [hi, lo] = (narrow(at.start) | u16::from(at.end < len)).to_be_bytes();
    headers.push(&[next, 0, hi, lo]);
    headers.push(&ident.to_be_bytes());
}

fn narrow(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

//! Finishing in software what a frame leaves undone, for links (or devices) that cannot.
//!
//! A frame that stays one packet has its checksum finished in place ([`finish_checksum`]), by the
//! rule of [`Checksum::Partial`]: the field already holds the pseudo-header's sum, and any protocol
//! will do.
//!
//! A super-frame is cut ([`Cutter`]; into frames of their own, [`finished`]). There the pseudo-header's sum
//! in the template is of no use, since each wire packet has a length of its own: it is made anew from the
//! IP header, and whatever the checksum field held is ignored.

use std::io::IoSlice;
use std::ops::Range;

use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket, checksum};
use usernet_core::offload::{Checksum, Offload, Segmentation};

/// The longest headers that a super-frame can have: Ethernet with a VLAN tag (18), IPv4 with all its
/// options (60), TCP with all of its own (60).
pub const MAX_HEADERS: usize = 138;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// Brings `checksum` of `frame` to completion. `false` when it lies outside of the frame, which is
/// left as it was.
#[must_use]
pub fn finish_checksum(frame: &mut [u8], checksum: Checksum) -> bool {
    let Checksum::Partial { start, offset } = checksum else { return true };
    let Some(summed) = frame.get_mut(usize::from(start)..) else { return false };
    let sum = invert(checksum::data(summed));
    let field = usize::from(offset);
    let Some(field) = summed.get_mut(field..field + 2) else { return false };
    field.copy_from_slice(&sum.to_be_bytes());
    true
}

/// The wire packets that a frame, given in parts, stands for; none when it cannot be finished as it asks.
///
/// Each is cut when it is asked for: whoever has no room for the first has not paid for all of them.
#[must_use]
pub fn finished(parts: &[IoSlice<'_>], offload: Offload) -> impl ExactSizeIterator<Item = Vec<u8>> + use<> {
    let mut frame: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    let packets = match offload.segmentation {
        None => usize::from(finish_checksum(&mut frame, offload.checksum)),
        Some(how) => cutter(&frame, how).map_or(0, |(cutter, _)| cutter.packets()),
    };
    (0..packets).map(move |index| {
        let Some((cutter, payload)) = offload.segmentation.and_then(|how| cutter(&frame, how)) else {
            return std::mem::take(&mut frame);
        };
        let payload = payload.get(cutter.payload(index)).unwrap_or_default();
        let mut packet = cutter.header.to_vec();
        cutter.write_header(index, payload, &mut packet);
        packet.extend_from_slice(payload);
        packet
    })
}

/// What cuts a super-frame, and its payload.
fn cutter(frame: &[u8], how: Segmentation) -> Option<(Cutter<'_>, &[u8])> {
    let (header, payload) = frame.split_at_checked(how.header_len.into())?;
    Some((Cutter::new(header, how.size.into(), payload.len())?, payload))
}

/// Cuts one TCP or UDP super-frame into wire packets.
///
/// It writes headers only; the payload is where the caller has it.
#[derive(Debug)]
pub struct Cutter<'h> {
    header: &'h [u8],
    /// Where the IP header starts.
    network: usize,
    /// Where the transport header starts.
    transport: usize,
    ipv4: bool,
    protocol: u8,
    /// The sum over the pseudo-header but for the length.
    pseudo_sum: u16,
    segment: usize,
    len: usize,
}

impl<'h> Cutter<'h> {
    /// Reads `header` (the Ethernet, IP and transport headers and nothing more) for `len` bytes of
    /// payload, `segment` in each packet but the last.
    ///
    /// `None` when that cannot be cut: no TCP or UDP straight behind an IPv4 or IPv6 header, a
    /// fragment, a header whose parts do not end where `header` does, a `segment` of 0 or one that
    /// no IP packet can hold.
    #[must_use]
    pub fn new(header: &'h [u8], segment: usize, len: usize) -> Option<Self> {
        let (ethertype, network) = match be16(header, 12)? {
            ETHERTYPE_VLAN => (be16(header, 16)?, 18),
            ethertype => (ethertype, 14),
        };
        let ip = header.get(network..)?;
        let version = *ip.first()? >> 4;
        let (ip_len, protocol, addresses) = match (ethertype, version) {
            (ETHERTYPE_IPV4, 4) => {
                let fragment = be16(ip, 6)? & 0x3fff != 0;
                let ip_len = usize::from(*ip.first()? & 0x0f) * 4;
                if fragment || ip_len < 20 {
                    return None;
                }
                (ip_len, *ip.get(9)?, ip.get(12..20)?)
            }
            (ETHERTYPE_IPV6, 6) => (40, *ip.get(6)?, ip.get(8..40)?),
            _ => return None,
        };
        let segment_header = ip.get(ip_len..)?;
        let segment_header_len = match protocol {
            PROTOCOL_TCP => usize::from(*segment_header.get(12)? >> 4) * 4,
            PROTOCOL_UDP => 8,
            _ => return None,
        };
        let too_short = protocol == PROTOCOL_TCP && segment_header_len < 20;
        let longest = ip.len() + segment.min(len);
        if too_short || segment_header.len() != segment_header_len || segment == 0 || longest > 0xffff {
            return None;
        }
        Some(Self {
            header,
            network,
            transport: network + ip_len,
            ipv4: version == 4,
            protocol,
            pseudo_sum: checksum::combine(&[checksum::data(addresses), protocol.into()]),
            segment,
            len,
        })
    }

    /// The length of the headers in bytes.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header.len()
    }

    /// How many wire packets there are. At least one: a header without payload is a packet.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.len.div_ceil(self.segment).max(1)
    }

    /// Which bytes of the payload packet `index` carries.
    #[must_use]
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = index.saturating_mul(self.segment).min(self.len);
        start..start.saturating_add(self.segment).min(self.len)
    }

    /// Writes the headers of packet `index`, which carries `payload`, with all checksums.
    ///
    /// Lengths, the IPv4 identification (one up each packet) and the TCP sequence number are this
    /// packet's own; FIN and PSH go with the last packet, CWR with the first.
    ///
    /// # Panics
    /// When `to` has another length than the header, or `payload` is longer than a packet's.
    pub fn write_header(&self, index: usize, payload: &[u8], to: &mut [u8]) {
        assert!(payload.len() <= self.segment, "a packet carries one segment");
        to.copy_from_slice(self.header);
        let (to, transport) = to.split_at_mut(self.transport);
        let (_, ip) = to.split_at_mut(self.network);
        let transport_len = length(transport.len() + payload.len());
        if self.ipv4 {
            let total_len = length(ip.len()) + transport_len;
            let mut ip = Ipv4Packet::new_unchecked(ip);
            ip.set_total_len(total_len);
            ip.set_ident(ip.ident().wrapping_add(length(index & 0xffff)));
            ip.fill_checksum();
        } else {
            Ipv6Packet::new_unchecked(ip).set_payload_len(transport_len);
        }

        let sum = [self.pseudo_sum, transport_len, checksum::data(payload)];
        let sum = checksum::combine(&sum);
        if self.protocol == PROTOCOL_TCP {
            let mut tcp = TcpPacket::new_unchecked(transport);
            let last = index + 1 == self.packets();
            tcp.set_seq_number(tcp.seq_number() + index * self.segment);
            tcp.set_fin(tcp.fin() && last);
            tcp.set_psh(tcp.psh() && last);
            tcp.set_cwr(tcp.cwr() && index == 0);
            tcp.set_checksum(0);
            let header_sum = checksum::data(tcp.as_ref());
            tcp.set_checksum(invert(checksum::combine(&[sum, header_sum])));
        } else {
            let mut udp = UdpPacket::new_unchecked(transport);
            udp.set_len(transport_len);
            udp.set_checksum(0);
            let header_sum = checksum::data(udp.as_ref());
            udp.set_checksum(invert(checksum::combine(&[sum, header_sum])));
        }
    }
}

/// The checksum for a sum. Never 0, which UDP means as "none" (RFC 768); elsewhere both stand for
/// the same number.
fn invert(sum: u16) -> u16 {
    match !sum {
        0 => 0xffff,
        checksum => checksum,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_be_bytes(*field))
}

fn length(len: usize) -> u16 {
    u16::try_from(len).expect("Cutter::new refuses packets that are too long")
}

#[cfg(test)]
mod tests;

//! Packets that a guest sends in fragments (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! Those that are addressed to the network, or through it to the outside, are put together before anything
//! is decided on them: this is the one place where the core holds payload. What comes of it is a plain frame
//! that is handed in like any other ([`Verdict::Reassembled`]), and its checksum is as much the business of
//! whoever gets the data as any other's. What guests send to each other, or to a group, stays as it is.
//!
//! A guest has at most [`super::Limits::incomplete`] packets in the making, each with room for the longest
//! from its first fragment on, so what it can make the network hold does not depend on what it says. When
//! that is too little, or the time is over, the oldest goes. Fragments that overlap would have to be judged:
//! the packet is refused as a whole, and its place is kept so that those that follow are refused too (RFC
//! 5722). One that says again what has come, as when a link duplicates frames, changes nothing.
//!
//! Whoever sends fragments lets the packet be cut again. IPv4 says so by a bit that is not set; IPv6 has none,
//! so there the packet keeps a fragment header, which makes it an atomic fragment (RFC 6946) and the longest
//! eight bytes shorter than it could be.
//!
//! A worker puts together what comes by its own queues. A guest's kernel sends all fragments of a packet by
//! one, as only the first of them has ports that queues could be told apart by.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use super::{Network, Packet, Timer, Verdict};
use crate::drops::DropReason;
use crate::frame::FrameBytes;
use crate::port::PortId;
use crate::time::Instant;
use crate::wheel::TimerId;
use crate::wire::{
    ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, FRAGMENT_HEADER_LEN, Fragment,
    ICMP_HEADER_LEN, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IcmpError, IpHeader, Ipv6Error, MacAddr,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_IPV6_FRAGMENT, PROTOCOL_TCP, PROTOCOL_UDP, TCP_HEADER_LEN,
    UDP_HEADER_LEN,
};

/// RFC 8200 §4.5 has 60 seconds, RFC 1122 §3.3.2 no less. The bound on packets makes room sooner.
const LIFETIME: Duration = Duration::from_secs(60);
/// The most bytes that the length fields of IPv4 (with its header) and IPv6 (behind it) can count.
const MAX_LEN: usize = 65_535;
/// What offsets count in, in bytes.
const UNIT: usize = 8;
const UNITS: usize = MAX_LEN.div_ceil(UNIT);
/// The headers of the frame that is made.
const MAX_HEADERS_LEN: usize = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN;
/// Where what is at fault lies: the payload length in an IPv6 header, the offset in a fragment header.
const PAYLOAD_LENGTH_AT: usize = 4;
const OFFSET_AT: usize = 2;
/// Codes of a parameter problem: an erroneous field (RFC 4443 §3.4), and a first fragment with an
/// incomplete chain of headers (RFC 7112 §5).
const ERRONEOUS_FIELD: u8 = 0;
const INCOMPLETE_CHAIN: u8 = 3;
/// RFC 6980 §5: neighbour discovery, which needs 255, does not come in fragments.
const MAX_HOP_LIMIT: u8 = 254;
const CE: u8 = 3;

/// The packets in the making of each port that has any.
#[derive(Debug, Default)]
pub(super) struct Reassembly(BTreeMap<PortId, Queue>);

/// The packets in the making of a port, the oldest first. The timer is for that one, or for one before it.
#[derive(Debug)]
struct Queue {
    packets: VecDeque<Partial>,
    timer: TimerId,
}

#[derive(Debug)]
struct Partial {
    key: Key,
    deadline: Instant,
    /// What has come; none: the packet was refused.
    pieces: Option<Pieces>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    /// Of IPv6, that of the fragment header: each fragment may name another transport (RFC 8200 §4.5).
    protocol: u8,
    ident: u32,
}

/// The fragments of a packet that have come.
#[derive(Debug)]
struct Pieces {
    /// Room for the headers, then the data as far as they have come, with whatever was there before in the
    /// gaps, none of which is left when the packet is whole.
    frame: Vec<u8>,
    headers_len: usize,
    /// How far the data reach.
    reach: usize,
    /// Which units of the data have come.
    units: Vec<bool>,
    /// How many bytes have.
    received: usize,
    /// Where the last fragment ends.
    end: Option<usize>,
    first: Option<First>,
    /// A router on the way has marked a fragment (RFC 3168 §5.3).
    congested: bool,
}

/// The fragment at the packet's start, which stands for it.
#[derive(Debug)]
struct First {
    mac: MacAddr,
    ip: IpHeader,
    head: Vec<u8>,
    transport: Range<usize>,
}

/// What became of a fragment that was put to the others.
enum Added {
    Waits,
    Completes,
    Known,
    Contradicts,
}

impl Reassembly {
    /// How many packets of a port are in the making, or refused.
    pub(super) fn len(&self, port: PortId) -> usize {
        self.0.get(&port).map_or(0, |queue| queue.packets.len())
    }
}

impl Network {
    /// Takes a fragment of a packet to the network.
    // Apart from the path of what comes whole.
    #[inline(never)]
    pub(super) fn handle_fragment<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let (fragment, piece) = parse(packet).ok_or(DropReason::Fragment)?;
        if let Some((code, pointer)) = fault(&fragment, &piece) {
            if packet.ip.src.is_ipv6() {
                let pointer = u32::try_from(pointer).unwrap_or_default();
                self.send_icmp_error(&piece, IcmpError::ParameterProblem { code, pointer });
            }
            return Err(DropReason::Fragment);
        }
        let IpHeader { src, dst, protocol, .. } = packet.ip;
        let key = Key { src, dst, protocol, ident: fragment.ident };
        let limit = self.share(packet.port, self.config.limits.incomplete).max(1);
        let deadline = now + LIFETIME;
        let queue = self.reassembly.0.entry(packet.port).or_insert_with(|| Queue {
            packets: VecDeque::new(),
            timer: self.wheel.insert(deadline, Timer::Reassembly(packet.port)),
        });
        let mut crowded_out = false;
        let index = queue.packets.iter().position(|partial| partial.key == key).unwrap_or_else(|| {
            let oldest = if queue.packets.len() >= limit { queue.packets.pop_front() } else { None };
            let room = oldest.and_then(|oldest| oldest.pieces);
            crowded_out = room.is_some();
            queue.packets.push_back(Partial { key, deadline, pieces: Some(Pieces::new(&packet.ip, room)) });
            queue.packets.len() - 1
        });
        let partial = queue.packets.get_mut(index).ok_or(DropReason::FragmentLimit)?;
        let added = partial.pieces.as_mut().map(|pieces| pieces.add(&fragment, &piece, frame));
        let outcome = match added {
            Some(Added::Waits) => Ok(Verdict::Done),
            Some(Added::Known) => Err(DropReason::Duplicate),
            Some(Added::Completes) => {
                let whole =
                    queue.packets.remove(index).and_then(|partial| partial.pieces?.assemble(self.mac));
                whole.map(Verdict::Reassembled).ok_or(DropReason::Fragment)
            }
            Some(Added::Contradicts) | None => {
                partial.pieces = None;
                Err(DropReason::FragmentOverlap)
            }
        };
        if crowded_out {
            self.count_drop(packet.port, DropReason::FragmentLimit);
        }
        outcome
    }

    /// Gives up what has not been completed in time. Who sent it is told, if its start has come.
    pub(super) fn reassembly_timeout(&mut self, port: PortId, now: Instant) {
        let Some(mut queue) = self.reassembly.0.remove(&port) else { return };
        while let Some(partial) = queue.packets.pop_front_if(|partial| partial.deadline <= now) {
            let Some(pieces) = partial.pieces else { continue };
            self.count_drop(port, DropReason::FragmentTimeout);
            if let Some(First { mac, ip, head, transport }) = &pieces.first {
                let (mac, ip, transport) = (*mac, *ip, transport.clone());
                let first = Packet { port, mac, ip, head, ip_at: ETHERNET_HEADER_LEN, transport };
                self.send_icmp_error(&first, IcmpError::ReassemblyTime);
            }
        }
        if let Some(oldest) = queue.packets.front() {
            queue.timer = self.wheel.insert(oldest.deadline, Timer::Reassembly(port));
            self.reassembly.0.insert(port, queue);
        }
    }

    /// A port is no more.
    pub(super) fn stop_reassembly(&mut self, port: PortId) {
        if let Some(queue) = self.reassembly.0.remove(&port) {
            self.wheel.cancel(queue.timer);
        }
    }
}

/// What a fragment says of itself; and it as a packet, whose transport is its data, of the packet's own
/// protocol. None when it carries nothing.
fn parse<'a>(packet: &Packet<'a>) -> Option<(Fragment, Packet<'a>)> {
    let Packet { ip, ref transport, .. } = *packet;
    let (fragment, protocol, start) = if ip.src.is_ipv4() {
        (Fragment::parse_v4(packet.quote())?, ip.protocol, transport.start)
    } else {
        let (fragment, protocol) = Fragment::parse_v6(packet.transport_head())?;
        (fragment, protocol, transport.start + FRAGMENT_HEADER_LEN)
    };
    let ip = IpHeader { protocol, fragment: false, ..ip };
    let piece = Packet { ip, transport: start..transport.end, ..*packet };
    (!piece.transport.is_empty()).then_some((fragment, piece))
}

/// What is wrong with a fragment by itself, as a parameter problem's code and pointer.
fn fault(fragment: &Fragment, piece: &Packet<'_>) -> Option<(u8, usize)> {
    let headers_len = piece.transport.start - piece.ip_at;
    let uncounted = if piece.ip.src.is_ipv4() { 0 } else { IPV6_HEADER_LEN };
    if fragment.more && !piece.transport.len().is_multiple_of(UNIT) {
        Some((ERRONEOUS_FIELD, PAYLOAD_LENGTH_AT))
    } else if headers_len - uncounted + fragment.offset + piece.transport.len() > MAX_LEN {
        Some((ERRONEOUS_FIELD, headers_len.saturating_sub(FRAGMENT_HEADER_LEN) + OFFSET_AT))
    } else if fragment.offset == 0 && !has_transport(piece) {
        Some((INCOMPLETE_CHAIN, 0))
    } else {
        None
    }
}

/// Whether a first fragment has all headers up to the transport's own (RFC 7112; of IPv4, RFC 1858), and
/// there is no fragment in it once more.
fn has_transport(piece: &Packet<'_>) -> bool {
    let (mut protocol, mut len) = (piece.ip.protocol, piece.transport.len());
    if piece.ip.src.is_ipv6() {
        let mut bytes = vec![0; IPV6_HEADER_LEN];
        piece.ip.emit_v6(&mut bytes, len);
        bytes.extend_from_slice(piece.transport_head());
        match IpHeader::parse_v6(&bytes, IPV6_HEADER_LEN + len) {
            Ok((ip, ..)) if ip.fragment => return false,
            Ok((ip, _, transport_len)) => (protocol, len) = (ip.protocol, transport_len),
            // Of this its sender is told when the packet is whole.
            Err(Ipv6Error::Problem { .. }) => return true,
            Err(Ipv6Error::Dropped(_)) => return false,
        }
    }
    let least = match protocol {
        PROTOCOL_TCP => TCP_HEADER_LEN,
        PROTOCOL_UDP => UDP_HEADER_LEN,
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => ICMP_HEADER_LEN,
        _ => 0,
    };
    len >= least
}

impl Pieces {
    /// With nothing yet, in the room of others that have none any more: a guest that only begins packets
    /// should not cost more than one that sends them.
    fn new(ip: &IpHeader, room: Option<Self>) -> Self {
        let ip_len = if ip.src.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN };
        let headers_len = ETHERNET_HEADER_LEN + ip_len;
        let (mut frame, mut units) = room.map_or_else(
            || (vec![0; MAX_HEADERS_LEN + MAX_LEN], vec![false; UNITS]),
            |room| (room.frame, room.units),
        );
        units.fill(false);
        // What fragments leave out of the fragment header, nobody has filled in.
        frame.iter_mut().take(headers_len).for_each(|byte| *byte = 0);
        Self { frame, headers_len, reach: 0, units, received: 0, end: None, first: None, congested: false }
    }

    fn add<F: FrameBytes + ?Sized>(&mut self, fragment: &Fragment, piece: &Packet<'_>, frame: &F) -> Added {
        let data = fragment.offset..fragment.offset + piece.transport.len();
        let bytes = self.headers_len + data.start..self.headers_len + data.end;
        let contradicts = match (self.end, fragment.more) {
            (Some(end), false) => data.end != end,
            (Some(end), true) => data.end >= end,
            (None, false) => data.end < self.reach,
            (None, true) => false,
        };
        let Some(units) = self.units.get_mut(data.start / UNIT..data.end.div_ceil(UNIT)) else {
            return Added::Contradicts;
        };
        if contradicts {
            return Added::Contradicts;
        }
        if units.contains(&true) {
            let mut again = vec![0; data.len()];
            frame.copy_to(piece.transport.start, &mut again);
            let known = !units.contains(&false) && self.frame.get(bytes) == Some(&again[..]);
            return if known { Added::Known } else { Added::Contradicts };
        }
        units.fill(true);
        self.reach = self.reach.max(data.end);
        if let Some(to) = self.frame.get_mut(bytes) {
            frame.copy_to(piece.transport.start, to);
        }
        self.received += data.len();
        self.congested |= piece.ip.tos & CE == CE;
        if !fragment.more {
            self.end = Some(data.end);
        }
        if data.start == 0 {
            let (head, transport) = (piece.head.to_vec(), piece.transport.clone());
            self.first = Some(First { mac: piece.mac, ip: piece.ip, head, transport });
        }
        if self.end == Some(self.received) { Added::Completes } else { Added::Waits }
    }

    /// The frame that the packet would have come in. What IPv4 options and the extension headers in front of
    /// the fragment header had to say was heard with each fragment.
    fn assemble(mut self, gateway: MacAddr) -> Option<Vec<u8>> {
        let First { mac, ip, .. } = self.first?;
        let ce = if self.congested && ip.tos & CE != 0 { CE } else { 0 };
        let ip = IpHeader { tos: ip.tos | ce, dont_fragment: false, ..ip };
        let ethertype = if ip.src.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        self.frame.truncate(self.headers_len + self.reach);
        let (header, data) = self.frame.split_at_mut_checked(self.headers_len)?;
        let (ethernet, header) = header.split_at_mut_checked(ETHERNET_HEADER_LEN)?;
        ethernet.copy_from_slice(&EthernetHeader { dst: gateway, src: mac, ethertype }.to_bytes());
        if ip.src.is_ipv4() {
            ip.emit_v4(header, data.len());
        } else {
            let (header, extension) = header.split_at_mut_checked(IPV6_HEADER_LEN)?;
            *extension.first_mut()? = ip.protocol;
            let ttl = ip.ttl.min(MAX_HOP_LIMIT);
            let ip = IpHeader { protocol: PROTOCOL_IPV6_FRAGMENT, ttl, ..ip };
            ip.emit_v6(header, FRAGMENT_HEADER_LEN + data.len());
        }
        Some(self.frame)
    }
}

#[cfg(test)]
mod tests;

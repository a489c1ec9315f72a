//! UDP: endpoint-independent mapping (RFC 4787 REQ-1), address-dependent filtering (REQ-8).

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use super::config::Place;
use super::tcp::EPHEMERAL;
use super::{DnsQuery, MulticastService, Network, Output, Packet, Peers, UdpVia, Verdict, arm, disarm};
use crate::datagrams::{Datagrams, Origin};
use crate::drops::DropReason;
use crate::frame::FrameBytes;
use crate::offload::{SegmentKind, Segmentation};
use crate::port::PortId;
use crate::table::{Endpoint, FlowId, FlowKey};
use crate::time::Instant;
use crate::wire::{Headers, IcmpError, IpHeader, MacAddr, Offender, PROTOCOL_UDP, UDP_HEADER_LEN};

/// RFC 4787 REQ-5: no less than two minutes.
const IDLE: Duration = Duration::from_secs(120);
/// A flow that only asks DNS servers is over with the answer. A service of the host's network may take its
/// time, of which a guest gives it 5 seconds at most (UPnP Device Architecture §1.3.2).
const IDLE_DNS: Duration = Duration::from_secs(10);
/// Peers of forwards that may appear with one address and have one port; one more takes another's place.
const SAME_PORT: u16 = 16;
/// The datagrams that one super-frame may stand for: as many as Linux joins (`UDP_MAX_SEGMENTS`).
/// Without a bound, one frame of 64 KiB could ask for 65,507.
pub const MAX_DATAGRAMS: usize = 128;

/// A UDP flow.
#[derive(Debug)]
pub struct UdpFlow {
    /// Whom it serves.
    pub kind: UdpKind,
    /// When a datagram last passed.
    pub last_used: Instant,
    /// Payload bytes from the guest.
    pub bytes_out: u64,
    /// Payload bytes to the guest.
    pub bytes_in: u64,
    /// Whether it is over soon after the last question.
    only_asks: bool,
}

/// Whom a UDP flow serves.
#[derive(Debug)]
pub enum UdpKind {
    /// All peers of one port of a guest.
    Nat {
        /// Whom it hears from.
        peers: Peers,
    },
    /// One peer of a forwarded port.
    Forward {
        /// The forward's number.
        forward: u32,
        /// The peer, as the host sees it.
        peer: SocketAddr,
        /// The host's address that the peer knows.
        local: Option<IpAddr>,
    },
    /// Who answers in the host's network to a question for a service. The key's peer is the group.
    Multicast {
        /// The service.
        service: MulticastService,
    },
}

impl UdpFlow {
    /// Whether it serves this peer of this forward.
    fn is_of(&self, number: u32, from: SocketAddr) -> bool {
        matches!(self.kind, UdpKind::Forward { forward, peer, .. } if (forward, peer) == (number, from))
    }
}

/// Whether a UDP packet is for the DHCP server, wherever it was sent.
pub(super) fn is_dhcp(udp: &[u8]) -> bool {
    matches!(udp.get(2..4), Some([0, 67]))
}

/// The source and the destination port of a UDP packet.
pub(super) fn ports(packet: &Packet<'_>) -> Option<(u16, u16)> {
    let udp: &[u8; UDP_HEADER_LEN] = packet.transport_head().first_chunk()?;
    Some((u16::from_be_bytes([udp[0], udp[1]]), u16::from_be_bytes([udp[2], udp[3]])))
}

/// Which bytes of the frame are the datagram's payload.
pub(super) fn payload(packet: &Packet<'_>) -> Result<Range<usize>, DropReason> {
    let Some([_, _, _, _, hi, lo, _, _]) = packet.transport_head().first_chunk() else {
        return Err(DropReason::UdpHeader);
    };
    let len = usize::from(u16::from_be_bytes([*hi, *lo]));
    if len < UDP_HEADER_LEN || len > packet.transport.len() {
        return Err(DropReason::UdpHeader);
    }
    let start = packet.transport.start;
    Ok(start + UDP_HEADER_LEN..start + len)
}

/// The bytes of each datagram that a frame stands for; 0 where it is one.
fn segment<F: FrameBytes + ?Sized>(frame: &F, payload: &Range<usize>) -> Result<u16, DropReason> {
    let Some(Segmentation { kind, size, header_len }) = frame.offload().segmentation else { return Ok(0) };
    // The headers are those of one datagram that ends with the frame.
    let headers_agree = (usize::from(header_len), frame.len()) == (payload.start, payload.end);
    let datagrams = payload.len().div_ceil(usize::from(size).max(1));
    if kind == SegmentKind::Udp && headers_agree && size > 0 && (2..=MAX_DATAGRAMS).contains(&datagrams) {
        Ok(size)
    } else {
        Err(DropReason::UdpSegmentation)
    }
}

/// The start of a datagram's payload, for a server of the network's own.
pub(super) fn message<F: FrameBytes + ?Sized>(
    packet: &Packet<'_>,
    frame: &F,
    max: usize,
) -> Result<Vec<u8>, DropReason> {
    let payload = payload(packet)?;
    let mut message = vec![0; payload.len().min(max)];
    let len = frame.copy_to(payload.start, &mut message);
    message.truncate(len);
    Ok(message)
}

impl Network {
    pub(super) fn handle_udp<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        place: Place,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let payload = payload(packet)?;
        let segment = segment(frame, &payload)?;
        let (src, dst) = ports(packet).ok_or(DropReason::UdpHeader)?;
        let guest = Endpoint { addr: packet.ip.src, port: src };
        let peer = Endpoint { addr: packet.ip.dst, port: dst };
        if guest.port == 0 || peer.port == 0 {
            return Err(DropReason::UdpHeader);
        }
        let forwarded = FlowKey { port: packet.port, guest, peer: Some(peer) };
        if let Some(flow) = self.udp.find(&forwarded) {
            return self.udp_from_guest(packet, flow, peer, (payload, segment), now);
        }
        if let Some(worker) = self.udp.elsewhere(&forwarded) {
            return Ok(Verdict::HandOver(worker));
        }
        match place {
            // A query is one datagram.
            Place::Dns if peer.port == 53 && segment == 0 => return self.ask_dns(packet, guest, payload),
            Place::Dns if peer.port == 53 => return Err(DropReason::UdpSegmentation),
            _ => self.check_place(packet, place)?,
        }
        let key = FlowKey { peer: self.all_peers(peer.addr), ..forwarded };
        let flow = match self.udp.find(&key) {
            Some(flow) => flow,
            None if let Some(worker) = self.udp.elsewhere(&key) => return Ok(Verdict::HandOver(worker)),
            None => self.insert_udp(key, packet.mac, UdpKind::Nat { peers: Peers::default() }, now),
        };
        self.udp_from_guest(packet, flow, peer, (payload, segment), now)
    }

    fn ask_dns(
        &mut self,
        packet: &Packet<'_>,
        guest: Endpoint,
        payload: Range<usize>,
    ) -> Result<Verdict, DropReason> {
        let limit = self.share(packet.port, self.config.limits.dns);
        let port = self.ports.get_mut(&packet.port).ok_or(DropReason::NoFlow)?;
        if port.dns >= limit {
            return Err(DropReason::DnsLimit);
        }
        port.dns += 1;
        Ok(Verdict::Dns { query: DnsQuery { port: packet.port, mac: packet.mac, guest }, payload })
    }

    /// Takes the answer to a query of [`Verdict::Dns`], or that there is none.
    pub fn dns_answer(&mut self, query: &DnsQuery, answer: Option<&[u8]>) {
        let Some(port) = self.ports.get_mut(&query.port) else { return };
        port.dns = port.dns.saturating_sub(1);
        if let Some(answer) = answer {
            let dst = (query.guest.addr, query.guest.port);
            let src = (self.config.dns_of(dst.0), 53);
            self.send_udp(query.port, query.mac, src, dst, answer);
        }
    }

    fn udp_from_guest(
        &mut self,
        packet: &Packet<'_>,
        flow: FlowId,
        peer: Endpoint,
        (payload, segment): (Range<usize>, u16),
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let mut to = SocketAddr::new(self.host_addr(peer.addr), peer.port);
        let max_peers = self.config.limits.udp_peers;
        self.udp.touch(flow);
        let entry = self.udp.get_mut(flow).ok_or(DropReason::NoFlow)?;
        entry.mac = packet.mac;
        let udp = &mut entry.flow;
        udp.last_used = now;
        udp.bytes_out += payload.len() as u64;
        udp.only_asks &= peer.port == 53;
        let via = match &mut udp.kind {
            UdpKind::Nat { peers } => {
                peers.turn_to(to.ip(), max_peers);
                UdpVia::Own { guest_port: entry.key.guest.port }
            }
            UdpKind::Forward { forward, peer, local } => {
                to = *peer;
                UdpVia::Forward { forward: *forward, local: *local }
            }
            // What goes to a group comes here by no unicast packet.
            UdpKind::Multicast { .. } => return Err(DropReason::Multicast),
        };
        let len = if segment == 0 { payload.len() } else { segment.into() };
        let delivery = self.delivery(&packet.ip, UDP_HEADER_LEN + len);
        Ok(Verdict::Udp { flow, via, to, payload, segment, delivery })
    }

    pub(super) fn insert_udp(&mut self, key: FlowKey, mac: MacAddr, kind: UdpKind, now: Instant) -> FlowId {
        if self.udp.count(&key) >= self.share(key.port, self.config.limits.udp)
            && let Some(oldest) = self.udp.oldest(&key)
        {
            self.count_drop(key.port, DropReason::FlowLimit);
            self.close_udp(oldest);
        }
        let only_asks = !matches!(kind, UdpKind::Forward { .. });
        let flow = UdpFlow { kind, last_used: now, bytes_out: 0, bytes_in: 0, only_asks };
        let flow = self.udp.insert(key, mac, flow);
        if let Some(entry) = self.udp.get_mut(flow) {
            arm(&mut self.wheel, flow, entry, now + IDLE_DNS);
        }
        flow
    }

    pub(super) fn close_udp(&mut self, flow: FlowId) {
        if let Some(mut entry) = self.udp.remove(flow) {
            disarm(&mut self.wheel, &mut entry);
            self.outputs.push_back(Output::Close(flow));
        }
    }

    pub(super) fn udp_timeout(&mut self, flow: FlowId, now: Instant) {
        let Some(entry) = self.udp.get_mut(flow) else { return };
        entry.armed = None;
        let idle = if entry.flow.only_asks { IDLE_DNS } else { IDLE };
        let end = entry.flow.last_used + idle;
        if end <= now { self.close_udp(flow) } else { arm(&mut self.wheel, flow, entry, end) }
    }

    /// Decides on datagrams that came to a flow's own socket.
    ///
    /// # Errors
    /// Why they are not for the guest; counted, unless the flow is no more ([`DropReason::NoFlow`]).
    pub fn udp_from_host(
        &mut self,
        flow: FlowId,
        origin: &Origin,
        datagrams: Datagrams,
        now: Instant,
    ) -> Result<(PortId, Headers), DropReason> {
        // The flow's socket speaks one kind of IP: there are no mapped addresses.
        let addr = origin.from.ip();
        let entry = self.udp.get(flow).ok_or(DropReason::NoFlow)?;
        let port = entry.key.port;
        let expected = match &entry.flow.kind {
            UdpKind::Nat { peers } => peers.contains(addr),
            UdpKind::Forward { .. } => true,
            UdpKind::Multicast { service } => {
                service.answers_from(origin.from.port()) && self.config.may_answer(addr)
            }
        };
        if !expected {
            self.count_drops(port, DropReason::UdpFiltered, datagrams.count());
            return Err(DropReason::UdpFiltered);
        }
        self.udp_to_guest(flow, origin, datagrams, now)
    }

    /// Decides on datagrams that came to a forwarded port.
    ///
    /// # Errors
    /// [`DropReason::Unresolved`] when the guest has not been found yet; counted.
    pub fn udp_from_forward(
        &mut self,
        forward: u32,
        guest: Endpoint,
        origin: &Origin,
        datagrams: Datagrams,
        now: Instant,
    ) -> Result<(PortId, Headers), DropReason> {
        let Origin { from, to: local, .. } = *origin;
        let Some(at) = self.shared.with(|registry| registry.switch.neighbour(guest.addr)) else {
            self.ask_for(guest.addr, now);
            self.count_lost(DropReason::Unresolved, datagrams.count());
            return Err(DropReason::Unresolved);
        };
        let addr = self.guest_view(from.ip(), guest.addr);
        let key = |port| FlowKey { port: at.port, guest, peer: Some(Endpoint { addr, port }) };
        // Of several peers that appear with one address, each has a port of its own.
        let others = (1..SAME_PORT).map(|n| EPHEMERAL.start() | from.port().wrapping_add(n));
        let mut ports = std::iter::once(from.port()).chain(others);
        let find = |port| self.udp.find(&key(port));
        let is_its_own = |flow: &FlowId| self.udp.get(*flow).is_some_and(|it| it.flow.is_of(forward, from));
        let flow = match ports.clone().filter_map(find).find(is_its_own) {
            Some(flow) => flow,
            None => {
                let port = ports.find(|port| find(*port).is_none()).unwrap_or(from.port());
                let kind = UdpKind::Forward { forward, peer: from, local };
                match find(port) {
                    Some(flow) => flow,
                    None => self.insert_udp(key(port), at.mac, kind, now),
                }
            }
        };
        if let Some(entry) = self.udp.get_mut(flow) {
            entry.mac = at.mac;
            entry.flow.kind = UdpKind::Forward { forward, peer: from, local };
        }
        self.udp_to_guest(flow, origin, datagrams, now)
    }

    fn udp_to_guest(
        &mut self,
        flow: FlowId,
        &Origin { from, tos, .. }: &Origin,
        datagrams: Datagrams,
        now: Instant,
    ) -> Result<(PortId, Headers), DropReason> {
        self.udp.touch(flow);
        let entry = self.udp.get(flow).ok_or(DropReason::NoFlow)?;
        let FlowKey { guest, peer, .. } = entry.key;
        let src = match (&entry.flow.kind, peer) {
            (UdpKind::Forward { .. }, Some(peer)) => peer,
            _ => Endpoint { addr: self.guest_view(from.ip(), guest.addr), port: from.port() },
        };
        let gateway = self.mac;
        let entry = self.udp.get_mut(flow).ok_or(DropReason::NoFlow)?;
        // Answers do not keep open what lets in anybody.
        if !matches!(entry.flow.kind, UdpKind::Multicast { .. }) {
            entry.flow.last_used = now;
        }
        entry.flow.bytes_in += datagrams.len as u64;
        let ip = IpHeader { tos, ..IpHeader::new(src.addr, guest.addr, PROTOCOL_UDP) };
        let port = entry.key.port;
        let ports = (src.port, guest.port);
        let segment = u16::try_from(datagrams.longest()).unwrap_or(u16::MAX);
        let mut headers = Headers::udp(entry.mac, gateway, &ip, ports, datagrams.len, segment);
        self.fit(port, &mut headers, &ip, (datagrams.longest(), datagrams.count()));
        Ok((port, headers))
    }

    /// Tells a guest that a datagram of its flow to `to` did not arrive: one that began with `payload`,
    /// as far as that is known. What it never sent to is not spoken of, whoever claims it.
    pub fn udp_error(
        &mut self,
        flow: FlowId,
        to: SocketAddr,
        error: IcmpError,
        offender: Option<Offender>,
        payload: &[u8],
    ) {
        let Some(entry) = self.udp.get(flow) else { return };
        let FlowKey { port, guest, peer } = entry.key;
        let dst = match (&entry.flow.kind, peer) {
            (UdpKind::Nat { peers }, _) if !peers.contains(to.ip()) => {
                return self.count_drop(port, DropReason::UdpFiltered);
            }
            // RFC 1122 §3.2.2: of what went to a group nothing is told.
            (UdpKind::Multicast { .. }, _) => return,
            (UdpKind::Forward { .. }, Some(peer)) => peer,
            _ => Endpoint { addr: self.guest_view(to.ip(), guest.addr), port: to.port() },
        };
        let answer = self.error_ip(error, offender, guest.addr, dst.addr);
        let (ip, ports) = (IpHeader::new(guest.addr, dst.addr, PROTOCOL_UDP), (guest.port, dst.port));
        let sent = Headers::udp(self.mac, entry.mac, &ip, ports, payload.len(), u16::MAX);
        if let Some(frame) = error.frame(entry.mac, self.mac, answer, &sent.quote(payload)) {
            self.send_frame(port, frame);
        }
    }

    /// A flow's socket could not be had: forgets the flow.
    pub fn udp_failed(&mut self, flow: FlowId, reason: DropReason) {
        if let Some(mut entry) = self.udp.remove(flow) {
            disarm(&mut self.wheel, &mut entry);
            self.count_drop(entry.key.port, reason);
        }
    }

    /// A forward is no more: so are the flows of its peers.
    pub fn remove_udp_forward(&mut self, forward: u32) {
        let of_forward =
            |kind: &UdpKind| matches!(kind, UdpKind::Forward { forward: other, .. } if *other == forward);
        let flows: Vec<FlowId> =
            self.udp.iter().filter(|(_, entry)| of_forward(&entry.flow.kind)).map(|(flow, _)| flow).collect();
        for flow in flows {
            self.close_udp(flow);
        }
    }

    pub(super) fn send_udp(
        &mut self,
        port: PortId,
        mac: MacAddr,
        src: (IpAddr, u16),
        dst: (IpAddr, u16),
        payload: &[u8],
    ) {
        let (ip, ports) = (IpHeader::new(src.0, dst.0, PROTOCOL_UDP), (src.1, dst.1));
        let mut headers = Headers::udp(mac, self.mac, &ip, ports, payload.len(), u16::MAX);
        self.fit(port, &mut headers, &ip, (payload.len(), 1));
        let mut frame = headers.to_vec();
        frame.extend_from_slice(payload);
        self.outputs.push_back(Output::Frame { port, frame, offload: headers.offload });
    }
}

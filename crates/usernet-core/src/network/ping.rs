//! ICMP and ICMPv6 echo: to the gateway and the DNS address answered here, to the outside through ping sockets.
//! What goes to the other kind of IP (NAT64) is the same but for its type (RFC 7915 §4.2, §5.2).

use std::net::IpAddr;
use std::time::Duration;

use super::config::Place;
use super::{Network, Output, Packet, Peers, Verdict, arm, disarm};
use crate::datagrams::Origin;
use crate::drops::DropReason;
use crate::port::PortId;
use crate::table::{Endpoint, FlowId, FlowKey};
use crate::time::Instant;
use crate::wire::{
    Headers, ICMP_ECHO, ICMP_ECHO_REPLY, ICMP_HEADER_LEN, ICMPV6_ECHO, ICMPV6_ECHO_REPLY, IcmpError,
    IpHeader, Offender, PROTOCOL_ICMP, PROTOCOL_ICMPV6, update_checksum,
};

/// RFC 5508 REQ-2: no less than 60 seconds.
const IDLE: Duration = Duration::from_secs(60);

/// The echo requests of one identifier of a guest.
#[derive(Debug)]
pub struct PingFlow {
    /// When a message last passed.
    pub last_used: Instant,
    /// Payload bytes from the guest.
    pub bytes_out: u64,
    /// Payload bytes to the guest.
    pub bytes_in: u64,
    /// Whom it hears from.
    pub peers: Peers,
}

/// An ICMP echo header.
struct Echo {
    kind: u8,
    code: u8,
    checksum: u16,
    ident: u16,
    seq: u16,
}

impl Echo {
    fn parse(bytes: [u8; ICMP_HEADER_LEN]) -> Self {
        let [kind, code, a, b, c, d, e, f] = bytes;
        let word = |hi, lo| u16::from_be_bytes([hi, lo]);
        Self { kind, code, checksum: word(a, b), ident: word(c, d), seq: word(e, f) }
    }

    fn to_bytes(&self) -> [u8; ICMP_HEADER_LEN] {
        let ([a, b], [c, d], [e, f]) =
            (self.checksum.to_be_bytes(), self.ident.to_be_bytes(), self.seq.to_be_bytes());
        [self.kind, self.code, a, b, c, d, e, f]
    }
}

impl Network {
    pub(super) fn handle_ping(
        &mut self,
        packet: &Packet<'_>,
        place: Place,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let mut echo = Echo::parse(*packet.transport_head().first_chunk().ok_or(DropReason::Icmp)?);
        let (request, reply) = echo_types(packet.ip.src);
        if (echo.kind, echo.code) != (request, 0) {
            return Err(DropReason::Icmp);
        }
        let payload = packet.transport.start + ICMP_HEADER_LEN..packet.transport.end;
        // The gateway and the DNS server answer whether or not the host behind them is open.
        if self.config.is_ours(packet.ip.dst) || place == Place::Gateway {
            let word = |kind| u16::from_be_bytes([kind, 0]);
            echo.kind = reply;
            echo.checksum = update_checksum(echo.checksum, word(request), word(reply));
            let ip = IpHeader { tos: packet.ip.tos, ..ping_ip(packet.ip.dst, packet.ip.src) };
            let mut headers = Headers::icmp(packet.mac, self.mac, &ip, &echo.to_bytes(), payload.len());
            self.fit(packet.port, &mut headers, &ip, (payload.len(), 1));
            return Ok(Verdict::Reply { headers, payload });
        }
        self.check_place(packet, place)?;
        let guest = Endpoint { addr: packet.ip.src, port: echo.ident };
        let key = FlowKey { port: packet.port, guest, peer: self.all_peers(packet.ip.dst) };
        let flow = match self.ping.find(&key) {
            Some(flow) => flow,
            None if let Some(worker) = self.ping.elsewhere(&key) => return Ok(Verdict::HandOver(worker)),
            None => self.insert_ping(key, packet, now),
        };
        self.ping.touch(flow);
        let to = self.host_addr(packet.ip.dst);
        (echo.kind, _) = echo_types(to);
        let max_peers = self.config.limits.udp_peers;
        let entry = self.ping.get_mut(flow).ok_or(DropReason::NoFlow)?;
        entry.mac = packet.mac;
        entry.flow.peers.turn_to(to, max_peers);
        entry.flow.last_used = now;
        entry.flow.bytes_out += payload.len() as u64;
        Ok(Verdict::Ping {
            flow,
            ident: echo.ident,
            to,
            header: echo.to_bytes(),
            payload,
            delivery: self.delivery(&packet.ip, packet.transport.len()),
        })
    }

    fn insert_ping(&mut self, key: FlowKey, packet: &Packet<'_>, now: Instant) -> FlowId {
        if self.ping.count(&key) >= self.share(key.port, self.config.limits.ping)
            && let Some(oldest) = self.ping.oldest(&key)
        {
            self.count_drop(key.port, DropReason::FlowLimit);
            self.close_ping(oldest);
        }
        let flow = self.ping.insert(
            key,
            packet.mac,
            PingFlow { last_used: now, bytes_out: 0, bytes_in: 0, peers: Peers::default() },
        );
        if let Some(entry) = self.ping.get_mut(flow) {
            arm(&mut self.wheel, flow, entry, now + IDLE);
        }
        flow
    }

    pub(super) fn close_ping(&mut self, flow: FlowId) {
        if let Some(mut entry) = self.ping.remove(flow) {
            disarm(&mut self.wheel, &mut entry);
            self.outputs.push_back(Output::Close(flow));
        }
    }

    pub(super) fn ping_timeout(&mut self, flow: FlowId, now: Instant) {
        let Some(entry) = self.ping.get_mut(flow) else { return };
        entry.armed = None;
        let end = entry.flow.last_used + IDLE;
        if end <= now { self.close_ping(flow) } else { arm(&mut self.wheel, flow, entry, end) }
    }

    /// Decides on an ICMP message that came to a flow's socket, with so many hops left where that is known:
    /// its header, and how many bytes follow.
    /// The kernel matches replies by an identifier that may not be the guest's: it is written back.
    ///
    /// # Errors
    /// Why it is not for the guest; counted, unless the flow is no more ([`DropReason::NoFlow`]).
    pub fn ping_from_host(
        &mut self,
        flow: FlowId,
        origin: &Origin,
        ttl: Option<u8>,
        header: [u8; ICMP_HEADER_LEN],
        len: usize,
        now: Instant,
    ) -> Result<(PortId, Headers), DropReason> {
        let mut echo = Echo::parse(header);
        let from = origin.from.ip();
        let entry = self.ping.get(flow).ok_or(DropReason::NoFlow)?;
        let FlowKey { port, guest, .. } = entry.key;
        if !entry.flow.peers.contains(from) {
            self.count_drop(port, DropReason::PingFiltered);
            return Err(DropReason::PingFiltered);
        }
        let (_, reply) = echo_types(from);
        if (echo.kind, echo.code) != (reply, 0) {
            self.count_drop(port, DropReason::Icmp);
            return Err(DropReason::Icmp);
        }
        (_, echo.kind) = echo_types(guest.addr);
        let src = self.guest_view(from, guest.addr);
        let gateway = self.mac;
        let entry = self.ping.get_mut(flow).ok_or(DropReason::NoFlow)?;
        entry.flow.last_used = now;
        entry.flow.bytes_in += len as u64;
        echo.checksum = update_checksum(echo.checksum, echo.ident, guest.port);
        echo.ident = guest.port;
        let ip = ping_ip(src, guest.addr);
        let ip = IpHeader { ttl: ttl.unwrap_or(ip.ttl), tos: origin.tos, ..ip };
        let mut headers = Headers::icmp(entry.mac, gateway, &ip, &echo.to_bytes(), len);
        self.fit(port, &mut headers, &ip, (len, 1));
        Ok((port, headers))
    }

    /// Tells a guest that an echo request to `to` did not arrive: one that began with `message`, from its
    /// ICMP header on, as the host sent it.
    pub fn ping_error(
        &mut self,
        flow: FlowId,
        to: IpAddr,
        message: &[u8],
        error: IcmpError,
        offender: Option<Offender>,
    ) {
        let Some(entry) = self.ping.get(flow) else { return };
        let Some((header, payload)) = message.split_first_chunk() else { return };
        if !entry.flow.peers.contains(to) {
            return self.count_drop(entry.key.port, DropReason::PingFiltered);
        }
        let guest = entry.key.guest;
        let mut echo = Echo::parse(*header);
        (echo.kind, _) = echo_types(guest.addr);
        echo.checksum = update_checksum(echo.checksum, echo.ident, guest.port);
        echo.ident = guest.port;
        let dst = self.guest_view(to, guest.addr);
        let answer = self.error_ip(error, offender, guest.addr, dst);
        let ip = ping_ip(guest.addr, dst);
        let sent = Headers::icmp(self.mac, entry.mac, &ip, &echo.to_bytes(), payload.len());
        if let Some(frame) = error.frame(entry.mac, self.mac, answer, &sent.quote(payload)) {
            self.send_frame(entry.key.port, frame);
        }
    }

    /// A flow's socket could not be had: tells the guest, and forgets the flow.
    pub fn ping_failed(&mut self, flow: FlowId, to: IpAddr, message: &[u8], reason: DropReason) {
        let gateway = Offender { addr: self.config.gateway_of(to), ttl: None };
        self.ping_error(flow, to, message, IcmpError::Prohibited, Some(gateway));
        if let Some(mut entry) = self.ping.remove(flow) {
            disarm(&mut self.wheel, &mut entry);
            self.count_drop(entry.key.port, reason);
        }
    }
}

/// The types of an echo request and of its reply in `of`'s kind of IP.
fn echo_types(of: IpAddr) -> (u8, u8) {
    if of.is_ipv4() { (ICMP_ECHO, ICMP_ECHO_REPLY) } else { (ICMPV6_ECHO, ICMPV6_ECHO_REPLY) }
}

fn ping_ip(src: IpAddr, dst: IpAddr) -> IpHeader {
    IpHeader::new(src, dst, if dst.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 })
}

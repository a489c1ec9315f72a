//! TCP: finding a segment's flow, beginning flows, and turning what a flow wants into frames and
//! operations.

use std::net::{IpAddr, SocketAddr};

use super::config::Place;
use super::switch::Neighbour;
use super::{NOWHERE, Network, Output, Packet, Target, TcpOp, Verdict, arm, disarm};
use crate::drops::DropReason;
use crate::host::{HostError, HostEvent, PeekEnd};
use crate::table::{Endpoint, Entry, FlowId, FlowKey, hash};
use crate::tcp::{self, Accept, SeqNumber, TcpFlow};
use crate::time::Instant;
use crate::wire::{
    DSCP, Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IcmpError, IpHeader, MacAddr, PROTOCOL_ICMP,
    PROTOCOL_TCP, TCP_HEADER_LEN, TcpFlags, TcpHeader,
};

/// Where the ports of peers of forwards are taken from when the peer's own is in use.
pub(super) const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;

/// A TCP flow and where it leads.
#[derive(Debug)]
pub struct TcpEntry {
    /// The state machine.
    pub tcp: TcpFlow,
    /// Where the host end is; `None` for a connection that was accepted on the host.
    pub target: Option<Target>,
    /// Whether it counts among its guest's pending connects.
    connecting: bool,
    /// The DSCP that the guest's SYN came with; ECN belongs to each of the two connections.
    dscp: u8,
    /// As how many kept bytes it counts.
    kept: u32,
}

impl Network {
    pub(super) fn handle_tcp(
        &mut self,
        packet: &Packet<'_>,
        place: Place,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let (seg, header_len) = TcpHeader::parse(packet.transport_head())?;
        let len = packet.transport.len().checked_sub(header_len).ok_or(DropReason::TcpHeader)?;
        let key = FlowKey {
            port: packet.port,
            guest: Endpoint { addr: packet.ip.src, port: seg.src_port },
            peer: Some(Endpoint { addr: packet.ip.dst, port: seg.dst_port }),
        };
        let mut found = self.tcp.find(&key);
        if let Some(flow) = found
            && self.tcp.get(flow).is_some_and(|entry| entry.flow.tcp.may_be_reused(&seg))
        {
            self.forget_tcp(flow);
            found = None;
        }
        let Some(flow) = found else {
            return match self.tcp.elsewhere(&key) {
                Some(worker) => Ok(Verdict::HandOver(worker)),
                None => self.begin_tcp(packet, &seg, len, key, place, now),
            };
        };
        let entry = self.tcp.get_mut(flow).ok_or(DropReason::NoFlow)?;
        entry.mac = packet.mac;
        let keep_room = self.ports.get(&packet.port).map_or(0, |port| {
            let share = self.config.limits.kept / u32::try_from(port.queues).unwrap_or(u32::MAX).max(1);
            share.saturating_sub(port.kept)
        });
        entry.flow.tcp.set_keep_room(keep_room);
        let accept = entry.flow.tcp.handle_segment(&seg, len, now);
        self.count_kept(flow);
        self.mark_dirty(flow);
        let payload_at = packet.transport.start + header_len;
        let shift = |payload: std::ops::Range<usize>| payload.start + payload_at..payload.end + payload_at;
        Ok(match accept? {
            Accept::Nothing => Verdict::Done,
            Accept::Deliver { payload, at } => Verdict::Tcp { flow, payload: shift(payload), at },
            Accept::Keep { payload, at } => Verdict::Keep { flow, payload: shift(payload), at },
        })
    }

    fn begin_tcp(
        &mut self,
        packet: &Packet<'_>,
        seg: &TcpHeader,
        len: usize,
        key: FlowKey,
        place: Place,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let begins = seg.flags.contains(TcpFlags::SYN) && !seg.flags.contains(TcpFlags::ACK);
        if seg.flags.contains(TcpFlags::RST) {
            return Err(DropReason::NoFlow);
        }
        if !begins {
            self.refuse(packet, seg, len);
            return Err(DropReason::NoFlow);
        }
        let peer = SocketAddr::new(self.host_addr(packet.ip.dst), seg.dst_port);
        let target = match place {
            Place::Dns if seg.dst_port == 53 => {
                let limit = self.share(packet.port, self.config.limits.dns_streams);
                if self.ports.get(&packet.port).is_none_or(|port| port.dns_streams >= limit) {
                    self.refuse(packet, seg, len);
                    return Err(DropReason::DnsLimit);
                }
                Target::Dns
            }
            Place::Dns | Place::Closed => {
                self.refuse(packet, seg, len);
                return Err(DropReason::Policy);
            }
            _ => {
                self.check_place(packet, place)?;
                Target::Host(peer)
            }
        };
        if seg.dst_port == 0 || seg.src_port == 0 {
            return Err(DropReason::TcpHeader);
        }
        if !self.make_tcp_room(&key) {
            self.refuse(packet, seg, len);
            return Err(DropReason::FlowLimit);
        }
        let limit = self.share(packet.port, self.config.limits.connecting);
        let port = self.ports.get_mut(&packet.port).ok_or(DropReason::NoFlow)?;
        if port.connecting >= limit {
            return Err(DropReason::PendingLimit);
        }
        port.connecting += 1;
        port.dns_streams += usize::from(target == Target::Dns);
        let tcp = TcpFlow::from_guest(seg, self.initial_seq(&key, now), self.tcp_mss(&key), now);
        let dscp = packet.ip.tos & DSCP;
        let entry = TcpEntry { tcp, target: Some(target), connecting: true, dscp, kept: 0 };
        let flow = self.tcp.insert(key, packet.mac, entry);
        self.mark_dirty(flow);
        Ok(Verdict::Done)
    }

    /// Makes a flow to a guest for a connection that was accepted on the host. `guest` may not be
    /// there yet: its SYN is sent again for about a minute. Returns `None` when no bound has room.
    pub fn accept_tcp(&mut self, guest: Endpoint, peer: SocketAddr, now: Instant) -> Option<FlowId> {
        let at = self.shared.with(|registry| registry.switch.neighbour(guest.addr));
        let (port, mac) = at.map_or((NOWHERE, MacAddr::BROADCAST), |at| (at.port, at.mac));
        let mut peer = Endpoint { addr: self.guest_view(peer.ip(), guest.addr), port: peer.port() };
        let key = |peer| FlowKey { port, guest, peer: Some(peer) };
        let lost = port == NOWHERE && self.tcp.count(&key(peer)) >= self.config.limits.unresolved;
        if lost || !self.make_tcp_room(&key(peer)) {
            self.count_drop(port, DropReason::FlowLimit);
            return None;
        }
        // One peer may reach one guest port by two forwards, or come back before its last flow is over.
        if self.tcp.find(&key(peer)).is_some() {
            peer.port = EPHEMERAL
                .clone()
                .find(|port| self.tcp.find(&key(Endpoint { port: *port, ..peer })).is_none())?;
        }
        let key = key(peer);
        let tcp =
            TcpFlow::to_guest(guest.port, peer.port, self.initial_seq(&key, now), self.tcp_mss(&key), now);
        let flow =
            self.tcp.insert(key, mac, TcpEntry { tcp, target: None, connecting: false, dscp: 0, kept: 0 });
        self.mark_dirty(flow);
        Some(flow)
    }

    /// Whether there is room for one more flow of `key`'s port.
    fn make_tcp_room(&mut self, key: &FlowKey) -> bool {
        if self.tcp.count(key) < self.share(key.port, self.config.limits.tcp) {
            return true;
        }
        let oldest = self.tcp.oldest(key);
        let Some(flow) = oldest.filter(|flow| self.tcp.get(*flow).is_some_and(|e| e.flow.tcp.is_time_wait()))
        else {
            return false;
        };
        self.forget_tcp(flow);
        true
    }

    /// Takes what happened at the host end of a flow.
    pub fn tcp_event(&mut self, flow: FlowId, event: HostEvent, now: Instant) {
        if let Some(entry) = self.tcp.get_mut(flow) {
            entry.flow.tcp.handle_host(event, now);
            self.mark_dirty(flow);
        }
    }

    /// Takes the outcome of [`TcpOp::Peek`]; returns the headers for the bytes that were peeked.
    pub fn tcp_peeked(
        &mut self,
        flow: FlowId,
        at: u32,
        len: u32,
        end: PeekEnd,
        now: Instant,
    ) -> Option<Headers> {
        let gateway = self.mac;
        let entry = self.tcp.get_mut(flow)?;
        let header = entry.flow.tcp.handle_peeked(at, len, end, now)?;
        let segment = entry.flow.tcp.segment();
        let ip = tcp_ip(entry)?;
        Some(Headers::tcp(entry.mac, gateway, &ip, &header, len as usize, segment))
    }

    /// Takes the outcome of [`TcpOp::WriteKept`].
    pub fn tcp_wrote_kept(&mut self, flow: FlowId, len: u32, now: Instant) {
        if let Some(entry) = self.tcp.get_mut(flow) {
            entry.flow.tcp.handle_wrote_kept(len, now);
            self.mark_dirty(flow);
        }
    }

    pub(super) fn tcp_timeout(&mut self, flow: FlowId, now: Instant) {
        let Some(entry) = self.tcp.get_mut(flow) else { return };
        entry.armed = None;
        if self.ports.get(&entry.key.port).is_some_and(|port| port.busy) {
            entry.flow.tcp.handle_link_busy(now);
        }
        if entry.flow.tcp.poll_timeout().is_some_and(|at| at <= now) {
            entry.flow.tcp.handle_timeout(now);
        }
        self.mark_dirty(flow);
    }

    /// The guest at `addr` has been found: connections that wait for it go on, here or where it is.
    pub fn found(&mut self, addr: IpAddr) {
        let known = self.shared.with(|registry| {
            let at = registry.switch.neighbour(addr)?;
            Some((at, registry.switch.home(at.port)?))
        });
        let Some((Neighbour { port, mac }, home)) = known else { return };
        for flow in self.tcp.of_port(NOWHERE) {
            let Some(key) = self.tcp.get(flow).map(|e| e.key).filter(|key| key.guest.addr == addr) else {
                continue;
            };
            let found = FlowKey { port, ..key };
            if home != self.shared.worker {
                let Some(peer) = key.peer else { continue };
                self.outputs.push_back(Output::Rehome { flow, to: home, guest: key.guest, peer });
                continue;
            }
            if self.tcp.find(&found).is_some() || !self.make_tcp_room(&found) {
                if let Some(entry) = self.tcp.get_mut(flow) {
                    entry.flow.tcp.handle_guest_gone();
                }
            } else {
                self.tcp.move_to(flow, port, mac);
                if let Some(entry) = self.tcp.get_mut(flow) {
                    entry.flow.tcp.handle_resolved();
                }
            }
            self.mark_dirty(flow);
        }
    }

    /// A flow's host end has been handed over: see [`Output::Rehome`].
    pub fn rehomed(&mut self, flow: FlowId) {
        self.forget_tcp(flow);
    }

    pub(super) fn mark_dirty(&mut self, flow: FlowId) {
        if let Some(entry) = self.tcp.get_mut(flow)
            && !entry.queued
        {
            entry.queued = true;
            self.dirty.push_back(flow);
        }
    }

    /// The next output of the flow at the head of the list; `None`: look again.
    pub(super) fn poll_tcp(&mut self, flow: FlowId, now: Instant) -> Option<Output> {
        let Some(entry) = self.tcp.get_mut(flow) else {
            self.dirty.pop_front();
            return None;
        };
        let output = entry.flow.tcp.poll_output(now);
        if entry.flow.connecting && !entry.flow.tcp.is_connecting() {
            entry.flow.connecting = false;
            if let Some(port) = self.ports.get_mut(&entry.key.port) {
                port.connecting = port.connecting.saturating_sub(1);
            }
        }
        let op = match output {
            None => {
                self.dirty.pop_front();
                self.rest(flow);
                return None;
            }
            Some(tcp::Output::Segment(header)) => return self.send_segment(flow, &header, now),
            Some(tcp::Output::Unreachable(error)) => {
                self.send_unreachable(flow, error);
                return None;
            }
            Some(tcp::Output::Closed(_)) => {
                self.dirty.pop_front();
                self.forget_tcp(flow);
                return None;
            }
            Some(tcp::Output::Connect) => {
                TcpOp::Connect { target: entry.flow.target?, dscp: entry.flow.dscp }
            }
            Some(tcp::Output::Peek { at, max, segment }) => {
                // One burst a turn: flows share a link evenly.
                let port = entry.key.port;
                self.dirty.rotate_left(1);
                TcpOp::Peek { port, at, max, segment }
            }
            Some(tcp::Output::Discard { len }) => TcpOp::Discard { len },
            Some(tcp::Output::WriteKept { at, len }) => TcpOp::WriteKept { at, len },
            Some(tcp::Output::ShutdownHostWrite) => TcpOp::ShutdownWrite,
            Some(tcp::Output::WatchSendSpace) => TcpOp::WatchSendSpace,
            Some(tcp::Output::CloseHost) => TcpOp::Close,
            Some(tcp::Output::ResetHost) => TcpOp::Reset,
        };
        Some(Output::Tcp { flow, op })
    }

    /// A flow has nothing more to do now: wake it when its deadline comes.
    fn rest(&mut self, flow: FlowId) {
        self.count_kept(flow);
        let Some(entry) = self.tcp.get_mut(flow) else { return };
        entry.queued = false;
        let retired = entry.flow.tcp.is_time_wait();
        if let Some(at) = entry.flow.tcp.poll_timeout() {
            arm(&mut self.wheel, flow, entry, at);
        }
        if retired {
            self.tcp.retire(flow);
        }
    }

    fn forget_tcp(&mut self, flow: FlowId) {
        let Some(mut entry) = self.tcp.remove(flow) else { return };
        disarm(&mut self.wheel, &mut entry);
        let Some(port) = self.ports.get_mut(&entry.key.port) else { return };
        let TcpEntry { target, connecting, kept, .. } = entry.flow;
        port.connecting = port.connecting.saturating_sub(connecting.into());
        port.dns_streams = port.dns_streams.saturating_sub((target == Some(Target::Dns)).into());
        port.kept = port.kept.saturating_sub(kept);
    }

    /// Brings what counts as kept for a flow's guest up to date.
    fn count_kept(&mut self, flow: FlowId) {
        let Some(entry) = self.tcp.get_mut(flow) else { return };
        let before = std::mem::replace(&mut entry.flow.kept, entry.flow.tcp.kept());
        if let Some(port) = self.ports.get_mut(&entry.key.port) {
            port.kept = port.kept.saturating_sub(before).saturating_add(entry.flow.kept);
        }
    }

    fn send_segment(&mut self, flow: FlowId, header: &TcpHeader, now: Instant) -> Option<Output> {
        let entry = self.tcp.get(flow)?;
        let key = entry.key;
        if key.port == NOWHERE {
            if header.flags.contains(TcpFlags::SYN) {
                self.ask_for(key.guest.addr, now);
                // Another worker's word of it may have been lost.
                self.found(key.guest.addr);
            }
            return None;
        }
        let ip = tcp_ip(entry)?;
        let headers = Headers::tcp(entry.mac, self.mac, &ip, header, 0, u16::MAX);
        Some(Output::Headers { port: key.port, headers })
    }

    /// RFC 9293 §3.5.2, group 1: what belongs to no flow is answered with a RST.
    fn refuse(&mut self, packet: &Packet<'_>, seg: &TcpHeader, len: usize) {
        let takes =
            u32::from(seg.flags.contains(TcpFlags::SYN)) + u32::from(seg.flags.contains(TcpFlags::FIN));
        let (seq, flags) = if seg.flags.contains(TcpFlags::ACK) {
            (seg.ack, TcpFlags::RST)
        } else {
            (SeqNumber(0), TcpFlags::RST | TcpFlags::ACK)
        };
        let rst = TcpHeader {
            src_port: seg.dst_port,
            dst_port: seg.src_port,
            seq,
            ack: seg.seq + u32::try_from(len).unwrap_or(0) + takes,
            flags,
            ..TcpHeader::default()
        };
        let ip = IpHeader::new(packet.ip.dst, packet.ip.src, PROTOCOL_TCP);
        let headers = Headers::tcp(packet.mac, self.mac, &ip, &rst, 0, u16::MAX);
        self.outputs.push_back(Output::Headers { port: packet.port, headers });
    }

    /// Tells the guest why its connect failed; quotes the SYN as far as RFC 792 asks for.
    fn send_unreachable(&mut self, flow: FlowId, error: HostError) {
        let Some(entry) = self.tcp.get(flow) else { return };
        let Some(peer) = entry.key.peer else { return };
        let guest = entry.key.guest;
        let syn = TcpHeader {
            src_port: guest.port,
            dst_port: peer.port,
            seq: entry.flow.tcp.irs(),
            flags: TcpFlags::SYN,
            ..TcpHeader::default()
        };
        let ip = IpHeader::new(guest.addr, peer.addr, PROTOCOL_TCP);
        let syn = Headers::tcp(self.mac, entry.mac, &ip, &syn, 0, u16::MAX);
        let gateway = self.config.gateway_of(guest.addr);
        let ip = IpHeader::new(gateway, guest.addr, PROTOCOL_ICMP);
        if let Some(frame) = IcmpError::from(error).frame(entry.mac, self.mac, ip, &syn.quote(&[])) {
            self.send_frame(entry.key.port, frame);
        }
    }

    fn tcp_mss(&self, key: &FlowKey) -> u16 {
        let ip = if key.guest.addr.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
        let headers = ip + TCP_HEADER_LEN;
        self.config.mtu.saturating_sub(u16::try_from(headers).unwrap_or(0))
    }

    /// RFC 6528 §3: a clock of 4 µs and a keyed hash of the endpoints.
    fn initial_seq(&self, key: &FlowKey, now: Instant) -> SeqNumber {
        let low = |n: u64| u32::try_from(n & u64::from(u32::MAX)).unwrap_or(0);
        SeqNumber(low(hash(&self.config.seed, key)).wrapping_add(low(now.as_micros() / 4)))
    }
}

/// The IP header of a segment to the flow's guest.
fn tcp_ip(entry: &Entry<TcpEntry>) -> Option<IpHeader> {
    Some(IpHeader::new(entry.key.peer?.addr, entry.key.guest.addr, PROTOCOL_TCP))
}

//! UDP and ICMP echo: sockets of flows, and DNS queries.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd as _;
use std::time::Duration;

use usernet_core::datagrams::Datagrams;
use usernet_core::drops::DropReason;
use usernet_core::host::HostError;
use usernet_core::network::{Delivery, DnsQuery, UdpVia};
use usernet_core::port::PortId;
use usernet_core::table::{FlowId, FlowKind};
use usernet_core::wire::{Headers, ICMP_HEADER_LEN, ICMP_MAX_QUOTE, IcmpError};
use usernet_dns::Transport;
use usernet_host::epoll::{Event, Interest};
use usernet_host::inbox::{self, Batch};
use usernet_host::outbox::{Outbox, Unsent};
use usernet_host::ping::PingEnd;
use usernet_host::udp::UdpEnd;
use usernet_host::{Envelope, Icmp, QueuedError, Source};
use usernet_link::LinkError;

use super::port::Sent;
use super::{Command, Worker, slot};

/// Messages that one ping socket may hand in before the others have their turn, and errors that any
/// may.
const BUDGET: usize = 64;
/// Batches that one UDP socket may.
const BATCHES: usize = 4;
/// A guest that lets datagrams take fewer hops looks for what is on the way (traceroute asks for 30 at most).
const NOT_FAR: u8 = 32;
/// For how long the interface to the world is taken to be the same: a guest may ask often.
const OUTWARD: Duration = Duration::from_secs(5);
/// The largest UDP payload over IPv4.
const MAX_DATAGRAM: usize = 65_507;
/// The largest that an echo has, over IPv6.
pub(super) const MAX_ECHO: usize = 65_527;

/// What a try to take in a message says of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// There may be one.
    More,
    /// It waits for room in the guest's link.
    Waits,
    /// An event will tell.
    Drained,
}

/// The socket of a UDP flow.
pub(super) struct UdpSlot {
    pub(super) flow: FlowId,
    end: UdpEnd,
    /// How it sends, once that has been said.
    manner: Option<Manner>,
    /// It is on the list of those to read, or waits for room in its guest's link.
    ready: bool,
}

/// How a UDP socket sends.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Manner {
    dont_fragment: bool,
    /// Not far: whoever counts hops like that also wants to know from how far the errors come.
    not_far: bool,
}

impl From<Delivery> for Manner {
    fn from(Delivery { ttl, dont_fragment, .. }: Delivery) -> Self {
        Self { dont_fragment, not_far: ttl < NOT_FAR }
    }
}

/// The socket of a ping flow.
pub(super) struct PingSlot {
    pub(super) flow: FlowId,
    end: PingEnd,
    dont_fragment: Option<bool>,
    ready: bool,
}

/// Datagrams of a batch of frames that leave by one socket.
#[derive(Default)]
pub(super) struct Leaving<'a> {
    /// Of which flow they are, and how they leave; none as long as there are none.
    by: Option<(FlowId, UdpVia, Manner)>,
    outbox: Outbox<'a>,
}

impl Worker {
    /// Puts datagrams behind those that leave already. Those of another flow are sent first.
    pub(super) fn gather_udp<'a>(
        &mut self,
        leaving: &mut Leaving<'a>,
        (flow, via): (FlowId, UdpVia),
        (to, delivery): (SocketAddr, Delivery),
        datagrams: Datagrams,
        slices: impl FnOnce(&mut Vec<IoSlice<'a>>),
    ) {
        let by = Some((flow, via, delivery.into()));
        if leaving.by != by {
            self.send_udp(leaving);
            leaving.by = by;
        }
        let from = match via {
            UdpVia::Forward { local, .. } => Source { address: local, interface: 0 },
            UdpVia::Own { .. } => self.parts.host.source(to.ip()),
        };
        let Delivery { ttl, tos, .. } = delivery;
        leaving.outbox.push(Envelope { to, from, ttl: Some(ttl), tos }, datagrams, slices);
    }

    /// Sends what leaves.
    pub(super) fn send_udp(&mut self, Leaving { by, outbox }: &mut Leaving<'_>) {
        let (Some((flow, via, manner)), Some(to)) = (by.take(), outbox.first_to()) else { return };
        let end = match via {
            UdpVia::Forward { forward, .. } => self.udp_forwards.get(&forward).map(|end| &**end),
            UdpVia::Own { guest_port } => self.udp_end(flow, to.ip(), guest_port, manner),
        };
        let mut lost = Vec::new();
        match end {
            Some(end) => end.send(outbox, |unsent| lost.push(unsent)),
            None => {
                outbox.clear();
                self.parts.core.udp_failed(flow, DropReason::HostExhausted);
            }
        }
        for Unsent { to, datagrams, error, payload } in lost {
            if let Some(port) = self.parts.core.port_of(flow) {
                self.parts.core.count_drops(port, DropReason::UdpSend, datagrams);
            }
            if let Some(error) = self.send_error(flow, to.ip(), error) {
                self.parts.core.udp_error(flow, to, error, None, &payload);
            }
        }
    }

    /// Sends a datagram to a group of the host's network.
    pub(super) fn ask_group(&mut self, flow: FlowId, to: SocketAddr, delivery: Delivery, payload: &[u8]) {
        // What is sent over IPv4 goes by a route of the host's. Of IPv6 every link has all groups.
        let to = match to {
            SocketAddr::V6(group) => {
                let interface = match self.parts.host.source(to.ip()).interface {
                    0 => self.outward(),
                    outbound => outbound,
                };
                SocketAddrV6::new(*group.ip(), group.port(), 0, interface).into()
            }
            to => to,
        };
        // Of a host that is closed to guests, services hear nothing either.
        if self.parts.host.closed.is_some()
            && let Some(end) = self.udp_end(flow, to.ip(), 0, delivery.into())
            && end.leave_host_out().is_err()
        {
            return self.count_drop(flow, DropReason::UdpSend);
        }
        let mut leaving = Leaving::default();
        let via = UdpVia::Own { guest_port: 0 };
        let datagram = Datagrams::one(payload.len());
        self.gather_udp(&mut leaving, (flow, via), (to, delivery), datagram, |slices| {
            slices.push(IoSlice::new(payload));
        });
        self.send_udp(&mut leaving);
    }

    /// The interface by which IPv6 leaves for the world; 0: there is none.
    fn outward(&mut self) -> u32 {
        match self.outward {
            Some((interface, until)) if self.now < until => interface,
            _ => {
                let interface = usernet_host::outward_interface_v6().unwrap_or(0);
                self.outward = Some((interface, self.now + OUTWARD));
                interface
            }
        }
    }

    /// The flow's own socket, opened when it has none yet.
    fn udp_end(&mut self, flow: FlowId, to: IpAddr, guest_port: u16, manner: Manner) -> Option<&UdpEnd> {
        let poll = &self.parts.poll;
        let slot = slot(&mut self.udp, flow.index);
        if slot.as_ref().is_none_or(|slot| slot.flow != flow) {
            let end = UdpEnd::open(any_address(to), guest_port).ok()?;
            poll.add(end.as_fd(), flow.to_token(), Interest::Read).ok()?;
            *slot = Some(UdpSlot { flow, end, manner: None, ready: false });
        }
        let UdpSlot { end, manner: said, .. } = slot.as_mut()?;
        if said.replace(manner) != Some(manner) {
            end.dont_fragment(manner.dont_fragment).ok()?;
            if manner.not_far {
                end.report_hops().ok()?;
            }
        }
        Some(end)
    }

    pub(super) fn send_ping(
        &mut self,
        flow: FlowId,
        ident: u16,
        to: IpAddr,
        message: &[IoSlice<'_>],
        Delivery { ttl, tos, dont_fragment }: Delivery,
    ) {
        let start = || -> Vec<u8> {
            message.iter().flat_map(|slice| slice.iter().copied()).take(ICMP_MAX_QUOTE).collect()
        };
        let poll = &self.parts.poll;
        let slot = slot(&mut self.ping, flow.index);
        if slot.as_ref().is_none_or(|slot| slot.flow != flow) {
            let source = self.parts.host.ping_address(to).unwrap_or_else(|| any_address(to));
            let opened = PingEnd::open(source, ident);
            let registered = opened.and_then(|end| {
                poll.add(end.as_fd(), flow.to_token(), Interest::Read).map_err(|_| HostError::Exhausted)?;
                Ok(end)
            });
            match registered {
                Ok(end) => *slot = Some(PingSlot { flow, end, dont_fragment: None, ready: false }),
                Err(HostError::NetUnreachable) => {
                    return self.ping_unsent(flow, to, start, HostError::NetUnreachable);
                }
                Err(error) => {
                    let forbidden = error == HostError::Prohibited;
                    let reason =
                        if forbidden { DropReason::PingForbidden } else { DropReason::HostExhausted };
                    return self.parts.core.ping_failed(flow, to, &start(), reason);
                }
            }
        }
        let Some(slot) = slot else { return };
        let from = Source { address: None, ..self.parts.host.source(to) };
        let envelope = Envelope { to: SocketAddr::new(to, 0), from, ttl: Some(ttl), tos };
        let said = slot.dont_fragment.replace(dont_fragment) == Some(dont_fragment);
        let ready = if said { Ok(()) } else { slot.end.dont_fragment(dont_fragment) };
        if let Err(error) = ready.and_then(|()| slot.end.send(message, &envelope)) {
            self.ping_unsent(flow, to, start, error);
        }
    }

    fn ping_unsent(&mut self, flow: FlowId, to: IpAddr, start: impl FnOnce() -> Vec<u8>, error: HostError) {
        self.count_drop(flow, DropReason::PingSend);
        if let Some(error) = self.send_error(flow, to, error) {
            self.parts.core.ping_error(flow, to, &start(), error, None);
        }
    }

    /// What a guest is told of a failed send to `to`.
    fn send_error(&mut self, flow: FlowId, to: IpAddr, error: HostError) -> Option<IcmpError> {
        match error {
            HostError::Exhausted => None,
            // How long it may be is said in the error queue.
            HostError::TooLong => self.take_errors(flow).map(|mtu| IcmpError::too_big(to, mtu)),
            other => Some(other.into()),
        }
    }

    pub(super) fn count_drop(&mut self, flow: FlowId, reason: DropReason) {
        if let Some(port) = self.parts.core.port_of(flow) {
            self.parts.core.count_drop(port, reason);
        }
    }

    /// Takes in what epoll tells of a UDP or ping socket.
    pub(super) fn datagram_ready(&mut self, flow: FlowId, event: Event) {
        if event.error() {
            self.take_errors(flow);
        }
        if event.readable()
            && let Some(ready) = self.ready_bit(flow)
            && !std::mem::replace(ready, true)
        {
            self.ready_flows.push_back(flow);
        }
    }

    fn ready_bit(&mut self, flow: FlowId) -> Option<&mut bool> {
        let index = flow.index as usize;
        let (of, ready) = match flow.kind {
            FlowKind::Tcp => return None,
            FlowKind::Udp => {
                let slot = self.udp.get_mut(index)?.as_mut()?;
                (slot.flow, &mut slot.ready)
            }
            FlowKind::Ping => {
                let slot = self.ping.get_mut(index)?.as_mut()?;
                (slot.flow, &mut slot.ready)
            }
        };
        (of == flow).then_some(ready)
    }

    /// Tells a guest of what came back for its datagrams. Returns the MTU of the host's link that the last
    /// of them was too long for: whoever sent that one tells of it.
    fn take_errors(&mut self, flow: FlowId) -> Option<u32> {
        let mut quoted = [0; ICMP_MAX_QUOTE];
        let mut mtu = None;
        for _ in 0..BUDGET {
            let index = flow.index as usize;
            let error = match flow.kind {
                FlowKind::Udp => self
                    .udp
                    .get(index)?
                    .as_ref()
                    .filter(|slot| slot.flow == flow)?
                    .end
                    .take_error(&mut quoted),
                _ => self
                    .ping
                    .get(index)?
                    .as_ref()
                    .filter(|slot| slot.flow == flow)?
                    .end
                    .take_error(&mut quoted),
            };
            let Some(QueuedError { to, icmp, mtu: told, len, .. }) = error else { break };
            let Some(Icmp { error, offender }) = icmp else {
                mtu = Some(told).filter(|mtu| *mtu > 0);
                continue;
            };
            let quoted = quoted.get(..len).unwrap_or_default();
            match flow.kind {
                FlowKind::Udp => self.parts.core.udp_error(flow, to, error, offender, quoted),
                _ => self.parts.core.ping_error(flow, to.ip(), quoted, error, offender),
            }
        }
        mtu
    }

    /// Reads from each ready socket in turn.
    pub(super) fn read_flows(&mut self) {
        for _ in 0..self.ready_flows.len() {
            let Some(flow) = self.ready_flows.pop_front() else { break };
            let mut next = Next::More;
            let budget = if flow.kind == FlowKind::Udp { BATCHES } else { BUDGET };
            for _ in 0..budget {
                next = match flow.kind {
                    FlowKind::Udp => self.receive_udp(flow),
                    _ => self.receive_ping(flow),
                };
                if next != Next::More {
                    break;
                }
            }
            match next {
                Next::More => self.ready_flows.push_back(flow),
                Next::Waits => {}
                Next::Drained => {
                    if let Some(ready) = self.ready_bit(flow) {
                        *ready = false;
                    }
                }
            }
        }
    }

    /// Finds room in the guest's link for what a flow's socket has, if the largest datagram fits; or says
    /// what comes next.
    fn make_room(&mut self, port: PortId, flow: FlowId) -> Option<Next> {
        let headers_len = self.parts.core.headers_len(flow);
        let Some(entry) = self.ports.get_mut(&port) else { return Some(Next::Drained) };
        let room = entry.fill((headers_len, MAX_DATAGRAM, MAX_DATAGRAM), |_| None);
        match self.sent(port, room) {
            Some(Sent::Nothing) => None,
            other => Some(self.after_receive(port, flow, other, false)),
        }
    }

    /// Takes in a batch of datagrams.
    fn receive_udp(&mut self, flow: FlowId) -> Next {
        let Some(port) = self.parts.core.port_of(flow) else { return Next::Drained };
        if let Some(next) = self.make_room(port, flow) {
            return next;
        }
        let slot = self.udp.get(flow.index as usize).and_then(Option::as_ref);
        let Some(slot) = slot.filter(|slot| slot.flow == flow) else { return Next::Drained };
        if slot.end.receive(&mut self.inbox).is_err() {
            return Next::Drained;
        }
        let more = self.inbox.is_full();
        let mut outcome = Some(Sent::Nothing);
        let mut next = 0;
        while let Some(batch) = self.inbox.batch(next) {
            next = batch.messages.end;
            if let Ok((_, headers)) =
                self.parts.core.udp_from_host(flow, &batch.origin, batch.datagrams, self.now)
            {
                outcome = self.send_received(port, &headers, &batch);
            }
        }
        self.after_receive(port, flow, outcome, more)
    }

    /// Gives a batch of the inbox to a guest, behind `headers`. Without room it is dropped and counted.
    pub(super) fn send_received(&mut self, port: PortId, headers: &Headers, batch: &Batch) -> Option<Sent> {
        let entry = self.ports.get_mut(&port)?;
        let mut parts = [IoSlice::new(&[]); 1 + inbox::MESSAGES];
        let slices = std::iter::once(IoSlice::new(headers)).chain(self.inbox.payload(batch));
        parts.iter_mut().zip(slices).for_each(|(part, slice)| *part = slice);
        let parts = parts.get(..=batch.messages.len()).unwrap_or_default();
        let outcome = entry.send(parts, headers.offload);
        self.delivered(port, outcome, batch.datagrams.count())
    }

    /// Takes note of datagrams that were given to a guest, or that its link had no room for.
    fn delivered(
        &mut self,
        port: PortId,
        outcome: Result<Sent, LinkError>,
        datagrams: usize,
    ) -> Option<Sent> {
        let sent = self.sent(port, outcome);
        if let Some(Sent::Full | Sent::Never) = sent {
            self.parts.core.count_drops(port, DropReason::LinkFull, datagrams);
        }
        sent
    }

    fn receive_ping(&mut self, flow: FlowId) -> Next {
        let Some(port) = self.parts.core.port_of(flow) else { return Next::Drained };
        if let Some(next) = self.make_room(port, flow) {
            return next;
        }
        let slot = self.ping.get(flow.index as usize).and_then(Option::as_ref);
        let Some(slot) = slot.filter(|slot| slot.flow == flow) else { return Next::Drained };
        let mut header = [0; ICMP_HEADER_LEN];
        let mut message = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut self.echo)];
        let Ok(Some(received)) = slot.end.receive(&mut message) else { return Next::Drained };
        let len = received.len.saturating_sub(ICMP_HEADER_LEN);
        let (origin, ttl) = (received.origin(), received.ttl);
        let mut outcome = Some(Sent::Nothing);
        if let Ok((port, headers)) = self.parts.core.ping_from_host(flow, &origin, ttl, header, len, self.now)
            && let Some(entry) = self.ports.get_mut(&port)
        {
            let payload = self.echo.get(..len).unwrap_or_default();
            let sent = entry.send(&[IoSlice::new(&headers), IoSlice::new(payload)], headers.offload);
            outcome = self.delivered(port, sent, 1);
        }
        self.after_receive(port, flow, outcome, true)
    }

    fn after_receive(&mut self, port: PortId, flow: FlowId, sent: Option<Sent>, more: bool) -> Next {
        match sent {
            // The rest waits in the socket, which drops what it has no room for.
            Some(Sent::Full) => {
                if let Some(entry) = self.ports.get_mut(&port) {
                    entry.wait(flow);
                }
                Next::Waits
            }
            Some(_) if more => Next::More,
            _ => Next::Drained,
        }
    }

    /// Has the resolver answer a guest's query.
    pub(super) fn ask_dns(&mut self, query: DnsQuery, message: Vec<u8>) {
        let resolver = self.parts.resolver.clone();
        let replies = self.parts.workers.get(usize::from(self.parts.id.0)).cloned();
        self.parts.runtime.spawn(async move {
            let answer = resolver.answer(&message, Transport::Udp).await;
            if let Some(replies) = replies {
                replies.send(Command::DnsAnswer { query, answer });
            }
        });
    }
}

fn any_address(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

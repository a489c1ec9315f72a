//! UDP and ICMP echo: sockets of flows, and DNS queries.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;

use usernet_core::drops::DropReason;
use usernet_core::host::HostError;
use usernet_core::network::{DnsQuery, UdpVia};
use usernet_core::table::{FlowId, FlowKind};
use usernet_core::wire::{ICMP_HEADER_LEN, IcmpError};
use usernet_dns::Transport;
use usernet_host::epoll::{Event, Interest};
use usernet_host::ping::PingEnd;
use usernet_host::udp::UdpEnd;
use usernet_host::{Envelope, QueuedError};

use super::port::Sent;
use super::{Command, Worker, slot};

/// Messages that one socket may hand in before the others have their turn.
const BUDGET: usize = 64;
/// The largest UDP payload over IPv4.
const MAX_DATAGRAM: usize = 65_507;

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
    flow: FlowId,
    end: UdpEnd,
    /// It is on the list of those to read, or waits for room in its guest's link.
    ready: bool,
}

/// The socket of a ping flow.
pub(super) struct PingSlot {
    flow: FlowId,
    end: PingEnd,
    ready: bool,
}

impl Worker {
    pub(super) fn send_udp(
        &mut self,
        flow: FlowId,
        via: UdpVia,
        to: SocketAddr,
        payload: &[IoSlice<'_>],
        ttl: u8,
    ) {
        let outcome = match via {
            UdpVia::Forward { forward, local } => {
                let envelope = Envelope { to, from: local, ttl: Some(ttl), tos: 0 };
                self.forward_end(forward).map(|end| end.send(payload, &envelope))
            }
            UdpVia::Own { guest_port } => {
                let envelope = Envelope { to, from: None, ttl: Some(ttl), tos: 0 };
                self.udp_end(flow, to, guest_port).map(|end| end.send(payload, &envelope))
            }
        };
        match outcome {
            Some(Ok(())) => {}
            Some(Err(HostError::Exhausted)) => self.count_drop(flow, DropReason::UdpSend),
            Some(Err(error)) => {
                self.count_drop(flow, DropReason::UdpSend);
                self.parts.core.udp_error(flow, to, icmp_error(error), None);
            }
            None => self.parts.core.udp_failed(flow, DropReason::HostExhausted),
        }
    }

    /// The flow's own socket, opened when it has none yet.
    fn udp_end(&mut self, flow: FlowId, to: SocketAddr, guest_port: u16) -> Option<&UdpEnd> {
        let poll = &self.parts.poll;
        let slot = slot(&mut self.udp, flow.index);
        if slot.as_ref().is_none_or(|slot| slot.flow != flow) {
            let end = UdpEnd::open(any_address(to.ip()), guest_port).ok()?;
            poll.add(end.as_fd(), flow.to_token(), Interest::Read).ok()?;
            *slot = Some(UdpSlot { flow, end, ready: false });
        }
        slot.as_ref().map(|slot| &slot.end)
    }

    pub(super) fn send_ping(
        &mut self,
        flow: FlowId,
        ident: u16,
        to: IpAddr,
        header: [u8; ICMP_HEADER_LEN],
        message: &[IoSlice<'_>],
        ttl: u8,
    ) {
        let poll = &self.parts.poll;
        let slot = slot(&mut self.ping, flow.index);
        if slot.as_ref().is_none_or(|slot| slot.flow != flow) {
            let opened = PingEnd::open(any_address(to), ident);
            let registered = opened.and_then(|end| {
                poll.add(end.as_fd(), flow.to_token(), Interest::Read).map_err(|_| HostError::Exhausted)?;
                Ok(end)
            });
            match registered {
                Ok(end) => *slot = Some(PingSlot { flow, end, ready: false }),
                Err(error) => {
                    let forbidden = error == HostError::Prohibited;
                    let reason =
                        if forbidden { DropReason::PingForbidden } else { DropReason::HostExhausted };
                    return self.parts.core.ping_failed(flow, to, header, reason);
                }
            }
        }
        let Some(slot) = slot else { return };
        let envelope = Envelope { to: SocketAddr::new(to, 0), from: None, ttl: Some(ttl), tos: 0 };
        if let Err(error) = slot.end.send(message, &envelope) {
            self.count_drop(flow, DropReason::PingSend);
            self.parts.core.ping_error(flow, to, header, icmp_error(error), None);
        }
    }

    fn count_drop(&mut self, flow: FlowId, reason: DropReason) {
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

    fn take_errors(&mut self, flow: FlowId) {
        for _ in 0..BUDGET {
            let mut quoted = [0; ICMP_HEADER_LEN];
            let index = flow.index as usize;
            let error = match flow.kind {
                FlowKind::Udp => self
                    .udp
                    .get(index)
                    .and_then(Option::as_ref)
                    .and_then(|slot| slot.end.take_error(&mut quoted)),
                _ => self
                    .ping
                    .get(index)
                    .and_then(Option::as_ref)
                    .and_then(|slot| slot.end.take_error(&mut quoted)),
            };
            let Some(QueuedError { to, error, icmp, mtu, .. }) = error else { break };
            let offender = icmp.and_then(|icmp| icmp.offender);
            let error = match icmp {
                Some(icmp) => IcmpError::Other { kind: icmp.kind, code: icmp.code, info: mtu },
                None => icmp_error(error),
            };
            match flow.kind {
                FlowKind::Udp => self.parts.core.udp_error(flow, to, error, offender),
                _ => self.parts.core.ping_error(flow, to.ip(), quoted, error, offender),
            }
        }
    }

    /// Reads from each ready socket in turn.
    pub(super) fn read_flows(&mut self) {
        for _ in 0..self.ready_flows.len() {
            let Some(flow) = self.ready_flows.pop_front() else { break };
            let mut next = Next::More;
            for _ in 0..BUDGET {
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

    /// Takes in one datagram.
    fn receive_udp(&mut self, flow: FlowId) -> Next {
        let Some(port) = self.parts.core.port_of(flow) else { return Next::Drained };
        let Self { ports, udp, parts, now, .. } = self;
        let core = &mut parts.core;
        let slot = udp.get(flow.index as usize).and_then(Option::as_ref).filter(|slot| slot.flow == flow);
        let (Some(entry), Some(slot)) = (ports.get_mut(&port), slot) else { return Next::Drained };
        let mut more = false;
        let headers_len = core.headers_len(flow);
        let outcome = entry.fill((headers_len, MAX_DATAGRAM, MAX_DATAGRAM), |room| {
            let received = slot.end.receive(room).ok().flatten()?;
            more = true;
            let (_, headers) = core.udp_from_host(flow, received.from, received.len, *now).ok()?;
            Some((headers, received.len))
        });
        self.after_receive(port, flow, outcome, more)
    }

    fn receive_ping(&mut self, flow: FlowId) -> Next {
        let Some(port) = self.parts.core.port_of(flow) else { return Next::Drained };
        let Self { ports, ping, parts, now, .. } = self;
        let core = &mut parts.core;
        let slot = ping.get(flow.index as usize).and_then(Option::as_ref).filter(|slot| slot.flow == flow);
        let (Some(entry), Some(slot)) = (ports.get_mut(&port), slot) else { return Next::Drained };
        let mut more = false;
        let headers_len = core.headers_len(flow);
        let outcome = entry.fill((headers_len, MAX_DATAGRAM, MAX_DATAGRAM), |room| {
            // The ICMP header is written anew, in front of the room.
            let mut header = [0; ICMP_HEADER_LEN];
            let mut parts = vec![IoSliceMut::new(&mut header)];
            for part in room.drain(..) {
                parts.push(part);
            }
            let received = slot.end.receive(&mut parts).ok().flatten()?;
            more = true;
            let len = received.len.checked_sub(ICMP_HEADER_LEN)?;
            let ttl = received.ttl.unwrap_or(64);
            let (_, headers) = core.ping_from_host(flow, received.from.ip(), header, len, ttl, *now).ok()?;
            Some((headers, len))
        });
        self.after_receive(port, flow, outcome, more)
    }

    fn after_receive(
        &mut self,
        port: usernet_core::port::PortId,
        flow: FlowId,
        outcome: Result<Sent, usernet_link::LinkError>,
        more: bool,
    ) -> Next {
        match self.sent(port, outcome) {
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
        let replies = self.parts.replies.clone();
        self.parts.runtime.spawn(async move {
            let answer = resolver.answer(&message, Transport::Udp).await;
            replies.send(Command::DnsAnswer { query, answer });
        });
    }
}

fn any_address(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn icmp_error(error: HostError) -> IcmpError {
    match error {
        HostError::Refused => IcmpError::PortUnreachable,
        HostError::NetUnreachable => IcmpError::NetUnreachable,
        HostError::Prohibited => IcmpError::Prohibited,
        _ => IcmpError::HostUnreachable,
    }
}

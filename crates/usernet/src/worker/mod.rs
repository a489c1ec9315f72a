//! A worker: one thread with its own epoll, which drives a core.
//!
//! It owns its guests' links (of a guest with several queues, one of them), the host ends of their flows and
//! the core, so nothing on the path is locked. What is another worker's is posted to it. A turn is: wait;
//! take in what has happened; read a few batches from each link that is ready, and do what the core answers
//! with after each; hand what was gathered for the guests to their links. Whatever is edge-triggered and was
//! not drained stays on a ready list, so work is in proportion to what is ready, and no guest or flow takes
//! more than its share of a turn.

mod changes;
mod command;
mod datagram;
mod forward;
mod inspect;
mod mail;
mod peers;
mod port;
mod stream;
mod wait;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use usernet_core::network::{Network, Output, TcpOp};
use usernet_core::port::{PortId, WorkerId};
use usernet_core::table::{FlowId, FlowKind};
use usernet_core::time::Instant;
use usernet_dns::Resolver;
use usernet_host::epoll::{Event, Events, Interest, Poll, Waker};
use usernet_host::inbox::Inbox;
use usernet_host::udp::UdpEnd;

use crate::capture::Capture;
use crate::host::Host;
use crate::roster::Roster;
use changes::Check;
pub(crate) use command::Command;
use datagram::{PingSlot, UdpSlot};
pub(crate) use forward::{Forward, Listener};
pub(crate) use mail::{Commands, Mail, mail};
use port::Port;
use stream::TcpSlot;
use wait::Wait;

/// What an epoll event is about. Flows have tokens of their own, from 1 << 60 on.
mod token {
    pub(super) const WAKER: u64 = 0;
    pub(super) const RX: u64 = 4 << 60;
    pub(super) const TX: u64 = 5 << 60;
    pub(super) const FORWARD: u64 = 6 << 60;
    pub(super) const KIND: u64 = 0xf << 60;

    /// The number below the kind.
    pub(super) fn number(token: u64) -> u32 {
        u32::try_from(token & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }
}

/// A listener that found no descriptors left tries again after this.
const PARKED: Duration = Duration::from_millis(500);

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) core: Network,
    pub(crate) poll: Poll,
    pub(crate) waker: Waker,
    pub(crate) mail: Mail,
    pub(crate) id: WorkerId,
    /// All workers, by their numbers.
    pub(crate) workers: Arc<[Commands]>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) resolver: Resolver,
    pub(crate) runtime: runtime::Handle,
    pub(crate) capture: Option<Capture>,
    pub(crate) default_guest: std::net::IpAddr,
    pub(crate) host: Arc<Host>,
    pub(crate) began: std::time::Instant,
}

pub(crate) struct Worker {
    parts: Parts,
    now: Instant,
    ports: BTreeMap<PortId, Port>,
    tcp: Vec<Option<TcpSlot>>,
    udp: Vec<Option<UdpSlot>>,
    ping: Vec<Option<PingSlot>>,
    /// What was just read from a UDP socket.
    inbox: Inbox,
    /// The payload of what was just read from a ping socket.
    echo: Box<[u8]>,
    /// The forwards, all with the first worker.
    forwards: BTreeMap<u32, Forward>,
    /// The sockets by which replies of UDP forwards leave, at every worker.
    udp_forwards: BTreeMap<u32, Arc<UdpEnd>>,
    /// Links with frames that were not read yet.
    ready_links: VecDeque<PortId>,
    /// Links that were given frames in this turn.
    unflushed_links: Vec<PortId>,
    /// Links that were read from since they were last settled.
    unsettled_links: Vec<PortId>,
    /// UDP and ping sockets with messages that were not read yet.
    ready_flows: VecDeque<FlowId>,
    /// Forwards with connections or datagrams that were not taken yet.
    ready_forwards: VecDeque<u32>,
    /// Listeners that wait for descriptors.
    parked: Vec<u32>,
    unpark_at: Option<Instant>,
    /// Frames that links which went had dropped.
    link_drops: u64,
    names_changed: bool,
    /// The interface for IPv6 multicast, and until when that holds.
    outward: Option<(u32, Instant)>,
    /// The host's network has changed, and flows are looked at.
    check: Option<Check>,
    /// Something that was sent was not taken in yet.
    mail_waits: bool,
    wait: Wait,
    stop: bool,
}

impl Worker {
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        parts.poll.add(&parts.waker, token::WAKER, Interest::Read)?;
        Ok(Self {
            parts,
            now: Instant::ZERO,
            ports: BTreeMap::new(),
            tcp: Vec::new(),
            udp: Vec::new(),
            ping: Vec::new(),
            inbox: Inbox::new(),
            echo: vec![0; datagram::MAX_ECHO].into(),
            forwards: BTreeMap::new(),
            udp_forwards: BTreeMap::new(),
            ready_links: VecDeque::new(),
            unflushed_links: Vec::new(),
            unsettled_links: Vec::new(),
            ready_flows: VecDeque::new(),
            ready_forwards: VecDeque::new(),
            parked: Vec::new(),
            unpark_at: None,
            link_drops: 0,
            names_changed: false,
            outward: None,
            check: None,
            mail_waits: false,
            wait: Wait::default(),
            stop: false,
        })
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        while !self.stop {
            if let Err(error) = self.turn(&mut events) {
                tracing::error!(%error, "the worker's epoll has failed");
                break;
            }
        }
        for port in self.ports.keys().copied().collect::<Vec<_>>() {
            self.detach(port, "the network was shut down");
        }
        self.drain_outputs();
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.timeout();
        let Self { wait, parts, ports, unsettled_links, .. } = self;
        wait.wait(&parts.poll, events, timeout, || {
            for port in unsettled_links.drain(..) {
                if let Some(entry) = ports.get_mut(&port) {
                    entry.settle();
                }
            }
        })?;
        self.now = self.clock();
        for event in events.iter() {
            self.handle_event(event);
        }
        self.read_mail();
        if self.stop {
            return Ok(());
        }
        self.read_links();
        self.read_flows();
        self.read_forwards();
        self.check_flows();
        if self.parts.core.poll_timeout().is_some_and(|at| at <= self.now) {
            self.parts.core.handle_timeout(self.now);
        }
        self.drain_outputs();
        self.flush_links();
        self.tell_names();
        Ok(())
    }

    fn clock(&self) -> Instant {
        let elapsed = self.parts.began.elapsed().as_micros();
        Instant::from_micros(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn timeout(&self) -> Option<Duration> {
        let busy = [self.ready_links.len(), self.ready_flows.len(), self.ready_forwards.len()];
        if self.mail_waits || self.check.is_some() || busy.iter().any(|len| *len > 0) {
            return Some(Duration::ZERO);
        }
        let next = [self.parts.core.poll_timeout(), self.unpark_at].into_iter().flatten().min()?;
        Some(next.since(self.clock()))
    }

    fn handle_event(&mut self, event: Event) {
        if let Some(flow) = FlowId::from_token(event.token) {
            match flow.kind {
                FlowKind::Tcp => self.tcp_ready(flow, event),
                FlowKind::Udp | FlowKind::Ping => self.datagram_ready(flow, event),
            }
            return;
        }
        let number = token::number(event.token);
        match event.token & token::KIND {
            token::RX => self.link_readable(PortId(number)),
            token::TX => self.link_writable(PortId(number)),
            token::FORWARD => self.forward_ready(number, event),
            _ => self.mail_waits = true,
        }
    }

    fn read_forwards(&mut self) {
        if self.unpark_at.is_some_and(|at| at <= self.now) {
            self.unpark_at = None;
            self.ready_forwards.extend(self.parked.drain(..));
        }
        for _ in 0..self.ready_forwards.len() {
            let Some(forward) = self.ready_forwards.pop_front() else { break };
            self.read_forward(forward);
        }
    }

    /// Parks a listener that found no descriptors left: it would be told of nothing, or spin.
    fn park(&mut self, forward: u32) {
        self.parked.push(forward);
        self.unpark_at = Some(self.now + PARKED);
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.parts.core.poll_output(self.now) {
            match output {
                Output::Frame { port, frame, offload } => {
                    self.send(port, &[io::IoSlice::new(&frame)], offload);
                }
                Output::Headers { port, headers } => {
                    self.send(port, &[io::IoSlice::new(&headers)], headers.offload);
                }
                Output::Tcp { flow, op: TcpOp::Peek { port, at, max, segment } } => {
                    self.peek(flow, port, at, max, segment);
                }
                Output::Tcp { flow, op } => self.tcp_op(flow, op),
                Output::Multicast { flow, to, delivery, payload } => {
                    self.ask_group(flow, to, delivery, &payload)
                }
                Output::Close(flow) => self.close(flow),
                Output::Rehome { flow, to, guest, peer } => self.rehome(flow, to, guest, peer),
                Output::Found(addr) => self.announce(addr),
                Output::LeasesChanged => self.names_changed = true,
                Output::MacConflict { port, other, mac } => tracing::warn!(
                    %port, %other, %mac,
                    "two guests have the same MAC address; give each its own (QEMU: -device ...,mac=)"
                ),
            }
        }
    }

    fn close(&mut self, flow: FlowId) {
        let index = flow.index as usize;
        match flow.kind {
            FlowKind::Tcp => {}
            // A later flow may have the place already.
            FlowKind::Udp => {
                drop(self.udp.get_mut(index).and_then(|slot| slot.take_if(|it| it.flow == flow)))
            }
            FlowKind::Ping => {
                drop(self.ping.get_mut(index).and_then(|slot| slot.take_if(|it| it.flow == flow)))
            }
        }
    }

    /// Tells the resolver which names the leases hold. One worker does that for all.
    fn tell_names(&mut self) {
        if !std::mem::take(&mut self.names_changed) {
            return;
        }
        if self.parts.id != WorkerId(0) {
            if let Some(first) = self.parts.workers.first() {
                first.names_changed();
            }
            return;
        }
        let core = &mut self.parts.core;
        let v4 = core.leases(self.now).into_iter().map(|lease| (lease.hostname, lease.address.into()));
        let v6 = core.leases6(self.now).into_iter().map(|lease| (lease.hostname, lease.address.into()));
        let names = v4.chain(v6).filter_map(|(name, address)| Some((name?, address))).collect();
        self.parts.resolver.set_names(names);
    }
}

/// The slot at `index`, which grows the table when it must.
fn slot<T>(slots: &mut Vec<Option<T>>, index: u32) -> &mut Option<T> {
    let index = index as usize;
    if index >= slots.len() {
        slots.resize_with(index + 1, || None);
    }
    slots.get_mut(index).expect("the table has just grown to it")
}

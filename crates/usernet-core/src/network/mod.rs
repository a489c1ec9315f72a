//! The network: what is done with every frame of every guest.
//!
//! The driver hands in frames ([`Network::handle_frame`]), what happened on the host, and time; it
//! does what the [`Verdict`] says with the frame's bytes, then drains [`Network::poll_output`] until
//! `None` and calls [`Network::handle_timeout`] at [`Network::poll_timeout`]. The same inputs give
//! the same outputs.

mod action;
mod addresses;
mod config;
mod group;
mod ipv6;
mod ndp;
mod peers;
mod ping;
mod reassembly;
mod reply;
mod shared;
mod switch;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Range;

pub use action::{Delivery, DnsQuery, Output, Target, TcpOp, UdpVia, Verdict};
pub use config::{Config, Limits};
pub use group::MulticastService;
pub use peers::Peers;
pub use ping::PingFlow;
pub use tcp::TcpEntry;
pub use udp::{MAX_DATAGRAMS, UdpFlow, UdpKind};

use crate::drops::{DropReason, Drops};
use crate::frame::FrameBytes;
use crate::port::{PortId, WorkerId};
use crate::table::{Entry, FlowId, FlowKind, FlowTable};
use crate::time::Instant;
use crate::wheel::TimerWheel;
use crate::wire::{
    Arp, ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, IPV6_MORE,
    IcmpError, IpHeader, MacAddr, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    TCP_FRAME_HEADERS, UDP_FRAME_HEADERS,
};
use config::{Place, gateway_mac};
use ipv6::Arrived;
use shared::Shared;
use switch::Neighbour;

/// Headers are copied once, at most this many bytes: guest memory can change under us. With all options,
/// Ethernet, IPv4 and TCP headers take 134; with IPv6, 142 are left for extension headers, and what goes
/// beyond that is dropped (`wire/ipv6.rs`). ICMP errors quote from the same copy.
const HEAD_LEN: usize = 256;
/// The port of flows whose guest has not been found yet.
const NOWHERE: PortId = PortId(u32::MAX);

/// A network, or one worker's part of it: sans-IO, for one driver.
pub struct Network {
    config: Config,
    mac: MacAddr,
    shared: Shared,
    ports: BTreeMap<PortId, Port>,
    router: ndp::Router,
    tcp: FlowTable<TcpEntry>,
    udp: FlowTable<UdpFlow>,
    ping: FlowTable<PingFlow>,
    reassembly: reassembly::Reassembly,
    wheel: TimerWheel<Timer>,
    drops: Drops,
    outputs: VecDeque<Output>,
    /// TCP flows whose outputs are to be drained.
    dirty: VecDeque<FlowId>,
}

/// What the network counts of a guest, and how much of what is bounded it holds.
#[derive(Clone, Debug, Default)]
pub struct Port {
    queues: usize,
    /// Why frames were dropped.
    pub drops: Drops,
    /// Frames for the guest wait in its link's buffer.
    busy: bool,
    connecting: usize,
    kept: u32,
    dns: usize,
    dns_streams: usize,
    /// What the identification of the next packet to it in fragments is counted from.
    next_ident: u32,
    /// Whom its last frame was from: that need not be learnt again.
    seen: Option<Seen>,
}

/// What was learnt from a frame, and the epoch of [`Shared`] in which it holds.
#[derive(Clone, Copy, Debug)]
struct Seen {
    epoch: u64,
    mac: MacAddr,
    addr: Option<IpAddr>,
}

/// What a deadline is about.
#[derive(Clone, Copy, Debug)]
enum Timer {
    Flow(FlowId),
    /// Advertise the router to a port.
    Advertise(PortId),
    /// Give up packets of a port whose fragments have not all come.
    Reassembly(PortId),
}

/// A guest's packet on its way through the network.
struct Packet<'a> {
    port: PortId,
    mac: MacAddr,
    ip: IpHeader,
    /// The start of the frame.
    head: &'a [u8],
    /// Where in the frame the IP header starts.
    ip_at: usize,
    /// Where in the frame the transport header and its payload lie.
    transport: Range<usize>,
}

impl Packet<'_> {
    /// As much of the transport header and payload as was copied.
    fn transport_head(&self) -> &[u8] {
        let end = self.transport.end.min(self.head.len());
        self.head.get(self.transport.start..end).unwrap_or_default()
    }

    /// What an ICMP error quotes.
    fn quote(&self) -> &[u8] {
        let end = self.transport.end.min(self.head.len());
        self.head.get(self.ip_at..end).unwrap_or_default()
    }
}

impl Network {
    /// A network without guests.
    pub fn new(config: Config) -> Self {
        let config = config.settled();
        let shared = Shared::own(&config);
        Self::with(config, shared)
    }

    /// A network without guests, in one part for each of `workers`. A guest's flows stay with the worker
    /// that saw them begin; what the parts hand to one another is in [`Verdict::HandOver`],
    /// [`Output::Rehome`] and [`Output::Found`], and each answers with frames for guests of all.
    pub fn split(config: &Config, workers: u16) -> Vec<Self> {
        let config = config.clone().settled();
        Shared::among(&config, workers).map(|shared| Self::with(config.clone(), shared)).collect()
    }

    fn with(config: Config, shared: Shared) -> Self {
        let seed = config.seed;
        let mac = gateway_mac(config.gateway);
        Self {
            mac,
            ports: BTreeMap::new(),
            router: ndp::Router::default(),
            tcp: FlowTable::new(FlowKind::Tcp, seed, shared.owners()),
            udp: FlowTable::new(FlowKind::Udp, seed, shared.owners()),
            ping: FlowTable::new(FlowKind::Ping, seed, shared.owners()),
            reassembly: reassembly::Reassembly::default(),
            shared,
            wheel: TimerWheel::default(),
            drops: Drops::default(),
            outputs: VecDeque::new(),
            dirty: VecDeque::new(),
            config,
        }
    }

    // --- guests ------------------------------------------------------------------------------

    /// Plugs a guest in. `port` is a number that no other guest has or had, and not `u32::MAX`.
    pub fn add_port(&mut self, port: PortId) {
        self.add_queue(port, 1);
    }

    /// Plugs in one of the `queues` of a guest, which has one at each of as many workers. They share its
    /// bounds evenly; the first to be plugged in is where what comes from the host for the guest goes.
    pub fn add_queue(&mut self, port: PortId, queues: usize) {
        let worker = self.shared.worker;
        self.shared.with(|registry| registry.switch.add(port, worker));
        self.ports.insert(port, Port { queues, ..Port::default() });
        if queues > 1 {
            self.tcp.share(port);
            self.udp.share(port);
            self.ping.share(port);
        }
    }

    /// Takes a guest off the network: its host peers see resets, its addresses become free. Each worker
    /// that has a queue of it is to be told.
    pub fn remove_port(&mut self, port: PortId) {
        for flow in self.tcp.of_port(port) {
            if let Some(entry) = self.tcp.get_mut(flow) {
                entry.flow.tcp.handle_guest_gone();
                self.mark_dirty(flow);
            }
        }
        for flow in self.udp.of_port(port) {
            self.close_udp(flow);
        }
        for flow in self.ping.of_port(port) {
            self.close_ping(flow);
        }
        self.stop_advertising(port);
        self.stop_reassembly(port);
        self.shared.with(|registry| {
            registry.dhcp.port_gone(port);
            if let Some(dhcp6) = &mut registry.dhcp6 {
                dhcp6.port_gone(port);
            }
            registry.switch.remove(port);
        });
        if self.ports.remove(&port).is_some_and(|port| port.queues > 1) {
            self.tcp.unshare(port);
            self.udp.unshare(port);
            self.ping.unshare(port);
        }
        self.outputs.push_back(Output::LeasesChanged);
    }

    /// The guests of this worker.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &Port)> {
        self.ports.iter().map(|(id, port)| (*id, port))
    }

    /// The worker that has the guest on `port`.
    pub fn home(&mut self, port: PortId) -> Option<WorkerId> {
        self.shared.with(|registry| registry.switch.home(port))
    }

    /// The addresses that are known of all workers' guests: leased or not, link-local ones too.
    pub fn addresses(&mut self) -> BTreeSet<(PortId, IpAddr)> {
        self.shared.with(|registry| registry.switch.addresses())
    }

    /// The other worker that has the guest with this address, to which what came for it is to be handed.
    pub fn elsewhere(&mut self, addr: IpAddr) -> Option<WorkerId> {
        if self.shared.is_alone() {
            return None;
        }
        let home = self.shared.with(|registry| {
            let at = registry.switch.neighbour(addr)?;
            registry.switch.home(at.port)
        });
        home.filter(|home| *home != self.shared.worker)
    }

    /// The drops of all guests, those that went included.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// The TCP flows.
    pub fn tcp_flows(&self) -> &FlowTable<TcpEntry> {
        &self.tcp
    }

    /// The UDP flows.
    pub fn udp_flows(&self) -> &FlowTable<UdpFlow> {
        &self.udp
    }

    /// The ping flows.
    pub fn ping_flows(&self) -> &FlowTable<PingFlow> {
        &self.ping
    }

    /// The port of a flow's guest; none when the flow is no more or its guest not found yet.
    pub fn port_of(&self, flow: FlowId) -> Option<PortId> {
        let port = match flow.kind {
            FlowKind::Tcp => self.tcp.get(flow)?.key.port,
            FlowKind::Udp => self.udp.get(flow)?.key.port,
            FlowKind::Ping => self.ping.get(flow)?.key.port,
        };
        (port != NOWHERE).then_some(port)
    }

    /// How many packets of a guest wait for the rest of their fragments.
    pub fn incomplete(&self, port: PortId) -> usize {
        self.reassembly.len(port)
    }

    /// How many bytes of headers go in front of a flow's payload to its guest.
    pub fn headers_len(&self, flow: FlowId) -> usize {
        let (addr, len) = match flow.kind {
            FlowKind::Tcp => (self.tcp.get(flow).map(|e| e.key.guest.addr), TCP_FRAME_HEADERS),
            FlowKind::Udp => (self.udp.get(flow).map(|e| e.key.guest.addr), UDP_FRAME_HEADERS),
            FlowKind::Ping => (self.ping.get(flow).map(|e| e.key.guest.addr), UDP_FRAME_HEADERS),
        };
        if addr.is_some_and(|addr| addr.is_ipv6()) { len + IPV6_MORE } else { len }
    }

    /// Tells the core the host's own addresses, as [`Config::host_addrs`] has them.
    pub fn set_host_addrs(&mut self, addrs: Vec<(IpAddr, u8)>) {
        self.config.host_addrs = addrs;
    }

    /// Tells whether frames for a guest wait in its link's buffer, which the guest does not empty. No
    /// retransmission is due meanwhile.
    pub fn set_link_busy(&mut self, port: PortId, busy: bool) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.busy = busy;
        }
    }

    /// Counts a drop that the driver has to report.
    pub fn count_drop(&mut self, port: PortId, reason: DropReason) {
        self.count_drops(port, reason, 1);
    }

    /// Counts several drops that the driver has to report, each datagram of a batch as one.
    pub fn count_drops(&mut self, port: PortId, reason: DropReason, drops: usize) {
        self.drops.count_many(reason, drops);
        if let Some(port) = self.ports.get_mut(&port) {
            port.drops.count_many(reason, drops);
        }
    }

    /// Counts drops of something that no guest has to answer for.
    pub fn count_lost(&mut self, reason: DropReason, drops: usize) {
        self.drops.count_many(reason, drops);
    }

    /// This worker's share of what a guest may hold.
    fn share(&self, port: PortId, limit: usize) -> usize {
        self.ports.get(&port).map_or(limit, |entry| limit.div_ceil(entry.queues.max(1)))
    }

    // --- frames ------------------------------------------------------------------------------

    /// Decides on a frame that came from a guest.
    pub fn handle_frame<F: FrameBytes + ?Sized>(&mut self, port: PortId, frame: &F, now: Instant) -> Verdict {
        let mut head = [0; HEAD_LEN];
        let len = frame.copy_to(0, &mut head);
        match self.carry(port, head.get(..len).unwrap_or_default(), frame, now) {
            Ok(verdict) => verdict,
            Err(reason) => {
                self.count_drop(port, reason);
                Verdict::Dropped(reason)
            }
        }
    }

    fn carry<F: FrameBytes + ?Sized>(
        &mut self,
        port: PortId,
        head: &[u8],
        frame: &F,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let (ethernet, rest) = EthernetHeader::parse(head)?;
        if ethernet.src.is_multicast() || ethernet.src == self.mac {
            return Err(DropReason::SourceMac);
        }
        // Another worker may have handed it over while its guest went.
        if !self.ports.contains_key(&port) {
            return Err(DropReason::NoFlow);
        }
        self.learn_mac(port, ethernet.src);
        let ours = ethernet.dst == self.mac;
        if !ours && !ethernet.dst.is_multicast() {
            self.check_sender(port, ethernet.ethertype, rest, frame.len() - ETHERNET_HEADER_LEN)?;
            return match self.shared.with(|registry| registry.switch.port_of(ethernet.dst)) {
                Some(to) if to != port => Ok(Verdict::Relay(to)),
                _ => Err(DropReason::UnknownMac),
            };
        }
        let verdict = match ethernet.ethertype {
            ETHERTYPE_ARP if self.config.ipv4 => self.handle_arp(port, rest, ours),
            ETHERTYPE_IPV4 if self.config.ipv4 => {
                let available = frame.len() - ETHERNET_HEADER_LEN;
                let (ip, header_len, transport_len) = IpHeader::parse_v4(rest, available)?;
                let start = ETHERNET_HEADER_LEN + header_len;
                let packet = Packet {
                    port,
                    mac: ethernet.src,
                    ip,
                    head,
                    ip_at: ETHERNET_HEADER_LEN,
                    transport: start..start + transport_len,
                };
                self.handle_ip(&packet, frame, ours, now)
            }
            ETHERTYPE_IPV6 if self.config.net6.is_some() => {
                self.handle_ipv6(Arrived { port, mac: ethernet.src, head, ours }, frame, now)
            }
            _ if !ours => self.flood(port, DropReason::EtherType),
            _ => Err(DropReason::EtherType),
        }?;
        // What is said to us is not asked for a name: each of two guests with one address is served.
        if let Verdict::Flood(_) = verdict {
            self.check_sender(port, ethernet.ethertype, rest, frame.len() - ETHERNET_HEADER_LEN)?;
        }
        Ok(verdict)
    }

    /// What one guest says to others may be said in its own name only.
    fn check_sender(
        &mut self,
        port: PortId,
        ethertype: u16,
        bytes: &[u8],
        available: usize,
    ) -> Result<(), DropReason> {
        let senders = match ethertype {
            ETHERTYPE_ARP | ETHERTYPE_IPV4 if !self.config.ipv4 => return Err(DropReason::EtherType),
            ETHERTYPE_ARP => [IpAddr::V4(Arp::parse(bytes)?.sender); 2],
            ETHERTYPE_IPV4 => [IpHeader::source_v4(bytes).ok_or(DropReason::IpHeader)?; 2],
            ETHERTYPE_IPV6 => self.senders_v6(bytes, available)?,
            // Behind a VLAN tag, which a guest may ignore, there could be any of these.
            _ => return Err(DropReason::EtherType),
        };
        // A host of the outside speaks by the gateway alone.
        let foreign = |sender: IpAddr| !sender.is_unspecified() && !self.is_neighbour(sender);
        let forged = senders.into_iter().any(foreign)
            || self.shared.with(|registry| {
                let of_another = |at: Neighbour| at.port != port;
                senders.into_iter().any(|sender| {
                    self.config.is_ours(sender) || registry.switch.neighbour(sender).is_some_and(of_another)
                })
            });
        if forged { Err(DropReason::SourceAddress) } else { Ok(()) }
    }

    /// What goes to a group goes to the other guests; with none, it is dropped for `reason`.
    fn flood(&mut self, from: PortId, reason: DropReason) -> Result<Verdict, DropReason> {
        let others: Vec<PortId> =
            self.shared.with(|registry| registry.switch.ports().filter(|port| *port != from).collect());
        if others.is_empty() { Err(reason) } else { Ok(Verdict::Flood(others)) }
    }

    fn handle_arp(&mut self, port: PortId, bytes: &[u8], ours: bool) -> Result<Verdict, DropReason> {
        let arp = Arp::parse(bytes)?;
        let sender = IpAddr::V4(arp.sender);
        if self.config.contains(sender) && !self.config.is_ours(sender) {
            self.learn_address(sender, Neighbour { port, mac: arp.sender_mac });
        }
        if arp.request && self.config.is_ours(IpAddr::V4(arp.target)) {
            let reply = Arp { request: false, sender_mac: self.mac, sender: arp.target, target: arp.sender };
            self.send_frame(port, reply.frame(arp.sender_mac));
            return Ok(Verdict::Done);
        }
        if ours { Ok(Verdict::Done) } else { self.flood(port, DropReason::NoSuchGuest).or(Ok(Verdict::Done)) }
    }

    fn handle_ip<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        ours: bool,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let fragment = packet.ip.fragment;
        if packet.ip.protocol == PROTOCOL_UDP && udp::is_dhcp(packet.transport_head()) && !fragment {
            return self.handle_dhcp(packet, frame, now);
        }
        let src = packet.ip.src;
        if self.config.place(src) != Place::Inside {
            return Err(DropReason::SourceAddress);
        }
        let place = self.config.place(packet.ip.dst);
        if place == Place::Group || !ours {
            return self.handle_group(packet, frame, now);
        }
        if fragment {
            return self.handle_fragment(packet, frame, now);
        }
        self.note_sender(packet);
        self.dispatch(packet, frame, place, now)
    }

    /// Hands a packet that was sent to the network to its protocol.
    #[inline]
    fn dispatch<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        place: Place,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        if place == Place::Forbidden {
            return Err(DropReason::ForbiddenDestination);
        }
        if place == Place::Outside && packet.ip.ttl <= 1 {
            self.send_icmp_error(packet, IcmpError::TimeExceeded);
            return Err(DropReason::TtlExpired);
        }
        match packet.ip.protocol {
            PROTOCOL_TCP => self.handle_tcp(packet, place, now),
            PROTOCOL_UDP => self.handle_udp(packet, frame, place, now),
            PROTOCOL_ICMP if packet.ip.src.is_ipv4() => self.handle_ping(packet, place, now),
            PROTOCOL_ICMPV6 if packet.ip.src.is_ipv6() => self.handle_ping(packet, place, now),
            _ => Err(DropReason::Protocol),
        }
    }

    fn learn_mac(&mut self, port: PortId, mac: MacAddr) {
        let epoch = self.shared.epoch();
        let Some(entry) = self.ports.get_mut(&port) else { return };
        if entry.seen.is_some_and(|seen| seen.epoch == epoch && seen.mac == mac) {
            return;
        }
        entry.seen = Some(Seen { epoch, mac, addr: None });
        self.shared.with(|registry| registry.switch.learn_mac(port, mac, &self.config.limits));
    }

    /// Learns the source address of a packet to us.
    fn note_sender(&mut self, packet: &Packet<'_>) {
        let src = packet.ip.src;
        let seen = self.ports.get_mut(&packet.port).and_then(|port| port.seen.as_mut());
        let Some(seen) = seen.filter(|seen| seen.addr != Some(src)) else { return };
        seen.addr = Some(src);
        self.learn_address(src, Neighbour { port: packet.port, mac: packet.mac });
    }

    fn learn_address(&mut self, addr: IpAddr, at: Neighbour) {
        let learnt = self.shared.with(|registry| {
            let learnt = registry.switch.learn_address(addr, at, &self.config.limits);
            match (addr, &mut registry.dhcp6) {
                _ if !learnt => {}
                (IpAddr::V4(addr), _) => registry.dhcp.note_use(at.port, at.mac.0, addr),
                (IpAddr::V6(addr), Some(dhcp6)) => dhcp6.note_use(at.port, at.mac, addr),
                (IpAddr::V6(_), None) => {}
            }
            learnt && registry.switch.was_wanted(addr)
        });
        if learnt {
            self.announce(addr);
        }
    }

    /// Says that an address has been found, to whoever waits for it.
    fn announce(&mut self, addr: IpAddr) {
        self.found(addr);
        if !self.shared.is_alone() {
            self.outputs.push_back(Output::Found(addr));
        }
    }

    /// Asks all guests who has `addr`, now and then.
    fn ask_for(&mut self, addr: IpAddr, now: Instant) {
        if !self.shared.with(|registry| registry.switch.want(addr, now)) {
            return;
        }
        let target = match addr {
            IpAddr::V4(target) if self.config.ipv4 => target,
            IpAddr::V4(_) => return,
            IpAddr::V6(target) => return self.ask_for_v6(target),
        };
        let request = Arp { request: true, sender_mac: self.mac, sender: self.config.gateway, target };
        let ports: Vec<PortId> = self.shared.with(|registry| registry.switch.ports().collect());
        for port in ports {
            self.send_frame(port, request.frame(MacAddr::BROADCAST));
        }
    }

    // --- time and outputs ------------------------------------------------------------------------

    /// When [`Network::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.wheel.expire(now) {
            match timer {
                Timer::Flow(flow) => match flow.kind {
                    FlowKind::Tcp => self.tcp_timeout(flow, now),
                    FlowKind::Udp => self.udp_timeout(flow, now),
                    FlowKind::Ping => self.ping_timeout(flow, now),
                },
                Timer::Advertise(port) => self.advertise_timeout(port, now),
                Timer::Reassembly(port) => self.reassembly_timeout(port, now),
            }
        }
    }

    /// The next thing to do; `None` when there is nothing more now.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            let flow = *self.dirty.front()?;
            if let Some(output) = self.poll_tcp(flow, now) {
                return Some(output);
            }
        }
    }
}

/// Sees to it that a flow is looked at when `at` comes, or before.
fn arm<F>(wheel: &mut TimerWheel<Timer>, flow: FlowId, entry: &mut Entry<F>, at: Instant) {
    if entry.armed.as_ref().is_some_and(|(armed, _)| *armed <= at) {
        return;
    }
    disarm(wheel, entry);
    entry.armed = Some((at, wheel.insert(at, Timer::Flow(flow))));
}

fn disarm<F>(wheel: &mut TimerWheel<Timer>, entry: &mut Entry<F>) {
    if let Some((_, timer)) = entry.armed.take() {
        wheel.cancel(timer);
    }
}

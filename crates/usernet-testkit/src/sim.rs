//! The driver: what a worker does, on a virtual clock.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::drops::DropReason;
use usernet_core::host::{HostEvent, PeekEnd};
use usernet_core::network::{Config, Network, Output, TcpOp, UdpVia, Verdict};
use usernet_core::port::PortId;
use usernet_core::table::{Endpoint, FlowId};
use usernet_core::tcp::SeqNumber;
use usernet_core::time::Instant;
use usernet_core::wire::{
    Headers, ICMP_ECHO_REPLY, ICMP_HEADER_LEN, ICMPV6_ECHO, ICMPV6_ECHO_REPLY, MacAddr,
};

use crate::bytes::Rng;
use crate::frames::{Unfinished, complete_checksum, finish, fragmented, packets};
use crate::host::{FakeHost, Peer};
use crate::link::{Faults, Lane};

/// Work at one point in time that can only be a loop without end.
const MAX_ROUNDS: u32 = 100_000;

/// A guest on its end of a link.
pub trait Guest {
    /// Takes a frame.
    fn receive(&mut self, frame: Vec<u8>, now: Instant);
    /// Does what is due; returns what it sends.
    fn poll(&mut self, now: Instant) -> Vec<Vec<u8>>;
    /// When it wants to be polled again without a frame.
    fn next(&mut self, now: Instant) -> Option<Instant>;
}

/// Where a guest has its IPv6 address from.
#[derive(Clone, Copy, Debug)]
pub enum Ipv6 {
    /// It was set by hand, and so was the gateway fd00::2.
    Static(Ipv6Addr),
    /// It makes its own, as routers tell it to (RFC 4862).
    Slaac,
}

/// What a guest is.
#[derive(Clone, Copy, Debug)]
pub struct GuestConfig {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its static address; `None`: it asks by DHCP.
    pub addr: Option<Ipv4Addr>,
    /// Its IPv6 addresses, a link-local one beside them; none: it speaks no IPv6.
    pub ipv6: Option<Ipv6>,
    /// The MTU of its interface.
    pub mtu: usize,
    /// For its own randomness.
    pub seed: u64,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            addr: Some(Ipv4Addr::new(10, 0, 2, 15)),
            ipv6: None,
            mtu: 1500,
            seed: 7,
        }
    }
}

struct Plug<G> {
    guest: G,
    /// Frames from the guest.
    outward: Lane,
    /// Frames to the guest.
    inward: Lane,
    /// Until when the queue to the guest has no room, and who waits for that.
    full_until: Option<Instant>,
    waiting: Vec<FlowId>,
}

/// What a guest sent out of order.
#[derive(Default)]
struct Kept(Vec<(SeqNumber, Vec<u8>)>);

impl Kept {
    fn byte(&self, at: SeqNumber) -> Option<u8> {
        let (start, bytes) =
            self.0.iter().find(|(start, bytes)| *start <= at && at < *start + bytes.len() as u32)?;
        bytes.get((at - *start) as usize).copied()
    }
}

/// A UDP or ICMP message on its way back from the host.
struct Reply {
    at: Instant,
    flow: FlowId,
    from: SocketAddr,
    payload: Vec<u8>,
    ping: bool,
}

/// A network, its guests and its host.
pub struct Sim<G> {
    /// The network.
    pub net: Network,
    /// Frames that guests have sent and that have arrived.
    pub frames: u64,
    /// The host.
    pub host: FakeHost,
    /// The time.
    pub now: Instant,
    /// Whether UDP peers and hosts answer what they get.
    pub echoes: bool,
    /// Datagrams that left: by which socket, to whom, and what.
    pub datagrams: Vec<(UdpVia, SocketAddr, Vec<u8>)>,
    /// DNS queries that came.
    pub queries: u64,
    /// UDP and ping flows that were closed.
    pub closed: Vec<FlowId>,
    plugs: BTreeMap<PortId, Plug<G>>,
    kept: HashMap<FlowId, Kept>,
    replies: Vec<Reply>,
    rng: Rng,
    seed: u64,
    next_port: u32,
}

impl<G> Drop for Sim<G> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let flows: Vec<_> = self.net.tcp_flows().iter().map(|(_, e)| e.flow.tcp.state_name()).collect();
            eprintln!("seed {}, at {:?}, flows: {flows:?}", self.seed, self.now);
        }
    }
}

impl<G: Guest> Sim<G> {
    /// A network without guests.
    pub fn new(seed: u64, config: Config) -> Self {
        Self {
            net: Network::new(config),
            frames: 0,
            host: FakeHost::default(),
            now: Instant::from_micros(1_000_000),
            echoes: true,
            datagrams: Vec::new(),
            queries: 0,
            closed: Vec::new(),
            plugs: BTreeMap::new(),
            kept: HashMap::new(),
            replies: Vec::new(),
            rng: Rng::new(seed),
            seed,
            next_port: 0,
        }
    }

    /// Plugs a guest in, with the faults of its link, from it and to it.
    pub fn add(&mut self, guest: G, outward: Faults, inward: Faults) -> PortId {
        let port = PortId(self.next_port);
        self.next_port += 1;
        self.net.add_port(port);
        self.plugs.insert(
            port,
            Plug {
                guest,
                outward: Lane::new(outward),
                inward: Lane::new(inward),
                full_until: None,
                waiting: Vec::new(),
            },
        );
        port
    }

    /// Pulls a guest's plug.
    pub fn remove(&mut self, port: PortId) -> G {
        let plug = self.plugs.remove(&port).expect("a guest");
        self.net.remove_port(port);
        self.drain();
        plug.guest
    }

    /// A guest.
    pub fn guest(&mut self, port: PortId) -> &mut G {
        &mut self.plugs.get_mut(&port).expect("a guest").guest
    }

    /// Changes what happens to frames to a guest.
    pub fn set_inward(&mut self, port: PortId, faults: Faults) {
        self.plugs.get_mut(&port).expect("a guest").inward.faults = faults;
    }

    /// Changes what happens to frames from a guest.
    pub fn set_outward(&mut self, port: PortId, faults: Faults) {
        self.plugs.get_mut(&port).expect("a guest").outward.faults = faults;
    }

    /// A connection from `from` was accepted on the host and is forwarded.
    pub fn accept(&mut self, guest: Endpoint, from: SocketAddr, peer: Peer) -> Option<FlowId> {
        let flow = self.net.accept_tcp(guest, from, self.now)?;
        self.host.accepted(flow, peer);
        self.drain();
        Some(flow)
    }

    /// Hands in a frame as if the guest had sent it.
    pub fn inject(&mut self, port: PortId, frame: Vec<u8>) {
        self.take_batch(port, vec![frame]);
    }

    /// Takes a frame that leaves something undone.
    pub fn unfinished(&mut self, port: PortId, frame: &Unfinished) {
        let verdict = self.net.handle_frame(port, frame, self.now);
        self.act(port, &frame.bytes, verdict);
        self.drain();
    }

    /// A datagram from `from` comes to a forwarded port.
    pub fn datagram_to_forward(
        &mut self,
        forward: u32,
        guest: Endpoint,
        from: SocketAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let made =
            self.net.udp_from_forward(forward, guest, &origin(from), Datagrams::one(payload.len()), self.now);
        if let Ok((port, headers)) = &made {
            self.give_packets(*port, headers, payload);
        }
        self.drain();
        made.map(|_| ())
    }

    /// A datagram from `from` comes to the socket of a flow.
    pub fn datagram_to_flow(
        &mut self,
        flow: FlowId,
        from: SocketAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        self.datagrams_to_flow(flow, from, payload, 0)
    }

    /// Datagrams of `segment` bytes from `from` come to the socket of a flow, joined.
    pub fn datagrams_to_flow(
        &mut self,
        flow: FlowId,
        from: SocketAddr,
        payload: &[u8],
        segment: u16,
    ) -> Result<(), DropReason> {
        let datagrams = Datagrams { len: payload.len(), segment };
        let (port, headers) = self.net.udp_from_host(flow, &origin(from), datagrams, self.now)?;
        self.give_packets(port, &headers, payload);
        Ok(())
    }

    // --- time --------------------------------------------------------------------------------

    /// Runs until `done`, for at most `limit`. Returns whether it was done.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            match self.next().filter(|at| *at <= end) {
                Some(at) => self.now = at.max(self.now + Duration::from_micros(1)),
                None => {
                    self.now = end;
                    return false;
                }
            }
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        self.run(time, |_| false);
    }

    /// Takes all guests off, lets what is due come, and looks whether anything is left behind.
    ///
    /// # Panics
    /// When something is.
    pub fn finish(mut self) {
        for port in self.plugs.keys().copied().collect::<Vec<_>>() {
            self.remove(port);
        }
        let (net, now) = (&mut self.net, self.now);
        let left = (net.tcp_flows().len(), net.udp_flows().len(), net.ping_flows().len());
        let left = (left, net.ports().count(), net.leases(now).len(), self.host.open(), self.kept.len());
        assert_eq!(left, ((0, 0, 0), 0, 0, 0, 0), "something is left behind");
        assert_eq!(net.poll_timeout(), None, "a timer is left behind");
    }

    /// Does all that is due now.
    fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            if !self.round() {
                return;
            }
        }
        panic!("seed {}: no end of work at {:?}", self.seed, self.now);
    }

    fn round(&mut self) -> bool {
        let mut worked = false;
        for port in self.plugs.keys().copied().collect::<Vec<_>>() {
            worked |= self.serve(port);
        }
        for (flow, event) in self.host.poll(self.now, &mut self.rng) {
            worked = true;
            self.net.tcp_event(flow, event, self.now);
            self.drain();
        }
        worked |= self.deliver_replies();
        if self.net.poll_timeout().is_some_and(|at| at <= self.now) {
            worked = true;
            self.net.handle_timeout(self.now);
            self.drain();
        }
        worked
    }

    fn serve(&mut self, port: PortId) -> bool {
        let now = self.now;
        let Some(plug) = self.plugs.get_mut(&port) else { return false };
        let mut worked = false;
        while let Some(frame) = plug.inward.pop(now) {
            plug.guest.receive(frame, now);
            worked = true;
        }
        for frame in plug.guest.poll(now) {
            plug.outward.push(frame, now, &mut self.rng);
            worked = true;
        }
        let frames: Vec<_> = std::iter::from_fn(|| plug.outward.pop(now)).collect();
        if plug.full_until.is_some_and(|at| at <= now) {
            plug.full_until = None;
            worked = true;
            for flow in std::mem::take(&mut plug.waiting) {
                self.net.tcp_event(flow, HostEvent::LinkSpace, now);
            }
            self.drain();
        }
        worked |= !frames.is_empty();
        self.take_batch(port, frames);
        worked
    }

    fn next(&mut self) -> Option<Instant> {
        let now = self.now;
        let mut times: Vec<Instant> = self.replies.iter().map(|reply| reply.at).collect();
        for plug in self.plugs.values_mut() {
            times.extend(plug.outward.next());
            times.extend(plug.inward.next());
            times.extend(plug.full_until);
            times.extend(plug.guest.next(now));
        }
        times.extend(self.host.next());
        times.extend(self.net.poll_timeout());
        times.into_iter().min()
    }

    // --- the worker's part -----------------------------------------------------------------------

    fn take_batch(&mut self, port: PortId, frames: Vec<Vec<u8>>) {
        let mut writes: Vec<(FlowId, SeqNumber, Vec<u8>)> = Vec::new();
        for frame in frames {
            self.frames += 1;
            match self.net.handle_frame(port, &frame[..], self.now) {
                Verdict::Tcp { flow, payload, at } => {
                    let bytes = &frame[payload];
                    match writes.iter_mut().find(|(other, ..)| *other == flow) {
                        Some((_, start, batch)) => {
                            assert_eq!(at, *start + batch.len() as u32, "a gap in a batch");
                            batch.extend_from_slice(bytes);
                        }
                        None => writes.push((flow, at, bytes.to_vec())),
                    }
                }
                Verdict::Keep { flow, payload, at } => {
                    self.kept.entry(flow).or_default().0.push((at, frame[payload].to_vec()));
                }
                Verdict::Reassembled(frame) => {
                    self.write_all(std::mem::take(&mut writes));
                    self.take_batch(port, vec![frame]);
                }
                verdict => self.act(port, &frame, verdict),
            }
        }
        self.write_all(writes);
        self.drain();
    }

    fn write_all(&mut self, writes: Vec<(FlowId, SeqNumber, Vec<u8>)>) {
        for (flow, at, bytes) in writes {
            self.write(flow, at, &bytes);
        }
    }

    fn act(&mut self, port: PortId, frame: &[u8], verdict: Verdict) {
        match verdict {
            Verdict::Udp { flow, via, to, payload, segment, .. } => {
                let size = if segment == 0 { payload.len() } else { segment.into() };
                // A datagram may be empty.
                let datagrams = frame[payload.start..payload.end].chunks(size.max(1));
                let none = payload.is_empty().then_some(&[][..]);
                for payload in datagrams.chain(none).map(<[u8]>::to_vec) {
                    if self.echoes {
                        self.reply(flow, to, payload.clone(), false);
                    }
                    self.datagrams.push((via, to, payload));
                }
            }
            Verdict::Ping { flow, to, header, payload, .. } => {
                if self.echoes {
                    let message = [&header, &frame[payload]].concat();
                    self.reply(flow, SocketAddr::new(to, 0), message, true);
                }
            }
            Verdict::Dns { query, payload } => {
                self.queries += 1;
                if self.echoes {
                    self.net.dns_answer(&query, Some(&frame[payload]));
                }
            }
            Verdict::Reply { headers, payload } => self.give_packets(port, &headers, &frame[payload]),
            Verdict::Relay(to) => self.give(to, frame.to_vec()),
            Verdict::Flood(others) => {
                for to in others {
                    self.give(to, frame.to_vec());
                }
            }
            Verdict::HandOver(_) => unreachable!("there is one worker"),
            Verdict::Done | Verdict::Dropped(_) => {}
            Verdict::Tcp { .. } | Verdict::Keep { .. } | Verdict::Reassembled(_) => {
                unreachable!("they are gathered, or handed in")
            }
        }
    }

    fn write(&mut self, flow: FlowId, at: SeqNumber, bytes: &[u8]) {
        let (event, failed) = match self.host.write(flow, bytes) {
            Ok(len) => {
                let rest = &bytes[len..];
                // A driver may keep what was not taken, a part of it, or nothing.
                let kept = self.rng.pick(&[rest.len(), rest.len() / 2, 0]);
                if kept > 0 {
                    let run = (at + len as u32, rest[..kept].to_vec());
                    self.kept.entry(flow).or_default().0.push(run);
                }
                (HostEvent::Wrote { len: len as u32, kept: kept as u32 }, None)
            }
            Err(error) => (HostEvent::Wrote { len: 0, kept: 0 }, Some(error)),
        };
        self.net.tcp_event(flow, event, self.now);
        match failed {
            Some(error) => self.net.tcp_event(flow, HostEvent::Failed(error), self.now),
            None => {
                let free = self.host.space(flow);
                self.net.tcp_event(flow, HostEvent::SendSpace { free }, self.now);
            }
        }
    }

    fn drain(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let Some(output) = self.net.poll_output(self.now) else { return };
            match output {
                Output::Frame { port, mut frame, offload } => {
                    complete_checksum(&mut frame, offload);
                    for frame in fragmented(vec![frame], offload) {
                        self.give(port, frame);
                    }
                }
                Output::Headers { port, headers } => self.give(port, finish(&headers, &[])),
                Output::Tcp { flow, op } => self.tcp_op(flow, op),
                Output::Multicast { to, payload, .. } => {
                    self.datagrams.push((UdpVia::Own { guest_port: 0 }, to, payload));
                }
                Output::Close(flow) => {
                    self.closed.push(flow);
                    self.replies.retain(|reply| reply.flow != flow);
                }
                Output::LeasesChanged | Output::MacConflict { .. } => {}
                Output::Rehome { .. } | Output::Found(_) => unreachable!("there is one worker"),
            }
        }
        panic!("seed {}: no end of outputs at {:?}", self.seed, self.now);
    }

    fn tcp_op(&mut self, flow: FlowId, op: TcpOp) {
        let now = self.now;
        match op {
            TcpOp::Connect { target, .. } => {
                let to = match target {
                    usernet_core::network::Target::Host(to) => to,
                    usernet_core::network::Target::Dns => SocketAddr::from(([127, 0, 0, 53], 53)),
                };
                self.host.connect(flow, to, now);
            }
            TcpOp::Peek { port, at, max, segment } => self.peek(flow, port, at, max, segment),
            TcpOp::Discard { len } => self.host.discard(flow, len),
            TcpOp::WriteKept { at, len } => {
                let kept = self.kept.entry(flow).or_default();
                let bytes: Vec<u8> =
                    (0..len).map(|i| kept.byte(at + i).expect("a kept byte is not there")).collect();
                match self.host.write(flow, &bytes) {
                    Ok(len) => {
                        let next = at + len as u32;
                        kept.0.retain(|(start, bytes)| *start + bytes.len() as u32 > next);
                        self.net.tcp_wrote_kept(flow, len as u32, now);
                    }
                    Err(error) => self.net.tcp_event(flow, HostEvent::Failed(error), now),
                }
            }
            TcpOp::ShutdownWrite => self.host.shutdown(flow),
            TcpOp::WatchSendSpace => {
                let free = self.host.watch_space(flow);
                self.net.tcp_event(flow, HostEvent::SendSpace { free }, now);
            }
            TcpOp::Close => {
                self.host.close(flow);
                self.kept.remove(&flow);
            }
            TcpOp::Reset => {
                self.host.reset(flow);
                self.kept.remove(&flow);
            }
        }
    }

    fn peek(&mut self, flow: FlowId, port: PortId, at: u32, max: u32, segment: u16) {
        let now = self.now;
        assert!(segment > 0);
        let plug = self.plugs.get_mut(&port).expect("a peek for a guest that is there");
        let mut room = max;
        if plug.full_until.is_none() && self.rng.chance(plug.inward.faults.full) {
            plug.full_until = Some(now + Duration::from_micros(1 + self.rng.below(5000)));
            // There may be room for a part.
            let packets = max / u32::from(segment);
            room = self.rng.below(u64::from(packets) + 1) as u32 * u32::from(segment);
        } else if plug.full_until.is_some() {
            room = 0;
        }
        let full = plug.full_until.is_some();
        if full && !plug.waiting.contains(&flow) {
            plug.waiting.push(flow);
        }
        let peeked = if room == 0 {
            Ok((Vec::new(), PeekEnd::LinkFull))
        } else {
            self.host.peek(flow, at, room, &mut self.rng)
        };
        match peeked {
            Ok((bytes, end)) => {
                let end = if full && bytes.len() as u32 == room { PeekEnd::LinkFull } else { end };
                let len = bytes.len() as u32;
                let headers = self.net.tcp_peeked(flow, at, len, end, now);
                assert_eq!(headers.is_some(), len > 0, "headers for {len} bytes");
                if let Some(headers) = headers {
                    self.give_packets(port, &headers, &bytes);
                }
            }
            Err(error) => self.net.tcp_event(flow, HostEvent::Failed(error), now),
        }
    }

    fn give_packets(&mut self, port: PortId, headers: &Headers, payload: &[u8]) {
        for frame in packets(headers, payload) {
            self.give(port, frame);
        }
    }

    fn give(&mut self, port: PortId, frame: Vec<u8>) {
        let now = self.now;
        if let Some(plug) = self.plugs.get_mut(&port) {
            plug.inward.push(frame, now, &mut self.rng);
        }
    }

    // --- UDP and ping ------------------------------------------------------------------------------

    fn reply(&mut self, flow: FlowId, from: SocketAddr, payload: Vec<u8>, ping: bool) {
        let at = self.now + Duration::from_micros(300);
        self.replies.push(Reply { at, flow, from, payload, ping });
    }

    fn deliver_replies(&mut self) -> bool {
        let now = self.now;
        let due: Vec<Reply> = self.replies.extract_if(.., |reply| reply.at <= now).collect();
        let worked = !due.is_empty();
        for reply in due {
            let made = if reply.ping {
                let (header, payload) = echo_reply(&reply.payload);
                let origin = origin(reply.from);
                let made = self.net.ping_from_host(reply.flow, &origin, Some(60), header, payload.len(), now);
                made.map(|made| (made, payload))
            } else {
                let datagrams = Datagrams::one(reply.payload.len());
                let made = self.net.udp_from_host(reply.flow, &origin(reply.from), datagrams, now);
                made.map(|made| (made, &reply.payload[..]))
            };
            if let Ok(((port, headers), payload)) = made {
                self.give_packets(port, &headers, payload);
            }
        }
        self.drain();
        worked
    }
}

fn origin(from: SocketAddr) -> Origin {
    Origin { from, to: None, tos: 0 }
}

/// What comes back for an echo request, with an identifier that the host's kernel chose.
fn echo_reply(request: &[u8]) -> ([u8; ICMP_HEADER_LEN], &[u8]) {
    let (header, payload) = request.split_first_chunk::<ICMP_HEADER_LEN>().expect("an ICMP header");
    let mut reply = request.to_vec();
    let kind = if request[0] == ICMPV6_ECHO { ICMPV6_ECHO_REPLY } else { ICMP_ECHO_REPLY };
    reply[0] = kind;
    reply[2..4].fill(0);
    reply[4..6].copy_from_slice(&[0xab, 0xcd]);
    let sum = !smoltcp::wire::checksum::data(&reply);
    let mut header = *header;
    header[0] = kind;
    header[2..4].copy_from_slice(&sum.to_be_bytes());
    header[4..6].copy_from_slice(&[0xab, 0xcd]);
    (header, payload)
}

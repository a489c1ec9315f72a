//! The whole network: frames of two guests, events of the host and time, in any order.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::host::{HostError, HostEvent, PeekEnd};
use usernet_core::network::{
    Config, DnsQuery, Limits, MAX_DATAGRAMS, MulticastService, Network, Output, TcpOp, Verdict,
};
use usernet_core::port::PortId;
use usernet_core::table::{Endpoint, FlowId, FlowKind};
use usernet_core::tcp::SeqNumber;
use usernet_core::time::Instant;
use usernet_core::wire::{Headers, IcmpError, MacAddr, TcpFlags, TcpHeader};
use usernet_testkit::{Segment, Unfinished, finish, packets, tcp_frame, udp_frame, udp_super_frame};

const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const STEPS: usize = 400;

/// Steps out of bytes; each begins with the number of its kind.
pub fn core_sequence(data: &[u8]) {
    let mut world = World::new();
    let mut data = Unstructured::new(data);
    for _ in 0..STEPS {
        if data.is_empty() || world.step(&mut data).is_err() {
            break;
        }
        world.drain();
    }
    world.finish();
}

#[derive(Default)]
struct End {
    connected: bool,
    queue: u32,
    eof: bool,
}

struct World {
    net: Network,
    now: Instant,
    ports: [PortId; 2],
    next_port: u32,
    ends: HashMap<FlowId, End>,
    datagram_flows: Vec<FlowId>,
    queries: Vec<DnsQuery>,
    /// What the network sent last, to answer to.
    segments: VecDeque<(usize, Segment)>,
    /// How much of an offer the host takes, in 255ths, and what a peek may fill.
    takes: u8,
    room: u32,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            tcp: 6,
            connecting: 4,
            udp: 3,
            udp_peers: 2,
            ping: 2,
            dns: 2,
            macs: 3,
            addresses: 3,
            unresolved: 2,
            ..Limits::default()
        };
        let mut world = Self {
            net: Network::new(Config {
                limits,
                multicast: MulticastService::ALL.to_vec(),
                ..Config::default()
            }),
            now: Instant::from_micros(5_000_000),
            ports: [PortId(0), PortId(1)],
            next_port: 2,
            ends: HashMap::new(),
            datagram_flows: Vec::new(),
            queries: Vec::new(),
            segments: VecDeque::new(),
            takes: 255,
            room: u32::MAX,
        };
        for port in world.ports {
            world.net.add_port(port);
        }
        world
    }

    fn step(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        match data.arbitrary::<u8>()? % 16 {
            0 => {
                let (which, len) = data.arbitrary::<(bool, u8)>()?;
                let len = usize::from(len).min(data.len());
                let frame = data.bytes(len)?.to_vec();
                self.frame(usize::from(which), frame.into());
            }
            1..=4 => self.answer(data)?,
            5 | 6 => self.syn(data)?,
            7 => self.datagram(data)?,
            8 => self.other(data)?,
            9 | 10 => self.host_event(data)?,
            11 => {
                self.now += Duration::from_millis(data.arbitrary::<u16>()?.into());
                self.net.handle_timeout(self.now);
            }
            12 => {
                for _ in 0..data.arbitrary::<u8>()? % 32 {
                    let Some(at) = self.net.poll_timeout() else { break };
                    self.now = self.now.max(at);
                    self.net.handle_timeout(self.now);
                    self.drain();
                }
            }
            13 => self.host_sends(data)?,
            14 => {
                self.takes = data.arbitrary()?;
                self.room = data.arbitrary::<u16>()?.into();
            }
            _ => self.plug(data)?,
        }
        Ok(())
    }

    // --- frames ----------------------------------------------------------------------------------

    fn mac(which: usize) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, which as u8])
    }

    fn guest(which: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, 15 + which as u8)
    }

    /// An address of each kind.
    fn addr(data: &mut Unstructured<'_>) -> Result<Ipv4Addr> {
        let addrs = [
            [192, 0, 2, 1],
            [10, 0, 2, 2],
            [10, 0, 2, 3],
            [10, 0, 2, 15],
            [10, 0, 2, 16],
            [10, 0, 2, 255],
            [127, 0, 0, 1],
            [0, 0, 0, 0],
            [224, 0, 0, 251],
            [255, 255, 255, 255],
            [203, 0, 113, 9],
        ];
        Ok(Ipv4Addr::from(*data.choose(&addrs)?))
    }

    /// Hands in a frame, with some of its bytes changed.
    fn mutated(
        &mut self,
        which: usize,
        frame: impl Into<Unfinished>,
        data: &mut Unstructured<'_>,
    ) -> Result<()> {
        let mut frame = frame.into();
        for _ in 0..data.arbitrary::<u8>()?.saturating_sub(200) % 8 {
            let (at, byte) = data.arbitrary::<(u8, u8)>()?;
            match byte {
                0xfe => frame.bytes.truncate(at.into()),
                _ => {
                    if let Some(old) = frame.bytes.get_mut(usize::from(at)) {
                        *old = byte;
                    }
                }
            }
        }
        self.frame(which, frame);
        Ok(())
    }

    fn frame(&mut self, which: usize, frame: Unfinished) {
        let port = self.ports[which];
        let verdict = self.net.handle_frame(port, &frame, self.now);
        let frame = frame.bytes;
        match verdict {
            Verdict::Tcp { flow, payload, .. } => {
                let len = frame[payload].len() as u32;
                let end = self.ends.get(&flow).expect("bytes for a flow without a host end");
                assert!(end.connected);
                let took = (u64::from(len) * u64::from(self.takes) / 255) as u32;
                let kept = (len - took) / 2;
                self.net.tcp_event(flow, HostEvent::Wrote { len: took, kept }, self.now);
            }
            Verdict::Keep { payload, .. } => assert!(!frame[payload].is_empty()),
            Verdict::Udp { flow, payload, segment, .. } => {
                let datagrams = Datagrams { len: frame[payload].len(), segment };
                assert!(datagrams.count() <= MAX_DATAGRAMS);
                self.datagram_flows.push(flow);
            }
            Verdict::Ping { flow, payload, .. } => {
                let _ = &frame[payload];
                self.datagram_flows.push(flow);
            }
            Verdict::Dns { query, payload } => {
                let _ = &frame[payload];
                self.queries.push(query);
            }
            Verdict::Reply { headers, payload } => {
                let _ = packets(&headers, &frame[payload]);
            }
            Verdict::Relay(to) => assert!(to != port && self.ports.contains(&to)),
            Verdict::Flood(others) => assert!(!others.contains(&port)),
            Verdict::Reassembled(frame) => self.frame(which, frame.into()),
            Verdict::HandOver(_) => panic!("there is one worker"),
            Verdict::Done | Verdict::Dropped(_) => {}
        }
    }

    fn syn(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (which, src_port, options) = data.arbitrary::<(bool, u8, u8)>()?;
        let which = usize::from(which);
        let header = TcpHeader {
            src_port: 1000 + u16::from(src_port % 4),
            dst_port: *data.choose(&[80, 53, 0, 443])?,
            seq: SeqNumber(data.arbitrary()?),
            flags: TcpFlags::SYN,
            window: data.arbitrary()?,
            mss: (options & 1 == 0).then_some(u16::from(options) * 6),
            window_scale: (options & 2 == 0).then_some(options >> 4),
            sack_permitted: options & 4 == 0,
            ..TcpHeader::default()
        };
        let to = Self::addr(data)?;
        let frame = tcp_frame(GATEWAY, Self::mac(which), Self::guest(which), to, &header, &[]);
        self.mutated(which, frame, data)
    }

    /// Answers to one of the segments that the network sent.
    fn answer(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let back = usize::from(data.arbitrary::<u8>()? % 4);
        let Some((which, segment)) = self.segments.iter().rev().nth(back).cloned() else { return Ok(()) };
        let (flags, seq, ack, window, len) = data.arbitrary::<(u8, i8, i8, u16, u8)>()?;
        let theirs = segment.header;
        let takes = u32::from(theirs.flags.contains(TcpFlags::SYN))
            + u32::from(theirs.flags.contains(TcpFlags::FIN))
            + segment.payload.len() as u32;
        // Mostly what a real guest would say.
        let near = |by: i8| i32::from(by).saturating_mul(if by % 2 == 0 { 0 } else { 300 }).cast_unsigned();
        let flags = match flags {
            0..64 => TcpFlags(flags.into()),
            64..96 => TcpFlags::FIN | TcpFlags::ACK,
            _ if theirs.flags == TcpFlags::SYN => TcpFlags::SYN | TcpFlags::ACK,
            _ => TcpFlags::ACK,
        };
        let mut header = TcpHeader {
            src_port: theirs.dst_port,
            dst_port: theirs.src_port,
            seq: theirs.ack + near(seq),
            ack: theirs.seq + takes + near(ack),
            flags,
            window,
            ..TcpHeader::default()
        };
        if ack < -100 {
            header.sack[0] = Some((header.ack + 500, header.ack + 500 + u32::from(window)));
        }
        let payload = vec![0x5a; usize::from(len) * 16];
        let frame = tcp_frame(GATEWAY, Self::mac(which), segment.dst, segment.src, &header, &payload);
        self.mutated(which, frame, data)
    }

    fn datagram(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (which, src_port, len) = data.arbitrary::<(bool, u8, u8)>()?;
        let which = usize::from(which);
        let to = (Self::addr(data)?, *data.choose(&[53, 67, 7, 9, 0])?);
        let payload = data.bytes(usize::from(len).min(data.len()))?;
        let from = (Self::guest(which), u16::from(src_port % 8));
        let (gateway, mac) = (GATEWAY, Self::mac(which));
        match src_port >> 3 {
            0..24 => self.mutated(which, udp_frame(gateway, mac, from, to, payload), data),
            segment => {
                let frame = udp_super_frame(gateway, mac, from, to, payload, u16::from(segment - 24) * 16);
                self.mutated(which, frame, data)
            }
        }
    }

    /// ARP, an echo request, a fragment.
    fn other(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (which, kind, ident) = data.arbitrary::<(bool, u8, u8)>()?;
        let which = usize::from(which);
        let to = Self::addr(data)?;
        let mut frame =
            udp_frame(GATEWAY, Self::mac(which), (Self::guest(which), 8 << 8), (to, 1), &[ident; 16]);
        match kind % 3 {
            0 => {
                // An echo request: type 8, code 0, checksum, identifier, number.
                frame[23] = 1;
                frame[34..42].copy_from_slice(&[8, 0, 0, 0, 0, ident % 4, 0, 1]);
            }
            1 => frame[20] |= 0x20,
            _ => {
                let mut arp = vec![0xff; 6];
                arp.extend_from_slice(&Self::mac(which).0);
                arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + ident % 2]);
                arp.extend_from_slice(&Self::mac(which).0);
                arp.extend_from_slice(&Self::guest(which).octets());
                arp.extend_from_slice(&[0; 6]);
                arp.extend_from_slice(&to.octets());
                frame = arp;
            }
        }
        self.mutated(which, frame, data)
    }

    // --- the host ----------------------------------------------------------------------------------

    fn host_event(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (pick, kind, n) = data.arbitrary::<(u8, u8, u16)>()?;
        let mut flows: Vec<FlowId> = self.ends.keys().copied().collect();
        flows.sort_by_key(|flow| flow.to_token());
        let Some(flow) = flows.get(usize::from(pick) % flows.len().max(1)).copied() else { return Ok(()) };
        let end = self.ends.get_mut(&flow).expect("it was listed");
        let event = match kind % 8 {
            0 | 1 if !end.connected => {
                end.connected = true;
                HostEvent::Connected
            }
            2 => HostEvent::Failed(
                *[HostError::Refused, HostError::Reset, HostError::NetUnreachable, HostError::TimedOut]
                    .get(usize::from(n % 4))
                    .expect("four"),
            ),
            _ if !end.connected => return Ok(()),
            3 | 4 if !end.eof => {
                end.queue += u32::from(n) * 4;
                HostEvent::Readable
            }
            5 => {
                end.eof = true;
                HostEvent::Readable
            }
            6 => HostEvent::LinkSpace,
            _ => HostEvent::SendSpace { free: u32::from(n) * 16 },
        };
        self.net.tcp_event(flow, event, self.now);
        Ok(())
    }

    /// What comes to a socket, a forward or the resolver.
    fn host_sends(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (kind, n, len) = data.arbitrary::<(u8, u8, u16)>()?;
        let from = SocketAddr::new(Self::addr(data)?.into(), n.into());
        let guest = Endpoint { addr: IpAddr::V4(Self::guest(usize::from(n % 3))), port: 22 };
        let last = self.datagram_flows.last().copied();
        let header = [kind, n, 0, 0, 0, n, 0, 1];
        let datagrams = Datagrams { len: len.into(), segment: u16::from(kind) * 8 };
        let origin = Origin { from, to: None, tos: n };
        let (kind_told, code, info) = (n >> 4, n & 15, len.into());
        let error = match kind & 8 {
            0 => IcmpError::V4 { kind: kind_told, code, info },
            _ => IcmpError::V6 { kind: kind_told, code, info },
        };
        let check = |made: std::result::Result<(PortId, Headers), _>| {
            if let Ok((_, headers)) = made {
                let _ = packets(&headers, &vec![0; len.into()]);
            }
        };
        match (kind % 8, last) {
            (0, _) => {
                if let Some(flow) = self.net.accept_tcp(guest, from, self.now) {
                    self.ends.insert(flow, End { connected: true, ..End::default() });
                }
            }
            (1, _) => check(self.net.udp_from_forward(1, guest, &origin, datagrams, self.now)),
            (2, _) => self.net.remove_udp_forward(1),
            (3, _) => {
                if let Some(query) = self.queries.pop() {
                    self.net.dns_answer(&query, (n > 9).then_some(&[n; 40]));
                }
            }
            (4, Some(flow)) if flow.kind == FlowKind::Udp => {
                check(self.net.udp_from_host(flow, &origin, datagrams, self.now));
            }
            (4, Some(flow)) => {
                let header = [0, 0, 0, 0, 0, n, 0, 1];
                check(self.net.ping_from_host(flow, &origin, Some(9), header, len.into(), self.now));
            }
            (5, Some(flow)) if flow.kind == FlowKind::Udp => {
                self.net.udp_error(flow, from, error, None, &header);
            }
            (5, Some(flow)) => self.net.ping_error(flow, from.ip(), &header, error, None),
            (6, Some(flow)) if flow.kind == FlowKind::Udp => {
                self.net.udp_failed(flow, usernet_core::drops::DropReason::HostExhausted);
            }
            (6, Some(flow)) => {
                self.net.ping_failed(
                    flow,
                    from.ip(),
                    &header,
                    usernet_core::drops::DropReason::HostExhausted,
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// A guest goes and another comes; or one is given a lease.
    fn plug(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (which, lease) = data.arbitrary::<(bool, bool)>()?;
        let which = usize::from(which);
        if lease {
            let _ = self.net.lease(self.ports[which], Self::mac(which), Some("guest"), self.now);
            return Ok(());
        }
        self.net.remove_port(self.ports[which]);
        self.drain();
        self.ports[which] = PortId(self.next_port);
        self.next_port += 1;
        self.net.add_port(self.ports[which]);
        Ok(())
    }

    // --- outputs -----------------------------------------------------------------------------------

    fn drain(&mut self) {
        for _ in 0..100_000 {
            let Some(output) = self.net.poll_output(self.now) else { return };
            match output {
                Output::Frame { port, frame, .. } => {
                    assert!(frame.len() >= 14 && self.ports.contains(&port));
                }
                Output::Headers { port, headers } => self.sent(port, &headers, 0),
                Output::Tcp { flow, op } => self.op(flow, op),
                Output::Multicast { flow, .. } => self.datagram_flows.push(flow),
                Output::Close(flow) => self.datagram_flows.retain(|other| *other != flow),
                Output::LeasesChanged | Output::MacConflict { .. } => {}
                Output::Rehome { .. } | Output::Found(_) => panic!("there is one worker"),
            }
        }
        panic!("no end of outputs");
    }

    fn sent(&mut self, port: PortId, headers: &Headers, len: u32) {
        let which = self.ports.iter().position(|other| *other == port).expect("a port that is there");
        let frame = finish(headers, &vec![0; len as usize]);
        if let Some(segment) = Segment::parse(&frame) {
            self.segments.push_back((which, segment));
            if self.segments.len() > 16 {
                self.segments.pop_front();
            }
        }
    }

    fn op(&mut self, flow: FlowId, op: TcpOp) {
        if let TcpOp::Connect { .. } = op {
            assert!(self.ends.insert(flow, End::default()).is_none(), "connected twice");
            return;
        }
        let end = self.ends.get_mut(&flow).expect("an operation on a flow without a host end");
        assert!(end.connected || op == TcpOp::Reset, "{op:?} before the connect was over");
        match op {
            TcpOp::Connect { .. } => {}
            TcpOp::Peek { port, at, max, segment } => {
                assert!(at <= end.queue && max > 0 && segment > 0);
                let room = self.room.min(max);
                let len = (end.queue - at).min(room);
                let reason = match len {
                    len if len == room && room < max => PeekEnd::LinkFull,
                    0 if end.eof => PeekEnd::Eof,
                    len if len < max && !end.eof => PeekEnd::Empty,
                    _ => PeekEnd::More,
                };
                if let Some(headers) = self.net.tcp_peeked(flow, at, len, reason, self.now) {
                    self.sent(port, &headers, len);
                }
            }
            TcpOp::Discard { len } => end.queue = end.queue.checked_sub(len).expect("bytes that are there"),
            TcpOp::WriteKept { len, .. } => {
                let took = (u64::from(len) * u64::from(self.takes) / 255) as u32;
                self.net.tcp_wrote_kept(flow, took, self.now);
            }
            TcpOp::WatchSendSpace => {
                let free = u32::from(self.takes) * 400;
                self.net.tcp_event(flow, HostEvent::SendSpace { free }, self.now);
            }
            TcpOp::ShutdownWrite => {}
            TcpOp::Close => {
                assert_eq!(end.queue, 0, "a close with bytes unread");
                self.ends.remove(&flow);
            }
            TcpOp::Reset => {
                self.ends.remove(&flow);
            }
        }
    }

    /// Takes both guests off; nothing is left behind.
    fn finish(mut self) {
        self.drain();
        for port in self.ports {
            self.net.remove_port(port);
        }
        self.drain();
        // Connections for guests that never came are given up in time.
        for _ in 0..1000 {
            let Some(at) = self.net.poll_timeout() else { break };
            self.now = self.now.max(at);
            self.net.handle_timeout(self.now);
            self.drain();
        }
        let left = (self.net.tcp_flows().len(), self.net.udp_flows().len(), self.net.ping_flows().len());
        assert_eq!((left, self.ends.len(), self.net.poll_timeout()), ((0, 0, 0), 0, None), "left behind");
    }
}

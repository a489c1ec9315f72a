//! The core as a worker drives it, with nothing around it: no socket, no link, and a clock that only
//! counts. What it costs is the core's own, and the same from run to run.

use std::net::SocketAddr;
use std::time::Duration;

use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::dhcp6;
use usernet_core::host::{HostEvent, PeekEnd};
use usernet_core::network::{Config, Limits, Network, Output, TcpOp, Verdict};
use usernet_core::port::PortId;
use usernet_core::table::FlowId;
use usernet_core::tcp::SeqNumber;
use usernet_core::time::Instant;
use usernet_core::wire::{
    ETHERNET_HEADER_LEN, Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpHeader, MacAddr, PROTOCOL_TCP,
    PROTOCOL_UDP, TcpFlags, TcpHeader,
};

use crate::Family;

const PORT: PortId = PortId(1);
const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const GUEST_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
/// The room that a host end always reports: a peer that reads as fast as it is written to.
const FREE: u32 = 4 << 20;
/// The shift that the guest's window is scaled by.
const SCALE: u8 = 7;
/// The ports of the guest and the host.
const PORTS: (u16, u16) = (40_000, 80);
/// Where a segment has its sequence number, and behind that what it acknowledges.
const SEQ: usize = 4;
/// The bytes of a datagram's payload.
const DATAGRAM: usize = 1400;

/// One guest of one network, one TCP flow that is established, and one UDP flow.
pub struct Relay {
    family: Family,
    network: Network,
    now: Instant,
    flow: Option<FlowId>,
    udp: Option<FlowId>,
    /// The guest's next byte, and the next that it expects.
    snd_nxt: SeqNumber,
    rcv_nxt: SeqNumber,
    /// A data segment of the guest's, and an acknowledgement.
    data: Vec<u8>,
    ack: Vec<u8>,
    /// A datagram of the guest's.
    datagram: Vec<u8>,
    /// Host bytes that have not been peeked.
    readable: u32,
    /// Frames that went to the guest.
    pub frames: u64,
}

impl Relay {
    /// A guest with this MTU, whose data segments carry `payload` bytes: at most the MTU less the headers,
    /// or up to 65,475 where its device is to cut them.
    ///
    /// # Panics
    /// The core does not establish the flows, which is a bug of it.
    pub fn new(family: Family, mtu: u16, payload: usize) -> Self {
        // As many flows as anyone wants to see.
        let limits = Limits { tcp: usize::MAX, ..Limits::default() };
        let net6 = (family == Family::V6).then(dhcp6::Config::default);
        let mut network = Network::new(Config { mtu, limits, net6, ..Config::default() });
        network.add_port(PORT);
        let mut relay = Self {
            family,
            network,
            now: Instant::from_micros(1_000_000),
            flow: None,
            udp: None,
            snd_nxt: SeqNumber(1000),
            rcv_nxt: SeqNumber(0),
            data: Vec::new(),
            ack: Vec::new(),
            datagram: Vec::new(),
            readable: 0,
            frames: 0,
        };
        relay.establish(PORTS);
        relay.data = relay.frame(&relay.segment(PORTS), payload);
        relay.ack = relay.frame(&relay.segment(PORTS), 0);
        let ip = relay.ip(PROTOCOL_UDP);
        relay.datagram =
            frame(&Headers::udp(GATEWAY_MAC, GUEST_MAC, &ip, PORTS, DATAGRAM, u16::MAX), DATAGRAM);
        relay.guest_sends_datagram();
        relay
    }

    /// Establishes a flow between these ports of the guest and the host, which is the one to speak of
    /// from now on.
    fn establish(&mut self, ports: (u16, u16)) {
        let syn = TcpHeader {
            flags: TcpFlags::SYN,
            mss: Some(1460),
            window_scale: Some(SCALE),
            sack_permitted: true,
            ..self.segment(ports)
        };
        self.handle(&self.frame(&syn, 0));
        self.snd_nxt += 1;
        let ack = self.frame(&self.segment(ports), 0);
        self.handle(&ack);
        assert!(self.rcv_nxt != SeqNumber(0), "there was no SYN-ACK");
    }

    /// Adds flows that do nothing.
    pub fn add_idle(&mut self, count: u32) {
        let (flow, snd_nxt, rcv_nxt) = (self.flow, self.snd_nxt, self.rcv_nxt);
        for number in 0..count {
            let port = |n: u32| u16::try_from(1024 + n).unwrap_or(u16::MAX);
            self.establish((port(number % 32_768), port(number / 32_768)));
        }
        (self.flow, self.snd_nxt, self.rcv_nxt) = (flow, snd_nxt, rcv_nxt);
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.network.tcp_flows().len()
    }

    /// The guest sends a segment; the host takes it, and the guest is told.
    ///
    /// # Panics
    /// The core does not deliver it.
    pub fn guest_sends(&mut self) {
        let mut frame = std::mem::take(&mut self.data);
        self.number(&mut frame);
        let verdict = self.network.handle_frame(PORT, frame.as_slice(), self.now);
        let Verdict::Tcp { flow, payload, .. } = verdict else { panic!("not delivered: {verdict:?}") };
        let len = u32::try_from(payload.len()).expect("a payload is at most 64 KiB");
        self.snd_nxt += len;
        self.data = frame;
        self.network.tcp_event(flow, HostEvent::Wrote { len, kept: 0 }, self.now);
        self.network.tcp_event(flow, HostEvent::SendSpace { free: FREE }, self.now);
        self.drain();
    }

    /// The host has this many bytes; they go to the guest, which acknowledges them.
    ///
    /// # Panics
    /// The core does not ask for them all.
    pub fn host_sends(&mut self, len: u32) {
        let flow = self.flow.expect("the flow is established");
        self.readable = len;
        self.network.tcp_event(flow, HostEvent::Readable, self.now);
        self.drain();
        assert_eq!(self.readable, 0, "not all was peeked");
        let mut frame = std::mem::take(&mut self.ack);
        self.number(&mut frame);
        self.handle(&frame);
        self.ack = frame;
    }

    /// The guest sends a datagram.
    ///
    /// # Panics
    /// The core does not deliver it.
    pub fn guest_sends_datagram(&mut self) {
        let verdict = self.network.handle_frame(PORT, self.datagram.as_slice(), self.now);
        let Verdict::Udp { flow, .. } = verdict else { panic!("not delivered: {verdict:?}") };
        self.udp = Some(flow);
        self.drain();
    }

    /// The host sends a datagram.
    ///
    /// # Panics
    /// The core does not deliver it.
    pub fn host_sends_datagram(&mut self) {
        let flow = self.udp.expect("the flow is there");
        let from = match self.family {
            Family::V4 => SocketAddr::from(([127, 0, 0, 1], PORTS.1)),
            Family::V6 => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], PORTS.1)),
        };
        let origin = Origin { from, to: None, tos: 0 };
        let delivered = self.network.udp_from_host(flow, &origin, Datagrams::one(DATAGRAM), self.now);
        delivered.expect("the datagram is delivered");
        self.frames += 1;
        self.drain();
    }

    fn handle(&mut self, frame: &[u8]) {
        let verdict = self.network.handle_frame(PORT, frame, self.now);
        assert!(matches!(verdict, Verdict::Done), "{verdict:?}");
        self.drain();
    }

    /// Does what the core asks for, as a worker whose host and link always can.
    fn drain(&mut self) {
        while let Some(output) = self.network.poll_output(self.now) {
            match output {
                Output::Headers { headers, .. } => {
                    self.frames += 1;
                    self.hear(&headers);
                }
                Output::Tcp { flow, op } => self.operate(flow, op),
                _ => {}
            }
        }
        self.now += Duration::from_micros(10);
        if self.network.poll_timeout().is_some_and(|at| at <= self.now) {
            self.network.handle_timeout(self.now);
        }
    }

    fn operate(&mut self, flow: FlowId, op: TcpOp) {
        match op {
            TcpOp::Connect { .. } => {
                self.flow = Some(flow);
                self.network.tcp_event(flow, HostEvent::SendSpace { free: FREE }, self.now);
                self.network.tcp_event(flow, HostEvent::Connected, self.now);
            }
            TcpOp::WatchSendSpace => {
                self.network.tcp_event(flow, HostEvent::SendSpace { free: FREE }, self.now);
            }
            TcpOp::Peek { at, max, .. } => {
                let len = max.min(self.readable);
                self.readable -= len;
                let end = if self.readable == 0 { PeekEnd::Empty } else { PeekEnd::More };
                if self.network.tcp_peeked(flow, at, len, end, self.now).is_some() {
                    self.frames += 1;
                    self.rcv_nxt += len;
                }
            }
            _ => {}
        }
    }

    /// Takes note of a SYN-ACK.
    fn hear(&mut self, headers: &Headers) {
        let segment = headers.get(self.ip_end()..).unwrap_or_default();
        let (header, _) = TcpHeader::parse(segment).expect("the core writes headers that can be read");
        if header.flags.contains(TcpFlags::SYN) {
            self.rcv_nxt = header.seq + 1;
        }
    }

    /// Writes the guest's present numbers into a frame. Checksums are for links to look at.
    fn number(&self, frame: &mut [u8]) {
        let numbers = self.snd_nxt.0.to_be_bytes().into_iter().chain(self.rcv_nxt.0.to_be_bytes());
        for (to, byte) in frame.iter_mut().skip(self.ip_end() + SEQ).zip(numbers) {
            *to = byte;
        }
    }

    fn segment(&self, (src_port, dst_port): (u16, u16)) -> TcpHeader {
        TcpHeader {
            src_port,
            dst_port,
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: TcpFlags::ACK,
            window: u16::MAX,
            ..TcpHeader::default()
        }
    }

    fn frame(&self, header: &TcpHeader, payload: usize) -> Vec<u8> {
        let ip = self.ip(PROTOCOL_TCP);
        frame(&Headers::tcp(GATEWAY_MAC, GUEST_MAC, &ip, header, payload, u16::MAX), payload)
    }

    fn ip(&self, protocol: u8) -> IpHeader {
        let (src, dst) = (self.family.guest(), self.family.gateway());
        IpHeader::new(src, dst, protocol)
    }

    /// Where the IP header of a frame ends.
    fn ip_end(&self) -> usize {
        ETHERNET_HEADER_LEN
            + match self.family {
                Family::V4 => IPV4_HEADER_LEN,
                Family::V6 => IPV6_HEADER_LEN,
            }
    }
}

/// A frame with zeroes behind its headers.
fn frame(headers: &Headers, payload: usize) -> Vec<u8> {
    let mut frame = headers.to_vec();
    frame.resize(frame.len() + payload, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_carries_bytes_both_ways_for_as_long_as_one_likes() {
        for family in Family::ALL {
            let mut relay = Relay::new(family, 1500, 1440);
            let (snd, rcv) = (relay.snd_nxt, relay.rcv_nxt);
            for _ in 0..10_000 {
                relay.guest_sends();
                relay.host_sends(65_536);
            }
            assert_eq!(relay.snd_nxt, snd + 14_400_000);
            assert_eq!(relay.rcv_nxt, rcv + 655_360_000);
            assert_eq!(relay.flows(), 1);
        }
    }

    #[test]
    fn datagrams_pass_both_ways() {
        for family in Family::ALL {
            let mut relay = Relay::new(family, 1500, 0);
            let frames = relay.frames;
            for _ in 0..1000 {
                relay.guest_sends_datagram();
                relay.host_sends_datagram();
            }
            assert_eq!(relay.frames, frames + 1000);
        }
    }

    #[test]
    fn idle_flows_are_flows() {
        let mut relay = Relay::new(Family::V4, 1500, 1460);
        relay.add_idle(1000);
        assert_eq!(relay.flows(), 1001);
        relay.guest_sends();
    }
}

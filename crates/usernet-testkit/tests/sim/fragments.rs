//! Everything in fragments, both ways: a guest behind a path that cuts what it sends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use usernet_core::drops::DropReason;
use usernet_core::network::Config;
use usernet_core::port::PortId;
use usernet_core::time::Instant;
use usernet_core::{dhcp6, offload::Fragmentation, wire};
use usernet_testkit::{
    App, Close, Faults, Guest, GuestConfig, Ipv6, Peer, Rng, Sim, SmolGuest, fill, udp_frame,
};

use super::{GATEWAY, GATEWAY_MAC, PORT, config, peer_addr};

/// Bytes of the packets on the path of a [`Cut`] guest.
const NARROW: u16 = 576;

/// A guest whose packets are cut on their way to the network, and what comes in fragments is put together
/// for it.
struct Cut {
    guest: SmolGuest,
    /// Fragments come in any order.
    rng: Rng,
    ident: u32,
    waiting: BTreeMap<u32, Vec<Piece>>,
    /// How many fragments came, and the longest frame.
    fragments: usize,
    longest: usize,
}

/// Where a fragment begins, whether it is the last, its headers without the fragment header, its data.
type Piece = (usize, bool, Vec<u8>, Vec<u8>);

impl Cut {
    fn new(config: GuestConfig) -> Self {
        let guest = SmolGuest::new(config);
        let (rng, waiting) = (Rng::new(config.seed), BTreeMap::new());
        Self { guest, rng, ident: 0, waiting, fragments: 0, longest: 0 }
    }
}

/// Reads a fragment, by the words of the RFCs and by none of the network's.
fn piece(frame: &[u8]) -> Option<(u32, Piece)> {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    match (word(12), frame[20]) {
        (0x0800, _) if word(20) & 0x3fff != 0 => {
            let at = usize::from(word(20) & 0x1fff) * 8;
            let end = 14 + usize::from(word(16));
            let piece = (at, word(20) & 0x2000 == 0, frame[..34].to_vec(), frame[34..end].to_vec());
            Some((word(18).into(), piece))
        }
        (0x86dd, 44) => {
            let field = word(56);
            let mut headers = frame[..54].to_vec();
            headers[20] = frame[54];
            let data = frame[62..54 + usize::from(word(18))].to_vec();
            let ident = u32::from_be_bytes(frame[58..62].try_into().unwrap());
            Some((ident, (usize::from(field & 0xfff8), field & 1 == 0, headers, data)))
        }
        _ => None,
    }
}

/// The frame that pieces make, if none is missing.
fn joined(pieces: &mut [Piece]) -> Option<Vec<u8>> {
    pieces.sort();
    let mut end = 0;
    for (at, _, _, data) in &*pieces {
        if *at != end {
            return None;
        }
        end += data.len();
    }
    let (_, true, ..) = pieces.last()? else { return None };
    let mut frame = pieces[0].2.clone();
    pieces.iter().for_each(|(.., data)| frame.extend(data));
    if frame[12] == 8 {
        frame[16..18].copy_from_slice(&((20 + end) as u16).to_be_bytes());
        frame[18..22].fill(0);
        frame[24..26].fill(0);
        let sum = !smoltcp::wire::checksum::data(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&(end as u16).to_be_bytes());
    }
    Some(frame)
}

impl Guest for Cut {
    fn receive(&mut self, frame: Vec<u8>, now: Instant) {
        self.longest = self.longest.max(frame.len());
        let Some((ident, piece)) = piece(&frame) else { return self.guest.receive(frame, now) };
        self.fragments += 1;
        let pieces = self.waiting.entry(ident).or_default();
        if !pieces.contains(&piece) {
            pieces.push(piece);
        }
        if let Some(frame) = joined(pieces) {
            self.waiting.remove(&ident);
            self.guest.receive(frame, now);
        }
    }

    fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut cut = Vec::new();
        for frame in self.guest.poll(now) {
            // Neighbours are not found in fragments.
            if frame.len() <= 14 + usize::from(NARROW) {
                cut.push(frame);
                continue;
            }
            self.ident += 1;
            let how = Fragmentation { mtu: NARROW, ident: self.ident };
            let mut pieces: Vec<Vec<u8>> =
                wire::fragments(&frame, how).map(|(headers, data)| [&headers, data].concat()).collect();
            while !pieces.is_empty() {
                cut.push(pieces.swap_remove(self.rng.below(pieces.len() as u64) as usize));
            }
        }
        cut
    }

    fn next(&mut self, now: Instant) -> Option<Instant> {
        self.guest.next(now)
    }
}

const PEERS: [&str; 2] = ["192.0.2.1:7", "[2001:db8::1]:7"];

/// A guest that sends what is as long as it likes, on a network with the usual MTU.
fn one_guest(seed: u64, mtu: usize, faults: Faults) -> (Sim<Cut>, PortId) {
    let mut sim = Sim::new(seed, Config { net6: Some(dhcp6::Config::default()), ..config(seed) });
    let ipv6 = Some(Ipv6::Static("fd00::77".parse().unwrap()));
    let port = sim.add(Cut::new(GuestConfig { seed, mtu, ipv6, ..GuestConfig::default() }), faults, faults);
    (sim, port)
}

fn lossy() -> Faults {
    Faults { loss: 20, reorder: 50, duplicate: 50, late: Duration::from_micros(500), ..Faults::default() }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(seed, 0, &mut bytes);
    bytes
}

fn peer(n: usize) -> SocketAddr {
    PEERS[n].parse().unwrap()
}

#[test]
fn large_datagrams_go_out_and_come_back_with_the_same_bytes() {
    for (seed, len) in [(1, 60_000), (2, 1473), (3, 65_000), (4, 1472), (5, 20_000)] {
        let (mut sim, port) = one_guest(seed, 65_535, Faults::default());
        let socket = sim.guest(port).guest.udp(4000);
        let sent = bytes(seed, len);
        for n in [0, 1] {
            sim.guest(port).guest.udp_send_to(socket, peer(n), &sent);
            sim.pass(Duration::from_secs(3));
            let received = sim.guest(port).guest.udp_received(socket);
            assert_eq!(received.len(), 1);
            assert!(received[0].1 == sent, "{len} bytes to {}", peer(n));
        }
        assert!(sim.datagrams.iter().all(|(.., payload)| *payload == sent));
        let guest = sim.guest(port);
        assert_eq!(guest.longest.max(1514), 1514);
        assert_eq!(guest.fragments > 0, len > 1452);
        assert_eq!((guest.waiting.len(), sim.net.drops().iter().count()), (0, 0));
        sim.finish();
    }
}

#[test]
fn over_a_bad_link_datagrams_arrive_whole_or_not_at_all() {
    let mut arrived = 0;
    for seed in 0..20 {
        let (mut sim, port) = one_guest(seed, 65_535, Faults::default());
        let socket = sim.guest(port).guest.udp(4000);
        // Neighbours are found first: a guest waits a second when one does not answer.
        for n in [0, 1] {
            sim.guest(port).guest.udp_send_to(socket, peer(n), b"hello");
            sim.pass(Duration::from_secs(3));
        }
        sim.datagrams.clear();
        sim.guest(port).guest.udp_received(socket);
        sim.set_outward(port, lossy());
        sim.set_inward(port, lossy());
        for n in 0..20 {
            let sent = bytes(seed * 100 + n, 3000 + 100 * n as usize);
            sim.guest(port).guest.udp_send_to(socket, peer(n as usize % 2), &sent);
            sim.pass(Duration::from_millis(50));
            for (.., payload) in sim.datagrams.drain(..) {
                assert!(payload == sent);
                arrived += 1;
            }
            for (_, payload) in sim.guest(port).guest.udp_received(socket) {
                assert!(payload == sent);
            }
        }
        // What a lost fragment has left behind is given up.
        sim.pass(Duration::from_secs(130));
        assert_eq!(sim.net.incomplete(port), 0);
        sim.finish();
    }
    assert!((200..400).contains(&arrived), "{arrived} of 400");
}

#[test]
fn joined_datagrams_that_are_longer_than_the_mtu_come_apart_and_each_in_fragments() {
    let (mut sim, port) = one_guest(1, 65_535, Faults::default());
    sim.echoes = false;
    for n in [0, 1] {
        let socket = sim.guest(port).guest.udp(4000 + n as u16);
        sim.guest(port).guest.udp_send_to(socket, peer(n), b"hello");
        sim.pass(Duration::from_secs(3));
        let flow = sim.net.udp_flows().iter().last().unwrap().0;
        let payload = bytes(7, 50_000);
        sim.datagrams_to_flow(flow, peer(n), &payload, 20_000).unwrap();
        sim.pass(Duration::from_secs(1));
        let received: Vec<_> =
            sim.guest(port).guest.udp_received(socket).into_iter().map(|(_, payload)| payload).collect();
        assert!(received == [&payload[..20_000], &payload[20_000..40_000], &payload[40_000..]]);
    }
    sim.finish();
}

#[test]
fn pings_longer_than_the_mtu_are_answered_by_the_gateway_and_from_outside() {
    let (mut sim, port) = one_guest(1, 65_535, Faults::default());
    let data = bytes(3, 60_000);
    let socket = sim.guest(port).guest.ping(77);
    for to in [GATEWAY, "10.0.2.3".parse().unwrap(), "192.0.2.1".parse().unwrap()] {
        sim.guest(port).guest.ping_send(socket, to, 77, 5, &data);
        sim.pass(Duration::from_secs(2));
        assert!(sim.guest(port).guest.ping_received(socket) == [(to.into(), 5, data.clone())], "{to}");
    }
    for to in ["fd00::2", "fd00::3", "2001:db8::1"].map(|to| to.parse().unwrap()) {
        sim.guest(port).guest.ping_send_v6(socket, to, 77, 5, &data);
        sim.pass(Duration::from_secs(2));
        assert!(sim.guest(port).guest.ping_received(socket) == [(to.into(), 5, data.clone())], "{to}");
    }
    sim.finish();
}

#[test]
fn streams_pass_in_fragments() {
    for (seed, faults) in [(1, Faults::default()), (2, lossy()), (3, lossy())] {
        for to in [SocketAddr::from(peer_addr()), "[2001:db8::1]:80".parse().unwrap()] {
            let (mut sim, port) = one_guest(seed, 1500, faults);
            let theirs = Peer { seed: 8, send: 50_000, ..Peer::default() };
            sim.host.peers.insert(PORT, theirs);
            let app = App { seed: 9, send: 200_000, close: Close::Sent, ..App::default() };
            let stream = sim.guest(port).guest.connect_to(to, app);
            let done = sim.run(Duration::from_secs(600), |sim| {
                let end = sim.host.ends().first().map_or(0, |end| end.received());
                (end, sim.guest(port).guest.received(stream)) == (200_000, 50_000)
            });
            assert!(done, "seed {seed} to {to}");
            assert_eq!(sim.host.ends()[0].digest(), usernet_testkit::digest_of(9, 200_000));
            assert!(sim.frames > 3 * 200_000 / 1460, "segments are cut in three");
            sim.guest(port).guest.abort_all();
            sim.pass(Duration::from_secs(200));
            sim.finish();
        }
    }
}

#[test]
fn a_flood_of_first_fragments_costs_the_guest_its_own_and_no_other() {
    let (mut sim, port) = one_guest(1, 65_535, Faults::default());
    let config = GuestConfig {
        addr: Some("10.0.2.16".parse().unwrap()),
        seed: 2,
        mtu: 65_535,
        ..GuestConfig::default()
    };
    let mac = wire::MacAddr([0x52, 0x54, 0, 0, 0, 9]);
    let flooder = sim.add(Cut::new(GuestConfig { mac, ..config }), Faults::default(), Faults::default());
    let (addr, to) = ("10.0.2.16".parse().unwrap(), "192.0.2.1".parse().unwrap());
    let mut first = udp_frame(GATEWAY_MAC, mac, (addr, 9), (to, 9), &[7; 1472]);
    first[20] = 0x20;
    for n in 0..100_000_u32 {
        first[18..20].copy_from_slice(&(n as u16).to_be_bytes());
        first[29] = (n >> 16) as u8;
        sim.inject(flooder, first.clone());
        assert!(sim.net.incomplete(flooder) <= 16);
    }
    let socket = sim.guest(port).guest.udp(4000);
    sim.guest(port).guest.udp_send_to(socket, peer(0), &bytes(1, 60_000));
    sim.pass(Duration::from_secs(3));
    assert!(sim.guest(port).guest.udp_received(socket)[0].1 == bytes(1, 60_000));
    let limit = |net: &usernet_core::network::Network, which: PortId| {
        let (_, port) = net.ports().find(|(id, _)| *id == which).unwrap();
        port.drops.of(DropReason::FragmentLimit)
    };
    assert_eq!((limit(&sim.net, flooder), limit(&sim.net, port)), (100_000 - 16, 0));
    // All of it goes with the guest.
    sim.remove(flooder);
    assert_eq!(sim.net.incomplete(flooder), 0);
    sim.finish();
}

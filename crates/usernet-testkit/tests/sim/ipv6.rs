//! IPv6: finding each other, getting addresses, and everything that works over IPv4.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use smoltcp::wire::IpEndpoint;
use usernet_core::dhcp6;
use usernet_core::drops::DropReason;
use usernet_core::host::HostError;
use usernet_core::network::{Config, Target, UdpVia};
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_core::wire::MacAddr;
use usernet_testkit::{
    App, Close, Connect, Faults, GuestConfig, Ipv6, Peer, Sim, SmolGuest, Then, digest_of,
};

use super::{PORT, assert_streams, is_over, wind_down};

const STATIC: Ipv6 = Ipv6::Static(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x77));

fn config(seed: u64) -> Config {
    Config { net6: Some(dhcp6::Config::default()), ..super::config(seed) }
}

fn one_guest(seed: u64, faults: Faults, ipv6: Ipv6, peer: Peer) -> (Sim<SmolGuest>, PortId) {
    let mut sim = Sim::new(seed, config(seed));
    sim.host.peers.insert(PORT, peer);
    let guest = SmolGuest::new(GuestConfig { seed, ipv6: Some(ipv6), ..GuestConfig::default() });
    let port = sim.add(guest, faults, faults);
    (sim, port)
}

fn peer_addr() -> SocketAddr {
    to("[2001:db8::1]:80")
}

fn to(addr: &str) -> SocketAddr {
    addr.parse().unwrap()
}

fn from(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}

fn lossy() -> Faults {
    Faults { loss: 20, reorder: 20, duplicate: 10, late: Duration::from_micros(500), ..Faults::default() }
}

#[test]
fn a_guest_makes_itself_an_address_and_keeps_it() {
    let (mut sim, port) = one_guest(1, Faults::default(), Ipv6::Slaac, Peer::default());
    assert!(sim.run(Duration::from_secs(5), |sim| sim.guest(port).addr_v6().is_some()));
    let expected: Ipv6Addr = "fd00::5054:ff:fe12:3456".parse().unwrap();
    assert_eq!(sim.guest(port).addr_v6(), Some(expected));
    // The router is advertised again before its lifetime is over, for days.
    for _ in 0..50 {
        sim.pass(Duration::from_secs(3600));
        let app = App { seed: 3, send: 100, close: Close::Sent, ..App::default() };
        let stream = sim.guest(port).connect_to(peer_addr(), app);
        assert!(sim.run(Duration::from_secs(5), |sim| sim.guest(port).opened(stream)));
    }
    assert_eq!(sim.guest(port).addr_v6(), Some(expected));
    sim.finish();
}

#[test]
fn streams_pass_whole_in_both_directions() {
    for (seed, faults) in [(1, Faults::default()), (2, lossy()), (3, lossy())] {
        for ipv6 in [STATIC, Ipv6::Slaac] {
            let peer = Peer { seed: 8, send: 2_000_000, ..Peer::default() };
            let (mut sim, port) = one_guest(seed, faults, ipv6, peer);
            assert!(sim.run(Duration::from_secs(60), |sim| sim.guest(port).addr_v6().is_some()));
            let app = App { seed: 9, send: 1_000_000, close: Close::Sent, ..App::default() };
            let stream = sim.guest(port).connect_to(peer_addr(), app);
            sim.run(Duration::from_secs(300), is_over);
            assert_eq!(sim.host.ends()[0].to, Some(peer_addr()));
            assert_streams(&mut sim, port, stream, &app, &peer);
            sim.finish();
        }
    }
}

#[test]
fn the_segment_size_leaves_room_for_the_longer_header() {
    let (mut sim, port) =
        one_guest(1, Faults::default(), STATIC, Peer { send: 100_000, then: Then::Fin, ..Peer::default() });
    let stream = sim.guest(port).connect_to(peer_addr(), App::default());
    assert!(sim.run(Duration::from_secs(5), |sim| sim.guest(port).received(stream) == 100_000));
    let segments: Vec<u16> = sim.net.tcp_flows().iter().map(|(_, entry)| entry.flow.tcp.segment()).collect();
    assert_eq!(segments, [1440]);
    wind_down(sim);
}

#[test]
fn the_gateway_is_loopback_and_dns_a_service() {
    let (mut sim, port) = one_guest(1, Faults::default(), STATIC, Peer::default());
    sim.host.peers.insert(53, Peer::default());
    let app = App { send: 100, close: Close::Never, ..App::default() };
    sim.guest(port).connect_to(to("[fd00::2]:80"), app);
    sim.guest(port).connect_to(to("[fd00::3]:53"), app);
    assert!(sim.run(Duration::from_secs(5), |sim| sim.host.ends().len() == 2));
    let mut targets: Vec<_> = sim.net.tcp_flows().iter().filter_map(|(_, e)| e.flow.target).collect();
    targets.sort_by_key(|target| matches!(target, Target::Dns));
    assert_eq!(targets, [Target::Host(to("[::1]:80")), Target::Dns]);

    let socket = sim.guest(port).udp(4000);
    sim.guest(port).udp_send_to(socket, to("[fd00::3]:53"), b"query");
    sim.pass(Duration::from_secs(3));
    let received = sim.guest(port).udp_received(socket);
    assert_eq!(received.len(), 1);
    assert_eq!((from(received[0].0), &received[0].1[..]), (to("[fd00::3]:53"), &b"query"[..]));
    sim.finish();
}

#[test]
fn datagrams_go_out_and_their_answers_come_back() {
    let (mut sim, port) = one_guest(1, Faults::default(), STATIC, Peer::default());
    let socket = sim.guest(port).udp(4000);
    let peers = ["[2001:db8::1]:7", "[2001:db8::2]:7", "[fd00::2]:9"].map(to);
    let mut received = Vec::new();
    for peer in peers {
        sim.guest(port).udp_send_to(socket, peer, peer.to_string().as_bytes());
        sim.pass(Duration::from_secs(3));
        received.extend(sim.guest(port).udp_received(socket));
    }
    let senders: Vec<_> = received.iter().map(|(sender, _)| from(*sender)).collect();
    assert_eq!(senders, peers);
    assert_eq!((sim.net.udp_flows().len(), sim.datagrams[2].1), (1, to("[::1]:9")));
    sim.finish();
}

#[test]
fn pings_are_answered_by_the_gateway_and_from_outside() {
    let (mut sim, port) = one_guest(1, Faults::default(), STATIC, Peer::default());
    let socket = sim.guest(port).ping(77);
    let hosts = ["fd00::2", "fd00::3", "fe80::5055:aff:fe00:202", "2001:db8::1"];
    for (seq, host) in (0..).zip(hosts) {
        let host: Ipv6Addr = host.parse().unwrap();
        sim.guest(port).ping_send_v6(socket, host, 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        let replies = sim.guest(port).ping_received(socket);
        assert_eq!(replies, [(host.into(), seq, b"abcdefg".to_vec())]);
    }
    assert_eq!(sim.net.ping_flows().len(), 1);
    sim.finish();
}

#[test]
fn connections_are_forwarded_to_a_guest_that_is_found_by_its_neighbours() {
    for (seed, from, seen) in [
        (1, "[2001:db8::9]:1000", "2001:db8::9"),
        (2, "[::1]:1000", "fd00::2"),
        (3, "[fe80::9]:1000", "fd00::2"),
        (4, "192.0.2.9:1000", "fd00::2"),
        (5, "[::ffff:127.0.0.1]:1000", "fd00::2"),
    ] {
        let faults = if seed == 1 { lossy() } else { Faults::default() };
        let peer = Peer { seed: 4, send: 50_000, then: Then::Fin, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults, STATIC, peer);
        let app = App { seed: 5, send: 60_000, close: Close::Eof, ..App::default() };
        let stream = sim.guest(port).listen(22, app);
        let guest = Endpoint { addr: "fd00::77".parse().unwrap(), port: 22 };
        sim.accept(guest, to(from), peer).unwrap();
        let key = sim.net.tcp_flows().iter().next().unwrap().1.key;
        assert_eq!(key.peer.unwrap().addr, seen.parse::<IpAddr>().unwrap(), "{from}");
        sim.run(Duration::from_secs(120), is_over);
        assert_streams(&mut sim, port, stream, &app, &peer);
        sim.finish();
    }
}

#[test]
fn datagrams_are_forwarded() {
    let (mut sim, port) = one_guest(1, Faults::default(), STATIC, Peer::default());
    sim.echoes = false;
    let socket = sim.guest(port).udp(68);
    let target = Endpoint { addr: "fd00::77".parse().unwrap(), port: 68 };
    let peers = ["[2001:db8::5]:1000", "127.0.0.1:1002"].map(to);
    assert_eq!(sim.datagram_to_forward(1, target, peers[0], b"first"), Err(DropReason::Unresolved));
    sim.pass(Duration::from_secs(1));
    for peer in peers {
        sim.datagram_to_forward(1, target, peer, b"hello").unwrap();
    }
    sim.pass(Duration::from_secs(1));
    let received = sim.guest(port).udp_received(socket);
    let senders: Vec<_> = received.iter().map(|(sender, _)| from(*sender)).collect();
    assert_eq!(senders, ["[2001:db8::5]:1000", "[fd00::2]:1002"].map(to));
    for sender in senders {
        sim.guest(port).udp_send_to(socket, sender, b"answer");
    }
    sim.pass(Duration::from_secs(3));
    let sent: Vec<_> = sim.datagrams.iter().map(|(via, to, _)| (*via, *to)).collect();
    assert_eq!(sent, peers.map(|peer| (UdpVia::Forward { forward: 1, local: None }, peer)));
    sim.finish();
}

#[test]
fn guests_reach_each_other() {
    for (ipv6, faults) in [(false, Faults::default()), (true, Faults::default()), (true, lossy())] {
        let mut sim = Sim::new(1, config(1));
        let ports = [1, 2].map(|n: u8| {
            let addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x20 + u16::from(n));
            let guest = GuestConfig {
                mac: MacAddr([0x52, 0x54, 0, 0, 0, n]),
                addr: Some([10, 0, 2, 20 + n].into()),
                ipv6: Some(if ipv6 { Ipv6::Slaac } else { Ipv6::Static(addr) }),
                ..GuestConfig::default()
            };
            sim.add(SmolGuest::new(guest), faults, faults)
        });
        assert!(
            sim.run(Duration::from_secs(60), |sim| ports.iter().all(|p| sim.guest(*p).addr_v6().is_some()))
        );
        let other = sim.guest(ports[1]).addr_v6().unwrap();
        let stream = sim.guest(ports[1]).listen(7, App { echo: true, ..App::default() });
        let app = App { seed: 6, send: 200_000, close: Close::Sent, ..App::default() };
        let out = sim.guest(ports[0]).connect_to(SocketAddr::new(other.into(), 7), app);
        assert!(sim.run(Duration::from_secs(120), |sim| sim.guest(ports[0]).received(out) == 200_000));
        assert_eq!(sim.guest(ports[0]).digest(out), digest_of(6, 200_000));
        assert_eq!(sim.guest(ports[1]).received(stream), 200_000);
        assert_eq!(sim.net.tcp_flows().len(), 0, "frames between guests make no flows");
        sim.finish();
    }
}

#[test]
fn a_host_without_a_route_is_no_wait() {
    for error in [HostError::NetUnreachable, HostError::Refused] {
        let fails = Peer { connect: Connect::Fails(error, Duration::ZERO), ..Peer::default() };
        let (mut sim, port) = one_guest(1, Faults::default(), STATIC, fails);
        let stream = sim.guest(port).connect_to(peer_addr(), App::default());
        let refused = sim.run(Duration::from_millis(5), |sim| sim.guest(port).state(stream) == State::Closed);
        // smoltcp hears of a reset and is deaf to ICMP; what is said is looked at beside the core.
        assert_eq!(refused, error == HostError::Refused);
        assert!(sim.run(Duration::from_millis(5), |sim| sim.host.open() == 0 && !sim.host.ends().is_empty()));
        assert_eq!(sim.net.tcp_flows().len(), 0, "{error}");
        sim.finish();
    }
}

#[test]
fn without_ipv4_there_is_ipv6_alone() {
    let mut sim = Sim::new(1, Config { ipv4: false, ..config(1) });
    sim.host.peers.insert(PORT, Peer { echo: true, ..Peer::default() });
    let guest = GuestConfig { addr: None, ipv6: Some(Ipv6::Slaac), ..GuestConfig::default() };
    let port = sim.add(SmolGuest::new(guest), Faults::default(), Faults::default());
    assert!(sim.run(Duration::from_secs(5), |sim| sim.guest(port).addr_v6().is_some()));
    let app = App { seed: 6, send: 2000, close: Close::Sent, ..App::default() };
    let stream = sim.guest(port).connect_to(peer_addr(), app);
    assert!(sim.run(Duration::from_secs(10), |sim| sim.guest(port).received(stream) == 2000));
    sim.pass(Duration::from_secs(60));
    assert_eq!(sim.guest(port).addr(), None);
    assert!(sim.net.drops().of(DropReason::EtherType) > 0);
    sim.finish();
}

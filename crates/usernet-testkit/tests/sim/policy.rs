//! What a network refuses to carry, and what it carries to groups.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::wire::IpEndpoint;
use usernet_core::dhcp6;
use usernet_core::drops::DropReason;
use usernet_core::network::{Config, MulticastService, UdpVia};
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_core::wire::MacAddr;
use usernet_testkit::{App, Close, Faults, GuestConfig, Ipv6, Peer, Sim, SmolGuest, Then};

use super::{GATEWAY, PORT, assert_streams, is_over, wind_down};

const ADDR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);

fn config() -> Config {
    Config { net6: Some(dhcp6::Config::default()), ..super::config(1) }
}

fn restricted() -> Config {
    Config { restrict: true, ..config() }
}

fn asking() -> Config {
    Config { multicast: MulticastService::ALL.to_vec(), ..config() }
}

/// A network with guests 10.0.2.15, 10.0.2.16 and so on, and fd00::15 and so on.
fn guests<const N: usize>(config: Config) -> (Sim<SmolGuest>, [PortId; N]) {
    let mut sim = Sim::new(1, config);
    let mut numbers = 0..u8::MAX;
    let ports = std::array::from_fn(|_| {
        let n = numbers.next().unwrap();
        let guest = GuestConfig {
            mac: MacAddr([0x52, 0x54, 0, 0, 0, n]),
            addr: Some([10, 0, 2, 15 + n].into()),
            ipv6: Some(Ipv6::Static(Ipv6Addr::from_bits(ADDR6.to_bits() + u128::from(n)))),
            ..GuestConfig::default()
        };
        sim.add(SmolGuest::new(guest), Faults::default(), Faults::default())
    });
    (sim, ports)
}

fn to(addr: &str) -> SocketAddr {
    addr.parse().unwrap()
}

fn from(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}

/// Whether a connect from the guest is refused by its first segment, and the host has not heard of it.
fn refuses(sim: &mut Sim<SmolGuest>, port: PortId, peer: &str) -> bool {
    let before = sim.net.drops().of(DropReason::Policy);
    let stream = sim.guest(port).connect_to(to(peer), App::default());
    // The guest may be a second in asking who has the gateway.
    let over = sim.run(Duration::from_secs(5), |sim| {
        sim.guest(port).state(stream) == smoltcp::socket::tcp::State::Closed
    });
    over && sim.net.drops().of(DropReason::Policy) == before + 1 && sim.host.ends().is_empty()
}

fn send(sim: &mut Sim<SmolGuest>, port: PortId, socket: SocketHandle, peer: &str, payload: &[u8]) {
    sim.guest(port).udp_send_to(socket, to(peer), payload);
    sim.pass(Duration::from_secs(3));
}

fn received(sim: &mut Sim<SmolGuest>, port: PortId, socket: SocketHandle) -> Vec<(String, Vec<u8>)> {
    let received = sim.guest(port).udp_received(socket);
    received.into_iter().map(|(sender, payload)| (from(sender).to_string(), payload)).collect()
}

#[test]
fn a_restricted_guest_begins_nothing_and_is_told_at_once() {
    let (mut sim, [port]) = guests(restricted());
    sim.host.peers.insert(53, Peer::default());
    for peer in
        ["10.0.2.2:80", "10.0.2.3:53", "192.0.2.1:80", "[fd00::2]:80", "[fd00::3]:53", "[2001:db8::1]:80"]
    {
        assert!(refuses(&mut sim, port, peer), "{peer}");
    }
    let socket = sim.guest(port).udp(4000);
    let before = sim.net.drops().of(DropReason::Policy);
    let peers = ["10.0.2.2:53", "10.0.2.3:53", "192.0.2.1:9", "[fd00::3]:53", "[2001:db8::1]:9"];
    for peer in peers {
        send(&mut sim, port, socket, peer, b"query");
    }
    assert_eq!(sim.net.drops().of(DropReason::Policy) - before, peers.len() as u64);
    assert_eq!((sim.queries, sim.datagrams.len(), sim.net.udp_flows().len()), (0, 0, 0));
    sim.finish();
}

#[test]
fn a_restricted_guest_pings_the_gateway_and_the_dns_server_only() {
    let (mut sim, [port]) = guests(restricted());
    let socket = sim.guest(port).ping(77);
    for (seq, host) in (0..).zip(["10.0.2.2", "10.0.2.3", "192.0.2.1"]) {
        sim.guest(port).ping_send(socket, host.parse().unwrap(), 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        assert_eq!(sim.guest(port).ping_received(socket).len(), usize::from(host != "192.0.2.1"), "{host}");
    }
    for (seq, host) in (0..).zip(["fd00::2", "fd00::3", "fe80::5055:aff:fe00:202", "2001:db8::1"]) {
        sim.guest(port).ping_send_v6(socket, host.parse().unwrap(), 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        assert_eq!(sim.guest(port).ping_received(socket).len(), usize::from(host != "2001:db8::1"), "{host}");
    }
    assert_eq!((sim.net.ping_flows().len(), sim.net.drops().of(DropReason::Policy)), (0, 2));
    sim.finish();
}

#[test]
fn nothing_else_that_is_on_opens_a_restricted_network() {
    let config = Config { nat64: true, multicast: MulticastService::ALL.to_vec(), ..restricted() };
    let (mut sim, [port]) = guests(config);
    let socket = sim.guest(port).udp(4000);
    for peer in ["224.0.0.251:5353", "[ff02::fb]:5353", "[64:ff9b::192.0.2.1]:7"] {
        sim.guest(port).udp_send_to(socket, to(peer), &[0; 12]);
        sim.pass(Duration::from_secs(1));
    }
    assert!(sim.datagrams.is_empty());
    assert!(refuses(&mut sim, port, "[64:ff9b::192.0.2.1]:80"));
    wind_down(sim);
}

#[test]
fn forwards_pass_into_a_restricted_guest_as_from_the_gateway() {
    for (guest, peer, seen) in [
        ("10.0.2.15", "127.0.0.1:5000", "10.0.2.2:5000"),
        ("10.0.2.15", "192.0.2.9:5000", "10.0.2.2:5000"),
        ("fd00::15", "[2001:db8::9]:5000", "[fd00::2]:5000"),
    ] {
        let (mut sim, [port]) = guests(restricted());
        let app = App { seed: 5, send: 60_000, close: Close::Sent, ..App::default() };
        let script = Peer { seed: 4, send: 50_000, then: Then::Fin, ..Peer::default() };
        let stream = sim.guest(port).listen(22, app);
        sim.accept(Endpoint { addr: guest.parse().unwrap(), port: 22 }, to(peer), script).unwrap();
        assert!(sim.run(Duration::from_secs(5), |sim| sim.guest(port).opened(stream)), "{peer}");
        let remote = sim.guest(port).socket(stream).remote_endpoint().unwrap();
        assert_eq!(from(remote), to(seen));
        assert!(sim.run(Duration::from_secs(120), is_over), "{peer}");
        assert_streams(&mut sim, port, stream, &app, &script);
        assert_eq!(sim.net.drops().of(DropReason::Policy), 0);
        wind_down(sim);
    }
}

#[test]
fn datagrams_of_a_forward_pass_both_ways_and_no_others_of_the_same_port() {
    let (mut sim, [port]) = guests(restricted());
    sim.echoes = false;
    let socket = sim.guest(port).udp(68);
    let target = Endpoint { addr: [10, 0, 2, 15].into(), port: 68 };
    // The same port, and the guest sees one address.
    let peers = ["192.0.2.5:1000", "192.0.2.6:1000", "127.0.0.1:1000"].map(to);
    let _ = sim.datagram_to_forward(1, target, peers[0], b"first");
    sim.pass(Duration::from_secs(1));
    for _ in 0..2 {
        for peer in peers {
            sim.datagram_to_forward(1, target, peer, peer.to_string().as_bytes()).unwrap();
        }
    }
    sim.pass(Duration::from_secs(1));
    let heard = sim.guest(port).udp_received(socket);
    assert_eq!((heard.len(), sim.net.udp_flows().len()), (6, 3));
    assert_eq!(from(heard[0].0), to("10.0.2.2:1000"));
    for (sender, payload) in &heard[3..] {
        assert_eq!(from(*sender).ip(), GATEWAY);
        sim.guest(port).udp_send_to(socket, from(*sender), payload);
    }
    sim.pass(Duration::from_secs(3));
    let via = UdpVia::Forward { forward: 1, local: None };
    let expected = peers.map(|peer| (via, peer, peer.to_string().into_bytes()));
    assert_eq!(sim.datagrams, expected, "each peer has its own answer");
    send(&mut sim, port, socket, "10.0.2.2:1001", b"begun by the guest");
    assert_eq!((sim.datagrams.len(), sim.net.drops().of(DropReason::Policy)), (3, 1));
    sim.finish();
}

#[test]
fn guests_of_a_restricted_network_reach_each_other() {
    let (mut sim, [first, second]) = guests(restricted());
    let server = sim.guest(second).listen(PORT, App::default());
    sim.guest(first).connect_to(to("10.0.2.16:80"), App::default());
    assert!(sim.run(Duration::from_secs(3), |sim| sim.guest(second).opened(server)));
    sim.finish();
}

#[test]
fn the_hosts_link_local_range_is_closed_unless_it_is_opened() {
    let metadata = ["169.254.169.254:80", "[64:ff9b::a9fe:a9fe]:80", "[fd00:ec2::254]:80"];
    let (mut sim, [port]) = guests(config());
    for peer in metadata {
        assert!(refuses(&mut sim, port, peer), "{peer}");
    }
    let socket = sim.guest(port).udp(4000);
    send(&mut sim, port, socket, "169.254.169.254:53", b"query");
    assert_eq!((sim.datagrams.len(), sim.net.drops().of(DropReason::Policy)), (0, 4));
    sim.finish();

    let (mut sim, [port]) = guests(Config { host_link_local: true, ..config() });
    for peer in metadata {
        sim.guest(port).connect_to(to(peer), App::default());
    }
    assert!(sim.run(Duration::from_secs(3), |sim| sim.host.ends().len() == 3));
    sim.finish();
}

#[test]
fn what_goes_to_a_group_goes_to_other_guests_and_no_farther() {
    let groups = ["224.0.0.251:5353", "255.255.255.255:9", "10.0.2.255:9", "[ff02::fb]:5353", "[ff0e::9]:9"];
    for multicast in [Vec::new(), MulticastService::ALL.to_vec()] {
        let (mut sim, [first, second]) = guests(Config { multicast, ..config() });
        let socket = sim.guest(first).udp(4000);
        let hears = sim.guest(second).udp(9);
        for group in groups {
            // An answer, as mDNS has it.
            send(&mut sim, first, socket, group, &[0, 0, 0x84, 0]);
        }
        // It is a member of no group but these two.
        assert_eq!(sim.guest(second).udp_received(hears).len(), 2);
        assert_eq!((sim.datagrams.len(), sim.net.udp_flows().len()), (0, 0));
        assert_eq!(sim.net.drops().of(DropReason::Multicast), 0);
        sim.remove(second);
        send(&mut sim, first, socket, groups[0], &[0, 0, 0x84, 0]);
        assert_eq!((sim.datagrams.len(), sim.net.drops().of(DropReason::Multicast)), (0, 1));
        sim.finish();
    }
}

#[test]
fn the_gateway_answers_who_asks_all_nodes_or_all_routers() {
    let (mut sim, [port]) = guests(config());
    let socket = sim.guest(port).ping(77);
    for (seq, group) in (0..).zip(["ff02::1", "ff02::2", "ff02::5"]) {
        sim.guest(port).ping_send_v6(socket, group.parse().unwrap(), 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        let replies = sim.guest(port).ping_received(socket);
        let router: Ipv6Addr = "fe80::5055:aff:fe00:202".parse().unwrap();
        let expected = [(router.into(), seq, b"abcdefg".to_vec())];
        assert_eq!(replies, expected[usize::from(group == "ff02::5")..], "{group}");
    }
    // As Linux has it, IPv4's groups are not answered.
    for (seq, group) in (3..).zip(["224.0.0.1", "255.255.255.255", "10.0.2.255"]) {
        sim.guest(port).ping_send(socket, group.parse().unwrap(), 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        assert_eq!(sim.guest(port).ping_received(socket), [], "{group}");
    }
    sim.finish();
}

const QUESTION: &[u8] = &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
const SEARCH: &[u8] = b"M-SEARCH * HTTP/1.1\r\n";

#[test]
fn questions_for_a_service_go_out_and_answers_come_in() {
    for (group, question, answers, others) in [
        (
            "224.0.0.251:5353",
            QUESTION,
            ["192.0.2.9:5353", "192.0.2.8:5353"],
            ["192.0.2.9:53", "10.0.2.9:5353"],
        ),
        ("239.255.255.250:1900", SEARCH, ["192.0.2.9:1900", "192.0.2.8:3"], ["127.0.0.1:9", "169.254.9.9:9"]),
        (
            "[ff02::fb]:5353",
            QUESTION,
            ["[fe80::9]:5353", "[2001:db8::9]:5353"],
            ["[fe80::9]:1", "[::1]:5353"],
        ),
        ("[ff02::c]:1900", SEARCH, ["[fe80::9]:1900", "[fe80::8]:2"], ["[fd00::9]:1900", "[::1]:3"]),
    ] {
        let (mut sim, [port]) = guests(asking());
        let socket = sim.guest(port).udp(5353);
        send(&mut sim, port, socket, group, question);
        let via = UdpVia::Own { guest_port: 0 };
        assert_eq!(sim.datagrams, [(via, to(group), question.to_vec())]);
        let flow = sim.net.udp_flows().iter().next().unwrap().0;
        for answer in answers {
            assert_eq!(sim.datagram_to_flow(flow, to(answer), b"here"), Ok(()), "{answer}");
        }
        for other in others {
            let filtered = Err(DropReason::UdpFiltered);
            assert_eq!(sim.datagram_to_flow(flow, to(other), b"there"), filtered, "{other}");
        }
        sim.pass(Duration::from_secs(1));
        // Who has an address of the host's link only appears as the gateway.
        let seen = answers.map(|it| it.replace("fe80::9", "fd00::2").replace("fe80::8", "fd00::2"));
        assert_eq!(received(&mut sim, port, socket), seen.map(|answer| (answer, b"here".to_vec())));
        // They may come for ten seconds, which they do not make longer.
        for _ in 0..8 {
            let _ = sim.datagram_to_flow(flow, to(answers[0]), b"late");
            sim.pass(Duration::from_secs(1));
        }
        assert_eq!((sim.net.udp_flows().len(), sim.closed.len()), (0, 1), "{group}");
        sim.finish();
    }
}

#[test]
fn what_the_network_was_not_told_to_carry_stays_inside() {
    let (mut sim, [port]) = guests(Config { multicast: vec![MulticastService::Mdns], ..config() });
    let socket = sim.guest(port).udp(5353);
    // Another service, another port of the group, and what a guest announces.
    for (group, payload) in [
        ("239.255.255.250:1900", SEARCH),
        ("224.0.0.251:5354", QUESTION),
        ("224.0.0.252:5353", QUESTION),
        ("224.0.0.251:5353", &[0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        ("224.0.0.251:5353", &[]),
    ] {
        send(&mut sim, port, socket, group, payload);
    }
    assert_eq!((sim.datagrams.len(), sim.net.drops().of(DropReason::Multicast)), (0, 5));
    sim.finish();
}

#[test]
fn the_host_itself_does_not_answer_where_it_is_closed() {
    let host = to("192.0.2.1:5353");
    let closed = Config { host_loopback: false, host_addrs: vec![(host.ip(), 32)], ..asking() };
    let (mut sim, [port]) = guests(closed);
    let socket = sim.guest(port).udp(4000);
    send(&mut sim, port, socket, "224.0.0.251:5353", QUESTION);
    let flow = sim.net.udp_flows().iter().next().unwrap().0;
    assert_eq!(sim.datagram_to_flow(flow, host, b"here"), Err(DropReason::UdpFiltered));
    assert_eq!(sim.datagram_to_flow(flow, to("192.0.2.7:5353"), b"here"), Ok(()));
    sim.finish();
}

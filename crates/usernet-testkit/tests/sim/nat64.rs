//! NAT64: IPv6 guests and IPv4 hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use usernet_core::dhcp6;
use usernet_core::drops::DropReason;
use usernet_core::nat64::embed;
use usernet_core::network::{Config, UdpVia};
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_testkit::{App, Close, Faults, GuestConfig, Ipv6, Peer, Sim, SmolGuest, Then};

use super::{PORT, assert_streams, is_over};

const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A network without IPv4, and its guest.
fn one_guest(nat64: bool, peer: Peer) -> (Sim<SmolGuest>, PortId) {
    let net6 = Some(dhcp6::Config::default());
    let mut sim = Sim::new(1, Config { ipv4: false, net6, nat64, ..super::config(1) });
    sim.host.peers.insert(PORT, peer);
    let ipv6 = Ipv6::Static("fd00::77".parse().unwrap());
    let guest = GuestConfig { addr: None, ipv6: Some(ipv6), ..GuestConfig::default() };
    let port = sim.add(SmolGuest::new(guest), Faults::default(), Faults::default());
    (sim, port)
}

fn at(addr: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), port)
}

#[test]
fn streams_pass_whole_in_both_directions() {
    for (named, host) in [(LAN, LAN), (GATEWAY, Ipv4Addr::LOCALHOST)] {
        let peer = Peer { seed: 8, send: 500_000, ..Peer::default() };
        let (mut sim, port) = one_guest(true, peer);
        let app = App { seed: 9, send: 400_000, close: Close::Sent, ..App::default() };
        let stream = sim.guest(port).connect_to(at(embed(named), PORT), app);
        sim.run(Duration::from_secs(60), is_over);
        assert_eq!(sim.host.ends()[0].to, Some(at(host, PORT)));
        assert_streams(&mut sim, port, stream, &app, &peer);
        sim.finish();
    }
}

#[test]
fn one_port_of_a_guest_speaks_to_hosts_of_both_kinds() {
    let (mut sim, port) = one_guest(true, Peer::default());
    let socket = sim.guest(port).udp(4000);
    let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let peers = [(embed(LAN), at(LAN, 7)), (v6, at(v6, 7)), (embed(GATEWAY), at(Ipv4Addr::LOCALHOST, 7))];
    for (named, host) in peers {
        sim.guest(port).udp_send_to(socket, at(named, 7), b"hello");
        sim.pass(Duration::from_secs(2));
        let received = sim.guest(port).udp_received(socket);
        let [(from, payload)] = &received[..] else { panic!("{received:?}") };
        assert_eq!((IpAddr::from(from.addr), &payload[..]), (named.into(), &b"hello"[..]));
        assert_eq!(
            sim.datagrams.last().map(|(via, to, _)| (*via, *to)),
            Some((UdpVia::Own { guest_port: 4000 }, host))
        );
    }
    // A socket for each kind of IP, and each hears only of its own.
    let flows: Vec<_> = sim.net.udp_flows().iter().map(|(_, entry)| entry.key.peer).collect();
    assert_eq!((flows.len(), flows.iter().filter(|peer| peer.is_none()).count()), (2, 1));
    sim.finish();
}

#[test]
fn pings_are_translated_both_ways() {
    let (mut sim, port) = one_guest(true, Peer::default());
    let socket = sim.guest(port).ping(77);
    let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
    for (seq, host) in (0..).zip([embed(LAN), v6, embed(GATEWAY)]) {
        sim.guest(port).ping_send_v6(socket, host, 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        // smoltcp checks the checksum.
        assert_eq!(sim.guest(port).ping_received(socket), [(host.into(), seq, b"abcdefg".to_vec())]);
    }
    assert_eq!(sim.net.ping_flows().len(), 2, "the gateway is not asked");
    sim.finish();
}

#[test]
fn a_forwarded_peer_shows_its_own_address() {
    for (from, seen) in [(LAN, LAN), (Ipv4Addr::LOCALHOST, GATEWAY)] {
        let peer = Peer { seed: 4, send: 5000, then: Then::Fin, ..Peer::default() };
        let (mut sim, port) = one_guest(true, peer);
        let app = App { seed: 5, send: 6000, close: Close::Eof, ..App::default() };
        let stream = sim.guest(port).listen(22, app);
        let guest = Endpoint { addr: "fd00::77".parse().unwrap(), port: 22 };
        sim.accept(guest, at(from, 1000), peer).unwrap();
        let key = sim.net.tcp_flows().iter().next().unwrap().1.key;
        assert_eq!(key.peer, Some(Endpoint { addr: embed(seen).into(), port: 1000 }));
        sim.run(Duration::from_secs(60), is_over);
        assert_streams(&mut sim, port, stream, &app, &peer);

        let socket = sim.guest(port).udp(68);
        let target = Endpoint { port: 68, ..guest };
        sim.echoes = false;
        sim.datagram_to_forward(1, target, at(from, 1001), b"hello").unwrap();
        sim.pass(Duration::from_secs(1));
        assert_eq!(sim.guest(port).udp_received(socket).len(), 1);
        sim.guest(port).udp_send_to(socket, at(embed(seen), 1001), b"answer");
        sim.pass(Duration::from_secs(1));
        assert_eq!(
            sim.datagrams.last().map(|(via, to, _)| (*via, *to)),
            Some((UdpVia::Forward { forward: 1, local: None }, at(from, 1001)))
        );
        sim.finish();
    }
}

#[test]
fn what_ipv4_guests_may_not_reach_is_refused() {
    let (mut sim, port) = one_guest(true, Peer::default());
    let socket = sim.guest(port).udp(4000);
    for refused in ["127.0.0.1", "0.0.0.0", "224.0.0.251", "255.255.255.255", "240.0.0.1"] {
        let drops = sim.net.drops().of(DropReason::Policy);
        sim.guest(port).udp_send_to(socket, at(embed(refused.parse().unwrap()), 7), b"x");
        sim.pass(Duration::from_secs(2));
        assert_eq!(sim.net.drops().of(DropReason::Policy), drops + 1, "{refused}");
    }
    assert!(sim.datagrams.is_empty());
    sim.finish();
}

#[test]
fn without_nat64_the_prefix_is_the_hosts_to_route() {
    let (mut sim, port) = one_guest(false, Peer::default());
    let socket = sim.guest(port).udp(4000);
    let named = at(embed(Ipv4Addr::new(192, 0, 2, 1)), 7);
    sim.guest(port).udp_send_to(socket, named, b"x");
    sim.pass(Duration::from_secs(2));
    assert_eq!(sim.datagrams.last().map(|(_, to, _)| *to), Some(named));
    sim.finish();
}

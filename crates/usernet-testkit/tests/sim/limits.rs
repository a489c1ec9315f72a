//! Whatever a guest can make grow has a bound.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use usernet_core::drops::DropReason;
use usernet_core::network::{Config, Limits};
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_testkit::{App, Close, Connect, Faults, GuestConfig, Peer, Sim, SmolGuest, Then};

use super::{PORT, config, connect, is_over, peer_addr};

fn limited(limits: Limits, peer: Peer) -> (Sim<SmolGuest>, PortId) {
    let mut sim = Sim::new(1, Config { limits, ..config(1) });
    sim.host.peers.insert(PORT, peer);
    let port = sim.add(SmolGuest::new(GuestConfig::default()), Faults::default(), Faults::default());
    (sim, port)
}

fn of_port(sim: &Sim<SmolGuest>, reason: DropReason) -> u64 {
    sim.net.ports().next().unwrap().1.drops.of(reason)
}

#[test]
fn tcp_flows() {
    let stays = Peer { then: Then::Stays, ..Peer::default() };
    let (mut sim, port) = limited(Limits { tcp: 5, ..Limits::default() }, stays);
    let app = App { close: Close::Never, buffer: 2000, ..App::default() };
    let streams: Vec<_> = (0..8).map(|_| connect(&mut sim, port, app)).collect();
    sim.pass(Duration::from_secs(5));
    let states: Vec<_> = streams.iter().map(|stream| sim.guest(port).state(*stream)).collect();
    assert_eq!(states.iter().filter(|state| **state == State::Established).count(), 5);
    assert_eq!(states.iter().filter(|state| **state == State::Closed).count(), 3, "refused");
    assert_eq!(of_port(&sim, DropReason::FlowLimit), 3);
    let guest = Endpoint { addr: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), port: 22 };
    assert!(sim.accept(guest, "192.0.2.1:99".parse().unwrap(), stays).is_none());
    sim.finish();
}

#[test]
fn what_waits_for_strays_makes_room() {
    let (mut sim, port) =
        limited(Limits { tcp: 3, ..Limits::default() }, Peer { then: Then::Fin, ..Peer::default() });
    for _ in 0..20 {
        let stream = connect(&mut sim, port, App { buffer: 2000, ..App::default() });
        assert!(sim.run(Duration::from_secs(5), |sim| sim.guest(port).opened(stream) && is_over(sim)));
        assert!(sim.net.tcp_flows().len() <= 3);
    }
    assert_eq!(sim.host.ends().len(), 20);
    sim.finish();
}

#[test]
fn pending_connects() {
    let never = Peer { connect: Connect::Never, ..Peer::default() };
    let (mut sim, port) = limited(Limits { connecting: 2, ..Limits::default() }, never);
    for _ in 0..4 {
        connect(&mut sim, port, App { buffer: 2000, ..App::default() });
    }
    sim.pass(Duration::from_millis(500));
    assert_eq!(sim.host.open(), 2);
    assert_eq!(of_port(&sim, DropReason::PendingLimit), 2);
    // Room comes with the end of one; the guest's SYNs go on.
    sim.host.peers.insert(PORT, Peer { then: Then::Stays, ..Peer::default() });
    assert!(sim.run(Duration::from_secs(300), |sim| sim.host.ends().len() == 4));
    sim.finish();
}

#[test]
fn forwarded_connections_without_a_guest() {
    let mut sim = Sim::<SmolGuest>::new(
        1,
        Config { limits: Limits { unresolved: 3, ..Limits::default() }, ..config(1) },
    );
    let guest = Endpoint { addr: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 99)), port: 22 };
    let accepted = (1000..1010u16)
        .filter(|port| {
            sim.accept(guest, (Ipv4Addr::new(192, 0, 2, 1), *port).into(), Peer::default()).is_some()
        })
        .count();
    assert_eq!(accepted, 3);
    assert_eq!(sim.net.drops().of(DropReason::FlowLimit), 7);
    assert!(sim.run(Duration::from_secs(100), |sim| sim.host.open() == 0));
    sim.finish();
}

#[test]
fn udp_flows_and_peers() {
    let limits = Limits { udp: 3, udp_peers: 2, ..Limits::default() };
    let (mut sim, port) = limited(limits, Peer::default());
    sim.echoes = false;
    let sockets: Vec<_> = (0..5).map(|n| sim.guest(port).udp(4000 + n)).collect();
    for socket in &sockets {
        sim.guest(port).udp_send(*socket, peer_addr(), b"x");
        sim.pass(Duration::from_secs(2));
    }
    assert_eq!((sim.net.udp_flows().len(), sim.closed.len()), (3, 2));
    assert_eq!(of_port(&sim, DropReason::FlowLimit), 2);
    // The least recently used has gone, its socket with it.
    let mut ports: Vec<_> = sim.net.udp_flows().iter().map(|(_, e)| e.key.guest.port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [4002, 4003, 4004]);
    for n in 1..5 {
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, n), 7);
        sim.guest(port).udp_send(sockets[4], to, b"x");
        sim.pass(Duration::from_secs(2));
    }
    let flow = sim.net.udp_flows().iter().find(|(_, e)| e.key.guest.port == 4004).unwrap().0;
    for (from, heard) in [("192.0.2.2:7", false), ("192.0.2.3:7", true), ("192.0.2.4:7", true)] {
        assert_eq!(sim.datagram_to_flow(flow, from.parse().unwrap(), b"y").is_ok(), heard, "{from}");
    }
    sim.finish();
}

#[test]
fn pings_and_dns_queries() {
    let (mut sim, port) = limited(Limits { ping: 2, dns: 1, ..Limits::default() }, Peer::default());
    sim.echoes = false;
    for ident in 1..5 {
        let socket = sim.guest(port).ping(ident);
        sim.guest(port).ping_send(socket, *peer_addr().ip(), ident, 0, b"x");
        sim.pass(Duration::from_secs(2));
    }
    assert_eq!((sim.net.ping_flows().len(), sim.closed.len()), (2, 2));
    let socket = sim.guest(port).udp(4000);
    for _ in 0..3 {
        sim.guest(port).udp_send(socket, "10.0.2.3:53".parse().unwrap(), b"query");
        sim.pass(Duration::from_secs(2));
    }
    assert_eq!((sim.queries, of_port(&sim, DropReason::DnsLimit)), (1, 2));
    sim.finish();
}

//! Connections that the host accepts for a guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use usernet_core::table::Endpoint;
use usernet_testkit::{App, Close, Ended, Faults, GuestConfig, Peer, Sim, SmolGuest, Then};

use super::{GATEWAY, assert_streams, config, is_over, one_guest, wind_down};

const GUEST: Endpoint = Endpoint { addr: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), port: 22 };

fn from(addr: &str) -> SocketAddr {
    addr.parse().unwrap()
}

#[test]
fn a_forwarded_connection_carries_streams() {
    for seed in 0..30 {
        let faults = Faults { loss: if seed % 2 == 0 { 0 } else { 50 }, ..Faults::default() };
        let app = App { seed, send: 100_000, close: Close::Sent, ..App::default() };
        let peer = Peer { seed: 8, send: 100_000, then: Then::Fin, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults, faults, Peer::default());
        let stream = sim.guest(port).listen(22, app);
        sim.accept(GUEST, from("192.0.2.9:5000"), peer).unwrap();
        assert!(sim.run(Duration::from_secs(120), is_over), "seed {seed}");
        assert_streams(&mut sim, port, stream, &app, &peer);
        wind_down(sim);
    }
}

#[test]
fn a_peer_is_seen_with_its_address_and_loopback_as_the_gateway() {
    for (peer, seen) in [
        ("192.0.2.9:5000", Ipv4Addr::new(192, 0, 2, 9)),
        ("127.0.0.1:5000", GATEWAY),
        ("[::1]:5000", GATEWAY),
        ("[::ffff:192.0.2.9]:5000", Ipv4Addr::new(192, 0, 2, 9)),
    ] {
        let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), Peer::default());
        let stream = sim.guest(port).listen(22, App::default());
        sim.accept(GUEST, from(peer), Peer { then: Then::Stays, ..Peer::default() }).unwrap();
        assert!(sim.run(Duration::from_secs(3), |sim| sim.guest(port).opened(stream)), "{peer}");
        let remote = sim.guest(port).socket(stream).remote_endpoint().unwrap();
        assert_eq!((remote.addr, remote.port), (seen.into(), 5000));
        sim.finish();
    }
}

#[test]
fn one_peer_may_come_by_two_forwards() {
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), Peer::default());
    let streams = [0, 1].map(|_| sim.guest(port).listen(22, App::default()));
    for _ in 0..2 {
        sim.accept(GUEST, from("127.0.0.1:5000"), Peer { then: Then::Stays, ..Peer::default() }).unwrap();
    }
    assert!(sim.run(Duration::from_secs(3), |sim| streams.iter().all(|s| sim.guest(port).opened(*s))));
    sim.finish();
}

#[test]
fn a_guest_that_refuses_makes_the_peer_see_a_reset() {
    let (mut sim, _) = one_guest(1, Faults::default(), Faults::default(), Peer::default());
    sim.accept(GUEST, from("192.0.2.9:5000"), Peer::default()).unwrap();
    assert!(sim.run(Duration::from_secs(3), |sim| sim.host.open() == 0));
    assert_eq!(sim.host.ends()[0].ended, Ended::Reset);
    wind_down(sim);
}

#[test]
fn a_guest_that_appears_later_is_connected_at_once() {
    let mut sim = Sim::new(1, config(1));
    let peer = Peer { seed: 4, send: 1000, then: Then::Fin, ..Peer::default() };
    let flow = sim.accept(GUEST, from("192.0.2.9:5000"), peer).unwrap();
    assert_eq!(sim.net.port_of(flow), None);
    // Between two SYNs that are 16 s apart.
    sim.pass(Duration::from_secs(17));
    let mut guest = SmolGuest::new(GuestConfig::default());
    let app = App { close: Close::Eof, ..App::default() };
    let stream = guest.listen(22, app);
    // The guest says that it is there by sending anything.
    let socket = guest.udp(1000);
    guest.udp_send(socket, "10.0.2.2:1000".parse().unwrap(), b"x");
    let port = sim.add(guest, Faults::default(), Faults::default());
    let seen = sim.now;
    assert!(sim.run(Duration::from_secs(60), |sim| sim.guest(port).opened(stream)));
    assert!(sim.now - seen < Duration::from_millis(5), "{:?}", sim.now - seen);
    assert_eq!(sim.net.port_of(flow), Some(port));
    assert!(sim.run(Duration::from_secs(10), is_over));
    assert_streams(&mut sim, port, stream, &app, &peer);
    wind_down(sim);
}

#[test]
fn a_guest_that_is_silent_is_found_by_arp() {
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), Peer::default());
    let stream = sim.guest(port).listen(22, App::default());
    sim.accept(GUEST, from("192.0.2.9:5000"), Peer { then: Then::Stays, ..Peer::default() }).unwrap();
    assert!(sim.run(Duration::from_millis(5), |sim| sim.guest(port).opened(stream)));
    assert_eq!(sim.guest(port).state(stream), State::Established);
    sim.finish();
}

#[test]
fn a_guest_that_never_appears_makes_the_peer_see_a_reset_after_a_minute() {
    let mut sim = Sim::<SmolGuest>::new(1, config(1));
    sim.accept(GUEST, from("192.0.2.9:5000"), Peer::default()).unwrap();
    let start = sim.now;
    assert!(sim.run(Duration::from_secs(300), |sim| sim.host.open() == 0));
    assert_eq!(sim.host.ends()[0].ended, Ended::Reset);
    assert!((60..70).contains(&(sim.now - start).as_secs()), "{:?}", sim.now - start);
    sim.finish();
}

#[test]
fn no_neighbour_is_left_of_a_guest_that_went() {
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), Peer::default());
    let stream = sim.guest(port).listen(22, App::default());
    let stays = Peer { then: Then::Stays, ..Peer::default() };
    sim.accept(GUEST, from("192.0.2.9:5000"), stays).unwrap();
    assert!(sim.run(Duration::from_secs(1), |sim| sim.guest(port).opened(stream)));
    sim.remove(port);
    let flow = sim.accept(GUEST, from("192.0.2.9:5001"), stays).unwrap();
    assert_eq!(sim.net.port_of(flow), None);
    assert!(sim.run(Duration::from_secs(100), |sim| sim.host.open() == 0));
    sim.finish();
}

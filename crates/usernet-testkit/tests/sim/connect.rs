//! Connects that succeed, fail, and are never answered.

use std::time::Duration;

use smoltcp::socket::tcp::State;
use usernet_core::host::HostError;
use usernet_core::network::Target;
use usernet_core::wire::{ICMP_HEADER_LEN, IPV4_HEADER_LEN};
use usernet_testkit::{App, Connect, Ended, Faults, Guest as _, Peer, Segment};

use super::{GATEWAY, PORT, connect, is_over, one_guest, wind_down};

fn peer(connect: Connect) -> Peer {
    Peer { connect, ..Peer::default() }
}

#[test]
fn a_refused_connect_is_refused_at_once() {
    let refused = Connect::Fails(HostError::Refused, Duration::from_millis(1));
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer(refused));
    let stream = connect(&mut sim, port, App::default());
    assert!(sim.run(Duration::from_millis(10), |sim| sim.guest(port).state(stream) == State::Closed));
    assert!(!sim.guest(port).opened(stream));
    wind_down(sim);
}

/// A guest that notes the frames that it gets, and sends what it is given.
struct Notes(Vec<Vec<u8>>);

impl usernet_testkit::Guest for Notes {
    fn receive(&mut self, frame: Vec<u8>, _: usernet_core::time::Instant) {
        self.0.push(frame);
    }
    fn poll(&mut self, _: usernet_core::time::Instant) -> Vec<Vec<u8>> {
        Vec::new()
    }
    fn next(&mut self, _: usernet_core::time::Instant) -> Option<usernet_core::time::Instant> {
        None
    }
}

#[test]
fn an_unreachable_connect_is_told_by_icmp_that_quotes_the_syn() {
    for (error, code) in [
        (HostError::NetUnreachable, 0),
        (HostError::HostUnreachable, 1),
        (HostError::TimedOut, 1),
        (HostError::Prohibited, 13),
    ] {
        // The SYN of a smoltcp guest, seen by one that notes the answer.
        let fails = Connect::Fails(error, Duration::from_millis(1));
        let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer(fails));
        connect(&mut sim, port, App::default());
        let mut frames = Vec::new();
        sim.run(Duration::from_millis(1), |sim| {
            let now = sim.now;
            frames.extend(sim.guest(port).poll(now));
            frames.iter().any(|frame| Segment::parse(frame).is_some())
        });
        let mut noting = usernet_testkit::Sim::new(1, super::config(1));
        noting.host.peers.insert(PORT, peer(fails));
        let port = noting.add(Notes(Vec::new()), Faults::default(), Faults::default());
        let mut guest = usernet_testkit::SackGuest::new(
            usernet_testkit::GuestConfig::default(),
            super::peer_addr(),
            65_535,
        );
        let syn = guest.poll(noting.now).remove(0);
        noting.inject(port, syn.clone());
        noting.pass(Duration::from_secs(1));
        let frames = std::mem::take(&mut noting.guest(port).0);
        assert_eq!(frames.len(), 1);
        let icmp = &frames[0][14 + IPV4_HEADER_LEN..];
        assert_eq!((icmp[0], icmp[1]), (3, code), "{error}");
        let quoted = &icmp[ICMP_HEADER_LEN..];
        // Addresses, ports and sequence number: what a guest finds its connection by.
        assert_eq!(quoted[12..28], syn[14..][12..28]);
        noting.finish();
    }
}

#[test]
fn a_connect_that_takes_long_waits_and_one_that_is_never_answered_ends() {
    let slow = Connect::After(Duration::from_secs(20));
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer(slow));
    let stream = connect(&mut sim, port, App { close: usernet_testkit::Close::Sent, ..App::default() });
    assert!(sim.run(Duration::from_secs(30), |sim| sim.guest(port).opened(stream)));
    assert!(sim.run(Duration::from_secs(30), is_over));
    assert_eq!(sim.host.ends().len(), 1, "SYNs that were sent again are one connect");
    wind_down(sim);

    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer(Connect::Never));
    connect(&mut sim, port, App::default());
    assert!(sim.run(Duration::from_secs(300), |sim| sim.host.ends().len() == 1 && sim.host.open() == 0));
    assert_eq!(sim.host.ends()[0].ended, Ended::Reset);
    sim.finish();
}

#[test]
fn a_guest_that_gives_up_takes_its_pending_connect_along() {
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer(Connect::Never));
    let stream = connect(&mut sim, port, App::default());
    sim.pass(Duration::from_secs(1));
    assert_eq!(sim.host.open(), 1);
    sim.remove(port);
    assert_eq!(sim.host.open(), 0);
    let _ = stream;
    sim.finish();
}

#[test]
fn the_gateway_is_loopback_and_dns_over_tcp_a_service() {
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), Peer::default());
    sim.host.peers.insert(53, Peer::default());
    let app = App { send: 100, close: usernet_testkit::Close::Never, ..App::default() };
    sim.guest(port).connect(std::net::SocketAddrV4::new(GATEWAY, PORT), app);
    sim.guest(port).connect("10.0.2.3:53".parse().unwrap(), app);
    assert!(sim.run(Duration::from_secs(5), |sim| sim.host.ends().len() == 2));
    let mut targets: Vec<_> = sim.net.tcp_flows().iter().filter_map(|(_, e)| e.flow.target).collect();
    targets.sort_by_key(|target| matches!(target, Target::Dns));
    assert_eq!(targets, [Target::Host("127.0.0.1:80".parse().unwrap()), Target::Dns]);
    sim.finish();
}

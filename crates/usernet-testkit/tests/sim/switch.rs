//! Several guests on one network, and their addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use usernet_core::wire::MacAddr;
use usernet_testkit::{App, Close, Faults, GuestConfig, Peer, Sim, SmolGuest, Then, digest_of};

use super::{PORT, config, peer_addr};

fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, n])
}

fn addr(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, n)
}

fn sim() -> Sim<SmolGuest> {
    let mut sim = Sim::new(1, config(1));
    sim.host.peers.insert(PORT, Peer { echo: true, ..Peer::default() });
    sim
}

fn add(sim: &mut Sim<SmolGuest>, config: GuestConfig) -> usernet_core::port::PortId {
    sim.add(SmolGuest::new(config), Faults::default(), Faults::default())
}

#[test]
fn guests_get_their_addresses_by_dhcp() {
    let mut sim = sim();
    let ports: Vec<_> = (1..5)
        .map(|n| {
            add(&mut sim, GuestConfig { mac: mac(n), addr: None, seed: n.into(), ..GuestConfig::default() })
        })
        .collect();
    assert!(sim.run(Duration::from_secs(60), |sim| ports.iter().all(|p| sim.guest(*p).addr().is_some())));
    let mut addrs: Vec<_> = ports.iter().map(|port| sim.guest(*port).addr().unwrap()).collect();
    addrs.sort_unstable();
    assert_eq!(addrs, [15, 16, 17, 18].map(addr));
    // The lease is used: gateway and all.
    let app = App { seed: 3, send: 5000, close: Close::Sent, ..App::default() };
    let stream = sim.guest(ports[2]).connect(peer_addr(), app);
    assert!(sim.run(Duration::from_secs(10), |sim| sim.guest(ports[2]).received(stream) == 5000));
    // A day later it is still theirs.
    sim.pass(Duration::from_secs(100_000));
    assert_eq!(sim.net.leases(sim.now).len(), 4);
    // A guest that comes back on another port may have its address again.
    let gone = sim.guest(ports[0]).addr().unwrap();
    sim.remove(ports[0]);
    assert_eq!(sim.net.leases(sim.now).len(), 3);
    let port = add(&mut sim, GuestConfig { mac: mac(1), addr: None, ..GuestConfig::default() });
    assert!(sim.run(Duration::from_secs(60), |sim| sim.guest(port).addr().is_some()));
    assert_eq!(sim.guest(port).addr(), Some(gone));
    sim.finish();
}

#[test]
fn guests_reach_each_other() {
    let mut sim = sim();
    let ports = [1, 2].map(|n| {
        add(&mut sim, GuestConfig { mac: mac(n), addr: Some(addr(20 + n)), ..GuestConfig::default() })
    });
    let stream = sim.guest(ports[1]).listen(7, App { echo: true, ..App::default() });
    let app = App { seed: 6, send: 200_000, close: Close::Sent, ..App::default() };
    let out = sim.guest(ports[0]).connect(SocketAddrV4::new(addr(22), 7), app);
    assert!(sim.run(Duration::from_secs(20), |sim| sim.guest(ports[0]).received(out) == 200_000));
    assert_eq!(sim.guest(ports[0]).digest(out), digest_of(6, 200_000));
    assert_eq!(sim.guest(ports[1]).received(stream), 200_000);
    assert_eq!(sim.net.tcp_flows().len(), 0, "frames between guests make no flows");
    sim.finish();
}

#[test]
fn guests_with_the_same_addresses_do_not_mix() {
    let mut sim = sim();
    sim.host.peers.insert(PORT, Peer { echo: true, then: Then::Waits, ..Peer::default() });
    let ports = [1, 2].map(|_| add(&mut sim, GuestConfig::default()));
    let streams = [0, 1].map(|n: usize| {
        let app = App { seed: n as u64, send: 100_000, close: Close::Sent, ..App::default() };
        sim.guest(ports[n]).connect_from(50_000, peer_addr(), app)
    });
    let done = sim.run(Duration::from_secs(20), |sim| {
        (0..2).all(|n| sim.guest(ports[n]).received(streams[n]) == 100_000)
    });
    assert!(done);
    for n in 0..2 {
        assert_eq!(sim.guest(ports[n]).digest(streams[n]), digest_of(n as u64, 100_000));
    }
    sim.finish();
}

#[test]
fn one_guest_that_does_not_read_slows_no_other() {
    let mut sim = sim();
    let peer = Peer { seed: 4, send: 3_000_000, then: Then::Fin, ..Peer::default() };
    sim.host.peers.insert(PORT, peer);
    let ports = [1, 2].map(|n| {
        add(&mut sim, GuestConfig { mac: mac(n), addr: Some(addr(20 + n)), ..GuestConfig::default() })
    });
    sim.guest(ports[0]).connect(peer_addr(), App { reads: Some(0), ..App::default() });
    let stream = sim.guest(ports[1]).connect(peer_addr(), App::default());
    let start = sim.now;
    assert!(sim.run(Duration::from_secs(20), |sim| sim.guest(ports[1]).received(stream) == 3_000_000));
    assert!(sim.now - start < Duration::from_millis(100), "{:?}", sim.now - start);
    sim.finish();
}

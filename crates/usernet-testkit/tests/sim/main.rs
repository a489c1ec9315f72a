//! The network against a simulated guest and host, over many seeds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test")]

mod bulk;
mod close;
mod connect;
mod datagrams;
mod drops;
mod errors;
mod forward;
mod fragments;
mod ipv6;
mod limits;
mod loss;
mod nat64;
mod policy;
mod switch;
mod time;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use usernet_core::network::Config;
use usernet_core::port::PortId;
use usernet_core::wire::MacAddr;
use usernet_testkit::{App, Faults, GuestConfig, Peer, Sim, SmolGuest, StreamId, digest_of};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);

/// The port that peers of these tests listen on.
const PORT: u16 = 80;

fn peer_addr() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), PORT)
}

fn config(seed: u64) -> Config {
    Config { seed: u128::from(seed).to_le_bytes(), ..Config::default() }
}

/// A network with one guest behind a link with faults, and a peer.
fn one_guest(seed: u64, outward: Faults, inward: Faults, peer: Peer) -> (Sim<SmolGuest>, PortId) {
    let mut sim = Sim::new(seed, config(seed));
    sim.host.peers.insert(PORT, peer);
    let guest = SmolGuest::new(GuestConfig { seed, ..GuestConfig::default() });
    let port = sim.add(guest, outward, inward);
    (sim, port)
}

fn connect(sim: &mut Sim<SmolGuest>, port: PortId, app: App) -> StreamId {
    sim.guest(port).connect(peer_addr(), app)
}

/// Whether guest and peer have everything and nothing is open but what waits for strays.
fn is_over(sim: &mut Sim<SmolGuest>) -> bool {
    let begun = !sim.host.ends().is_empty();
    begun && sim.host.open() == 0 && sim.net.tcp_flows().iter().all(|(_, e)| e.flow.tcp.is_time_wait())
}

/// Runs until all is over, then an hour, and checks that the network has forgotten it by itself.
fn wind_down(mut sim: Sim<SmolGuest>) {
    sim.run(Duration::from_secs(300), is_over);
    assert_eq!(sim.host.open(), 0, "flows that do not end");
    sim.run(Duration::from_secs(3600), |sim| sim.net.poll_timeout().is_none());
    assert_eq!(sim.net.tcp_flows().len(), 0);
    sim.finish();
}

/// What a guest and its peer sent to each other has arrived whole.
fn assert_streams(sim: &mut Sim<SmolGuest>, port: PortId, stream: StreamId, app: &App, peer: &Peer) {
    let end = &sim.host.ends()[0];
    assert_eq!((end.received(), end.digest()), (app.send, digest_of(app.seed, app.send)), "to the peer");
    let (received, digest) = (sim.guest(port).received(stream), sim.guest(port).digest(stream));
    assert_eq!((received, digest), (peer.send, digest_of(peer.seed, peer.send)), "to the guest");
}

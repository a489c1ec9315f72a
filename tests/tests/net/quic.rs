//! QUIC, which is many datagrams in a row.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use usernet_tests::quic::Server;
use usernet_tests::{Daemon, GATEWAY, GATEWAY6, World, noise_digest};

#[test]
fn a_quic_transfer_arrives_whole_both_ways_over_ipv4() {
    transfers(Ipv4Addr::LOCALHOST.into(), GATEWAY.into());
}

#[test]
fn a_quic_transfer_arrives_whole_both_ways_over_ipv6() {
    transfers(Ipv6Addr::LOCALHOST.into(), GATEWAY6.into());
}

fn transfers(host: IpAddr, gateway: IpAddr) {
    const LENGTH: u64 = 64 << 20;
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let server = Server::start((host, 0).into());
    let address = SocketAddr::new(gateway, server.address.port());
    let quic = world.quic();
    let script = format!("{} {address} {} 7 {LENGTH}; sleep 1000", quic.display(), server.certificate);
    let mut guest = daemon.spawn(&script);

    let digest = noise_digest(7, LENGTH);
    let mut moved = |done: &str, frames: &str| {
        let before = frames_of(&daemon, frames);
        assert_eq!(guest.line_with(done), format!("{done} {digest}"));
        frames_of(&daemon, frames) - before
    };
    let datagrams = LENGTH / 1400;
    for frames in [moved("sent", "rx_frames"), moved("received", "tx_frames")] {
        assert!(frames < datagrams / 2, "{frames} frames for {datagrams} datagrams");
    }
}

/// How many frames the only port has had.
fn frames_of(daemon: &Daemon<'_>, which: &str) -> u64 {
    daemon.list("ports").first().map_or(0, |port| port[which].as_u64().unwrap())
}

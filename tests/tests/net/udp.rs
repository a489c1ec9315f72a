//! UDP to the outside.

use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, GATEWAY, LAN, World, noise_digest, peers};

#[test]
fn datagrams_come_back_from_the_gateway_and_the_lan() {
    let world = World::new();
    let port = peers::udp_echo();
    for address in [GATEWAY, LAN] {
        assert_eq!(world.exec(&[], &format!("$PROBE udp {address}:{port} hello")).ok(), "hello\n");
    }
}

/// The script that sends a datagram of this many bytes to the echo.
fn send_large(port: u16, length: usize) -> String {
    format!("$PROBE udp {GATEWAY}:{port} $(head -c {length} /dev/zero | tr '\\0' x)")
}

#[test]
fn datagrams_as_large_as_the_mtu_come_back() {
    let world = World::new();
    let port = peers::udp_echo();
    // The MTU less the headers of IP and UDP.
    for (mtu, length) in [("1500", 1472), ("9000", 8972)] {
        let echoed = world.exec(&["--mtu", mtu], &send_large(port, length));
        assert_eq!(echoed.ok(), "x".repeat(length) + "\n");
    }
}

#[test]
fn a_port_without_anyone_behind_it_is_refused() {
    let world = World::new();
    // A free TCP port is a free UDP port here: nobody else is in this world.
    let closed = peers::closed_port();
    let outcome = world.exec(&[], &format!("$PROBE udp {LAN}:{closed} hello"));
    assert_eq!(outcome.stdout, "ConnectionRefused\n");
}

#[test]
fn a_burst_of_datagrams_goes_both_ways_as_few_frames() {
    const SIZE: u64 = 1400;
    const COUNT: u64 = 40;
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let (heard, hears) = std::sync::mpsc::channel();
    let port = peers::udp_burst_echo(heard);
    let mut guest = daemon.spawn(&format!("$PROBE burst {GATEWAY}:{port} 7 {SIZE} {COUNT}; exec sleep 1000"));
    let digest = noise_digest(7, SIZE * COUNT - 1);
    assert_eq!(hears.recv_timeout(SOON).unwrap(), digest);
    guest.line_with(&format!("{SIZE} {digest}"));
    let ports = daemon.list("ports");
    for frames in ["rx_frames", "tx_frames"] {
        assert!(ports[0][frames].as_u64().unwrap() < COUNT, "{ports:?}");
    }
    let lost = |reason: &str| reason.starts_with("udp") || reason == "link-full";
    let drops = daemon.list("drops");
    assert!(!drops.iter().any(|drop| lost(drop["reason"].as_str().unwrap())), "{drops:?}");
}

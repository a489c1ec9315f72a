//! Transfers that are long: every byte arrives, and in few large frames.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::channel;

use usernet_tests::stories::{BULK, has_ipv6};
use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, GATEWAY, GATEWAY6, World, noise_digest, peers};

use crate::{boot, network};

/// How many frames a transfer would be if each had one segment of a guest's usual MTU.
const SEGMENTS: u64 = BULK / 1448;

/// How many frames the machine has sent (`rx_frames`) or been sent (`tx_frames`).
fn frames(daemon: &Daemon<'_>, which: &str) -> u64 {
    daemon.list("ports")[0][which].as_u64().unwrap()
}

fn both_ways(mtu: u32) {
    let world = World::with_ipv6();
    let daemon = network(&world, &["--mtu", &mtu.to_string()]);
    let mut machine = boot(&world, &daemon, 1);
    machine.dhcp();
    has_ipv6(&mut machine, 1, mtu);
    let port = peers::http();
    machine.run(&format!("wget -q -O /tmp/bulk http://{GATEWAY}:{port}/7/{BULK}"));
    for gateway in [IpAddr::from(GATEWAY), GATEWAY6.into()] {
        let server = SocketAddr::from((gateway, port));
        let before = frames(&daemon, "tx_frames");
        let down = machine.run(&format!("wget -q -O - http://{server}/7/{BULK} | sha256sum"));
        assert_eq!(down, noise_digest(7, BULK) + "  -");
        let down = frames(&daemon, "tx_frames") - before;

        let before = frames(&daemon, "rx_frames");
        let up = machine.run(&format!("probe put {server} /tmp/bulk"));
        assert!(up.ends_with(&noise_digest(7, BULK)), "{up}");
        let up = frames(&daemon, "rx_frames") - before;
        println!("{gateway}, MTU {mtu}: {SEGMENTS} segments in {down} frames down and {up} up");
        assert!(down < SEGMENTS / 4 && up < SEGMENTS / 4, "{down} frames down, {up} up");
    }
}

#[test]
fn bytes_go_both_ways_in_large_frames() {
    both_ways(1500);
}

#[test]
fn bytes_go_both_ways_at_the_largest_mtu() {
    both_ways(65520);
}

#[test]
fn a_burst_of_datagrams_goes_both_ways() {
    const SIZE: u64 = 1400;
    const COUNT: u64 = 40;
    let world = World::new();
    let daemon = network(&world, &[]);
    let mut machine = boot(&world, &daemon, 1);
    machine.dhcp();
    let (heard, hears) = channel();
    let port = peers::udp_burst_echo(heard);
    let digest = noise_digest(7, SIZE * COUNT - 1);
    let echoed = machine.run(&format!("probe burst {GATEWAY}:{port} 7 {SIZE} {COUNT}"));
    assert_eq!(hears.recv_timeout(SOON).as_ref(), Ok(&digest));
    assert_eq!(echoed, format!("{SIZE} {digest}"));
}

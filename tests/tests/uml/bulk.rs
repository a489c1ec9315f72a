//! Transfers that are long: every byte arrives, and in few large frames.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;

use usernet_tests::machine::{Machine, slaac};
use usernet_tests::stories::{BULK, has_ipv6};
use usernet_tests::{Daemon, GATEWAY, GATEWAY6, World, noise_digest, peers};

use crate::{boot, network};

/// How many frames a transfer would be if each had one segment of a guest's usual MTU.
const SEGMENTS: u64 = BULK / 1448;

/// How many frames all machines have sent (`rx_frames`) or been sent (`tx_frames`).
fn frames(daemon: &Daemon<'_>, which: &str) -> u64 {
    daemon.list("ports").iter().map(|port| port[which].as_u64().unwrap()).sum()
}

/// Fetches a page of this much noise.
fn fetch(machine: &mut Machine, server: impl Into<SocketAddr>, path: &str, seed: u64) {
    let fetched = machine.run(&format!("wget -q -O - http://{}/{path} | sha256sum", server.into()));
    assert_eq!(fetched, noise_digest(seed, BULK) + "  -");
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
        fetch(&mut machine, server, &format!("7/{BULK}"), 7);
        let down = frames(&daemon, "tx_frames") - before;

        let before = frames(&daemon, "rx_frames");
        let up = machine.run(&format!("probe put {server} /tmp/bulk"));
        assert!(up.ends_with(&noise_digest(7, BULK)), "{up}");
        let up = frames(&daemon, "rx_frames") - before;
        println!("{gateway}, MTU {mtu}: {SEGMENTS} segments in {down} frames down and {up} up");
        assert!(down < SEGMENTS / 8 && up < SEGMENTS / 8, "{down} frames down, {up} up");
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
fn machines_send_each_other_large_frames() {
    let world = World::new();
    let daemon = network(&world, &[]);
    let port = peers::http();
    let mut machines = [1, 2].map(|card| {
        let mut machine = boot(&world, &daemon, card);
        assert!(machine.dhcp().contains(&format!("ip=10.0.2.{}\n", 14 + card)));
        has_ipv6(&mut machine, card, 1500);
        machine.run(&format!("wget -q -O /tmp/bulk http://{GATEWAY}:{port}/{card}/{BULK}"));
        machine.run("httpd -h /tmp -p 80");
        machine
    });
    let before = frames(&daemon, "rx_frames");
    // Each fetches from the other at the same time.
    thread::scope(|scope| {
        for (machine, other) in machines.iter_mut().zip([2_u8, 1]) {
            scope.spawn(move || {
                fetch(machine, (Ipv4Addr::new(10, 0, 2, 14 + other), 80), "bulk", other.into());
                fetch(machine, (slaac(other), 80), "bulk", other.into());
            });
        }
    });
    let sent = frames(&daemon, "rx_frames") - before;
    println!("4 times {SEGMENTS} segments in {sent} frames");
    assert!(sent < 4 * SEGMENTS / 4, "{sent} frames");
}

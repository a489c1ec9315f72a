//! Machines and other guests of one network.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;

use usernet_tests::machine::{Machine, slaac};
use usernet_tests::stories::{BULK, has_ipv6};
use usernet_tests::stream_guest::StreamGuest;
use usernet_tests::{Daemon, GATEWAY, World, noise_digest, peers};

use crate::{boot, network};

/// A machine that serves what the page `/bulk` of this seed is, at 10.0.2.15 if it is the first.
fn boot_server(world: &World, daemon: &Daemon<'_>, card: u8) -> Machine {
    let mut machine = boot(world, daemon, card);
    machine.dhcp();
    let page = format!("http://{GATEWAY}:{}/{card}/{BULK}", peers::http());
    machine.run(&format!("wget -q -O /tmp/bulk {page}; httpd -h /tmp -p 80"));
    machine
}

fn fetch(machine: &mut Machine, server: impl Into<SocketAddr>, seed: u8) {
    let fetched = machine.run(&format!("wget -q -O - http://{}/bulk | sha256sum", server.into()));
    assert_eq!(fetched, noise_digest(seed.into(), BULK) + "  -");
}

fn two_machines(options: &[&str]) {
    let world = World::new();
    let daemon = network(&world, options);
    let mut machines = [1, 2].map(|card| {
        let mut machine = boot_server(&world, &daemon, card);
        has_ipv6(&mut machine, card, 1500);
        machine
    });
    let frames = || daemon.list("ports").iter().map(|port| port["rx_frames"].as_u64().unwrap()).sum::<u64>();
    let before = frames();
    // Each fetches from the other at the same time.
    thread::scope(|scope| {
        for (machine, other) in machines.iter_mut().zip([2, 1]) {
            scope.spawn(move || {
                fetch(machine, (Ipv4Addr::new(10, 0, 2, 14 + other), 80), other);
                fetch(machine, (slaac(other), 80), other);
            });
        }
    });
    let (sent, segments) = (frames() - before, 4 * BULK / 1448);
    println!("{segments} segments in {sent} frames");
    assert!(sent < segments / 4, "{segments} segments in {sent} frames");
}

#[test]
fn two_machines_send_each_other_large_frames() {
    two_machines(&[]);
}

#[test]
fn two_machines_of_two_workers_send_each_other_large_frames() {
    two_machines(&["--workers", "2"]);
}

#[test]
fn a_machine_and_a_namespace_fetch_from_each_other() {
    let world = World::new();
    let daemon = network(&world, &[]);
    let mut machine = boot_server(&world, &daemon, 1);
    let fetched = daemon.exec("busybox wget -q -O bulk http://10.0.2.15/bulk; sha256sum <bulk");
    assert_eq!(fetched.ok(), noise_digest(1, BULK) + "  -\n");
    let mut server = daemon.spawn("ip -4 -o address show scope global; exec busybox httpd -f -p 80");
    let shown = server.line_with("inet ");
    let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/24")).unwrap();
    let address: Ipv4Addr = address.parse().unwrap();
    machine.run(&format!("until probe connect {address}:80; do sleep 0.1; done"));
    fetch(&mut machine, (address, 80), 1);
}

/// A guest that takes no more than a frame of its MTU at a time, and looks at every checksum.
#[test]
fn a_machine_sends_what_a_guest_without_offloads_takes() {
    let world = World::new();
    let daemon = network(&world, &[]);
    let _machine = boot_server(&world, &daemon, 1);
    let mut guest = StreamGuest::plug_in(&daemon.socket(), [0x52, 0x54, 0, 0, 0, 9]);
    guest.lease();
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 80);
    assert_eq!(guest.fetch_digest(server, "/bulk"), noise_digest(1, BULK));
}

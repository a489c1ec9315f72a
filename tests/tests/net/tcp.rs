//! TCP to the outside, by programs of the kernel's own stack.

use std::sync::mpsc::channel;

use usernet_tests::wait::SOON;
use usernet_tests::{As, GATEWAY, LAN, NO_ROUTE, Process, UNREACHABLE, World, noise_digest, peers};

const BULK: u64 = 64 << 20;

#[test]
fn bulk_transfers_arrive_whole_both_ways() {
    let world = World::new();
    let server = format!("http://{GATEWAY}:{}", peers::http());
    let script = format!(
        "set -e
        curl --silent --fail --output bulk {server}/7/{BULK}
        sha256sum bulk
        curl --silent --fail --upload-file bulk {server}/"
    );
    let digests = world.exec(&[], &script).ok().to_owned();
    let expected = noise_digest(7, BULK);
    assert_eq!(digests, format!("{expected}  bulk\n{expected}"));
}

/// The device drops what its queue has no room for, from the guest, while many streams compete for it.
#[test]
fn streams_go_on_when_the_queue_of_the_device_overflows() {
    const LENGTH: u64 = 4 << 20;
    const STREAMS: u64 = 12;
    let world = World::new();
    let server = format!("http://{GATEWAY}:{}", peers::http());
    let script = format!(
        "set -e
        ip link set tap0 txqueuelen 2
        curl --silent --fail --output bulk {server}/7/{LENGTH}
        for n in $(seq {STREAMS}); do
            curl --silent --fail --max-time 60 --upload-file bulk {server}/ > up$n &
            curl --silent --fail --max-time 60 {server}/7/{LENGTH} | sha256sum > down$n &
        done
        wait
        for n in $(seq {STREAMS}); do cat up$n; echo; cat down$n; done
        ip -json -statistics link show tap0 | grep -o '\"tx\":[^}}]*' | grep -o '\"dropped\":[0-9]*' | cut -d: -f2"
    );
    let outcome = world.exec(&[], &script);
    let mut lines: Vec<_> = outcome.ok().lines().collect();
    let dropped: u64 = lines.pop().unwrap_or_default().parse().unwrap();
    println!("{dropped} frames dropped");
    assert!(dropped > 0, "the queue did not overflow");
    let expected = noise_digest(7, LENGTH);
    let whole = lines.iter().filter(|line| line.starts_with(&expected)).count();
    assert_eq!(whole as u64, 2 * STREAMS, "{outcome}");
}

/// The kernel deals the streams to both queues: what came to one that nobody reads would be lost.
#[test]
fn both_queues_of_a_device_are_served() {
    const LENGTH: u64 = 8 << 20;
    const STREAMS: u64 = 16;
    let world = World::new();
    let server = format!("http://{GATEWAY}:{}", peers::http());
    let script = format!(
        "set -e
        ip -json -details link show tap0 | grep -o '\"numqueues\":[0-9]*' | cut -d: -f2
        curl --silent --fail --output bulk {server}/7/{LENGTH}
        for n in $(seq {STREAMS}); do
            curl --silent --fail --max-time 60 --upload-file bulk {server}/ > up$n &
            curl --silent --fail --max-time 60 {server}/7/{LENGTH} | sha256sum > down$n &
        done
        wait
        for n in $(seq {STREAMS}); do cat up$n; echo; cat down$n; done"
    );
    let outcome = world.exec(&["--queues", "2"], &script);
    let expected = noise_digest(7, LENGTH);
    let lines: Vec<_> = outcome.ok().lines().collect();
    assert_eq!(lines.first(), Some(&"2"), "{outcome}");
    let whole = lines.iter().filter(|line| line.starts_with(&expected)).count();
    assert_eq!(whole as u64, 2 * STREAMS, "{outcome}");
}

#[test]
fn the_hosts_lan_is_reached_by_its_own_address() {
    let world = World::new();
    let port = peers::http();
    let digest = world.exec(&[], &format!("curl --silent http://{LAN}:{port}/1/1000 | sha256sum"));
    let expected = noise_digest(1, 1000);
    assert!(digest.ok().starts_with(&expected), "{digest}");
}

#[test]
fn a_guest_that_ends_its_direction_still_hears() {
    let world = World::new();
    let port = peers::digest_after_end();
    let digest = world.exec(&[], &format!("$PROBE send {GATEWAY}:{port} 3 1000000"));
    assert_eq!(digest.ok().trim(), noise_digest(3, 1_000_000));
}

#[test]
fn a_host_that_ends_its_direction_still_hears() {
    let world = World::new();
    let (sender, heard) = channel();
    let port = peers::ends_first(sender);
    // The guest stays: what its kernel has not sent would go with it.
    let script = format!("$PROBE receive-then-send {GATEWAY}:{port} 4 1000000; sleep 1000");
    let mut guest = Process::spawn(world.exec_command(&[], &script));
    guest.line_with("that is all");
    assert_eq!(heard.recv_timeout(SOON).unwrap(), noise_digest(4, 1_000_000));
}

#[test]
fn refused_and_unreachable_are_told_apart() {
    let world = World::new();
    let closed = peers::closed_port();
    let seen = |peer: String| world.exec(&[], &format!("$PROBE connect {peer}")).stdout;
    assert_eq!(seen(format!("{GATEWAY}:{closed}")), "ConnectionRefused\n");
    assert_eq!(seen(format!("{LAN}:{closed}")), "ConnectionRefused\n");
    assert_eq!(seen(format!("{UNREACHABLE}:80")), "HostUnreachable\n");
    assert_eq!(seen(format!("{NO_ROUTE}:80")), "NetworkUnreachable\n");
}

#[test]
fn the_hosts_loopback_can_be_closed_to_guests() {
    let world = World::new();
    let port = peers::http();
    for address in [GATEWAY, LAN] {
        let outcome = world.exec(&["--no-host-loopback"], &format!("$PROBE connect {address}:{port}"));
        assert_eq!(outcome.code(), 1, "{address}: {outcome}");
        assert_ne!(outcome.stdout, "connected\n", "{address}");
    }
}

/// Speed is the benches' to judge: here it shall run at all, both ways, and be seen in the log.
#[test]
fn iperf3_runs_both_ways() {
    let world = World::new();
    let mut command = world.command(As::User, "iperf3");
    let port = peers::closed_port().to_string();
    command.args(["--server", "--forceflush", "--port", &port]);
    let mut server = Process::spawn(command);
    server.line_with("Server listening");
    for direction in ["", "--reverse"] {
        let script = format!("iperf3 --client {GATEWAY} --port {port} --time 2 --format g {direction}");
        let outcome = world.exec(&[], &script);
        let sum = outcome.ok().lines().find(|line| line.contains("receiver")).unwrap_or_default();
        println!("guest to host {direction}: {sum}");
        assert!(sum.contains("bits/sec"), "{outcome}");
    }
}

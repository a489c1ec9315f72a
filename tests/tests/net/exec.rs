//! `usernet exec`: a command as a guest.

use std::fs;

use usernet_tests::{As, Process, World};

/// Shows what a guest needs to be on the network.
const SHOW: &str = "ip -oneline address; ip route; ip -6 route; cat /etc/resolv.conf";

fn assert_on_the_network(shown: &str) {
    for expected in [
        "inet 10.0.2.15/24",
        "inet6 fd00::15/64",
        "default via 10.0.2.2",
        "default via fd00::2",
        "nameserver 10.0.2.3",
        "nameserver fd00::3",
    ] {
        assert!(shown.contains(expected), "no {expected} in:\n{shown}");
    }
}

#[test]
fn an_ordinary_users_command_is_on_the_network() {
    let world = World::new();
    assert_on_the_network(world.exec(&[], SHOW).ok());
}

#[test]
fn roots_command_is_on_the_network() {
    let world = World::new();
    let resolver = fs::read("/etc/resolv.conf").unwrap_or_default();
    assert_on_the_network(world.run_as(As::Root, &["exec", "--", "sh", "-c", SHOW]).ok());
    assert_eq!(fs::read("/etc/resolv.conf").unwrap_or_default(), resolver, "the host's own is left alone");
}

#[test]
fn the_interface_has_the_mtu_asked_for() {
    let world = World::new();
    let shown = world.exec(&["--mtu", "9000"], "ip link").ok().to_owned();
    assert!(shown.contains("mtu 9000"), "{shown}");
}

#[test]
fn another_network_has_other_addresses() {
    let world = World::new();
    let options = ["--net", "192.168.76.0/24", "--dhcp-start", "192.168.76.9"];
    let shown = world.exec(&options, SHOW).ok().to_owned();
    for expected in ["inet 192.168.76.9/24", "default via 192.168.76.2", "nameserver 192.168.76.3"] {
        assert!(shown.contains(expected), "no {expected} in:\n{shown}");
    }
}

#[test]
fn the_exit_status_passes_through() {
    let world = World::new();
    assert_eq!(world.exec(&[], "exit 0").code(), 0);
    assert_eq!(world.exec(&[], "exit 42").code(), 42);
    assert_eq!(world.exec(&[], "kill -KILL $$").code(), 128 + 9, "as a shell has it");
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let world = World::new();
    let outcome = world.run(&["exec", "--", "no-such-program"]);
    assert_ne!(outcome.code(), 0);
    assert!(outcome.says("no-such-program"), "{outcome}");
}

#[test]
fn two_at_once_share_nothing() {
    let world = World::new();
    let mut first = Process::spawn(world.exec_command(&[], &format!("{SHOW}; echo up; sleep 1000")));
    first.line_with("up");
    assert_on_the_network(world.exec(&[], SHOW).ok());
    assert_on_the_network(&first.stdout());
}

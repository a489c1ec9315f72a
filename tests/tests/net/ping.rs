//! Echo: by the network itself, and through the host's ping sockets.

use usernet_tests::{GATEWAY, LAN, NAMESERVER, World};

fn ping(address: impl std::fmt::Display) -> String {
    format!("ping -c 1 -W 5 {address}")
}

#[test]
fn gateway_and_nameserver_answer_by_themselves() {
    let world = World::new();
    world.allow_ping(false);
    world.exec(&[], &ping(GATEWAY)).ok();
    world.exec(&[], &ping(NAMESERVER)).ok();
}

#[test]
fn hosts_outside_answer_where_ping_sockets_are_allowed() {
    let world = World::new();
    let outcome = world.exec(&[], &format!("ping -c 3 -i 0.2 -W 5 -s 1400 {LAN}"));
    assert!(outcome.ok().contains(" 0% packet loss"), "{outcome}");
    assert!(!outcome.says("ping_group_range"), "no warning without a reason: {outcome}");
}

#[test]
fn where_they_are_not_the_guest_is_told_and_so_is_the_person() {
    let world = World::new();
    world.allow_ping(false);
    let outcome = world.exec(&[], &ping(LAN));
    assert_ne!(outcome.code(), 0, "{outcome}");
    // What ping says for ICMP's "administratively prohibited".
    assert!(outcome.stdout.contains("filtered") || outcome.stdout.contains("rohibited"), "{outcome}");
    assert!(outcome.stderr.contains("sysctl") && outcome.stderr.contains("ping_group_range"), "{outcome}");
}

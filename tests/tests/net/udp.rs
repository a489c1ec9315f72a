//! UDP to the outside.

use usernet_tests::{GATEWAY, LAN, World, peers};

#[test]
fn datagrams_come_back_from_the_gateway_and_the_lan() {
    let world = World::new();
    let port = peers::udp_echo();
    for address in [GATEWAY, LAN] {
        assert_eq!(world.exec(&[], &format!("$PROBE udp {address}:{port} hello")).ok(), "hello\n");
    }
}

#[test]
fn large_datagrams_travel_in_fragments() {
    let world = World::new();
    let port = peers::udp_echo();
    let script = format!("$PROBE udp {GATEWAY}:{port} $(head -c 8000 /dev/zero | tr '\\0' x)");
    assert_eq!(world.exec(&[], &script).ok(), "x".repeat(8000) + "\n");
}

#[test]
fn a_port_without_anyone_behind_it_is_refused() {
    let world = World::new();
    // A free TCP port is a free UDP port here: nobody else is in this world.
    let closed = peers::closed_port();
    let outcome = world.exec(&[], &format!("$PROBE udp {LAN}:{closed} hello"));
    assert_eq!(outcome.stdout, "ConnectionRefused\n");
}

//! The lab itself, over QEMU's own user network: a failure here is none of `usernet`'s.

use usernet_tests::machine::{Machine, Netdev};
use usernet_tests::{GATEWAY, World, noise_digest, peers};

#[test]
fn a_machine_boots_and_works_over_qemus_own_network() {
    let world = World::new();
    let mut machine = Machine::boot(&world, &Netdev::User.card(""));
    let lease = machine.dhcp();
    assert!(lease.contains("ip=10.0.2.15\n"), "{lease}");
    assert_eq!(machine.try_run("exit 7"), (7, String::new()));

    let port = peers::http();
    let fetched = machine.run(&format!("wget -q -O - http://{GATEWAY}:{port}/1/1000000 | sha256sum"));
    let expected = noise_digest(1, 1_000_000);
    assert!(fetched.starts_with(&expected), "{fetched}");

    let echo = peers::udp_echo();
    assert_eq!(machine.run(&format!("probe udp {GATEWAY}:{echo} hello")), "hello");
    let closed = peers::closed_port();
    assert_eq!(
        machine.try_run(&format!("probe connect {GATEWAY}:{closed}")),
        (1, "ConnectionRefused".to_owned())
    );

    machine.reboot();
    assert_eq!(machine.dhcp(), lease);
}

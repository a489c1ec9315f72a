//! `usernet run`: QEMU with a network.

use std::net::{Ipv4Addr, SocketAddr};

use usernet_tests::machine::Machine;
use usernet_tests::wait::SOON;
use usernet_tests::{World, noise_digest, peers};

#[test]
fn a_machine_has_a_network_a_forward_and_its_terminal() {
    let world = World::new();
    let port = peers::closed_port();
    let rule = format!("tcp:127.0.0.1:{port}-:80");
    let mut machine = Machine::boot_by_usernet_run(&world, &["--hostfwd", &rule, "--mtu", "9000"], &[]);
    assert!(machine.dhcp().contains("ip=10.0.2.15\n"));
    let interface = machine.run("ip link show eth0");
    assert!(interface.contains("mtu 9000"), "{interface}");
    assert!(!interface.contains("52:54:00:12:34:56"), "a MAC of its own, not everyone's: {interface}");

    let server = peers::http();
    machine.run(&format!("wget -q -O /tmp/bulk http://10.0.2.2:{server}/1/1000000; httpd -h /tmp -p 80"));
    let digest = peers::fetch_digest(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/bulk").unwrap();
    assert_eq!(digest, noise_digest(1, 1_000_000));

    machine.start_script("poweroff -f");
    assert_eq!(machine.process.wait(SOON).code(), Some(0));
    assert_eq!(std::fs::read_dir(world.runtime_dir()).unwrap().count(), 0);
}

#[test]
fn qemus_exit_status_passes_through() {
    let world = World::new();
    assert_eq!(world.run(&["run", "--", "qemu-system-x86_64", "-machine", "nonsense"]).code(), 1);
    assert_eq!(world.run(&["run", "--", "qemu-system-x86_64", "-version"]).code(), 0);
}

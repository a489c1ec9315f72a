//! Machines that listen, and that the daemon connects to.

use usernet_tests::machine::Machine;
use usernet_tests::{Daemon, GATEWAY, World};

#[test]
fn a_machine_that_listens_is_found_again_after_it_was_away() {
    let world = World::new();
    let socket = world.home().join("guest.sock");
    let endpoint = format!("unix:{}", socket.display());
    let daemon = Daemon::start(&world, &["--connect", &endpoint]);
    let netdev = format!("stream,id=net,server=on,addr.type=unix,addr.path={}", socket.display());
    for _ in 0..2 {
        let mut machine =
            Machine::boot(&world, &["-netdev", &netdev, "-device", "virtio-net-pci,netdev=net"]);
        assert!(machine.dhcp().contains("ip=10.0.2.15\n"));
        machine.run(&format!("ping -c 1 -W 10 {GATEWAY}"));
        drop(machine);
        daemon.until_none("ports");
    }
}

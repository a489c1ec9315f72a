//! Daemons and machines that start anew.

use usernet_tests::{GATEWAY, World};

use crate::{boot, network};

/// User Mode Linux does not connect anew: a machine that has lost its daemon has no network any more.
#[test]
fn a_daemon_that_starts_anew_has_a_network_for_new_machines() {
    let world = World::new();
    let daemon = network(&world, &[]);
    let mut orphan = boot(&world, &daemon, 1);
    let lease = orphan.dhcp();
    daemon.terminate();
    assert_ne!(orphan.try_run(&format!("ping -c 1 -W 1 {GATEWAY}")).0, 0);

    let daemon = network(&world, &[]);
    let mut machine = boot(&world, &daemon, 1);
    assert_eq!(machine.dhcp(), lease);
    machine.run(&format!("ping -c 1 -W 10 {GATEWAY}"));
    assert_eq!(daemon.list("ports").len(), 1);
    drop(machine);
    daemon.until_none("ports");
    daemon.terminate();
}

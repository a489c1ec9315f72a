//! Daemons and machines that start anew.

use rustix::process::Signal;
use usernet_tests::wait::SOON;
use usernet_tests::{GATEWAY, World};

use crate::{boot, network};

/// User Mode Linux does not connect anew: a machine that has lost its daemon has no network any more.
#[test]
fn a_daemon_that_starts_anew_has_a_network_for_new_machines() {
    let world = World::new();
    let mut orphans = Vec::new();
    // The second is killed, and leaves its socket behind.
    for signal in [Signal::TERM, Signal::KILL] {
        let mut daemon = network(&world, &[]);
        let mut machine = boot(&world, &daemon, 1);
        assert!(machine.dhcp().contains("ip=10.0.2.15\n"));
        machine.run(&format!("ping -c 1 -W 10 {GATEWAY}"));
        assert_eq!(daemon.list("ports").len(), 1);
        daemon.process.signal(signal);
        daemon.process.wait(SOON);
        assert_ne!(machine.try_run(&format!("ping -c 1 -W 1 {GATEWAY}")).0, 0);
        orphans.push(machine);
    }
    let daemon = network(&world, &[]);
    let mut machine = boot(&world, &daemon, 1);
    assert!(machine.dhcp().contains("ip=10.0.2.15\n"));
    drop(machine);
    daemon.until_none("ports");
    daemon.terminate();
}

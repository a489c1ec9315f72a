//! Machines that plug in by vhost-user, with the arguments that the daemon says.
//!
//! Without KVM, QEMU 7.2 crashes when a guest uses MSI-X with vhost-user, whatever the back end is; so these
//! machines have none of it ([`NO_MSI_X`]).

use std::net::{Ipv4Addr, SocketAddr};

use rustix::process::Signal;
use usernet_tests::machine::{Machine, mac};
use usernet_tests::stories;
use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, GATEWAY, World, eventually, noise_digest, peers};

const LISTEN: [&str; 2] = ["--vhost-user", "vhost.sock"];
const LISTEN_FOR_PAIRS: [&str; 2] = ["--vhost-user", "vhost.sock,queues=2"];
const NO_MSI_X: &str = "virtio-net-pci.vectors=0";

/// Boots a machine whose card has this last byte of its address, with the arguments that the daemon tells.
fn boot(world: &World, daemon: &Daemon<'_>, card: u8) -> Machine {
    let told = daemon.process.stdout();
    let pasted =
        told.lines().find(|line| line.contains("-netdev vhost-user")).unwrap_or_else(|| panic!("{told}"));
    // Its size is to be what -m says.
    let pasted = pasted.replace("size=1G", "size=512M");
    let mac = format!("virtio-net-pci.mac={}", mac(card));
    let mut arguments: Vec<_> = pasted.split_whitespace().collect();
    arguments.extend(["-smp", "2", "-global", NO_MSI_X, "-global", &mac]);
    Machine::boot(world, &arguments)
}

#[test]
fn a_machine_is_on_a_working_network() {
    stories::a_machine_is_on_a_working_network(&LISTEN, boot);
}

#[test]
fn a_machine_with_two_pairs_of_queues_is_on_a_working_network() {
    stories::a_machine_is_on_a_working_network(&LISTEN_FOR_PAIRS, boot);
}

#[test]
fn machines_come_and_go_without_disturbing_each_other() {
    stories::machines_come_and_go(&LISTEN, boot);
}

#[test]
fn a_machine_uses_both_of_its_pairs() {
    let world = World::new();
    let daemon = Daemon::start(&world, &LISTEN_FOR_PAIRS);
    let mut machine = boot(&world, &daemon, 1);
    machine.dhcp();
    assert_eq!(machine.run("ls -d /sys/class/net/eth0/queues/* | wc -l"), "4");
    let server = SocketAddr::from((GATEWAY, peers::http()));
    // Each processor of the machine has a queue to send by.
    let moved = machine.run(&format!(
        "for n in 1 2; do
            taskset $n wget -q -O /tmp/$n http://{server}/$n/4000000 && taskset $n probe put {server} /tmp/$n &
        done
        wait; cat /tmp/1 /tmp/2 | sha256sum"
    ));
    let digests = [1, 2].map(|seed| noise_digest(seed, 4_000_000));
    assert!(digests.iter().all(|digest| moved.contains(digest)), "{moved}");

    let ports = daemon.list("ports");
    assert_eq!(ports.len(), 1, "{ports:?}");
    let queues = ports[0]["queues"].as_array().unwrap();
    assert_eq!(queues.len(), 2, "{queues:?}");
    assert_ne!(queues[0]["worker"], queues[1]["worker"]);
    for queue in queues {
        assert!(queue["rx_bytes"].as_u64().unwrap() > 500_000, "{queues:?}");
        assert!(queue["tx_frames"].as_u64().unwrap() > 20, "{queues:?}");
    }
    let table = daemon.ctl(&["ports"]);
    assert_eq!(table.ok().lines().count(), 2, "{table}");
}

/// QEMU has `reconnect=1`, and the guest does nothing.
#[test]
fn a_machine_is_back_when_its_daemon_is() {
    let world = World::new();
    let port = peers::http();
    let mut daemon = Daemon::start(&world, &LISTEN_FOR_PAIRS);
    let mut machine = boot(&world, &daemon, 1);
    let lease = machine.dhcp();
    for signal in [Signal::KILL, Signal::TERM] {
        daemon.process.signal(signal);
        daemon.process.wait(SOON);
        daemon = Daemon::start(&world, &LISTEN_FOR_PAIRS);
        eventually("it is back", || (daemon.list("ports").len() == 1).then_some(()));
        machine.run(&format!("ping -c 1 -W 10 {GATEWAY}"));
        let digest = machine.run(&format!("wget -q -O - http://{GATEWAY}:{port}/5/10000000 | sha256sum"));
        assert_eq!(digest, noise_digest(5, 10_000_000) + "  -");
    }
    assert_eq!(machine.dhcp(), lease);
}

#[test]
fn a_machine_that_listens_is_found_again_after_it_was_away() {
    let world = World::new();
    let socket = world.home().join("guest.sock");
    let endpoint = format!("{},connect", socket.display());
    let daemon = Daemon::start(&world, &["--vhost-user", &endpoint]);
    for _ in 0..2 {
        let chardev = format!("socket,id=char,path={},server=on", socket.display());
        let line = "-object memory-backend-memfd,id=mem,share=on,size=512M -machine memory-backend=mem \
                    -netdev vhost-user,id=net,chardev=char -device virtio-net-pci,netdev=net,vectors=0 -chardev";
        let arguments: Vec<_> = line.split_whitespace().chain([&*chardev]).collect();
        let mut machine = Machine::boot(&world, &arguments);
        assert!(machine.dhcp().contains("ip=10.0.2.15\n"));
        machine.run(&format!("ping -c 1 -W 10 {GATEWAY}"));
        drop(machine);
        daemon.until_none("ports");
    }
    // Front ends that go are nothing to worry about.
    let warned = daemon.process.stderr();
    assert!(
        !warned.lines().any(|line| line.contains("WARN") && !line.contains("cannot connect")),
        "{warned}"
    );
}

#[test]
fn usernet_run_shares_the_machines_memory() {
    let world = World::new();
    let port = peers::closed_port();
    let rule = format!("tcp:127.0.0.1:{port}-:80");
    let options = ["--vhost-user", "--queues", "2", "--hostfwd", &rule, "--mtu", "9000"];
    let mut machine = Machine::boot_by_usernet_run(&world, &options, &["-smp", "2", "-global", NO_MSI_X]);
    assert!(machine.dhcp().contains("ip=10.0.2.15\n"));
    assert_eq!(machine.run("cat /sys/class/net/eth0/mtu"), "9000");
    assert_eq!(machine.run("ls -d /sys/class/net/eth0/queues/* | wc -l"), "4");

    let server = peers::http();
    machine.run(&format!("wget -q -O /tmp/bulk http://{GATEWAY}:{server}/1/1000000; httpd -h /tmp -p 80"));
    let digest = peers::fetch_digest(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/bulk").unwrap();
    assert_eq!(digest, noise_digest(1, 1_000_000));

    machine.start_script("poweroff -f");
    assert_eq!(machine.process.wait(SOON).code(), Some(0));
}

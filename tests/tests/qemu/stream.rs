//! Machines that plug in to a daemon by QEMU's `-netdev stream`.

use usernet_tests::dns::DnsServer;
use usernet_tests::machine::{Machine, Netdev, mac};
use usernet_tests::stories::{self, BULK, has_ipv6};
use usernet_tests::{Daemon, NAMESERVER6, World, noise_digest, peers};

/// Boots a machine whose card has this last byte of its address.
fn boot(world: &World, daemon: &Daemon<'_>, card: u8) -> Machine {
    let properties = format!(",mac={}", mac(card));
    Machine::boot(world, &Netdev::Stream(&daemon.socket()).card(&properties))
}

#[test]
fn a_machine_is_on_a_working_network() {
    stories::a_machine_is_on_a_working_network(&[], boot);
}

#[test]
fn machines_come_and_go_without_disturbing_each_other() {
    stories::machines_come_and_go(&[], boot);
}

#[test]
fn a_machine_without_ipv4_reads_what_an_ipv4_host_has() {
    let world = World::new();
    let dns = DnsServer::start();
    let upstream = dns.option();
    let mut options = vec!["--ipv6-only", "--nat64", "--mtu", "1400"];
    options.extend(upstream.each_ref().map(String::as_str));
    let daemon = Daemon::start(&world, &options);
    let mut machine = boot(&world, &daemon, 0x56);
    machine.run("ip link set eth0 up");
    has_ipv6(&mut machine, 0x56, 1400);
    // A name that has an IPv4 address alone.
    let found = machine.run(&format!("nslookup -type=aaaa counted.test {NAMESERVER6}"));
    assert!(found.contains("64:ff9b::c000:250"), "{found}");
    let port = peers::http();
    let page = format!("http://[64:ff9b::c000:250]:{port}/7/{}", BULK / 8);
    let digest =
        machine.run(&format!("ping -c 1 -W 10 64:ff9b::c000:250 >&2; wget -q -O - {page} | sha256sum"));
    assert!(digest.ends_with(&(noise_digest(7, BULK / 8) + "  -")), "{digest}");
    assert!(digest.contains(" 0% packet loss"), "{digest}");
}

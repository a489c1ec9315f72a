//! A machine on a restricted network.

use std::net::{Ipv4Addr, SocketAddr};

use usernet_tests::machine::{Machine, Netdev};
use usernet_tests::{Daemon, GATEWAY, LAN, NAMESERVER, World, peers};

#[test]
fn a_restricted_machine_serves_and_begins_nothing() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--restrict", "--hostfwd", "tcp::0-:80"]);
    let mut machine = Machine::boot(&world, &Netdev::Stream(&daemon.socket()).card(""));

    let lease = machine.dhcp();
    let expected =
        "ip=10.0.2.15\nsubnet=255.255.255.0\nmask=24\nrouter=\ndns=\nlease=86400\nserverid=10.0.2.2\n";
    assert!(lease.starts_with(expected), "{lease}");
    machine.run(&format!("ping -c 2 -W 10 {GATEWAY} && ping -c 2 -W 10 {NAMESERVER}"));

    let server = peers::http();
    let (_, told) = machine.try_run(&format!("wget -q -O - http://{GATEWAY}:{server}/1/9"));
    assert!(told.contains("Connection refused"), "{told}");
    let (_, told) = machine.try_run(&format!("wget -q -O - http://{LAN}:{server}/1/9"));
    assert!(told.contains("Network is unreachable"), "{told}");
    // Its user may give it a way that it was not told of.
    machine.run(&format!("ip route add default via {GATEWAY}"));
    for peer in [SocketAddr::from((LAN, server)), SocketAddr::from((NAMESERVER, 53))] {
        let refused = machine.try_run(&format!("probe connect {peer}"));
        assert_eq!(refused, (1, "ConnectionRefused".to_owned()), "{peer}");
    }
    assert_ne!(machine.try_run(&format!("nslookup a.test {NAMESERVER}")).0, 0);
    let drops = daemon.list("drops");
    let policy = drops.iter().find(|drop| drop["reason"] == "policy").expect("they are counted");
    assert!(policy["count"].as_u64() >= Some(4), "{drops:?}");

    machine.run("ip route del default");
    machine.run("head -c 1000000 /dev/zero >/tmp/zeros; httpd -h /tmp -p 80");
    let zeros = machine.run("sha256sum </tmp/zeros");
    for host in [Ipv4Addr::LOCALHOST, LAN] {
        let digest = peers::fetch_digest(SocketAddr::from((host, daemon.forwarded().port())), "/zeros");
        assert_eq!(digest.expect("the guest serves") + "  -", zeros, "{host}");
    }
}

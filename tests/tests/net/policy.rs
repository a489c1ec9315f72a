//! What a network refuses to carry, and what it carries to groups.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use usernet_tests::process::finish;
use usernet_tests::wait::SOON;
use usernet_tests::{As, Daemon, INTERFACE, LAN, LAN6, Node, World, ip, peers};

/// How often the daemon's guests were refused something.
fn refusals(daemon: &Daemon<'_>) -> u64 {
    let drops = daemon.list("drops");
    let policy = drops.iter().find(|drop| drop["reason"] == "policy");
    policy.map_or(0, |drop| drop["count"].as_u64().unwrap())
}

#[test]
fn a_restricted_command_pings_its_network_and_has_no_way_out() {
    let world = World::new();
    let script = "ip -4 route show default; ip -6 route show default; cat /etc/resolv.conf; \
                  for it in 10.0.2.2 10.0.2.3 fd00::2 fd00::3; do ping -c 1 -W 5 $it || exit 1; done";
    let outcome = world.exec(&["--restrict"], script);
    assert_eq!(outcome.ok().matches(" 0% packet loss").count(), 4, "{outcome}");
    assert!(!outcome.says("default") && !outcome.says("nameserver"), "{outcome}");
    let server = peers::http();
    let out = world.exec(&["--restrict"], &format!("curl -sS -m 10 http://{LAN}:{server}/1/1"));
    assert!(out.code() == 7 && out.says("connect to"), "{out}");
}

#[test]
fn what_a_restricted_guest_begins_is_refused_at_once_and_counted() {
    let world = World::with_ipv6();
    let server = peers::http();
    let daemon = Daemon::start(&world, &["--restrict"]);
    // It goes by itself where it was not told to.
    let routes = "ip route add default via 10.0.2.2; ip -6 route add default via fd00::2";
    let fetch = |host: &str| format!("curl -sS -m 10 http://{host}:{server}/1/1");
    for (script, code, words) in [
        (fetch("10.0.2.2"), 7, "connect to"),
        (fetch(&LAN.to_string()), 7, "connect to"),
        (fetch("[fd00::2]"), 7, "connect to"),
        (fetch(&format!("[{LAN6}]")), 7, "connect to"),
        ("dig +tries=1 +timeout=10 @10.0.2.3 a.test".to_owned(), 9, "host unreachable"),
        ("dig +tries=1 +timeout=10 @fd00::3 a.test".to_owned(), 9, "permission denied"),
        (format!("ping -c 1 -W 10 {LAN}"), 1, "Packet filtered"),
        (format!("ping -c 1 -W 10 {LAN6}"), 1, "Administratively prohibited"),
    ] {
        let before = refusals(&daemon);
        let outcome = daemon.exec(&format!("{routes}; {script}"));
        assert_eq!(outcome.code(), code, "{outcome}");
        assert!(refusals(&daemon) > before, "{outcome}");
        assert!(outcome.says(words), "{outcome}");
    }
    assert_eq!(daemon.list("flows").len(), 0);
}

#[test]
fn clients_of_a_restricted_network_are_told_of_no_router_and_no_resolver() {
    let world = World::new();
    let script = format!(
        "cat >told.sh <<'E'\n#!/bin/sh\nenv\nE\nchmod +x told.sh; \
         udhcpc -i {INTERFACE} -f -n -q -T 1 -t 10 -s ./told.sh; rdisc6 -1 {INTERFACE}"
    );
    let told = world.exec(&["--restrict", "--hostname", "kept"], &script);
    for expected in ["ip=10.0.2.15", "subnet=255.255.255.0", "serverid=10.0.2.2", "hostname=kept"] {
        assert!(told.ok().lines().any(|line| line == expected), "no {expected}: {told}");
    }
    for wrong in ["router=", "dns=", "DNS server"] {
        assert!(!told.says(wrong), "{wrong}: {told}");
    }
    let lifetime = told.stdout.lines().find(|line| line.starts_with("Router lifetime")).unwrap();
    assert!(lifetime.contains(" 0 "), "{told}");
    assert!(told.says("fd00::/64"), "{told}");
}

#[test]
fn a_forward_leads_into_a_restricted_guest_for_peers_near_and_far() {
    let world = World::with_ipv6();
    for (rule, local, far, seen) in [
        ("tcp::0-:80", "127.0.0.1", "192.0.2.7", "10.0.2.2"),
        ("udp::0-:80", "127.0.0.1", "192.0.2.7", "10.0.2.2"),
        ("tcp:[::]:0-[fd00::15]:80", "[::1]", "[2001:db8::1]", "fd00:0000:0000:0000:0000:0000:0000:0002"),
    ] {
        let daemon = Daemon::start(&world, &["--restrict", "--hostfwd", rule]);
        let kind = match (rule.starts_with("tcp"), rule.contains("::15")) {
            (true, false) => "TCP4-LISTEN",
            (true, true) => "TCP6-LISTEN",
            (false, _) => "UDP4-RECVFROM",
        };
        let mut guest = daemon.spawn(&format!("exec socat -d -d {kind}:80,fork PIPE 2>&1"));
        guest.line_with(if rule.starts_with("tcp") { "listening on" } else { "receiving on" });
        let port = daemon.forwarded().port();
        for host in [local, far] {
            let to = if rule.starts_with("tcp") { "TCP" } else { "UDP" };
            let mut command = world.command(As::User, "sh");
            command.args(["-c", &format!("printf hello | socat -t 5 - {to}:{host}:{port}")]);
            // Of a datagram's answer nobody knows whether it is the last.
            let answer = finish(command, SOON);
            assert_eq!(answer.ok(), "hello", "{rule} by {host}: {}", guest.stdout());
        }
        let from = guest.stdout().matches(seen).count();
        assert!(from >= 2, "{rule}: {}", guest.stdout());
        assert_eq!(refusals(&daemon), 0);
    }
}

#[test]
fn the_hosts_link_local_range_is_refused_unless_it_is_asked_for() {
    let world = World::new();
    ip("address add 169.254.169.254/32 dev lo");
    ip("address add fd00:ec2::254/128 dev lo nodad");
    let server = peers::http();
    let fetch = format!("curl -sS -m 10 http://169.254.169.254:{server}/1/1000 | wc -c");
    let daemon = Daemon::start(&world, &[]);
    let outcome = daemon.exec(&fetch);
    assert!(outcome.says("connect to"), "{outcome}");
    let mapped = daemon.exec(&format!(
        "for host in 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1 fd00:ec2::254; do \
         $PROBE connect [$host]:{server}; ping -c 1 -W 5 $host; done"
    ));
    assert_eq!(mapped.stdout.matches("ConnectionRefused").count(), 3, "{mapped}");
    assert_eq!(mapped.stdout.matches("Administratively prohibited").count(), 3, "{mapped}");
    assert_eq!(refusals(&daemon), 7);
    assert_eq!(world.exec(&["--host-link-local"], &fetch).ok(), "1000\n");
}

#[test]
fn a_ping_to_all_nodes_finds_the_gateway() {
    let world = World::new();
    for group in ["ff02::1", "ff02::2"] {
        let outcome = world.exec(&[], &format!("ping -6 -c 2 -i 0.2 -W 5 {group}%{INTERFACE}"));
        assert!(outcome.ok().contains("from fe80::5055:aff:fe00:202"), "{outcome}");
    }
}

#[test]
fn a_broadcast_reaches_no_host() {
    let world = World::new();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let script: String = ["255.255.255.255", "10.0.2.255", "224.0.0.1", "10.0.2.2"]
        .map(|to| format!("printf {to} | socat - UDP4-DATAGRAM:{to}:{port},broadcast; "))
        .concat();
    world.exec(&["--multicast", "mdns"], &script).ok();
    let mut heard = [0; 64];
    let length = socket.recv(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"10.0.2.2");
}

/// A host whose only way out is a LAN, with another machine on it.
fn on_a_lan() -> (World, Node) {
    let world = World::new();
    // Another that comes first, where nobody is.
    ip("link add aside type veth peer name nobody");
    ip("link set aside up");
    ip("link set nobody up");
    let node = Node::new(&world);
    // Their link-local addresses are to be used at once.
    let trusts = || fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    trusts();
    node.run(trusts);
    node.link("lan");
    ip("address add 198.18.0.1/24 dev lan");
    ip("address add 2001:db8:a::1/64 dev lan nodad");
    node.ip("address add 198.18.0.2/24 dev lan");
    node.ip("address add 2001:db8:a::2/64 dev lan nodad");
    ip("route add default via 198.18.0.2");
    ip("-6 route add default via 2001:db8:a::2");
    (world, node)
}

/// Answers on `node` whoever asks in a group, from the group's port or another. Tells `heard` what was said.
fn answers(node: &Node, group: SocketAddr, from_group: bool, heard: Sender<String>) {
    node.run(move || {
        let any: IpAddr = match group {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, group.port())).unwrap();
        match group.ip() {
            IpAddr::V4(group) => socket.join_multicast_v4(&group, &Ipv4Addr::new(198, 18, 0, 2)).unwrap(),
            IpAddr::V6(group) => socket.join_multicast_v6(&group, 0).unwrap(),
        }
        let other = UdpSocket::bind((any, 0)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // A test that has ended does not listen any more.
                let _ = heard.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
                let by = if from_group { &socket } else { &other };
                let _ = by.send_to(format!("answer to {}", from.port()).as_bytes(), from);
            }
        });
    });
}

#[test]
fn services_of_a_closed_host_hear_no_question() {
    let (world, _node) = on_a_lan();
    let service = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353)).unwrap();
    service.set_read_timeout(Some(SOON)).unwrap();
    let group = Ipv4Addr::new(224, 0, 0, 251);
    service.join_multicast_v4(&group, &Ipv4Addr::new(198, 18, 0, 1)).unwrap();
    let ask = |word: &str| format!("printf '{word:12}' | socat - UDP4-DATAGRAM:{group}:5353");
    world.exec(&["--multicast", "mdns", "--no-host-loopback"], &ask("not heard")).ok();
    world.exec(&["--multicast", "mdns"], &ask("heard")).ok();
    let mut heard = [0; 64];
    let length = service.recv(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"heard       ");
}

#[test]
fn services_of_the_hosts_network_are_found_where_that_is_asked_for() {
    let scope = format!("%$(ip -o link show {INTERFACE} | cut -d: -f1)");
    // Twelve bytes are the least that mDNS has; of these, bit 7 of the third is not set.
    for (option, group, v6, question, from_group) in [
        ("mdns", "224.0.0.251:5353", false, "who is there?", true),
        ("ssdp", "239.255.255.250:1900", false, "M-SEARCH * HTTP/1.1", false),
        ("mdns", "[ff02::fb]:5353", true, "who is there?", true),
        ("ssdp", "[ff02::c]:1900", true, "M-SEARCH * HTTP/1.1", false),
    ] {
        let address: SocketAddr = group.parse().unwrap();
        let (world, node) = on_a_lan();
        let (sender, heard) = channel();
        answers(&node, address, from_group, sender);
        let scoped = if v6 { group.replace(']', &format!("{scope}]")) } else { group.to_owned() };
        // From the group's own port, as a service of the guest's would ask.
        let ask = format!("$PROBE ask-group {} {scoped} '{question}'", address.port());
        let outcome = world.exec(&["--multicast", option], &ask);
        assert!(outcome.ok().starts_with("answer to "), "{outcome}");
        assert!(!outcome.says(&format!("answer to {} ", address.port())), "not from the group's: {outcome}");
        let answerer = if v6 { "[fd00::2]" } else { "198.18.0.2" };
        assert!(outcome.says(&format!("from {answerer}:")), "{outcome}");
        assert_eq!(heard.recv_timeout(SOON).unwrap(), question);

        // Otherwise nothing of it leaves.
        let to = if v6 { "[2001:db8:a::2]" } else { "198.18.0.2" };
        let family = if v6 { 6 } else { 4 };
        let quiet = format!(
            "printf 'M-SEARCH it' | socat - UDP{family}-DATAGRAM:{scoped}; \
             printf last | socat - UDP{family}-DATAGRAM:{to}:{}",
            address.port()
        );
        world.exec(&[], &quiet).ok();
        assert_eq!(heard.recv_timeout(SOON).unwrap(), "last");
    }
}

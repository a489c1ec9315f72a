//! NAT64 and DNS64: guests without IPv4 on a host whose network has nothing else.

use std::net::Ipv4Addr;

use usernet_tests::dns::DnsServer;
use usernet_tests::routers::{FAR, ROUTERS, Routers};
use usernet_tests::wait::SOON;
use usernet_tests::{
    Daemon, GATEWAY, GATEWAY6, LAN, NAMESERVER6, NO_ROUTE, Outcome, UNREACHABLE, World, ip, noise_digest,
    peers,
};

const NAT64: [&str; 2] = ["--ipv6-only", "--nat64"];

/// Runs a script in a guest without IPv4, whose names are looked up at `server`.
fn exec(world: &World, options: &[&str], server: &DnsServer, script: &str) -> Outcome {
    let upstream = server.option();
    let options: Vec<&str> = options.iter().copied().chain(upstream.iter().map(String::as_str)).collect();
    world.exec(&options, script)
}

/// An address as a guest names it.
fn named(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("64:ff9b::{:x}:{:x}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

#[test]
fn a_page_is_found_by_its_name_and_arrives_whole_both_ways() {
    const BULK: u64 = 32 << 20;
    let world = World::new();
    let server = DnsServer::start();
    // counted.test has an IPv4 address alone.
    let page = format!("http://counted.test:{}", peers::http());
    let script = format!(
        "set -e
        ip -4 route
        curl --silent --show-error --max-time 40 --output bulk {page}/7/{BULK}
        sha256sum bulk
        curl --silent --show-error --max-time 40 --upload-file bulk {page}/"
    );
    let expected = noise_digest(7, BULK);
    assert_eq!(exec(&world, &NAT64, &server, &script).ok(), format!("{expected}  bulk\n{expected}"));
}

#[test]
fn names_and_pings_lead_to_ipv4_hosts() {
    let world = World::new();
    let server = DnsServer::start();
    let digs = [
        "counted.test AAAA",
        "+tcp counted.test AAAA",
        "counted.test A",
        "ipv4only.arpa AAAA",
        "a.test AAAA",
        "text.test TXT",
    ];
    let digs = digs.map(|dig| format!("dig +short +tries=1 @{NAMESERVER6} {dig}")).join("; ");
    let outcome = exec(&world, &NAT64, &server, &digs);
    let expected = "64:ff9b::c000:250\n64:ff9b::c000:250\n192.0.2.80\n64:ff9b::c000:aa\n64:ff9b::c000:ab\n\
                    2001:db8::80\n\"plain words\"\n";
    assert_eq!(outcome.ok(), expected);
    let outcome = exec(&world, &NAT64, &server, "dig +tries=1 nobody.test AAAA");
    assert!(outcome.ok().contains("status: NXDOMAIN"), "{outcome}");

    let outcome = exec(&world, &NAT64, &server, "ping -n -c 2 -i 0.2 -W 5 -s 1400 counted.test");
    assert_eq!(outcome.ok().matches("1408 bytes from 64:ff9b::c000:250").count(), 2, "{outcome}");
}

#[test]
fn datagrams_pass_both_ways_alone_and_in_bursts() {
    let world = World::new();
    let echo = peers::udp_echo();
    let (heard, hears) = std::sync::mpsc::channel();
    let bursts = peers::udp_burst_echo(heard);
    for address in [LAN, GATEWAY] {
        let address = named(address);
        let script =
            format!("$PROBE udp [{address}]:{echo} hello; $PROBE burst [{address}]:{bursts} 7 1200 30");
        let digest = noise_digest(7, 1200 * 30 - 1);
        assert_eq!(world.exec(&NAT64, &script).ok(), format!("hello\n1200 {digest}\n"), "{address}");
        assert_eq!(hears.recv_timeout(SOON).unwrap(), digest);
    }
}

/// In fragments on the guest's link, and on the way between hosts as their links want them.
#[test]
fn what_is_longer_than_the_mtu_passes_both_ways() {
    let world = World::new();
    let (echo, lan) = (peers::udp_echo(), named(LAN));
    for length in [1472, 8000] {
        let script = format!("$PROBE udp [{lan}]:{echo} $(head -c {length} /dev/zero | tr '\\0' x)");
        assert_eq!(world.exec(&NAT64, &script).ok(), "x".repeat(length) + "\n");
    }
    let outcome = world.exec(&NAT64, &format!("ping -c 1 -W 5 -s 8000 {lan}"));
    assert!(outcome.says(" 0% packet loss"), "{outcome}");
}

#[test]
fn what_cannot_be_had_is_told_at_once() {
    let world = World::new();
    let closed = peers::closed_port();
    let script = format!(
        "$PROBE connect [{lan}]:{closed}; $PROBE udp [{lan}]:{closed} hello; $PROBE connect [{gateway}]:{closed}
        $PROBE connect [{}]:80; $PROBE connect [{}]:80; ping -c 1 -W 9 {} | grep -c nreachable",
        named(UNREACHABLE),
        named(NO_ROUTE),
        named(NO_ROUTE),
        lan = named(LAN),
        gateway = named(GATEWAY),
    );
    let outcome = world.exec(&NAT64, &script);
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..3], ["ConnectionRefused"; 3], "{outcome}");
    assert!(lines[3..5].iter().all(|line| line.ends_with("Unreachable")), "{outcome}");
    assert_eq!(lines[5..], ["1"], "{outcome}");
}

#[test]
fn the_hosts_loopback_is_closed_where_it_is_to_be() {
    let world = World::new();
    let port = peers::http();
    let connect =
        format!("for to in {} {}; do $PROBE connect [$to]:{port}; done", named(GATEWAY), named(LAN));
    assert_eq!(world.exec(&NAT64, &connect).stdout, "connected\nconnected\n");
    let closed = [&NAT64[..], &["--no-host-loopback"]].concat();
    assert_eq!(world.exec(&closed, &connect).stdout, "ConnectionRefused\nConnectionRefused\n");
}

#[test]
fn a_forwarded_peer_keeps_its_address() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[&NAT64[..], &["--hostfwd", "tcp:192.0.2.1:0-:80"]].concat());
    let mut guest = daemon.spawn("exec socat -d -d TCP6-LISTEN:80,fork PIPE 2>&1");
    guest.line_with("listening on");
    std::net::TcpStream::connect(daemon.forwarded()).unwrap();
    // The host speaks to itself, from the address that it is asked at.
    guest.line_with("[0064:ff9b:0000:0000:0000:0000:c000:0201]");
}

#[test]
fn the_way_is_shown_and_what_it_is_too_narrow_for() {
    let world = World::new();
    let _routers = Routers::new(&world, 1400);
    let far = named(FAR);
    let way = [GATEWAY6.to_string(), named(ROUTERS[0]), named(ROUTERS[1]), far.clone()];
    for options in ["", "-I"] {
        let outcome = world.exec(&NAT64, &format!("traceroute -n -6 -w 2 {options} {far}"));
        let lines = outcome.ok().lines().skip(1);
        let hops: Vec<_> = lines.filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(hops, way, "{outcome}");
    }
    // RFC 7915 §4.2: what an IPv6 packet may have there is 20 bytes more.
    let outcome = world.exec(&NAT64, &format!("ping -M do -c 1 -W 5 -s 1400 {far}"));
    assert!(outcome.says(&format!("From {} icmp_seq=1 Packet too big: mtu=1420", way[1])), "{outcome}");
}

/// IPv6 need not find out that a way is narrower than 1280 bytes, and IPv4 need not be wider.
#[test]
fn what_ipv6_takes_for_granted_passes_the_narrowest_way() {
    let world = World::new();
    let routers = Routers::new(&world, 1500);
    ip(&format!("route add {FAR} via {} mtu 700", ROUTERS[0]));
    let port = routers.far(|| peers::udp_length(0));
    let far = named(FAR);
    let script = format!(
        "$PROBE udp [{far}]:{port} $(head -c 1232 /dev/zero | tr '\\0' x); ping -c 1 -W 5 -s 1200 {far}"
    );
    let outcome = world.exec(&NAT64, &script);
    assert!(outcome.ok().starts_with("1232\n") && outcome.says(" 0% packet loss"), "{outcome}");
}

#[test]
fn nothing_is_translated_unasked() {
    let world = World::new();
    let server = DnsServer::start();
    let script = format!(
        "dig +short +tries=1 @{NAMESERVER6} counted.test AAAA; dig +short +tries=1 @{NAMESERVER6} -x 64:ff9b::1
        $PROBE connect [{}]:80",
        named(LAN)
    );
    let outcome = exec(&world, &["--ipv6-only"], &server, &script);
    assert_eq!(outcome.stdout, "NetworkUnreachable\n", "{outcome}");
}

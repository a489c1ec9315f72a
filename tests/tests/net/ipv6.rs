//! IPv6: with a host that has it, and with one that does not.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use serde_json::Value;
use usernet_tests::dns::DnsServer;
use usernet_tests::wait::{SOON, eventually};
use usernet_tests::{Daemon, INTERFACE, LAN6, World};

/// A script that forgets the leased IPv6 address, and goes on once the guest has made itself another.
fn with_own_address(script: &str) -> String {
    format!(
        "conf=/proc/sys/net/ipv6/conf/{INTERFACE}; echo 1 >$conf/accept_ra; \
         echo 1 >$conf/disable_ipv6; echo 0 >$conf/disable_ipv6; \
         n=0; until ip -6 -o address show scope global | grep -v tentative | grep -q fd00:; do \
         n=$((n+1)); [ $n -lt 100 ] || exit 99; sleep 0.1; done; {script}"
    )
}

/// A server that says who connected to it; returns its port.
fn greeter() -> u16 {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let body = format!("hello {}\n", stream.peer_addr().unwrap().ip());
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn addresses_that_a_guest_made_itself_are_listed() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let _guest = daemon.spawn(&with_own_address("ping -6 -c 1 -W 5 fd00::2; sleep 60"));
    let own = eventually("an address that is not leased is listed", || {
        let leases = daemon.list("leases");
        let ports = daemon.list("ports");
        let mut addresses = ports.first()?["addresses"].as_array()?.iter().filter_map(Value::as_str);
        let own = addresses
            .find(|own| own.starts_with("fd00:") && leases.iter().all(|lease| lease["address"] != *own));
        own.map(str::to_owned)
    });
    let table = daemon.ctl(&["ports"]);
    assert!(table.ok().contains(&own) && table.ok().contains("10.0.2.15"), "{table}");
}

#[test]
fn a_guest_makes_itself_an_address_and_reaches_gateway_and_world() {
    let world = World::with_ipv6();
    let port = greeter();
    let script = format!(
        "ip -6 address; ip -6 route show default; ping -6 -c 1 -W 5 fd00::2 && ping -6 -c 1 -W 5 fd00::3 && \
         ping -6 -c 1 -W 5 -s 1400 {LAN6} && curl -6 -sS -m 10 http://[{LAN6}]:{port}/ && \
         curl -6 -sS -m 10 http://[fd00::2]:{port}/"
    );
    let outcome = world.exec(&[], &with_own_address(&script));
    assert!(!outcome.ok().contains("fd00::15"), "{outcome}");
    assert!(outcome.ok().contains("default via fe80::5055:aff:fe00:202"), "{outcome}");
    assert_eq!(outcome.ok().matches(" 0% packet loss").count(), 3, "{outcome}");
    assert!(outcome.ok().ends_with(&format!("hello {LAN6}\nhello ::1\n")), "{outcome}");
}

#[test]
fn datagrams_pass_both_ways() {
    let world = World::with_ipv6();
    let socket = UdpSocket::bind((LAN6, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    let script = format!("printf hello | socat -T 3 - UDP6:[{LAN6}]:{port}");
    assert_eq!(world.exec(&[], &script).ok(), "hello");
}

#[test]
fn dns_is_answered_over_ipv6() {
    let world = World::new();
    let server = DnsServer::start();
    let option = server.option();
    let script = "dig +short +tries=1 @fd00::3 a.test AAAA; dig +short +tcp +tries=1 @fd00::3 a.test A";
    let outcome = world.exec(&option.each_ref().map(String::as_str), script);
    assert_eq!(outcome.ok(), "2001:db8::80\n192.0.2.80\n", "{outcome}");
}

#[test]
fn where_the_host_has_no_route_the_guest_is_told_at_once() {
    let world = World::new();
    let script = "for i in 1 2 3 4 5; do curl -6 -sS -m 20 -o /dev/null -w '%{time_total}\\n' \
                  http://[2001:db8::80]/; done; $PROBE connect [2001:db8::80]:80";
    let outcome = world.exec(&[], script);
    assert!(outcome.stdout.contains("NetworkUnreachable"), "{outcome}");
    let times: Vec<f64> = outcome.stdout.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(times.len() == 5 && times.iter().all(|time| *time < 0.5), "{outcome}");
}

#[test]
fn a_page_with_both_kinds_of_address_waits_for_no_timer_where_the_host_has_no_route() {
    let world = World::new();
    let server = DnsServer::start();
    let port = greeter();
    // Without a word about the IPv6 address, the other would be tried when curl itself has given up.
    let script = format!("curl -v --happy-eyeballs-timeout-ms 60000 -m 20 http://a.test:{port}/ 2>&1");
    let upstream = server.option();
    // With a prefix of the world's kind, that guests prefer to IPv4.
    let mut options = vec!["--net6", "2001:db8:1::/64"];
    options.extend(upstream.each_ref().map(String::as_str));
    let outcome = world.exec(&options, &script);
    let at = |text: &str| outcome.ok().find(text).unwrap_or_else(|| panic!("no {text}: {outcome}"));
    assert!(at("Trying [2001:db8::80]") < at("Trying 192.0.2.80"), "{outcome}");
    assert!(at("Network is unreachable") < at("Connected to a.test (192.0.2.80)"), "{outcome}");
}

#[test]
fn rdisc6_sees_what_the_router_advertises() {
    let world = World::new();
    let script = format!("rdisc6 -1 -w 10000 {INTERFACE}");
    let seen = world.exec(&["--mtu", "1400", "--dns-search", "lab.example"], &script);
    // Names and values, whatever stands between them.
    let lines: Vec<_> = seen.ok().lines().filter_map(|line| line.split_once(':')).collect();
    for (name, value) in [
        ("Stateful address conf.", "Yes"),
        ("Router lifetime", "1800"),
        ("MTU", "1400"),
        ("Prefix", "fd00::/64"),
        ("On-link", "Yes"),
        ("Autonomous address conf.", "Yes"),
        ("Valid time", "86400"),
        ("Pref. time", "14400"),
        ("Recursive DNS server", "fd00::3"),
        ("DNS server lifetime", "1800"),
        ("DNS search list", "lab.example"),
        ("DNS search list lifetime", "1800"),
    ] {
        let told = lines.iter().find(|(told, _)| told.trim() == name).map(|(_, told)| told.trim());
        assert_eq!(told.and_then(|told| told.split(' ').next()), Some(value), "{name}: {seen}");
    }
    assert!(seen.ok().contains("from fe80::5055:aff:fe00:202"), "{seen}");
}

#[test]
fn dhcpcd_gets_an_address_and_settings_by_dhcpv6() {
    let world = World::new();
    let script = "mount -t tmpfs none /run && dhcpcd --test --ipv6only --timeout 20 \
                  $(ip route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/')";
    let told = world.exec(&["--dns-search", "lab.example"], script);
    for expected in
        ["nd1_prefix_information1_prefix=fd00::", "fd00::3", "lab.example", "dhcp6_ia_na1_ia_addr1=fd00::15"]
    {
        assert!(told.stdout.replace('\'', "").contains(expected), "no {expected}: {told}");
    }
}

#[test]
fn a_command_has_ipv6_from_the_start() {
    let world = World::with_ipv6();
    let world_address = LAN6.to_string();
    for (options, gateway) in [
        (&[][..], "fd00::2"),
        (&["--ipv6-only"], "fd00::2"),
        // A prefix in which guests cannot make their own addresses.
        (&["--ipv6-only", "--net6", "fd00:1::/56"], "fd00:1::2"),
    ] {
        for target in [gateway, &world_address] {
            let ping = ["--", "ping", "-6", "-c", "1", "-W", "5", target];
            let outcome = world.run(&[&["exec"], options, &ping].concat());
            assert!(outcome.ok().contains(" 0% packet loss"), "{options:?}: {outcome}");
        }
    }
}

#[test]
fn a_command_has_one_address_of_its_own_and_keeps_it() {
    let world = World::new();
    let show = "ip -6 -oneline address show scope global; ip -6 route show default; cat /etc/resolv.conf";
    // What an advertisement would change has changed by the time that one has come.
    let outcome = world.exec(&[], &format!("{show}; ping -6 -c 3 -i 0.5 -W 5 fd00::2 >/dev/null; {show}"));
    for expected in ["inet6 fd00::15/64", "default via fd00::2", "nameserver 10.0.2.3", "nameserver fd00::3"]
    {
        assert_eq!(outcome.ok().matches(expected).count(), 2, "{expected}: {outcome}");
    }
    assert_eq!(outcome.ok().matches("inet6").count(), 2, "{outcome}");
    assert_eq!(outcome.ok().matches("default").count(), 2, "{outcome}");
}

#[test]
fn a_port_is_forwarded_to_an_ipv6_guest() {
    let add = format!("ip -6 address add fd00::77/64 dev {INTERFACE} nodad");
    forwards_to(&["--hostfwd", "tcp:[::1]:0-[fd00::77]:80"], &add);
}

#[test]
fn a_port_is_forwarded_to_the_address_that_a_command_is_given() {
    forwards_to(&["--hostfwd", "tcp:[::1]:0-[fd00::15]:80"], "true");
    forwards_to(&["-6", "--hostfwd", "tcp:[::1]:0-:80"], "true");
}

/// Reaches a server in a guest of a daemon with these options.
fn forwards_to(options: &[&str], before: &str) {
    let world = World::with_ipv6();
    let daemon = Daemon::start(&world, options);
    let mut process = daemon.spawn(&format!("{before}; exec socat -d -d TCP6-LISTEN:80,fork PIPE 2>&1"));
    process.line_with("listening on");
    let address: SocketAddr = daemon.forwarded();
    assert!(address.is_ipv6(), "{address}");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    process.line_with("[fd00:0000:0000:0000:0000:0000:0000:0002]");
}

#[test]
fn either_kind_of_ip_can_be_left_out() {
    let world = World::new();
    let show = "ip address; ip -4 route; ip -6 route; cat /etc/resolv.conf";
    let both = world.exec(&[], show).ok().to_owned();
    let shown = |option| {
        world.exec(&[option], &format!("{show}; ping -c 1 -W 5 10.0.2.2; ping -6 -c 1 -W 5 fd00::2; true"))
    };
    let (v4, v6) = (shown("--ipv4-only"), shown("--ipv6-only"));
    for (of_v4, of_v6) in [
        ("inet 10.", "inet6 fd00:"),
        ("default via 10.0.2.2", "default via fd00::2"),
        ("nameserver 10.0.2.3", "nameserver fd00::3"),
        ("from 10.0.2.2", "from fd00::2"),
    ] {
        assert!(of_v4.starts_with("from") || both.contains(of_v4) && both.contains(of_v6), "{both}");
        assert!(v4.ok().contains(of_v4) && !v4.ok().contains(of_v6), "{v4}");
        assert!(v6.ok().contains(of_v6) && !v6.ok().contains(of_v4), "{v6}");
    }
    let daemon = Daemon::start(&world, &["--ipv6-only"]);
    let mut guest = daemon.spawn("echo up; exec sleep 1000");
    guest.line_with("up");
    let leases = daemon.list("leases");
    assert_eq!(leases.iter().map(|lease| &lease["address"]).collect::<Vec<_>>(), ["fd00::15"]);
    let outcome = world.run(&["exec", "--ipv6-only", "--mtu", "1000", "--", "true"]);
    assert!(outcome.code() == 2 && outcome.says("1280"), "{outcome}");
}

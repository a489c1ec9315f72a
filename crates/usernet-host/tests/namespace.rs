//! What needs a network of its own: ping sockets, and a router that says no.
//!
//! The tests marked as ignored run inside: `inside` lays out a namespace and starts this file's
//! program there again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::time::Duration;

use support::{Watch, connect, send};
use usernet_core::host::HostError;
use usernet_core::wire::{IcmpError, Offender};
use usernet_host::ping::{PingEnd, ping_allowed};
use usernet_host::tcp::TcpEnd;
use usernet_host::udp::UdpEnd;
use usernet_host::{Envelope, Icmp, Netlink, QueuedError, Source, interface};

/// 10.9.0.1 is here, 10.9.0.2 the router, and behind it lie places that it treats each in its way.
const NETWORK: &str = r#"
    set -e
    mount -t tmpfs none /run
    ip link set lo up
    ip netns add router
    ip link add here type veth peer name there netns router
    ip addr add 10.9.0.1/24 dev here
    ip link set here up
    ip route add default via 10.9.0.2
    ip -n router addr add 10.9.0.2/24 dev there
    ip -n router link set there up
    ip -n router route add prohibit 10.9.1.0/24
    ip -n router route add unreachable 10.9.2.0/24
    ip -n router route add blackhole 10.9.3.0/24
    ip -n router route add default via 10.9.0.1
    ip netns exec router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/icmp_ratemask'
    if [ "$PING" = yes ]; then echo 0 0 > /proc/sys/net/ipv4/ping_group_range; fi
    exec "$@"
"#;

const ROUTER: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)));
const PROHIBITED: &str = "10.9.1.1:80";
const UNREACHABLE: &str = "10.9.2.1:80";
const SILENT: &str = "10.9.3.1:80";
const FAR_AWAY: &str = "10.9.4.1:80";

/// Runs one of the ignored tests in a namespace, where it may or may not open ping sockets.
fn inside(test: &str, ping: &str) {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c", NETWORK, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .env("PING", ping)
        .output()
        .expect("unshare (util-linux) runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ping() {
    inside("inside_ping", "yes");
}

#[test]
fn ping_forbidden() {
    inside("inside_ping_forbidden", "no");
}

#[test]
fn routers_that_say_no() {
    inside("inside_routers_that_say_no", "yes");
}

#[test]
fn ways_that_are_lost() {
    inside("inside_ways_that_are_lost", "no");
}

#[test]
fn what_is_the_host_itself() {
    inside("inside_what_is_the_host_itself", "no");
}

#[test]
fn ways_of_ipv6() {
    inside("inside_ways_of_ipv6", "no");
}

#[test]
fn groups_without_the_host() {
    inside("inside_groups_without_the_host", "no");
}

fn envelope(to: &str) -> Envelope {
    Envelope { to: to.parse().unwrap(), from: Source::default(), ttl: None, tos: 0 }
}

/// An echo request of sequence number 5 with an identifier and a checksum that are wrong.
const REQUEST: [u8; 14] = *b"\x08\x00\xff\xff\xee\xee\x00\x05abcdef";

/// What the router said.
fn told(kind: u8, code: u8, ttl: Option<u8>) -> Option<Icmp> {
    let offender = ROUTER.map(|addr| Offender { addr, ttl });
    Some(Icmp { error: IcmpError::V4 { kind, code, info: 0 }, offender })
}

/// Waits for an error.
#[track_caller]
fn ping_error(end: &PingEnd, request: &mut [u8]) -> QueuedError {
    Watch::new(end).until(|event| event.error());
    end.take_error(request).unwrap()
}

#[test]
#[ignore = "the inner half of `ping`, which runs it in a network namespace of its own"]
fn inside_ping() {
    assert_eq!(ping_allowed(), Ok(()));
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let end = PingEnd::open(any, 0x1234).unwrap();
    assert_eq!(end.ident(), 0x1234);
    let second = PingEnd::open(any, 0x1234).unwrap();
    assert!(![0, 0x1234].contains(&second.ident()));

    let (header, data) = REQUEST.split_at(8);
    let mut reply = [0; 100];
    assert_eq!(end.receive(&mut [IoSliceMut::new(&mut reply)]), Ok(None));
    end.send(&[IoSlice::new(header), IoSlice::new(data)], &Envelope { tos: 0x29, ..envelope("10.9.0.2:0") })
        .unwrap();
    Watch::new(&end).until(|event| event.readable());
    let received = end.receive(&mut [IoSliceMut::new(&mut reply)]).unwrap().unwrap();
    let reply = &reply[..received.len];
    // Type 0, code 0, the identifier in its place.
    assert_eq!((&reply[..2], &reply[4..]), (&[0, 0][..], &b"\x12\x34\x00\x05abcdef"[..]));
    assert_eq!(received.from.ip(), ROUTER.unwrap());
    assert_eq!((received.ttl, received.tos), (Some(64), 0x29));

    // Traceroute: the hops that run out on the way are told by whom.
    let mut request = [0; 100];
    end.send(&[IoSlice::new(&REQUEST)], &Envelope { ttl: Some(1), ..envelope(FAR_AWAY) }).unwrap();
    let error = ping_error(&end, &mut request);
    assert_eq!(error.icmp, told(11, 0, Some(64)));
    assert_eq!(error.to.ip(), envelope(FAR_AWAY).to.ip());
    assert_eq!(&request[4..error.len], b"\x12\x34\x00\x05abcdef");

    end.send(&[IoSlice::new(&REQUEST)], &envelope(PROHIBITED)).unwrap();
    let error = ping_error(&end, &mut request);
    assert_eq!(error.error, HostError::Prohibited);
    assert_eq!(error.icmp, told(3, 13, Some(64)));

    let end = PingEnd::open("::".parse().unwrap(), 77).unwrap();
    let mut request = REQUEST;
    request[0] = 128;
    end.send(&[IoSlice::new(&request)], &envelope("[::1]:0")).unwrap();
    Watch::new(&end).until(|event| event.readable());
    let mut reply = [0; 100];
    let received = end.receive(&mut [IoSliceMut::new(&mut reply)]).unwrap().unwrap();
    assert_eq!((reply[0], &reply[4..received.len]), (129, &b"\x00\x4d\x00\x05abcdef"[..]));
    assert_eq!(received.ttl, Some(64));
}

#[test]
#[ignore = "the inner half of `ping_forbidden`, which runs it in a network namespace of its own"]
fn inside_ping_forbidden() {
    let forbidden = ping_allowed().unwrap_err();
    assert_eq!(forbidden.error, HostError::Prohibited);
    let text = forbidden.to_string();
    // 1 to 0, as seen from here: none.
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
    let range = range.trim().replace('\t', " ");
    assert!(text.contains(&format!("is \"{range}\"")), "{text}");
    assert!(text.ends_with(r#"sysctl -w net.ipv4.ping_group_range="0 2147483647""#), "{text}");
    let end = PingEnd::open(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 1);
    assert_eq!(end.map(drop), Err(HostError::Prohibited));
}

#[test]
#[ignore = "the inner half of `routers_that_say_no`, which runs it in a network namespace of its own"]
fn inside_routers_that_say_no() {
    assert_eq!(connect(PROHIBITED.parse().unwrap()).map(drop), Err(HostError::Prohibited));
    assert_eq!(connect(UNREACHABLE.parse().unwrap()).map(drop), Err(HostError::HostUnreachable));
    let mut pending = TcpEnd::connect(SILENT.parse().unwrap(), Source::default(), 0).unwrap();
    assert_eq!(pending.finish_connect(), Ok(false));
    assert_eq!(Watch::new(&pending).next_within(Duration::ZERO), None);

    let end = UdpEnd::open(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap();
    let outcomes = [
        (envelope(PROHIBITED), HostError::Prohibited, (3, 13)),
        (envelope(UNREACHABLE), HostError::HostUnreachable, (3, 1)),
        (Envelope { ttl: Some(1), ..envelope(FAR_AWAY) }, HostError::HostUnreachable, (11, 0)),
    ];
    for (envelope, expected, (kind, code)) in outcomes {
        send(&end, &[b"hello"], envelope).unwrap();
        Watch::new(&end).until(|event| event.error());
        let mut payload = [0; 100];
        let error = end.take_error(&mut payload).unwrap();
        assert_eq!((error.to, error.error), (envelope.to, expected));
        assert_eq!(error.icmp, told(kind, code, None));
        assert_eq!(&payload[..error.len], b"hello");
    }

    // What the host itself knows is told by the send.
    let none = UdpEnd::open("::".parse().unwrap(), 0).unwrap();
    let nowhere =
        Envelope { to: SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9)), ..envelope(SILENT) };
    assert_eq!(send(&none, &[b"hello"], nowhere), Err(HostError::NetUnreachable));
    assert_eq!(TcpEnd::connect(nowhere.to, Source::default(), 0).map(drop), Err(HostError::NetUnreachable));
}

/// Runs `ip`; waits until word of a change has come.
fn change(changes: &mut Watch, arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
    changes.until(|event| event.readable());
}

#[test]
#[ignore = "the inner half of `ways_that_are_lost`, which runs it in a network namespace of its own"]
fn inside_ways_that_are_lost() {
    let changes = usernet_host::changes().unwrap();
    let changes = &mut Watch::new(&changes);
    let to = SILENT.parse().unwrap();
    let pending = TcpEnd::connect(to, Source::default(), 0).unwrap();
    let way = pending.path(Some(to)).unwrap();
    assert_eq!((way.local(), way.peer()), ([10, 9, 0, 1].into(), to.ip()));
    let kernel = Netlink::open().unwrap();
    let has = || (way.has_address(), way.has_route(&kernel));
    assert_eq!(has(), (true, true));
    change(changes, "route del default");
    assert_eq!(has(), (true, false));
    for kind in ["unreachable", "prohibit", "blackhole"] {
        change(changes, &format!("route add {kind} default"));
        assert_eq!(has(), (true, false), "{kind}");
        change(changes, &format!("route del {kind} default"));
    }
    // Rules that know what it is, and by whose routes it goes.
    change(changes, "route add default via 10.9.0.2 table 100");
    for (selector, expected) in [
        ("from all", true),
        ("from 10.9.0.1", true),
        ("ipproto tcp", true),
        ("ipproto udp", false),
        ("dport 80", true),
        ("ipproto tcp dport 80", true),
        ("dport 81", false),
        ("fwmark 7", false),
        ("oif here", false),
    ] {
        change(changes, &format!("rule add {selector} lookup 100"));
        assert_eq!(has(), (true, expected), "{selector}");
        change(changes, &format!("rule del {selector} lookup 100"));
    }
    change(changes, "route replace default via 10.9.0.2");
    assert_eq!(has(), (true, true));
    change(changes, "link set here down");
    assert_eq!(has(), (true, false));
    change(changes, "addr del 10.9.0.1/24 dev here");
    assert_eq!(has(), (false, false));

    assert!(interface("nowhere").is_err());
    let here = Source { interface: interface("here").unwrap(), ..Source::default() };
    assert_eq!(TcpEnd::connect(to, here, 0).map(drop), Err(HostError::NetUnreachable));
    let gone = Source { address: Some(way.local()), interface: i32::MAX.unsigned_abs() };
    for from in [gone, Source { interface: 0, ..gone }, Source { address: None, ..gone }] {
        assert_eq!(TcpEnd::connect(to, from, 0).map(drop), Err(HostError::NetUnreachable), "{from:?}");
        let end = UdpEnd::open(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap();
        let unsent = send(&end, &[b"hello"], Envelope { from, ..envelope(SILENT) });
        assert_eq!(unsent, Err(HostError::NetUnreachable), "{from:?}");
    }
}

#[test]
#[ignore = "the inner half of `what_is_the_host_itself`, which runs it in a network namespace of its own"]
fn inside_what_is_the_host_itself() {
    let changes = usernet_host::changes().unwrap();
    let changes = &mut Watch::new(&changes);
    let has = |net: &str| {
        let (address, len) = net.split_once('/').unwrap();
        usernet_host::own().unwrap().contains(&(address.parse().unwrap(), len.parse().unwrap()))
    };
    for net in ["10.9.0.1/32", "10.9.0.255/32", "127.0.0.0/8", "127.0.0.1/32", "::1/128"] {
        assert!(has(net), "{net}");
    }
    assert!(!has("0.0.0.0/0") && !has("10.9.0.0/24"));
    for (added, net) in [
        ("route add local 10.99.0.0/16 dev lo", "10.99.0.0/16"),
        ("addr add 10.8.0.1/24 dev lo", "10.8.0.0/24"),
        ("-6 route add local 2001:db8:99::/48 dev lo", "2001:db8:99::/48"),
        ("-6 route add anycast 2001:db8:98::/128 dev here", "2001:db8:98::/128"),
        ("route add local default dev lo table local", "0.0.0.0/0"),
    ] {
        assert!(!has(net), "{net}");
        change(changes, added);
        assert!(has(net), "{net}");
    }
    // What has no route for the moment.
    change(changes, "link set here down");
    assert!(has("10.9.0.1/32"));
    // More than one read tells.
    let many = "for a in $(seq 0 199); do for b in 0 1; do echo route add local 10.100.$b.$a/32 dev lo; done; done \
                | ip -batch -";
    assert!(Command::new("sh").args(["-c", many]).status().unwrap().success());
    assert!(has("10.100.0.0/32") && has("10.100.1.199/32"));
}

#[test]
#[ignore = "the inner half of `ways_of_ipv6`, which runs it in a network namespace of its own"]
fn inside_ways_of_ipv6() {
    let changes = usernet_host::changes().unwrap();
    let changes = &mut Watch::new(&changes);
    let kernel = Netlink::open().unwrap();
    assert_eq!(usernet_host::outward_interface_v6(), None);
    change(changes, "-6 addr add 2001:db8:a::1/64 dev here nodad");
    change(changes, "-6 route add default via 2001:db8:a::2");
    let here = interface("here").unwrap();
    assert_eq!(usernet_host::outward_interface_v6(), Some(here));
    let to = "[2001:db8:7::1]:80".parse().unwrap();
    let way = |from| TcpEnd::connect(to, from, 0).unwrap().path(Some(to)).unwrap();
    let ways = [way(Source::default()), way(Source { interface: here, ..Source::default() })];
    let have = || ways.map(|way| way.has_route(&kernel));
    assert_eq!(have(), [true; 2]);
    for kind in ["unreachable", "prohibit", "blackhole"] {
        change(changes, &format!("-6 route add {kind} 2001:db8:7::/48"));
        assert_eq!(have(), [false; 2], "{kind}");
        change(changes, &format!("-6 route del {kind} 2001:db8:7::/48"));
    }
    change(changes, "link add aside type veth peer name nobody");
    change(changes, "link set nobody up");
    change(changes, "link set aside up");
    change(changes, "-6 route add 2001:db8:7::/48 dev aside");
    assert_eq!(have(), [true; 2]);
    change(changes, "-6 route del default");
    assert_eq!(have(), [true, false]);
    change(changes, "-6 route del 2001:db8:7::/48 dev aside");
    assert_eq!(have(), [false; 2]);
    change(changes, "-6 route add default via 2001:db8:a::2 table 100");
    change(changes, "-6 rule add ipproto tcp dport 80 lookup 100");
    assert_eq!(have(), [true; 2]);
}

#[test]
#[ignore = "the inner half of `groups_without_the_host`, which runs it in a network namespace of its own"]
fn inside_groups_without_the_host() {
    let changes = usernet_host::changes().unwrap();
    change(&mut Watch::new(&changes), "-6 addr add 2001:db8:a::1/64 dev here nodad");
    let here = interface("here").unwrap();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let service = UdpSocket::bind((any, 0)).unwrap();
        service.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let port = service.local_addr().unwrap().port();
        let to = if any.is_ipv4() {
            let group = Ipv4Addr::new(224, 0, 0, 251);
            service.join_multicast_v4(&group, &Ipv4Addr::new(10, 9, 0, 1)).unwrap();
            SocketAddr::from((group, port))
        } else {
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
            service.join_multicast_v6(&group, here).unwrap();
            SocketAddrV6::new(group, port, 0, here).into()
        };
        let end = UdpEnd::open(any, 0).unwrap();
        let ask = |word: &[u8]| send(&end, &[word], Envelope { to, ..envelope(FAR_AWAY) }).unwrap();
        ask(b"heard");
        end.leave_host_out().unwrap();
        ask(b"not heard");
        UdpEnd::open(any, 0)
            .map(|end| send(&end, &[b"last"], Envelope { to, ..envelope(FAR_AWAY) }))
            .unwrap()
            .unwrap();
        for expected in [&b"heard"[..], b"last"] {
            let mut heard = [0; 16];
            let length = service.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], expected, "{to}");
        }
    }
}

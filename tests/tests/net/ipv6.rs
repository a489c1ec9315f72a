//! IPv6: with a host that has it, and with one that does not.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use usernet_tests::dns::DnsServer;
use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, World, ip};

/// The host's address on its LAN.
const LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A host with IPv6.
fn world() -> World {
    let world = World::new();
    ip("address add 2001:db8::1/64 dev lo nodad");
    world
}

/// A script that goes on once the guest has made itself an address, which it may use.
fn with_address(script: &str) -> String {
    format!(
        "n=0; until ip -6 -o address show scope global | grep -v tentative | grep -q fd00:; do \
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
fn a_guest_makes_itself_an_address_and_reaches_gateway_and_world() {
    let world = world();
    let port = greeter();
    let script = format!(
        "ip -6 route show default; ping -6 -c 1 -W 5 fd00::2 && ping -6 -c 1 -W 5 fd00::3 && \
         ping -6 -c 1 -W 5 -s 1400 {LAN6} && curl -6 -sS -m 10 http://[{LAN6}]:{port}/ && \
         curl -6 -sS -m 10 http://[fd00::2]:{port}/"
    );
    let outcome = world.exec(&[], &with_address(&script));
    assert!(outcome.ok().contains("default via fe80::5055:aff:fe00:202"), "{outcome}");
    assert_eq!(outcome.ok().matches(" 0% packet loss").count(), 3, "{outcome}");
    assert!(outcome.ok().ends_with(&format!("hello {LAN6}\nhello ::1\n")), "{outcome}");
}

#[test]
fn datagrams_pass_both_ways() {
    let world = world();
    let socket = UdpSocket::bind((LAN6, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    let script = format!("printf hello | socat -T 3 - UDP6:[{LAN6}]:{port}");
    assert_eq!(world.exec(&[], &with_address(&script)).ok(), "hello");
}

#[test]
fn dns_is_answered_over_ipv6() {
    let world = World::new();
    let server = DnsServer::start();
    let option = server.option();
    let script = "dig +short +tries=1 @fd00::3 a.test AAAA; dig +short +tcp +tries=1 @fd00::3 a.test A";
    let outcome = world.exec(&option.each_ref().map(String::as_str), &with_address(script));
    assert_eq!(outcome.ok(), "2001:db8::80\n192.0.2.80\n", "{outcome}");
}

#[test]
fn where_the_host_has_no_route_the_guest_is_told_at_once() {
    let world = World::new();
    let script = "for i in 1 2 3 4 5; do curl -6 -sS -m 20 -o /dev/null -w '%{time_total}\\n' \
                  http://[2001:db8::80]/; done; $PROBE connect [2001:db8::80]:80";
    let outcome = world.exec(&[], &with_address(script));
    assert!(outcome.stdout.contains("NetworkUnreachable"), "{outcome}");
    let times: Vec<f64> = outcome.stdout.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(times.len() == 5 && times.iter().all(|time| *time < 0.5), "{outcome}");
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
fn a_port_is_forwarded_to_an_ipv6_guest() {
    let world = world();
    let guest = "fd00::77";
    let rules = ["--hostfwd", "tcp:[::1]:0-[fd00::77]:80"];
    let daemon = Daemon::start(&world, &rules);
    let listen = format!(
        "ip -6 address add {guest}/64 dev $(ip route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/') nodad; \
         exec socat -d -d TCP6-LISTEN:80,fork PIPE 2>&1"
    );
    let mut process = daemon.spawn(&listen);
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
    let outcome = world.exec(&["--ipv4-only"], "ping -c 1 -W 5 10.0.2.2 && ! ping -6 -c 1 -W 2 fd00::2");
    outcome.ok();
    let script = with_address("ping -6 -c 1 -W 5 fd00::2 && ! ping -c 1 -W 2 10.0.2.2");
    world.exec(&["--ipv6-only"], &script).ok();
    let outcome = world.run(&["exec", "--ipv6-only", "--mtu", "1000", "--", "true"]);
    assert!(outcome.code() == 2 && outcome.says("1280"), "{outcome}");
}

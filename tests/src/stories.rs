//! Stories of machines on a network, which hold for every kind of machine and however it is plugged in.
//!
//! Each is told which options the daemon needs to have such a machine, and how to boot one whose card has
//! this last byte of its address.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::dns::{BIG_STRINGS, DnsServer, RecordType, tcp_answer, tcp_query};
use crate::machine::{Machine, slaac};
use crate::noise::{hex, unhex};
use crate::wait::SOON;
use crate::{
    Daemon, GATEWAY, GATEWAY6, LAN, LAN6, NAMESERVER, NAMESERVER6, NO_ROUTE, NO_ROUTE6, Noise, UNREACHABLE,
    World, eventually, noise_digest, peers,
};

/// Bytes of a transfer that is long.
pub const BULK: u64 = 64 << 20;

const CARD: u8 = 0x56;

/// One machine, all that a guest does: a boot is what is slow.
pub fn a_machine_is_on_a_working_network(
    options: &[&str],
    boot: impl Fn(&World, &Daemon<'_>, u8) -> Machine,
) {
    let world = World::with_ipv6();
    let dns = DnsServer::start();
    let upstream = dns.option();
    let forward6 = format!("tcp:[::1]:0-[{}]:80", slaac(CARD));
    let mut options = options.to_vec();
    options.extend(["--hostfwd", "tcp:127.0.0.1:0-:80", "--hostfwd", &forward6]);
    options.extend(["--hostfwd", "udp:127.0.0.1:0-:53", "--hostname", "guest-one", "--mtu", "1400"]);
    options.extend(["--domain", "lab.example", "--dns-search", "one.example"]);
    options.extend(upstream.each_ref().map(String::as_str));
    let daemon = Daemon::start(&world, &options);
    let mut machine = boot(&world, &daemon, CARD);

    let lease = machine.dhcp();
    assert_eq!(
        lease,
        "ip=10.0.2.15\nsubnet=255.255.255.0\nmask=24\nrouter=10.0.2.2\ndns=10.0.2.3\nlease=86400\n\
         serverid=10.0.2.2\nmtu=1400\nhostname=guest-one\ndomain=lab.example\nsearch=one.example"
    );
    has_ipv6(&mut machine, CARD, 1400);
    pings(&mut machine);
    resolves(&mut machine);
    transfers(&mut machine);
    exchanges_datagrams(&mut machine);
    half_closes(&mut machine);
    learns_why_not(&mut machine);
    serves(&mut machine, &daemon);

    // A guest that starts anew is the same guest, and finds the network as it was.
    machine.reboot();
    assert_eq!(machine.dhcp(), lease);
    has_ipv6(&mut machine, CARD, 1400);
    pings(&mut machine);
    for what in ["leases", "ports"] {
        assert_eq!(daemon.list(what).len(), 1, "{what}");
    }
}

/// The machine makes itself an address, and learns the router and the MTU.
pub fn has_ipv6(machine: &mut Machine, card: u8, mtu: u32) {
    let shown = machine.run(
        "n=0; until ip -6 address show dev eth0 scope global | grep -v tentative | grep inet6; do \
         n=$((n+1)); [ $n -lt 200 ] || exit 1; sleep 0.1; done; \
         ip -6 route show default; cat /proc/sys/net/ipv6/conf/eth0/mtu",
    );
    assert!(shown.contains(&format!("inet6 {}/64", slaac(card))), "{shown}");
    assert!(shown.contains("default via fe80::5055:aff:fe00:202"), "{shown}");
    assert!(shown.ends_with(&format!("\n{mtu}")), "{shown}");
}

fn pings(machine: &mut Machine) {
    let addresses: [IpAddr; 6] =
        [GATEWAY.into(), NAMESERVER.into(), LAN.into(), GATEWAY6.into(), NAMESERVER6.into(), LAN6.into()];
    for address in addresses {
        machine.run(&format!("ping -c 1 -W 10 {address}"));
        // In fragments, both ways.
        let large = machine.run(&format!("ping -A -c 2 -W 10 -s 60000 {address}"));
        assert_eq!(large.matches("60008 bytes from").count(), 2, "{large}");
    }
}

fn resolves(machine: &mut Machine) {
    let found = machine.run("nslookup -type=a a.test");
    assert!(found.contains("192.0.2.80"), "{found}");
    let found = machine.run("nslookup -type=aaaa a.test");
    assert!(found.contains("2001:db8::80"), "{found}");
    let found = machine.run(&format!("nslookup -type=aaaa a.test {NAMESERVER6}"));
    assert!(found.contains("2001:db8::80"), "{found}");
    let query = hex(&tcp_query("big.test.", RecordType::TXT));
    for server in [NAMESERVER.into(), NAMESERVER6.into()] {
        let answer = machine.run(&format!("probe ask {} {query}", SocketAddr::new(server, 53)));
        assert_eq!(tcp_answer(&unhex(&answer)).answers.len(), BIG_STRINGS);
    }
}

fn transfers(machine: &mut Machine) {
    let port = peers::http();
    for (gateway, length) in [(GATEWAY6.into(), BULK / 8), (GATEWAY.into(), BULK)] {
        let server = SocketAddr::new(gateway, port);
        let down = format!("wget -q -O /tmp/bulk http://{server}/7/{length} && sha256sum </tmp/bulk");
        assert_eq!(machine.run(&down), noise_digest(7, length) + "  -");
        // What busybox's wget posts ends at the first zero byte.
        let up = machine.run(&format!("probe put {server} /tmp/bulk"));
        assert!(up.ends_with(&noise_digest(7, length)), "{up}");
    }
}

fn exchanges_datagrams(machine: &mut Machine) {
    let echo = peers::udp_echo();
    let addresses: [IpAddr; 4] = [GATEWAY.into(), LAN.into(), GATEWAY6.into(), LAN6.into()];
    for address in addresses {
        let server = SocketAddr::new(address, echo);
        assert_eq!(machine.run(&format!("probe udp {server} hello")), "hello");
        let large = machine.run(&format!("probe udp {server} $(head -c 60000 /dev/zero | tr '\\0' x)"));
        assert_eq!(large, "x".repeat(60_000));
    }
}

fn half_closes(machine: &mut Machine) {
    let port = peers::digest_after_end();
    let digest = machine.run(&format!("probe send {GATEWAY}:{port} 3 1000000"));
    assert_eq!(digest, noise_digest(3, 1_000_000));

    let (sender, heard) = channel();
    let port = peers::ends_first(sender);
    let text = machine.run(&format!("probe receive-then-send {GATEWAY}:{port} 4 1000000"));
    assert_eq!(text, "that is all");
    assert_eq!(heard.recv_timeout(SOON), Ok(noise_digest(4, 1_000_000)));
}

fn learns_why_not(machine: &mut Machine) {
    let closed = peers::closed_port();
    for (peer, why) in [
        (format!("{GATEWAY}:{closed}"), "ConnectionRefused"),
        (format!("[{GATEWAY6}]:{closed}"), "ConnectionRefused"),
        (format!("{UNREACHABLE}:80"), "HostUnreachable"),
        (format!("{NO_ROUTE}:80"), "NetworkUnreachable"),
        (format!("[{NO_ROUTE6}]:80"), "NetworkUnreachable"),
    ] {
        assert_eq!(machine.try_run(&format!("probe connect {peer}")), (1, why.to_owned()), "{peer}");
    }
}

/// The guest's own servers, through forwarded ports.
fn serves(machine: &mut Machine, daemon: &Daemon<'_>) {
    machine.run("httpd -h /tmp -p 80");
    let forwards = daemon.list("forwards");
    assert_eq!(forwards.len(), 3);
    let host = |forward: &Value| forward["host"].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let (tcp, udp): (Vec<_>, Vec<_>) = forwards.iter().partition(|forward| forward["protocol"] == "tcp");
    for forwarded in tcp.into_iter().map(host) {
        let digest = peers::fetch_digest(forwarded, "/bulk").expect("the guest serves");
        assert_eq!(digest, noise_digest(7, BULK), "{forwarded}");
    }
    machine.start_script("probe echo-udp 53");
    machine.run("until netstat -lnu | grep -q ':53 '; do sleep 0.1; done");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(host(udp[0])).unwrap();
    socket.send(b"hello").unwrap();
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
}

/// Machines do not disturb each other, not even one that is killed.
pub fn machines_come_and_go(options: &[&str], boot: impl Fn(&World, &Daemon<'_>, u8) -> Machine) {
    let world = World::new();
    let daemon = Daemon::start(&world, options);
    let mut first = boot(&world, &daemon, 1);
    assert!(first.dhcp().contains("ip=10.0.2.15\n"));
    let mut second = boot(&world, &daemon, 2);
    assert!(second.dhcp().contains("ip=10.0.2.16\n"));
    second.run("ping -A -c 3 -W 10 10.0.2.15");

    // The second is killed in mid transfer.
    let (sender, receiver) = channel();
    let port = peers::tcp(move |mut stream| {
        let ended = io::copy(&mut Noise::new(1), &mut stream).map_err(|error| error.kind());
        // Nobody listens any more when the test has ended.
        let _ = sender.send((ended, Instant::now()));
        Ok(())
    });
    second.start_script(&format!("probe receive-then-send {GATEWAY}:{port} 1 0"));
    eventually("the transfer runs", || {
        let flows = daemon.list("flows");
        flows.iter().any(|flow| flow["bytes_in"].as_u64().unwrap() > 1 << 20).then_some(())
    });
    let killed = Instant::now();
    second.process.signal(Signal::KILL);
    let (ended, at) = receiver.recv_timeout(SOON).unwrap();
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    assert!(at - killed < Duration::from_secs(1), "{:?}", at - killed);
    drop(second);
    eventually("its port is gone", || (daemon.list("ports").len() == 1).then_some(()));
    daemon.until_none("flows");

    // It comes back to the address that it had, and the first has noticed nothing.
    let mut second = boot(&world, &daemon, 2);
    assert!(second.dhcp().contains("ip=10.0.2.16\n"));
    let http = SocketAddrV4::new(GATEWAY, peers::http());
    for machine in [&mut first, &mut second] {
        let digest = machine.run(&format!("wget -q -O - http://{http}/5/1000000 | sha256sum"));
        assert_eq!(digest, noise_digest(5, 1_000_000) + "  -");
    }
    first.run("ping -A -c 3 -W 10 10.0.2.16");
}

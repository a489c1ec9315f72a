//! A guest that scans the host's ports.

use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::thread;

use usernet_tests::{Daemon, GATEWAY, GATEWAY6, World, noise_digest, peers};

/// What is scanned, and who listens there.
const PORTS: &str = "7001-7100";
const OPEN_TCP: u16 = 7010;
const OPEN_UDP: u16 = 7020;

#[test]
fn nmap_finds_what_is_open_and_what_is_closed_and_nothing_is_left_of_it() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    // Both take both families.
    let _listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, OPEN_TCP)).unwrap();
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, OPEN_UDP)).unwrap();
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(b"hello", from);
        }
    });
    let scan = format!("nmap -n -Pn -T4 -sS -sU -p {PORTS}");
    let http = format!("http://{GATEWAY}:{}/1/1000000", peers::http());
    let script = format!(
        "{scan} {GATEWAY} && {scan} -6 {GATEWAY6} && curl -sS -m 20 {http} | sha256sum; echo over; sleep 1000"
    );
    let mut guest = daemon.spawn(&script);
    guest.line_with("over");

    let seen = guest.stdout();
    for expected in [
        format!("{OPEN_TCP}/tcp open "),
        format!("{OPEN_UDP}/udp open "),
        "99 closed tcp ports".into(),
        "99 closed udp ports".into(),
    ] {
        assert_eq!(seen.matches(&expected).count(), 2, "{expected}: {seen}");
    }
    // Every probe was answered.
    assert!(!seen.contains("filtered"), "{seen}");
    assert!(seen.contains(&noise_digest(1, 1_000_000)), "the guest is served as before: {seen}");

    // Of hundreds of probes nothing stays but the flows of those that were answered.
    let flows = daemon.list("flows");
    assert!(flows.len() < 10, "{flows:#?}");
    let opening = |flow: &serde_json::Value| flow["state"].as_str().unwrap().starts_with("SYN");
    assert!(!flows.iter().any(opening), "{flows:#?}");
    let dropped: u64 = daemon.list("drops").iter().map(|drop| drop["count"].as_u64().unwrap()).sum();
    assert!(dropped < 10, "{:#?}", daemon.list("drops"));
    daemon.terminate();
}

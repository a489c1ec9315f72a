//! By what guests' flows leave the host, and what becomes of them when the host's network changes.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, Node, Process, World, eventually, ip, peers};

/// The other machine, on either network that it shares with the host, and on none.
const PEER: &str = "198.18.0.2";
const PEER6: &str = "2001:db8:a::2";
const AFAR: &str = "198.18.7.1";
const AFAR6: &str = "2001:db8:7::1";
/// Addresses of the host on the first network, and on the second. The first is what the routes say.
const FIRST: &str = "198.18.0.1";
const OTHER: &str = "198.18.0.9";
const OTHER6: &str = "2001:db8:a::9";
const SECOND: &str = "198.18.1.1";
const SECOND6: &str = "2001:db8:b::1";

/// A host on two networks with another machine.
fn world() -> (World, Node) {
    let world = World::new();
    let node = Node::new(&world);
    node.link("first");
    for address in [FIRST, OTHER] {
        ip(&format!("address add {address}/24 dev first"));
    }
    ip("address add 2001:db8:a::1/64 dev first nodad");
    // Chosen by nobody who is not told to.
    ip(&format!("address add {OTHER6}/64 dev first nodad preferred_lft 0"));
    node.ip(&format!("address add {PEER}/24 dev first"));
    node.ip(&format!("address add {PEER6}/64 dev first nodad"));
    node.ip(&format!("address add {AFAR}/32 dev lo"));
    node.ip(&format!("address add {AFAR6}/128 dev lo nodad"));
    second_network(&node);
    ip(&format!("route add default via {PEER} metric 1"));
    ip(&format!("route add {AFAR}/32 via {PEER}"));
    ip(&format!("-6 route add default via {PEER6} metric 1"));
    (world, node)
}

fn second_network(node: &Node) {
    node.link("second");
    ip(&format!("address add {SECOND}/24 dev second"));
    ip(&format!("address add {SECOND6}/64 dev second nodad"));
    node.ip("address add 198.18.1.2/24 dev second");
    node.ip("address add 2001:db8:b::2/64 dev second nodad");
    ip("route add default via 198.18.1.2 dev second metric 2");
    ip("-6 route add default via 2001:db8:b::2 dev second metric 2");
}

/// A TCP server that says who connects, and hands the connection over, or ends it where nobody takes it;
/// and UDP servers at these addresses that say who asks. They have the same port number.
fn who(asked_at: &[&str]) -> (u16, Receiver<TcpStream>) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connected, connections) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let who = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("you are {who}\n").as_bytes());
            let _ = connected.send(stream);
        }
    });
    for address in asked_at {
        let socket = UdpSocket::bind((*address, port)).unwrap();
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                let _ = socket.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
            }
        });
    }
    (port, connections)
}

/// The shell's words for asking a server who it is asked by.
fn ask(address: &str, port: u16) -> String {
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!(
        "socat -u TCP:{address}:{port} -; \
         echo x | socat -T 5 - UDP:{address}:{port},sourceport=5000 && echo; "
    )
}

fn told(addresses: &[&str]) -> String {
    addresses.iter().map(|address| format!("you are {address}\n{address}\n")).collect()
}

#[test]
fn flows_leave_by_the_outbound_addresses() {
    let (world, node) = world();
    let (port, _) = node.run(|| who(&[PEER, PEER6, AFAR, AFAR6]));
    let (here, _) = who(&["::"]);
    let script = ask(PEER, port) + &ask(PEER6, port) + &ask("10.0.2.2", here) + &ask("fd00::2", here);
    let options = ["--outbound-addr", OTHER, "--outbound-addr", OTHER6];
    let outcome = world.exec(&options, &script);
    assert_eq!(outcome.ok(), told(&[OTHER, OTHER6, "127.0.0.1", "::1"]), "{outcome}");
    let as_routed = world.exec(&options[..2], &ask(PEER6, port));
    assert!(!as_routed.ok().contains(OTHER6), "{as_routed}");
    // From now on, the other machine answers nothing else.
    node.ip(&format!("route add blackhole {FIRST}/32"));
    node.ip("-6 route add blackhole 2001:db8:a::1/128");
    let ping = |address| format!("ping -n -c 1 -W 2 {address}");
    for address in [PEER, PEER6] {
        let outcome = world.exec(&options, &ping(address));
        assert!(outcome.ok().contains(" 0% packet loss"), "{outcome}");
    }
    let as_routed = world.exec(&[], &ping(PEER));
    assert!(as_routed.says(" 100% packet loss"), "{as_routed}");
}

#[test]
fn flows_leave_by_the_outbound_interface() {
    let (world, node) = world();
    let (port, _) = node.run(|| who(&[PEER, PEER6, AFAR, AFAR6]));
    let (here, _) = who(&["::"]);
    let script = ask(AFAR, port) + &ask(AFAR6, port);
    let options = ["--outbound-interface", "second"];
    assert!(world.exec(&[], &script).ok().starts_with(&told(&[FIRST])));
    let outcome = world.exec(&options, &script);
    assert_eq!(outcome.ok(), told(&[SECOND, SECOND6]), "{outcome}");
    // What stays on the host does not leave by an interface.
    let script = ask("10.0.2.2", here) + &ask(FIRST, here) + &ask(OTHER6, here) + &ask(SECOND, here);
    let outcome = world.exec(&options, &script);
    assert_eq!(outcome.ok(), told(&["127.0.0.1", FIRST, OTHER6, SECOND]), "{outcome}");
    // An address of another interface is taken nevertheless.
    node.ip(&format!("route replace {OTHER}/32 via {SECOND}"));
    let options = ["--outbound-interface", "second", "--outbound-addr", OTHER];
    let outcome = world.exec(&options, &ask(AFAR, port));
    assert_eq!(outcome.ok(), told(&[OTHER]), "{outcome}");
}

#[test]
fn an_outbound_interface_may_go_and_come_back() {
    let (world, node) = world();
    let (port, connections) = node.run(|| who(&[PEER, PEER6, AFAR, AFAR6]));
    let daemon = Daemon::start(&world, &["--outbound-interface", "second"]);
    let mut guest = daemon.spawn(&hold(AFAR, port));
    guest.line_with(&format!("you are {SECOND}"));
    let _end = connections.recv_timeout(SOON).unwrap();
    drop(connections);
    ip("link delete second");
    guest.line_with("ConnectionReset");
    finds_no_way(&daemon, AFAR, port);
    assert_eq!(daemon.process.stderr().matches("interface second has gone").count(), 1);
    second_network(&node);
    eventually("it is used again", || {
        daemon.process.stderr().contains("interface second is back").then_some(())
    });
    assert_eq!(daemon.exec(&ask(AFAR, port)).ok(), told(&[SECOND]));
}

#[test]
fn what_cannot_be_outbound_is_said_with_the_way_out() {
    let (world, _node) = world();
    for (options, expected) in [
        (["--outbound-addr", "203.0.113.9"], "choose one of 192.0.2.1, 198.18.0.1, 198.18.0.9, 198.18.1.1"),
        (["--outbound-addr", "2001:db8::9"], "choose one of 2001:db8:a::1, 2001:db8:a::9, 2001:db8:b::1"),
        (["--outbound-addr", "127.0.0.1"], "nothing leaves this host by 127.0.0.1"),
        (["--outbound-addr", "second"], "named by --outbound-interface"),
        (["--outbound-interface", "third"], "choose one of first, second"),
        (["--outbound-interface", "lo"], "choose one of first, second"),
        (["--outbound-addr", "192.0.2.255"], "choose one of 192.0.2.1"),
    ] {
        let outcome = world.run(&[&["exec"], &options[..], &["--", "true"]].concat());
        assert_eq!(outcome.code(), 2, "{outcome}");
        assert!(outcome.stderr.contains(expected) && outcome.stderr.lines().count() == 1, "{outcome}");
    }
}

/// Checks that guests are told at once that there is no way, of whatever they send.
fn finds_no_way(daemon: &Daemon<'_>, address: &str, port: u16) {
    let outcome = daemon.exec(&format!(
        "$PROBE connect {address}:{port}; printf x | socat -u - UDP:{address}:{port}; ping -n -c 1 -W 5 {address}"
    ));
    assert!(outcome.stdout.starts_with("NetworkUnreachable\n"), "{outcome}");
    assert!(outcome.stdout.contains("Destination Net Unreachable"), "{outcome}");
    let drops = daemon.list("drops");
    let counted = |reason: &str| drops.iter().any(|drop| drop["reason"] == reason && drop["count"] == 1);
    assert!(counted("udp-send") && counted("ping-send"), "{drops:?}");
}

/// Sends a word to an echo and waits for it to come back.
fn echoed(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

/// A script that prints what a server says, and how the connection ends.
fn hold(address: &str, port: u16) -> String {
    format!("exec $PROBE receive-then-send {}:{port} 0 0", address)
}

#[test]
fn flows_end_with_their_address_and_others_go_on() {
    let (world, node) = world();
    let (port, connections) = node.run(|| who(&[PEER, PEER6, AFAR, AFAR6]));
    let bulk = node.run(peers::http);
    let (here, held_here) = who(&["::"]);
    let options = ["--outbound-addr", OTHER, "--hostfwd", "tcp::0-10.0.2.99:80"];
    let daemon = Daemon::start(&world, &options);
    let mut idle = daemon.spawn(&hold(PEER, port));
    let mut busy = daemon.spawn(&format!(
        "curl --silent --show-error --output bulk http://{PEER}:{bulk}/1/1000000000000 2>&1; echo \"ended: $?\""
    ));
    let mut loopback = daemon.spawn(&hold("10.0.2.2", here));
    let mut server =
        daemon.spawn("ip address add 10.0.2.99/24 dev tap0; exec socat -d -d TCP-LISTEN:80,fork PIPE 2>&1");
    idle.line_with(&format!("you are {OTHER}"));
    let _idle_end = connections.recv_timeout(SOON).unwrap();
    loopback.line_with("you are 127.0.0.1");
    let mut loopback_end = held_here.recv_timeout(SOON).unwrap();
    server.line_with("listening on");
    let forwarded = daemon.forwarded().port();
    let connect = |address: &str| {
        let address = SocketAddr::new(address.parse().unwrap(), forwarded);
        let mut stream = node.run(move || TcpStream::connect(address).unwrap());
        stream.set_read_timeout(Some(SOON)).unwrap();
        echoed(&mut stream).unwrap();
        stream
    };
    let (_to_other, mut to_first) = (connect(OTHER), connect(FIRST));
    eventually("bytes flow", || {
        let size = std::fs::metadata(world.home().join("bulk")).map_or(0, |file| file.len());
        (size > 1 << 20).then_some(())
    });

    ip(&format!("address del {OTHER}/24 dev first"));
    idle.line_with("ConnectionReset");
    busy.line_with("ended: 56");
    server.line_with("Connection reset by peer");
    echoed(&mut to_first).unwrap();
    finds_no_way(&daemon, PEER, port);
    assert_eq!(daemon.process.stderr().matches(&format!("address {OTHER} has gone")).count(), 1);
    let drops = daemon.list("drops");
    let counted = drops.iter().find(|drop| drop["reason"] == "host-changed").unwrap();
    assert_eq!(counted["count"], 3, "{drops:?}");
    loopback_end.write_all(b"still here\n").unwrap();
    loopback.line_with("still here");

    ip(&format!("address add {OTHER}/24 dev first"));
    eventually("it is used again", || daemon.process.stderr().contains("is back").then_some(()));
    drop(connections);
    assert_eq!(daemon.exec(&ask(PEER, port)).ok(), told(&[OTHER]));
}

#[test]
fn flows_end_with_their_route_and_survive_what_leaves_them_one() {
    let (world, node) = world();
    let (port, connections) = node.run(|| who(&[PEER, PEER6, AFAR, AFAR6]));
    ip("route del default via 198.18.1.2 dev second");
    ip(&format!("route del default via {PEER}"));
    let daemon = Daemon::start(&world, &[]);
    let start = |address: &str| {
        let mut guest: Process = daemon.spawn(&hold(address, port));
        guest.line_with("you are");
        (guest, connections.recv_timeout(SOON).unwrap())
    };
    let (mut afar, _afar_end) = start(AFAR);
    let (mut near, mut near_end) = start(PEER);
    let (mut near6, mut near6_end) = start(&format!("[{PEER6}]"));
    // What happens to a laptop all day: addresses last longer than was said, one more comes, and the
    // interface is set up anew.
    ip(&format!("address change {FIRST}/24 dev first valid_lft 1000 preferred_lft 500"));
    ip(&format!("address change {OTHER6}/64 dev first valid_lft 1000 preferred_lft 500"));
    ip("address add 2001:db8:a::77/64 dev first nodad");
    ip("link set second down");
    ip("link set second up");
    ip(&format!("route replace {AFAR}/32 via {PEER} metric 7"));
    ip(&format!("route del {AFAR}/32 metric 0"));
    ip(&format!("route del {AFAR}/32 metric 7"));
    afar.line_with("ConnectionReset");
    for (guest, end) in [(&mut near, &mut near_end), (&mut near6, &mut near6_end)] {
        end.write_all(b"still here\n").unwrap();
        guest.line_with("still here");
    }
}

#[test]
fn flows_that_have_a_rule_of_their_own_survive_other_changes() {
    let (world, node) = world();
    let (port, connections) = node.run(|| who(&[]));
    ip("route del default via 198.18.1.2 dev second");
    ip(&format!("route del default via {PEER}"));
    ip(&format!("route del {AFAR}/32 via {PEER}"));
    ip(&format!("route add default via {PEER} table 100"));
    ip("rule add ipproto tcp lookup 100");
    let daemon = Daemon::start(&world, &[]);
    let mut guest = daemon.spawn(&hold(AFAR, port));
    guest.line_with("you are");
    let mut end = connections.recv_timeout(SOON).unwrap();
    ip("address add 203.0.113.5/32 dev second");
    // Routes are looked at a second later.
    thread::sleep(Duration::from_secs(2));
    end.write_all(b"still here\n").unwrap();
    guest.line_with("still here");
    ip("rule del ipproto tcp lookup 100");
    guest.line_with("ConnectionReset");
}

#[test]
fn a_new_address_of_the_host_is_closed_to_guests_at_once() {
    let (world, _node) = world();
    let (port, _) = who(&["::"]);
    let open = |daemon: &Daemon<'_>, to: &str| daemon.exec(&format!("$PROBE connect {to}:{port}")).stdout;
    let closed = Daemon::start(&world, &["--no-host-loopback"]);
    ip("address add 203.0.113.77/32 dev lo");
    assert_eq!(open(&closed, "203.0.113.77"), "ConnectionRefused\n");
    // A whole network that is the host itself. Of changes in a row, the second is seen a moment later.
    ip("route add local 203.0.112.0/24 dev lo");
    eventually("it is closed", || (open(&closed, "203.0.112.7") == "ConnectionRefused\n").then_some(()));
    closed.terminate();
    let daemon = Daemon::start(&world, &[]);
    for to in ["203.0.113.77", "203.0.112.7"] {
        assert_eq!(open(&daemon, to), "connected\n", "{to}");
    }
}

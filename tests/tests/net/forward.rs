//! Ports of the host that are forwarded to a guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use usernet_tests::wait::SOON;
use usernet_tests::{As, Daemon, LAN, Process, World, eventually};

/// Sends a word through a TCP echo and returns what comes back.
fn echo(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn tcp_comes_in_by_a_port_that_is_reported() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--hostfwd", "tcp:127.0.0.1:0-:80"]);
    let mut guest = daemon.spawn("exec $PROBE echo 80");
    guest.line_with("listening");
    let address = daemon.forwarded();
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    assert_eq!(echo(address), "hello");
    guest.line_with("from 10.0.2.2");
    assert_eq!(daemon.list("forwards")[0]["accepted"], 1);
}

#[test]
fn a_peer_from_elsewhere_keeps_its_address() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--hostfwd", "tcp::0-10.0.2.15:80"]);
    let mut guest = daemon.spawn("exec $PROBE echo 80");
    guest.line_with("listening");
    let address = SocketAddr::from((LAN, daemon.forwarded().port()));
    assert_eq!(echo(address), "hello");
    guest.line_with(&format!("from {LAN}"));
}

#[test]
fn udp_comes_in_and_is_answered_from_where_it_was_sent() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--hostfwd", "udp::0-:53"]);
    let mut guest = daemon.spawn("exec $PROBE echo-udp 53");
    guest.line_with("listening");
    let socket = UdpSocket::bind((LAN, 0)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let to = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), daemon.forwarded().port()));
    socket.send_to(b"hello", to).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (b"hello".as_slice(), to));
}

#[test]
fn a_guest_that_refuses_resets_the_host_peer() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--hostfwd", "tcp:127.0.0.1:0-:81"]);
    let mut guest = daemon.spawn("echo up; sleep 1000");
    guest.line_with("up");
    let mut stream = TcpStream::connect(daemon.forwarded()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn forwards_are_added_and_removed_while_it_runs() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let mut guest = daemon.spawn("exec $PROBE echo 80");
    guest.line_with("listening");
    daemon.ctl(&["add-forward", "tcp:127.0.0.1:0-:80"]).ok();
    let address = daemon.forwarded();
    assert_eq!(echo(address), "hello");
    let id = daemon.list("forwards")[0]["id"].to_string();
    daemon.ctl(&["remove-forward", &id]).ok();
    daemon.until_none("forwards");
    eventually("the host port is closed", || TcpStream::connect(address).is_err().then_some(()));
}

#[test]
fn a_port_that_is_taken_stops_the_start_and_says_how_to_go_on() {
    let world = World::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let rule = format!("tcp:{}-:22", taken.local_addr().unwrap());
    for arguments in [vec!["--hostfwd", &rule], vec!["exec", "--hostfwd", &rule, "--", "true"]] {
        let outcome = world.run(&arguments);
        assert_eq!(outcome.code(), 1, "{outcome}");
        assert!(outcome.stderr.contains(&rule), "names the rule: {outcome}");
        assert!(outcome.stderr.contains("in use"), "names the reason: {outcome}");
        assert!(outcome.stderr.contains("choose another one, or port 0"), "names a way out: {outcome}");
        assert_eq!(outcome.stderr.lines().count(), 1, "is one line: {outcome}");
    }
}

#[test]
fn a_rule_that_is_none_is_an_error_of_usage() {
    let world = World::new();
    for rule in ["tcp:127.0.0.1:80", "tcp:localhost:80-:80", "tcp::80-:0", "icmp::1-:1", ""] {
        let outcome = world.run(&["--hostfwd", rule]);
        assert_eq!(outcome.code(), 2, "{rule:?}: {outcome}");
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{rule:?}: {outcome}");
    }
}

#[test]
fn exec_forwards_to_its_command() {
    let world = World::new();
    // A free port of this world; exec says which it got only to people.
    let port = usernet_tests::peers::closed_port();
    let rule = format!("tcp:127.0.0.1:{port}-:80");
    let mut command = world.command(As::User, world.usernet());
    command.args(["exec", "--hostfwd", &rule, "--"]).arg(world.probe()).args(["echo", "80"]);
    let mut guest = Process::spawn(command);
    guest.line_with("listening");
    assert_eq!(echo(SocketAddr::from((Ipv4Addr::LOCALHOST, port))), "hello");
}

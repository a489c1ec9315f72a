//! The daemon's control socket, its files, and its end.

use std::fs;
use std::net::SocketAddrV4;

use serde_json::Value;
use usernet_tests::process::{finish, terminate};
use usernet_tests::stream_guest::StreamGuest;
use usernet_tests::wait::SOON;
use usernet_tests::{As, Daemon, GATEWAY, Process, World, peers};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

#[test]
fn tables_and_json_show_guests_leases_flows_forwards_and_drops() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--hostfwd", "tcp:127.0.0.1:0-:22"]);
    let port = peers::digest_after_end();
    let mut guest = StreamGuest::plug_in(&daemon.socket(), MAC);
    let address = guest.lease().to_string();
    let flow = guest.connect(SocketAddrV4::new(GATEWAY, port));
    guest.send(flow, b"hello");
    guest.until("the bytes are acknowledged", |guest| (guest.tcp(flow).send_queue() == 0).then_some(()));

    let leases = daemon.list("leases");
    assert_eq!(leases[0]["address"], address);
    assert_eq!(leases[0]["mac"], "52:54:00:12:34:56");
    let flows = daemon.list("flows");
    assert_eq!(flows[0]["protocol"], "tcp");
    assert_eq!(flows[0]["peer"], format!("{GATEWAY}:{port}"));
    assert_eq!(flows[0]["bytes_out"], 5);
    assert_eq!(daemon.list("forwards")[0]["guest"], "10.0.2.15:22");
    assert_eq!(daemon.list("ports")[0]["kind"], "stream");
    daemon.list("drops");

    for (what, shown) in [
        ("leases", "52:54:00:12:34:56".to_owned()),
        ("flows", format!("{GATEWAY}:{port}")),
        ("forwards", "10.0.2.15:22".to_owned()),
        ("ports", "stream".to_owned()),
    ] {
        let table = daemon.ctl(&[what]);
        assert!(table.ok().contains(&shown), "{table}");
        assert!(table.ok().lines().count() >= 2, "a heading and a row: {table}");
    }
}

#[test]
fn curl_speaks_to_the_control_socket() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--hostfwd", "tcp:127.0.0.1:0-:22"]);
    let mut curl = world.command(As::User, "curl");
    curl.args(["--silent", "--fail", "http://usernet/v1/forwards", "--unix-socket"]).arg(daemon.control());
    let outcome = finish(curl, SOON);
    let forwards: Value = serde_json::from_str(outcome.ok()).unwrap();
    assert_eq!(forwards[0]["guest"], "10.0.2.15:22");
}

#[test]
fn an_end_by_signal_leaves_nothing_behind() {
    let world = World::new();
    let options = ["--pid-file", "usernet.pid", "--hostfwd", "tcp:127.0.0.1:0-:22"];
    let daemon = Daemon::start(&world, &options);
    let mut guest = StreamGuest::plug_in(&daemon.socket(), MAC);
    guest.lease();
    let pid = fs::read_to_string(world.home().join("usernet.pid")).unwrap();
    assert_eq!(pid.trim(), daemon.process.pid().to_string());
    daemon.terminate();
    for folder in [world.home(), world.runtime_dir()] {
        let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn with_no_option_it_listens_and_shows_what_to_give_qemu() {
    let world = World::new();
    let mut daemon = Process::spawn(world.command(As::User, world.usernet()));
    let line = daemon.line_with("-netdev stream");
    let path =
        line.split([',', ' ']).find_map(|word| word.strip_prefix("addr.path=")).expect("a path to paste");
    StreamGuest::plug_in(path.as_ref(), MAC).lease();
    terminate(&mut daemon);
    assert_eq!(fs::read_dir(world.runtime_dir()).unwrap().count(), 0, "{path}");
}

#[test]
fn a_second_daemon_does_not_take_the_firsts_socket() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let outcome = world.run(&["--listen", &format!("unix:{}", daemon.socket().display())]);
    assert_eq!(outcome.code(), 1, "{outcome}");
    StreamGuest::plug_in(&daemon.socket(), MAC).lease();
}

#[test]
fn a_socket_that_a_killed_daemon_left_is_taken_over() {
    let world = World::new();
    drop(Daemon::start(&world, &[]));
    assert!(fs::exists(world.home().join("net.sock")).unwrap(), "it was killed, not ended");
    let daemon = Daemon::start(&world, &[]);
    StreamGuest::plug_in(&daemon.socket(), MAC).lease();
}

#[test]
fn tshark_reads_the_capture() {
    let world = World::new();
    let daemon = Daemon::start(&world, &["--pcap", "capture.pcapng"]);
    let port = peers::http();
    let mut guest = StreamGuest::plug_in(&daemon.socket(), MAC);
    guest.lease();
    guest.fetch_digest(SocketAddrV4::new(GATEWAY, port), "/1/1000000");
    daemon.terminate();

    // The lengths of the frames that a filter lets through, payload only for TCP.
    let tshark = |filter: &str| -> Vec<usize> {
        let mut tshark = world.command(As::User, "tshark");
        tshark.args(["-r", "capture.pcapng", "-Y", filter, "-T", "fields", "-e", "tcp.len"]);
        finish(tshark, SOON).ok().lines().map(|length| length.parse().unwrap_or(0)).collect()
    };
    assert_eq!(tshark("dhcp.option.dhcp == 1").len(), 1, "the discover");
    assert_eq!(tshark("dhcp.option.dhcp == 5").len(), 1, "the acknowledgement");
    // The body is between its head and a segment that may have been sent twice.
    let transferred: usize = tshark(&format!("tcp.srcport == {port} && tcp.len > 0")).iter().sum();
    assert!(transferred > 1_000_000, "{transferred} bytes of the transfer");
    assert!(tshark("_ws.malformed").is_empty());
}

#[test]
fn help_and_errors_of_usage_have_their_exit_codes() {
    let world = World::new();
    for arguments in [&["--help"][..], &["exec", "--help"], &["run", "--help"], &["ctl", "--help"]] {
        let help = world.run(arguments);
        assert!(help.ok().contains("Usage"), "{help}");
    }
    for arguments in [&["--no-such-option"][..], &["--net", "300.1.1.1/24"], &["ctl", "nonsense"], &["run"]] {
        assert_eq!(world.run(arguments).code(), 2, "{arguments:?}");
    }
    let nobody = world.run(&["ctl", "--control", "unix:/nowhere/ctl.sock", "leases"]);
    assert_eq!(nobody.code(), 1, "{nobody}");
    assert!(nobody.stderr.contains("/nowhere/ctl.sock"), "{nobody}");
}

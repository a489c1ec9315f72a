//! Several guests on one network.

use std::io::{self, ErrorKind, Read};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process_group};
use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, GATEWAY, Noise, World, eventually, peers, sha256};

#[test]
fn two_guests_reach_each_other() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let mut first = daemon.spawn("ip -4 -oneline address; exec $PROBE echo 80");
    first.line_with("listening");
    assert!(first.stdout().contains("10.0.2.15/24"), "{}", first.stdout());

    let script = "ip -oneline address; ping -c 3 -i 0.2 -W 5 10.0.2.15; ping -6 -c 3 -i 0.2 -W 5 fd00::15; $PROBE send 10.0.2.15:80 5 3000000 | sha256sum";
    let second = daemon.exec(script);
    assert!(second.ok().contains("10.0.2.16/24"), "{second}");
    assert!(second.ok().contains("fd00::16/64"), "{second}");
    assert_eq!(second.ok().matches(" 0% packet loss").count(), 2, "{second}");
    // The echo, and the line feed that the probe puts behind it.
    let expected = sha256(Noise::new(5).take(3_000_000).chain(b"\n".as_slice())).unwrap();
    assert!(second.ok().contains(&expected), "{second}");
    first.line_with("from 10.0.2.16");
}

#[test]
fn a_guest_that_is_killed_in_mid_transfer_resets_its_host_peers() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let (sender, receiver) = channel();
    let port = peers::tcp(move |mut stream| {
        let ended = io::copy(&mut Noise::new(1), &mut stream).map_err(|error| error.kind());
        let _ = sender.send((ended, Instant::now()));
        Ok(())
    });
    let guest = daemon.spawn(&format!("exec $PROBE receive-then-send {GATEWAY}:{port} 1 0 >/dev/null"));
    eventually("the transfer runs", || {
        let flows = daemon.list("flows");
        flows.iter().any(|flow| flow["bytes_in"].as_u64().unwrap() > 1 << 20).then_some(())
    });

    let killed = Instant::now();
    kill_process_group(guest.pid(), Signal::KILL).unwrap();
    let (ended, at) = receiver.recv_timeout(SOON).unwrap();
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    assert!(at - killed < Duration::from_secs(1), "{:?}", at - killed);
    daemon.until_none("flows");
    daemon.until_none("ports");
}

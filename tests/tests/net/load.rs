//! Many flows and many guests: what they cost, and what they leave behind.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use usernet_tests::stream_guest::StreamGuest;
use usernet_tests::{Daemon, GATEWAY, World, eventually, peers};

const FLOWS: usize = 10_000;

/// The time that idle flows are watched for.
const WATCH: Duration = Duration::from_secs(5);

/// Accepts connections and holds them.
fn holding_server() -> u16 {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().collect::<Vec<TcpStream>>());
    port
}

#[test]
fn idle_flows_cost_no_processor_time_and_little_memory() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let port = holding_server();
    // A first guest, so that what is only needed once is there.
    let mut guest = daemon.spawn(&format!("exec $PROBE hold {GATEWAY}:{port} 10"));
    guest.line_with("holding 10");
    let before = daemon.process.resident();

    let mut guest = daemon.spawn(&format!("exec $PROBE hold {GATEWAY}:{port} {FLOWS}"));
    guest.line_with(&format!("holding {FLOWS}"));
    let a_flow = daemon.process.resident().saturating_sub(before) / u64::try_from(FLOWS).unwrap();
    println!("{a_flow} bytes a flow");
    assert!(a_flow < 1024, "{a_flow} bytes a flow");

    let used_in = |time| {
        let before = daemon.process.processor_time();
        thread::sleep(time);
        daemon.process.processor_time() - before
    };
    // What the handshakes have set going runs out first.
    eventually("the flows are idle", || used_in(Duration::from_secs(1)).is_zero().then_some(()));
    let used = used_in(WATCH);
    println!("{used:?} of processor time in {WATCH:?}");
    assert!(used < WATCH / 100, "{used:?} of processor time in {WATCH:?}");
    assert!(daemon.list("flows").len() >= FLOWS);
}

#[test]
fn two_hundred_guests_come_and_go_and_nothing_is_left() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let http = peers::http();
    let come_and_go = |number: u8| {
        let mut guest = StreamGuest::plug_in(&daemon.socket(), [0x52, 0x54, 0, 0, 0, number]);
        guest.lease();
        guest.fetch_digest(SocketAddrV4::new(GATEWAY, http), "/1/10000");
        // One that is left open, and goes with its guest.
        guest.connect(SocketAddrV4::new(GATEWAY, http));
    };
    let rested = || {
        daemon.until_none("ports");
        daemon.until_none("flows");
    };
    (0..8).for_each(come_and_go);
    rested();
    let (descriptors, resident) = (daemon.process.descriptors(), daemon.process.resident());

    (0..200).for_each(come_and_go);
    rested();
    // The last connection to its control socket may not be closed yet.
    eventually("all descriptors are closed", || (daemon.process.descriptors() <= descriptors).then_some(()));
    let grown = daemon.process.resident().saturating_sub(resident);
    println!("{} KiB grown", grown >> 10);
    assert!(grown < 1 << 20, "{grown} bytes grown");
}

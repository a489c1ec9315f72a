//! A guest that takes no frames from its link.

use std::io::Write;
use std::net::{SocketAddrV4, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use usernet_testkit::{App, Close, digest_of, fill};

use crate::guest::{echo_server, guest_with_address, network, run};
use crate::{BULK, GATEWAY};

/// More than sockets and links of the host hold.
const MUCH: u64 = 64 << 20;

/// A host's program that sends [`MUCH`] on one connection, and how much of it was taken.
fn source() -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut chunk = vec![0; 1 << 16];
        while counter.load(Ordering::Relaxed) < MUCH {
            fill(5, counter.load(Ordering::Relaxed), &mut chunk);
            stream.write_all(&chunk).unwrap();
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    });
    (port, taken)
}

#[test]
fn it_slows_no_other_and_gets_everything_in_the_end() {
    let network = network(1);
    let mut guests = [guest_with_address(&network, 1, 1), guest_with_address(&network, 1, 2)];
    let (port, taken) = source();
    let app = App { buffer: 4 << 20, ..App::default() };
    let stalled = guests[0].smol.connect(SocketAddrV4::new(GATEWAY, port), app);
    run(&mut guests, "the first bytes", |guests| guests[0].smol.received(stalled) > 0);
    guests[0].stalled = true;

    let app = App { seed: 7, send: BULK, close: Close::Sent, ..App::default() };
    let other = guests[1].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
    run(&mut guests, "the other guest's echo", |guests| guests[1].smol.received(other) == BULK);
    assert_eq!(guests[1].smol.digest(other), digest_of(7, BULK));
    assert!(taken.load(Ordering::Relaxed) < MUCH, "nobody holds that much for a guest that takes nothing");

    guests[0].stalled = false;
    run(&mut guests, "the rest", |guests| guests[0].smol.received(stalled) == MUCH);
    assert_eq!(guests[0].smol.digest(stalled), digest_of(5, MUCH));
}

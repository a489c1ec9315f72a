//! What goes away or is too much leaves nothing behind.

use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use usernet::Error;
use usernet::link::stream::StreamLink;

use crate::GATEWAY;
use crate::guest::{SOON, network};

/// How many descriptors of this process's epoll instances are on the file of `fd`.
fn watched(fd: &OwnedFd) -> usize {
    let inode = format!("ino:{:x} ", rustix::fs::fstat(fd).unwrap().st_ino);
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    // A descriptor may be closed while they are read.
    let infos = infos.filter_map(|info| std::fs::read_to_string(info.unwrap().path()).ok());
    let watches = |info: String| info.lines().filter(|line| line.contains(&inode)).count();
    infos.map(watches).sum()
}

#[test]
fn a_link_that_somebody_else_holds_open_is_watched_no_more() {
    let network = network(1);
    let (guest, theirs) = UnixStream::pair().unwrap();
    let held = OwnedFd::from(theirs.try_clone().unwrap());
    let attach = |stream: UnixStream| {
        network.handle().attach(StreamLink::new(stream.into()).unwrap(), "guest").unwrap()
    };
    let port = attach(theirs);
    assert_eq!(watched(&held), 1);
    network.handle().detach(port).unwrap();
    assert!(network.handle().ports().unwrap().is_empty());
    assert_eq!(watched(&held), 0, "after it was unplugged");

    attach(held.try_clone().unwrap().into());
    drop(guest);
    let deadline = Instant::now() + SOON;
    while !network.handle().ports().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the guest stays");
    }
    assert_eq!(watched(&held), 0, "after it ended");
}

/// A question for the gateway's MAC address, behind its length.
fn arp_request() -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 0, 0, 1];
    let arp = [0, 1, 8, 0, 6, 4, 0, 1];
    let (sender, target) = ([10, 0, 2, 15], GATEWAY.octets());
    let parts: [&[u8]; 9] =
        [&[0, 0, 0, 42], &[0xff; 6], &mac, &[8, 6], &arp, &mac, &sender, &[0; 6], &target];
    parts.concat()
}

#[test]
fn all_frames_of_a_long_batch_are_answered() {
    const COUNT: usize = 4000;
    /// An answer, padded, and its length.
    const ANSWER: usize = 64;
    let network = network(1);
    let (mut guest, theirs) = UnixStream::pair().unwrap();
    // As much as fits is there when the link is read for the first time.
    guest.set_nonblocking(true).unwrap();
    let requests = arp_request().repeat(COUNT);
    let mut sent = guest.write(&requests).unwrap();
    network.handle().attach(StreamLink::new(theirs.into()).unwrap(), "guest").unwrap();
    let (mut received, mut buffer) = (0, vec![0; 1 << 16]);
    let deadline = Instant::now() + SOON;
    while received < COUNT * ANSWER {
        assert!(Instant::now() < deadline, "{received} bytes of answers");
        let written = guest.write(&requests[sent..]).map(|len| sent += len);
        let read = guest.read(&mut buffer).map(|len| received += len);
        for error in [written, read].into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
    }
    assert_eq!(received, COUNT * ANSWER);
}

#[test]
fn a_guest_that_goes_while_it_is_plugged_in_leaves_nothing() {
    let network = network(2);
    for _ in 0..200 {
        let (guest, theirs) = UnixStream::pair().unwrap();
        let (_second, other) = UnixStream::pair().unwrap();
        drop(guest);
        let links = [theirs, other].map(|stream| StreamLink::new(stream.into()).unwrap());
        if let Err(error) = network.handle().attach_queues(links.into(), "guest") {
            assert!(error.to_string().contains("before all of its queues"), "{error}");
        }
        let deadline = Instant::now() + SOON;
        while !network.handle().ports().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "a queue stays");
        }
    }
}

#[test]
fn a_guest_without_queues_is_refused() {
    let network = network(1);
    let error = network.handle().attach_queues(Vec::new(), "guest").unwrap_err();
    assert!(matches!(error, Error::NoQueues));
    assert!(error.to_string().contains("at least one"), "{error}");
}

#[test]
fn a_forward_to_nobody_is_refused() {
    let network = network(1);
    for (rule, words) in [
        ("tcp:127.0.0.1:0-10.0.2.2:80", "which no guest on 10.0.2.0/24 can have"),
        ("udp:127.0.0.1:0-192.0.2.1:80", "which no guest on 10.0.2.0/24 can have"),
        ("tcp:127.0.0.1:0-[2001:db8::5]:80", "which no guest on"),
    ] {
        let error = network.handle().add_forward(&rule.parse().unwrap()).unwrap_err();
        assert!(matches!(error, Error::Config(_)) && error.to_string().contains(words), "{error}");
    }
    assert!(network.handle().forwards().unwrap().is_empty());
}

#[test]
fn a_forward_that_is_removed_as_soon_as_it_is_seen_frees_its_port() {
    const COUNT: usize = 200;
    let network = network(3);
    let handle = network.handle().clone();
    let remover = std::thread::spawn(move || {
        let mut removed = 0;
        while removed < COUNT {
            for forward in handle.forwards().unwrap() {
                handle.remove_forward(forward.id).unwrap();
                assert!(UdpSocket::bind(forward.host).is_ok(), "{} is still bound", forward.host);
                removed += 1;
            }
        }
    });
    let rule = "udp:127.0.0.1:0-:53".parse().unwrap();
    for _ in 0..COUNT {
        network.handle().add_forward(&rule).unwrap();
    }
    remover.join().unwrap();
}

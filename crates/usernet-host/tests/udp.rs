//! UDP host ends against real sockets on the loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};

use support::{LOCALHOST, Watch, send};
use usernet_core::datagrams::Datagrams;
use usernet_core::host::HostError;
use usernet_core::wire::{IcmpError, Offender};
use usernet_host::inbox::{Batch, Inbox};
use usernet_host::outbox::Outbox;
use usernet_host::udp::UdpEnd;
use usernet_host::{Envelope, Icmp, QueuedError, Source};

const ANY: [&str; 2] = ["0.0.0.0", "::"];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

fn to(to: SocketAddr) -> Envelope {
    Envelope { to, from: Source::default(), ttl: None, tos: 0 }
}

/// Waits for datagrams.
fn receive(end: &UdpEnd) -> Inbox {
    let (mut inbox, mut watch) = (Inbox::new(), Watch::new(end));
    loop {
        end.receive(&mut inbox).unwrap();
        if inbox.batch(0).is_some() {
            return inbox;
        }
        watch.until(|event| event.readable());
    }
}

/// The payload of a batch.
fn payload(inbox: &Inbox, batch: &Batch) -> Vec<u8> {
    inbox.payload(batch).flat_map(|slice| slice.to_vec()).collect()
}

/// Waits for an error.
fn take_error(end: &UdpEnd, buffer: &mut [u8]) -> QueuedError {
    let mut watch = Watch::new(end);
    loop {
        if let Some(error) = end.take_error(buffer) {
            return error;
        }
        watch.until(|event| event.error());
    }
}

/// An address where nobody listens: its socket, which keeps the port from others, takes datagrams
/// from itself alone.
fn nobody(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    socket.connect(addr).unwrap();
    (socket, addr)
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    for (any, loopback) in ANY.into_iter().zip(LOOPBACK) {
        let peer = UdpSocket::bind((loopback, 0)).unwrap();
        let end = UdpEnd::open(any.parse().unwrap(), 0).unwrap();
        let mut inbox = Inbox::new();
        end.receive(&mut inbox).unwrap();
        assert_eq!((inbox.batch(0), inbox.is_full()), (None, false));
        let envelope = Envelope { ttl: Some(3), tos: 0xb8, ..to(peer.local_addr().unwrap()) };
        send(&end, &[b"que", b"stion"], envelope).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"question");
        assert_eq!(from.port(), end.local_addr().port());
        peer.send_to(b"an answer", from).unwrap();
        let inbox = receive(&end);
        let batch = inbox.batch(0).unwrap();
        assert_eq!(payload(&inbox, &batch), b"an answer");
        assert_eq!((batch.origin.from, batch.datagrams), (peer.local_addr().unwrap(), Datagrams::one(9)));
    }
}

#[test]
fn what_is_marked_in_another_way_is_a_batch_of_its_own() {
    for (any, loopback) in ANY.into_iter().zip(LOOPBACK) {
        let [end, peer] = [any, loopback].map(|address| UdpEnd::open(address.parse().unwrap(), 0).unwrap());
        let address = SocketAddr::new(loopback.parse().unwrap(), end.local_addr().port());
        for tos in [0, 0, 0xb8, 0xbb] {
            send(&peer, &[b"hello"], Envelope { tos, ..to(address) }).unwrap();
        }
        let inbox = receive(&end);
        let mut batches = Vec::new();
        let mut next = 0;
        while let Some(batch) = inbox.batch(next) {
            next = batch.messages.end;
            batches.push((batch.origin.tos, batch.datagrams.count()));
        }
        assert_eq!(batches, [(0, 2), (0xb8, 1), (0xbb, 1)], "{loopback}");
    }
}

#[test]
fn errors_tell_how_far_they_have_come_where_that_is_asked_for() {
    for (any, loopback) in ANY.into_iter().zip(LOOPBACK) {
        let end = UdpEnd::open(any.parse().unwrap(), 0).unwrap();
        end.report_hops().unwrap();
        end.dont_fragment(true).unwrap();
        let (_holder, closed) = nobody(loopback);
        send(&end, &[b"hello"], to(closed)).unwrap();
        let offender = take_error(&end, &mut []).icmp.unwrap().offender.unwrap();
        assert_eq!(offender.ttl, Some(64), "{loopback}");
    }
}

#[test]
fn the_port_is_kept_where_it_is_free() {
    // Held at one address, no other test is given this port at any.
    let holder = UdpSocket::bind("127.0.0.70:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let source = "127.0.0.71".parse().unwrap();
    let end = UdpEnd::open(source, port).unwrap();
    assert_eq!(end.local_addr(), SocketAddr::new(source, port));
    let second = UdpEnd::open(source, port).unwrap();
    assert!(![0, port].contains(&second.local_addr().port()));
    assert!(UdpEnd::open(source, 53).unwrap().local_addr().port() >= 1024);
}

#[test]
fn an_error_for_one_peer_fails_no_send_to_another() {
    for (any, loopback) in ANY.into_iter().zip(LOOPBACK) {
        let peer = UdpSocket::bind((loopback, 0)).unwrap();
        let (_holder, closed) = nobody(loopback);
        let end = UdpEnd::open(any.parse().unwrap(), 0).unwrap();
        send(&end, &[b"to nobody"], to(closed)).unwrap();
        Watch::new(&end).until(|event| event.error());
        send(&end, &[b"to somebody"], to(peer.local_addr().unwrap())).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"to somebody");

        // Nor does it hide a datagram that came.
        send(&end, &[b"to nobody"], to(closed)).unwrap();
        peer.send_to(b"back", from).unwrap();
        Watch::new(&end).until(|event| event.error() && event.readable());
        assert_eq!(receive(&end).batch(0).unwrap().datagrams, Datagrams::one(4));

        // And it is still told, with all that belongs to it.
        let error = take_error(&end, &mut buffer);
        assert_eq!((error.to, error.error), (closed, HostError::Refused));
        assert_eq!(&buffer[..error.len], b"to nobody");
        // Port unreachable: RFC 792, and RFC 4443 §3.1.
        let unreachable = if closed.is_ipv4() {
            IcmpError::V4 { kind: 3, code: 3, info: 0 }
        } else {
            IcmpError::V6 { kind: 1, code: 4, info: 0 }
        };
        let offender = Some(Offender { addr: loopback.parse().unwrap(), ttl: None });
        assert_eq!(error.icmp, Some(Icmp { error: unreachable, offender }));
        take_error(&end, &mut buffer);
        assert_eq!(end.take_error(&mut buffer), None);
    }
}

#[test]
fn what_cannot_be_sent_says_why() {
    let end = UdpEnd::open(LOCALHOST, 0).unwrap();
    let (_holder, peer) = nobody("127.0.0.1");
    let huge = vec![0; 70_000];
    let error = send(&end, &[&huge], to(peer)).unwrap_err();
    assert_eq!(error, HostError::TooLong);
    let broadcast = to("255.255.255.255:9".parse().unwrap());
    assert!(send(&end, &[b"all"], broadcast).is_err());
}

#[test]
fn a_forward_answers_from_the_address_that_was_asked() {
    let forward = UdpEnd::forward("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = forward.local_addr().port();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for asked in ["127.0.0.2", "127.0.0.3"] {
        peer.send_to(b"hello", (asked, port)).unwrap();
        let received = receive(&forward).batch(0).unwrap().origin;
        assert_eq!(received.to, Some(asked.parse().unwrap()));
        let envelope = Envelope { from: Source { address: received.to, interface: 0 }, ..to(received.from) };
        send(&forward, &[b"welcome"], envelope).unwrap();
        let (_, from) = peer.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from, SocketAddr::new(asked.parse().unwrap(), port));
    }

    let forward = UdpEnd::forward("[::]:0".parse().unwrap()).unwrap();
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.send_to(b"hello", ("::1", forward.local_addr().port())).unwrap();
    let received = receive(&forward).batch(0).unwrap().origin;
    let envelope = Envelope { from: Source { address: received.to, interface: 0 }, ..to(received.from) };
    send(&forward, &[b"welcome"], envelope).unwrap();
    assert_eq!(peer.recv_from(&mut [0; 100]).unwrap().1.ip(), received.to.unwrap());
}

#[test]
fn a_forward_that_cannot_be_bound_says_so() {
    let forward = UdpEnd::forward("127.0.0.1:0".parse().unwrap()).unwrap();
    let again = UdpEnd::forward(forward.local_addr()).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AddrInUse);
    let foreign = UdpEnd::forward("192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert_eq!(foreign.kind(), std::io::ErrorKind::AddrNotAvailable);
}

/// Takes datagrams of these lengths, in order, each of its own bytes.
fn expect(peer: &UdpSocket, lengths: &[usize]) {
    let mut buffer = [0; 2000];
    for (index, length) in (0..).zip(lengths) {
        let got = peer.recv(&mut buffer).unwrap();
        assert_eq!(buffer.get(..got), Some(&vec![index; *length][..]));
    }
}

#[test]
fn what_is_sent_together_arrives_as_it_was() {
    for (any, loopback) in ANY.into_iter().zip(LOOPBACK) {
        let end = UdpEnd::open(any.parse().unwrap(), 0).unwrap();
        let peers = [(); 2].map(|()| UdpSocket::bind((loopback, 0)).unwrap());
        let [first, second] = peers.each_ref().map(|peer| to(peer.local_addr().unwrap()));
        // Joined, shorter at the end, empty, alone; more messages than one call takes.
        let lengths = [&[1000, 1000, 700, 1000, 0, 0, 5][..], &[7, 8].repeat(20)].concat();
        let datagrams: Vec<Vec<u8>> =
            (0..).zip(&lengths).map(|(index, length)| vec![index; *length]).collect();
        let mut outbox = Outbox::new();
        for (datagram, length) in datagrams.iter().zip(&lengths) {
            let (head, tail) = datagram.split_at(length / 2);
            outbox.push(first, Datagrams::one(*length), |out| out.extend([head, tail].map(IoSlice::new)));
        }
        // One to another peer stays one of its own.
        outbox.push(second, Datagrams::one(8), |out| out.push(IoSlice::new(&[0; 8])));
        end.send(&mut outbox, |unsent| panic!("{unsent:?}"));
        assert_eq!(outbox.first_to(), None);
        expect(&peers[0], &lengths);
        expect(&peers[1], &[8]);
    }
}

#[test]
fn what_the_kernel_will_not_cut_goes_one_by_one() {
    let end = UdpEnd::open(LOCALHOST, 0).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (_holder, closed) = nobody("127.0.0.1");
    // More datagrams than any kernel cuts a message into.
    let payload: Vec<u8> = (0..200).collect();
    let datagrams = Datagrams { len: 200, segment: 1 };
    let mut outbox = Outbox::new();
    outbox.push(to(closed), Datagrams::one(3), |out| out.push(IoSlice::new(b"bad")));
    outbox.push(to(peer.local_addr().unwrap()), datagrams, |out| out.push(IoSlice::new(&payload)));
    outbox.push(to("255.255.255.255:9".parse().unwrap()), Datagrams { len: 5, segment: 2 }, |out| {
        out.push(IoSlice::new(b"lost!"));
    });
    outbox.push(to(peer.local_addr().unwrap()), Datagrams::one(4), |out| out.push(IoSlice::new(b"last")));
    let mut lost = Vec::new();
    end.send(&mut outbox, |unsent| lost.push((unsent.to.port(), unsent.datagrams)));
    assert_eq!(lost, [(9, 1); 3]);
    let mut buffer = [0; 9];
    for byte in 0..200 {
        assert_eq!((peer.recv(&mut buffer).unwrap(), buffer[0]), (1, byte));
    }
    assert_eq!((peer.recv(&mut buffer).unwrap(), &buffer[..4]), (4, &b"last"[..]));
}

#[test]
fn what_came_joined_and_what_came_alone_is_a_batch() {
    let end = UdpEnd::open(LOCALHOST, 0).unwrap();
    let [first, second] = [(); 2].map(|()| UdpEnd::open(LOCALHOST, 0).unwrap());
    let address = to(end.local_addr());
    let (joined, single) = (vec![1; 2000], vec![2; 1000]);
    let joined_shape = Datagrams { len: 2000, segment: 1000 };
    let mut outbox = Outbox::new();
    outbox.push(address, joined_shape, |out| out.push(IoSlice::new(&joined)));
    first.send(&mut outbox, |unsent| panic!("{unsent:?}"));
    send(&first, &[&single], address).unwrap();
    send(&first, &[&single[..5]], address).unwrap();
    send(&first, &[&single], address).unwrap();
    send(&second, &[&single], address).unwrap();

    let inbox = receive(&end);
    let mut batches = Vec::new();
    let mut next = 0;
    while let Some(batch) = inbox.batch(next) {
        next = batch.messages.end;
        batches.push((batch.origin.from.port(), batch.datagrams, payload(&inbox, &batch)));
    }
    let [first, second] = [first, second].map(|end| end.local_addr().port());
    let all = [&joined[..], &single, &single[..5]].concat();
    assert_eq!(
        batches,
        [
            (first, Datagrams { len: 3005, segment: 1000 }, all),
            (first, Datagrams::one(1000), single.clone()),
            (second, Datagrams::one(1000), single),
        ]
    );
    assert!(!inbox.is_full());
}

#[test]
fn a_full_inbox_leaves_the_rest_for_later() {
    let end = UdpEnd::open(LOCALHOST, 0).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for byte in 0..20 {
        peer.send_to(&[byte; 9], end.local_addr()).unwrap();
    }
    let mut inbox = receive(&end);
    assert!(inbox.is_full());
    let mut bytes = payload(&inbox, &inbox.batch(0).unwrap());
    end.receive(&mut inbox).unwrap();
    assert!(!inbox.is_full());
    bytes.extend(payload(&inbox, &inbox.batch(0).unwrap()));
    assert_eq!(bytes, (0..20).flat_map(|byte| [byte; 9]).collect::<Vec<_>>());
}

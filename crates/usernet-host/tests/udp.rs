//! UDP host ends against real sockets on the loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};

use support::{LOCALHOST, Watch};
use usernet_core::host::HostError;
use usernet_host::udp::UdpEnd;
use usernet_host::{Envelope, QueuedError, Received};

const ANY: [&str; 2] = ["0.0.0.0", "::"];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

fn to(to: SocketAddr) -> Envelope {
    Envelope { to, from: None, ttl: None, tos: 0 }
}

/// Waits for a datagram.
fn receive(end: &UdpEnd, buffer: &mut [u8]) -> Received {
    let mut watch = Watch::new(end);
    loop {
        if let Some(received) = end.receive(&mut [IoSliceMut::new(buffer)]).unwrap() {
            return received;
        }
        watch.until(|event| event.readable());
    }
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
        assert_eq!(end.receive(&mut [IoSliceMut::new(&mut [0; 9])]), Ok(None));
        let parts = [IoSlice::new(b"que"), IoSlice::new(b"stion")];
        end.send(&parts, &Envelope { ttl: Some(3), tos: 0xb8, ..to(peer.local_addr().unwrap()) }).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"question");
        assert_eq!(from.port(), end.local_addr().port());
        peer.send_to(b"an answer", from).unwrap();
        let received = receive(&end, &mut buffer);
        assert_eq!(&buffer[..received.len], b"an answer");
        assert_eq!((received.from, received.truncated), (peer.local_addr().unwrap(), false));
        peer.send_to(b"too long", from).unwrap();
        let received = receive(&end, &mut [0; 3]);
        assert_eq!((received.len, received.truncated), (3, true));
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
        end.send(&[IoSlice::new(b"to nobody")], &to(closed)).unwrap();
        Watch::new(&end).until(|event| event.error());
        end.send(&[IoSlice::new(b"to somebody")], &to(peer.local_addr().unwrap())).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"to somebody");

        // Nor does it hide a datagram that came.
        end.send(&[IoSlice::new(b"to nobody")], &to(closed)).unwrap();
        peer.send_to(b"back", from).unwrap();
        Watch::new(&end).until(|event| event.error() && event.readable());
        assert_eq!(receive(&end, &mut buffer).len, 4);

        // And it is still told, with all that belongs to it.
        let error = take_error(&end, &mut buffer);
        assert_eq!((error.to, error.error), (closed, HostError::Refused));
        assert_eq!(&buffer[..error.len], b"to nobody");
        let icmp = error.icmp.unwrap();
        // Port unreachable: RFC 792, and RFC 4443 §3.1.
        assert_eq!((icmp.kind, icmp.code), if closed.is_ipv4() { (3, 3) } else { (1, 4) });
        assert_eq!(icmp.offender, Some(loopback.parse().unwrap()));
        take_error(&end, &mut buffer);
        assert_eq!(end.take_error(&mut buffer), None);
    }
}

#[test]
fn what_cannot_be_sent_says_why() {
    let end = UdpEnd::open(LOCALHOST, 0).unwrap();
    let (_holder, peer) = nobody("127.0.0.1");
    let huge = vec![0; 70_000];
    let error = end.send(&[IoSlice::new(&huge)], &to(peer)).unwrap_err();
    assert_eq!(error, HostError::Other(rustix::io::Errno::MSGSIZE.raw_os_error()));
    let broadcast = to("255.255.255.255:9".parse().unwrap());
    assert!(end.send(&[IoSlice::new(b"all")], &broadcast).is_err());
}

#[test]
fn a_forward_answers_from_the_address_that_was_asked() {
    let forward = UdpEnd::forward("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = forward.local_addr().port();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for asked in ["127.0.0.2", "127.0.0.3"] {
        peer.send_to(b"hello", (asked, port)).unwrap();
        let received = receive(&forward, &mut [0; 100]);
        assert_eq!(received.to, Some(asked.parse().unwrap()));
        let envelope = Envelope { from: received.to, ..to(received.from) };
        forward.send(&[IoSlice::new(b"welcome")], &envelope).unwrap();
        let (_, from) = peer.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from, SocketAddr::new(asked.parse().unwrap(), port));
    }

    let forward = UdpEnd::forward("[::]:0".parse().unwrap()).unwrap();
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.send_to(b"hello", ("::1", forward.local_addr().port())).unwrap();
    let received = receive(&forward, &mut [0; 100]);
    let envelope = Envelope { from: received.to, ..to(received.from) };
    forward.send(&[IoSlice::new(b"welcome")], &envelope).unwrap();
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

#[test]
fn joined_datagrams_say_how_long_each_was() {
    let end = UdpEnd::open(LOCALHOST, 0).unwrap();
    end.join_received().unwrap();
    let peer = socket2::Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    // One send that the kernel is to cut into datagrams of 1000 bytes (UDP_SEGMENT): a control
    // message of 18 bytes, level 17 (UDP), type 103.
    let mut control = [0; 24];
    control[..8].copy_from_slice(&18u64.to_ne_bytes());
    control[8..12].copy_from_slice(&17u32.to_ne_bytes());
    control[12..16].copy_from_slice(&103u32.to_ne_bytes());
    control[16..18].copy_from_slice(&1000u16.to_ne_bytes());
    let address = end.local_addr().into();
    let payload = [IoSlice::new(&[7; 2500])];
    let message = socket2::MsgHdr::new().with_addr(&address).with_buffers(&payload).with_control(&control);
    peer.sendmsg(&message, 0).unwrap();
    let received = receive(&end, &mut vec![0; 65536]);
    assert_eq!((received.len, received.segment), (2500, 1000));
}

//! TCP host ends against real sockets on the loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::{Dice, LOCALHOST, Watch, connect, pairs, stream_bytes, tcp_pair, unix_pair};
use usernet_core::host::{HostError, PeekEnd};
use usernet_host::Source;
use usernet_host::epoll::{Events, Interest, Poll, Waker};
use usernet_host::listen::{Accept, TcpForward};
use usernet_host::tcp::TcpEnd;

/// Peeks `len` bytes at `at`.
fn peek(end: &mut TcpEnd, at: u32, len: usize) -> Result<(Vec<u8>, PeekEnd), HostError> {
    let mut bytes = vec![0; len];
    let (got, why) = end.peek(at, &mut [IoSliceMut::new(&mut bytes)])?;
    bytes.truncate(got as usize);
    Ok((bytes, why))
}

/// Peeks all that is there, waiting until that is `len` bytes.
fn peek_once_there(end: &mut TcpEnd, len: usize) -> Vec<u8> {
    let mut watch = Watch::new(&*end);
    loop {
        let event = watch.until(|event| event.readable());
        end.note(event);
        let (bytes, _) = peek(end, 0, len + 1).unwrap();
        if bytes.len() >= len {
            return bytes;
        }
    }
}

#[test]
fn peeks_any_place_until_it_is_discarded() {
    for (kind, (mut end, mut peer)) in pairs() {
        peer.write_all(b"0123456789").unwrap();
        assert_eq!(peek_once_there(&mut end, 10), b"0123456789", "{kind}");
        assert_eq!(peek(&mut end, 3, 4), Ok((b"3456".to_vec(), PeekEnd::More)), "{kind}");
        assert_eq!(peek(&mut end, 0, 2), Ok((b"01".to_vec(), PeekEnd::More)), "{kind}");
        end.discard(4).unwrap();
        assert_eq!(peek(&mut end, 0, 2), Ok((b"45".to_vec(), PeekEnd::More)), "{kind}");
        assert_eq!(peek(&mut end, 5, 9), Ok((b"9".to_vec(), PeekEnd::Empty)), "{kind}");
        assert_eq!(peek(&mut end, 6, 9), Ok((vec![], PeekEnd::Empty)), "{kind}");
        let (mut first, mut second) = ([0; 2], [0; 3]);
        let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        assert_eq!(end.peek(1, &mut parts), Ok((5, PeekEnd::More)), "{kind}");
        assert_eq!((&first, &second), (b"56", b"789"), "{kind}");
        end.discard(6).unwrap();
        assert_eq!(peek(&mut end, 0, 9), Ok((vec![], PeekEnd::Empty)), "{kind}");
    }
}

#[test]
fn a_stream_survives_any_order_of_peeks_and_discards() {
    const TOTAL: usize = 64 << 20;
    const WINDOW: usize = 400_000;
    let expected = stream_bytes(0, TOTAL);
    for (kind, (end, mut peer)) in pairs() {
        thread::scope(|scope| {
            let (mut end, expected) = (end, &expected);
            scope.spawn(move || {
                peer.write_all(expected).unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
            });
            let mut watch = Watch::new(&end);
            let mut dice = Dice::new(0x5eed);
            let (mut front, mut reached) = (0, 0);
            let mut buffer = vec![0; 200_000];
            loop {
                // Most peeks go on; some go back to a place that was peeked already.
                let at = if dice.roll(4) == 0 { front + dice.roll(reached - front + 1) } else { reached };
                let len = 1 + dice.roll(buffer.len().min(front + WINDOW - at));
                let (one, two) = buffer[..len].split_at_mut(dice.roll(len));
                let offset = u32::try_from(at - front).unwrap();
                let (got, why) = end.peek(offset, &mut [IoSliceMut::new(one), IoSliceMut::new(two)]).unwrap();
                let got = got as usize;
                assert!(buffer[..got] == expected[at..at + got], "{kind}: wrong bytes at {at}");
                reached = reached.max(at + got);
                if why == PeekEnd::Eof {
                    assert_eq!(at + got, TOTAL, "{kind}");
                    break;
                }
                // What is not discarded may be all that the receive window lets in.
                let held = reached - front;
                let done = match why {
                    PeekEnd::Empty => held,
                    _ if held > WINDOW / 2 || dice.roll(3) == 0 => held.div_ceil(2) + dice.roll(held / 2 + 1),
                    _ => 0,
                };
                let resumed = end.discard(u32::try_from(done).unwrap()).unwrap();
                front += done;
                if why == PeekEnd::Empty && !resumed {
                    end.note(watch.until(|event| event.readable()));
                }
            }
        });
    }
}

#[test]
fn a_full_ring_goes_on_after_a_discard() {
    let (mut end, mut peer) = unix_pair();
    let writer = thread::spawn(move || peer.write_all(&stream_bytes(0, 600_000)));
    let mut watch = Watch::new(&end);
    let held = loop {
        watch.until(|event| event.readable());
        let (bytes, why) = peek(&mut end, 0, 600_000).unwrap();
        assert_eq!(why, PeekEnd::Empty);
        if bytes.len() == 256 * 1024 {
            break bytes;
        }
    };
    assert!(held == stream_bytes(0, held.len()));
    assert_eq!(end.discard(1000), Ok(true), "a peek may go on");
    let (more, _) = peek(&mut end, 256 * 1024 - 1000, 600_000).unwrap();
    assert!(more == stream_bytes(256 * 1024, 1000));
    drop(end);
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn the_end_of_a_stream_is_found_behind_a_short_peek() {
    for (kind, (mut end, mut peer)) in pairs() {
        peer.write_all(b"last words").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let event = Watch::new(&end).until(|event| event.read_closed());
        end.note(event);
        let mut at = 0;
        let why = loop {
            let (bytes, why) = peek(&mut end, at, 100).unwrap();
            at += u32::try_from(bytes.len()).unwrap();
            if why != PeekEnd::More {
                break why;
            }
        };
        assert_eq!((at, why), (10, PeekEnd::Eof), "{kind}");
        end.discard(10).unwrap();
        assert_eq!(peek(&mut end, 0, 100), Ok((vec![], PeekEnd::Eof)), "{kind}");
        // The other direction is open still.
        assert_eq!(end.write(&[IoSlice::new(b"answer")]), Ok(6), "{kind}");
        end.shutdown_write();
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer", "{kind}");
    }
}

#[test]
fn urgent_data_comes_in_line_and_stalls_nothing() {
    let (mut end, mut peer) = tcp_pair(LOCALHOST);
    peer.write_all(b"before").unwrap();
    peer.send_out_of_band(b"!").unwrap();
    peer.write_all(b"after").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let event = Watch::new(&end).until(|event| event.read_closed());
    end.note(event);
    let mut all = Vec::new();
    loop {
        let (bytes, why) = peek(&mut end, u32::try_from(all.len()).unwrap(), 100).unwrap();
        all.extend(bytes);
        assert_ne!(why, PeekEnd::Empty, "stopped at {:?}", String::from_utf8_lossy(&all));
        if why == PeekEnd::Eof {
            break;
        }
    }
    assert_eq!(all, b"before!after");
    end.discard(12).unwrap();
}

#[test]
fn urgent_data_stalls_nothing_while_the_stream_is_open() {
    let (mut end, mut peer) = tcp_pair(LOCALHOST);
    let mut watch = Watch::new(&end);
    peer.write_all(b"before").unwrap();
    peer.send_out_of_band(b"!").unwrap();
    peer.write_all(b"after").unwrap();
    let mut all = Vec::new();
    while all.len() < 12 {
        let event = watch.until(|event| event.readable());
        end.note(event);
        loop {
            let (bytes, why) = peek(&mut end, u32::try_from(all.len()).unwrap(), 100).unwrap();
            all.extend(bytes);
            if why == PeekEnd::Empty {
                break;
            }
        }
    }
    assert_eq!(all, b"before!after");
}

#[test]
fn a_refused_connect_says_so() {
    // Bound, so that no other test gets the port, and not listening.
    let holder = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    holder.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let closed = holder.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(connect(closed).map(drop), Err(HostError::Refused));
}

#[test]
fn connects_from_the_address_that_was_asked_for() {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let source = "127.0.0.9".parse().unwrap();
    let _end =
        TcpEnd::connect(listener.local_addr().unwrap(), Source { address: Some(source), interface: 0 }, 0)
            .unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), source);
    let foreign = Source { address: Some("192.0.2.1".parse().unwrap()), interface: 0 };
    let foreign = TcpEnd::connect(listener.local_addr().unwrap(), foreign, 0);
    assert_eq!(foreign.map(drop), Err(HostError::NetUnreachable), "no address of this host");
}

#[test]
fn a_full_socket_takes_less_and_tells_when_there_is_room() {
    for (kind, (mut end, mut peer)) in pairs() {
        let mut watch = Watch::new(&end);
        watch.until(|event| event.writable());
        let chunk = stream_bytes(0, 1 << 20);
        let mut sent = 0;
        loop {
            let taken = end.write(&[IoSlice::new(&chunk)]).unwrap();
            sent += taken;
            if taken == 0 {
                break;
            }
        }
        watch.poll.modify(&end, 7, Interest::ReadWrite).unwrap();
        assert!(!watch.next_within(Duration::ZERO).is_some_and(|event| event.writable()), "{kind}");
        let mut buffer = vec![0; sent];
        peer.read_exact(&mut buffer).unwrap();
        watch.until(|event| event.writable());
        assert!(end.write(&[IoSlice::new(&chunk)]).unwrap() > 0, "{kind}");
    }
}

#[test]
fn asking_again_tells_of_room_that_no_edge_tells() {
    let (end, _peer) = tcp_pair(LOCALHOST);
    let mut watch = Watch::new(&end);
    watch.until(|event| event.writable());
    assert_eq!(watch.next_within(Duration::ZERO), None, "an edge is told once");
    watch.poll.modify(&end, 8, Interest::ReadWrite).unwrap();
    assert_eq!(watch.until(|event| event.writable()).token, 8);
}

#[test]
fn more_slices_than_a_call_takes_are_all_written() {
    for (kind, (mut end, mut peer)) in pairs() {
        let bytes = stream_bytes(0, 6000);
        let slices: Vec<_> = bytes.chunks(2).map(IoSlice::new).collect();
        assert_eq!(end.write(&slices), Ok(6000), "{kind}");
        let mut got = vec![0; 6000];
        peer.read_exact(&mut got).unwrap();
        assert!(got == bytes, "{kind}");
    }
}

#[test]
fn send_space_follows_what_is_queued() {
    for (kind, (mut end, mut peer)) in pairs() {
        let empty = end.send_space();
        assert!(empty > 10_000, "{kind}: {empty}");
        let chunk = stream_bytes(0, 8 << 10);
        let mut sent = 0;
        while end.send_space() > 0 {
            let taken = end.write(&[IoSlice::new(&chunk)]).unwrap();
            assert!(taken > 0, "{kind}: no room for {} bytes after {sent}", end.send_space());
            sent += taken;
        }
        let mut buffer = vec![0; sent];
        peer.read_exact(&mut buffer).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while end.send_space() < empty {
            assert!(Instant::now() < deadline, "{kind}: {} of {empty}", end.send_space());
            thread::yield_now();
        }
    }
}

#[test]
fn the_peer_of_a_reset_end_sees_a_reset() {
    let (end, mut peer) = tcp_pair(LOCALHOST);
    end.reset();
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_peer_of_a_closed_end_sees_all_bytes_and_the_end() {
    for (kind, (mut end, mut peer)) in pairs() {
        peer.write_all(b"request").unwrap();
        peek_once_there(&mut end, 7);
        end.discard(7).unwrap();
        end.write(&[IoSlice::new(b"answer")]).unwrap();
        drop(end);
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer", "{kind}");
    }
}

#[test]
fn a_reset_by_the_peer_breaks_the_end() {
    let (mut end, peer) = tcp_pair(LOCALHOST);
    peer.set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let event = Watch::new(&end).until(|event| event.hang_up());
    end.note(event);
    assert_eq!(peek(&mut end, 0, 10), Err(HostError::Reset));
    assert_eq!(end.write(&[IoSlice::new(b"x")]), Err(HostError::Reset));
}

#[test]
fn a_forward_accepts_and_says_who_and_where() {
    let forward = TcpForward::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert!(matches!(forward.accept(), Ok(Accept::Empty)));
    let mut watch = Watch::new(&forward);
    let mut peer = TcpStream::connect(forward.local_addr()).unwrap();
    watch.until(|event| event.readable());
    let Ok(Accept::Accepted(mut accepted)) = forward.accept() else { panic!("nobody there") };
    assert_eq!(accepted.peer, peer.local_addr().unwrap());
    assert_eq!(accepted.to, forward.local_addr());
    peer.write_all(b"hello").unwrap();
    assert_eq!(peek_once_there(&mut accepted.end, 5), b"hello");
    assert!(matches!(forward.accept(), Ok(Accept::Empty)));
}

#[test]
fn forwards_of_one_port_are_told_apart() {
    let forward = TcpForward::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let again = TcpForward::bind(forward.local_addr()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AddrInUse);
    let any = TcpForward::bind("[::]:0".parse().unwrap()).unwrap();
    let ipv4 = SocketAddr::from(([0, 0, 0, 0], any.local_addr().port()));
    // The IPv4 side of an IPv6 port is another rule's.
    if let Err(error) = TcpForward::bind(ipv4) {
        panic!("{ipv4}: {error}");
    }
}

#[test]
fn a_waker_ends_a_wait_each_time() {
    let poll = Poll::new().unwrap();
    let waker = Waker::new().unwrap();
    poll.add(&waker, 1, Interest::Read).unwrap();
    let mut events = Events::with_capacity(4);
    for _ in 0..3 {
        let waker = waker.clone();
        let woken = thread::spawn(move || waker.wake());
        poll.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
        assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [1]);
        woken.join().unwrap();
    }
    let start = Instant::now();
    poll.wait(&mut events, Some(Duration::from_micros(100))).unwrap();
    assert_eq!(events.iter().len(), 0);
    assert!(start.elapsed() >= Duration::from_micros(100));
}

//! What goes through the rings arrives.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener};

use usernet_testkit::nic::{NicConfig, feature};
use usernet_testkit::{App, Close, digest_of, fill, udp_frame};

use super::guest::{Guest, guest_with_address, run};
use super::source;
use crate::GATEWAY;
use crate::guest::{echo_server, network};

const SOME: u64 = 1 << 20;

/// Sends to an echo of the host, and looks at what comes back.
fn echo(guests: &mut [Guest], len: u64) {
    echo_from(guests, SocketAddrV4::new(GATEWAY, echo_server()).into(), len);
}

fn echo_from(guests: &mut [Guest], server: SocketAddr, len: u64) {
    let app = App { seed: 7, send: len, close: Close::Sent, ..App::default() };
    let stream = guests[0].smol.connect_to(server, app);
    run(guests, "an echo", |guests| guests[0].smol.received(stream) == len);
    assert_eq!(guests[0].smol.digest(stream), digest_of(7, len));
}

#[test]
fn a_guest_gets_an_address_and_reaches_the_gateway() {
    let network = network(1);
    let mut guest = [guest_with_address(&network, NicConfig::new(0, 16), 1)];
    let socket = guest[0].smol.ping(5);
    guest[0].smol.ping_send(socket, GATEWAY, 5, 1, b"hello");
    run(&mut guest, "an echo reply", |guest| {
        guest[0].smol.ping_received(socket) == [(GATEWAY.into(), 1, b"hello".to_vec())]
    });
    assert_eq!(guest[0].info(&network).unwrap().kind, "vhost-user");
}

#[test]
fn streams_are_whole_over_any_ring() {
    let network = network(1);
    let mut octet = 0;
    for size in [4, 32, 256, 1024] {
        for bits in 0..16_u64 {
            let on = |bit: u64, features| if bits & (1 << bit) != 0 { features } else { 0 };
            let features = on(0, feature::MRG_RXBUF)
                | on(1, feature::INDIRECT_DESC)
                | on(2, feature::EVENT_IDX)
                | on(3, feature::OFFLOADS);
            let config = NicConfig::new(features, size);
            octet += 1;
            let mut guest = [guest_with_address(&network, config, octet)];
            echo(&mut guest, SOME);
            let [guest] = &mut guest;
            guest.nic.hear();
            if config.rx.event_idx {
                for ring in guest.nic.queues() {
                    // The first one comes unasked, since nothing is known of what the driver wants then.
                    assert!(ring.interrupts <= ring.asked + 1, "{ring:?}");
                }
            }
            network.handle().detach(guest.port).unwrap();
        }
    }
    // A lone acknowledgment is not kept for a full ring, but no payload is taken for which there is no room.
    let drops = network.handle().drops().unwrap();
    assert!(drops.iter().all(|drop| drop.reason == "link-full"), "{drops:?}");
}

#[test]
fn super_frames_go_both_ways() {
    let network = network(1);
    for features in [feature::OFFLOADS, feature::OFFLOADS | feature::MRG_RXBUF] {
        let mut guest = [guest_with_address(&network, NicConfig::new(features, 256), 1)];
        echo(&mut guest, 8 << 20);
        let [received, sent] = guest[0].nic.longest;
        assert!(received > 60_000 && sent > 60_000, "frames of up to {received} and {sent} bytes");
        network.handle().detach(guest[0].port).unwrap();
    }
}

#[test]
fn super_frames_go_both_ways_over_ipv6() {
    let network = network(1);
    let features = feature::OFFLOADS | feature::MRG_RXBUF;
    for features in [features, features & !(feature::GUEST_TSO6 | feature::HOST_TSO6 | feature::HOST_TSO4)] {
        let mut guest = [guest_with_address(&network, NicConfig::new(features, 256), 1)];
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            std::io::copy(&mut &stream, &mut &stream).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        echo_from(&mut guest, format!("[fd00::2]:{port}").parse().unwrap(), 8 << 20);
        let wanted = features & feature::GUEST_TSO6 != 0;
        let [received, sent] = guest[0].nic.longest;
        assert_eq!((received > 60_000, sent > 60_000), (wanted, wanted), "{received} and {sent} bytes");
        network.handle().detach(guest[0].port).unwrap();
    }
}

#[test]
fn a_frame_that_never_fits_hurts_nobody() {
    let network = network(1);
    let config = NicConfig::new(0, 16);
    let mut guests =
        [guest_with_address(&network, config, 1), guest_with_address(&network, NicConfig::new(0, 16), 2)];
    let [from, to] = [1, 0].map(|n: usize| (guests[n].smol.mac(), guests[n].smol.addr().unwrap()));
    let frame = udp_frame(to.0, from.0, (from.1, 7), (to.1, 7), &[1; 4000]);
    guests[1].nic.send(0, vec![frame; 3]);
    run(&mut guests, "its end", |_| {
        network.handle().drops().unwrap().iter().map(|drop| drop.count).sum::<u64>() >= 3
    });
    echo(&mut guests, SOME);
}

#[test]
fn each_side_may_end_its_half_first() {
    let network = network(1);
    let mut guest = [guest_with_address(&network, NicConfig::new(feature::OFFLOADS, 64), 1)];
    // The guest first: it still receives. Then the host: it still receives.
    for host_first in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            if host_first {
                stream.shutdown(Shutdown::Write).unwrap();
                stream.read_to_end(&mut received).unwrap();
            } else {
                stream.read_to_end(&mut received).unwrap();
                let mut bytes = vec![0; SOME.try_into().unwrap()];
                fill(8, 0, &mut bytes);
                stream.write_all(&bytes).unwrap();
            }
            received
        });
        let close = if host_first { Close::Eof } else { Close::Sent };
        // What waits for the end of the host's half sends only then.
        let app = App { seed: 3, send: if host_first { 0 } else { SOME }, close, ..App::default() };
        let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, port), app);
        if host_first {
            guest[0].smol.app(stream).close = Close::Never;
            run(&mut guest, "the end of the host's half", |guest| {
                guest[0].smol.opened(stream) && !guest[0].smol.socket(stream).may_recv()
            });
            let app = guest[0].smol.app(stream);
            (app.send, app.close) = (SOME, Close::Sent);
        }
        run(&mut guest, "both ends", |guest| host.is_finished() && !guest[0].smol.socket(stream).may_recv());
        let mut sent = vec![0; SOME.try_into().unwrap()];
        fill(3, 0, &mut sent);
        assert!(host.join().unwrap() == sent, "all that the guest sent");
        let expected = if host_first { 0 } else { SOME };
        assert_eq!(guest[0].smol.digest(stream), digest_of(8, expected));
    }
}

#[test]
fn a_guest_whose_program_does_not_read_gets_all_when_it_does() {
    let network = network(1);
    let mut guest = [guest_with_address(&network, NicConfig::new(feature::OFFLOADS, 64), 1)];
    let app = App { reads: Some(0), buffer: 64 << 10, ..App::default() };
    let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, source(5, SOME)), app);
    run(&mut guest, "a window that is shut", |guest| guest[0].smol.socket(stream).recv_queue() == 64 << 10);
    guest[0].smol.app(stream).reads = None;
    run(&mut guest, "all", |guest| guest[0].smol.received(stream) == SOME);
    assert_eq!(guest[0].smol.digest(stream), digest_of(5, SOME));
}

#[test]
fn a_driver_that_asks_for_no_interrupts_gets_none() {
    let network = network(1);
    for features in [feature::OFFLOADS, feature::OFFLOADS | feature::EVENT_IDX] {
        let mut guest = [guest_with_address(&network, NicConfig::new(features, 256), 1)];
        guest[0].polls = true;
        guest[0].nic.queues().for_each(|queue| queue.decline_interrupts());
        // What was told before it declined.
        network.handle().ports().unwrap();
        guest[0].nic.hear();
        let before: Vec<u64> = guest[0].nic.queues().map(|queue| queue.interrupts).collect();
        echo(&mut guest, 8 << 20);
        guest[0].nic.hear();
        let after: Vec<u64> = guest[0].nic.queues().map(|queue| queue.interrupts).collect();
        assert_eq!(before, after);
        network.handle().detach(guest[0].port).unwrap();
    }
}

//! What goes through the rings arrives.

use std::net::SocketAddrV4;

use usernet_testkit::nic::{NicConfig, feature};
use usernet_testkit::{App, Close, digest_of};

use super::guest::{Guest, guest_with_address, run};
use crate::GATEWAY;
use crate::guest::{echo_server, network};

const SOME: u64 = 1 << 20;

/// Sends to an echo of the host, and looks at what comes back.
fn echo(guests: &mut [Guest], len: u64) {
    let app = App { seed: 7, send: len, close: Close::Sent, ..App::default() };
    let stream = guests[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
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

//! Devices that stop, start, are reset and come back, while their guests have something to do.

use std::net::SocketAddrV4;

use usernet::Network;
use usernet_testkit::nic::{NicConfig, Queue, bell, feature};
use usernet_testkit::{App, Close, StreamId, digest_of};
use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;

use super::guest::{Guest, RINGS, guest_with_address, run};
use super::raw::{self, words, words64};
use crate::GATEWAY;
use crate::guest::{echo_server, network};

const MUCH: u64 = 8 << 20;

/// A guest in the midst of a transfer.
struct Busy {
    guest: [Guest; 1],
    stream: StreamId,
}

impl Busy {
    fn plug_in(network: &Network, config: NicConfig) -> Self {
        let mut guest = [guest_with_address(network, config, 1)];
        let app = App { seed: 7, send: MUCH, close: Close::Sent, ..App::default() };
        let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
        Self { guest, stream }
    }

    /// Waits until an eighth more has come back; `false` when that is all.
    fn goes_on(&mut self) -> bool {
        let stream = self.stream;
        let until = (self.guest[0].smol.received(stream) + MUCH / 8).min(MUCH);
        run(&mut self.guest, "more of the echo", |guest| guest[0].smol.received(stream) >= until);
        until < MUCH
    }

    /// Does something to the guest between any two eighths, and looks at what came back.
    fn meanwhile(mut self, mut disturb: impl FnMut(&mut Guest)) {
        while self.goes_on() {
            disturb(&mut self.guest[0]);
        }
        let [guest] = &mut self.guest;
        assert_eq!(guest.smol.digest(self.stream), digest_of(7, MUCH));
        assert_eq!(guest.stop(), guest.used(), "no buffer was lost");
    }
}

fn usual() -> NicConfig {
    NicConfig::new(feature::OFFLOADS | feature::MRG_RXBUF | feature::INDIRECT_DESC | feature::EVENT_IDX, 256)
}

fn ping(guests: &mut [Guest]) {
    let socket = guests[0].smol.ping(5);
    guests[0].smol.ping_send(socket, GATEWAY, 5, 1, b"hello");
    run(guests, "an echo reply", |guests| !guests[0].smol.ping_received(socket).is_empty());
}

#[test]
fn queues_that_stop_go_on_where_they_were() {
    for config in [usual(), NicConfig::new(0, 64)] {
        let network = network(1);
        Busy::plug_in(&network, config).meanwhile(|guest| {
            let bases = guest.stop();
            assert_eq!(bases, guest.used(), "what was taken was given back");
            // A queue that rests is not looked at, whoever kicks.
            guest.nic.queues().for_each(Queue::kick);
            network.handle().ports().unwrap();
            assert_eq!(bases, guest.used(), "it rests");
            guest.start(|queue| queue.driver.used_index());
        });
    }
}

#[test]
fn a_device_that_is_reset_is_set_up_anew() {
    let network = network(1);
    Busy::plug_in(&network, usual()).meanwhile(|guest| {
        guest.front.reset_device().unwrap();
        guest.nic.reset();
        guest.set_up(|_| 0);
    });
}

#[test]
fn a_driver_that_resets_its_device_sets_it_up_anew() {
    let network = network(1);
    Busy::plug_in(&network, usual()).meanwhile(|guest| {
        guest.message(raw::SET_STATUS, &words64(&[15]));
        assert_eq!(guest.ask(raw::GET_STATUS), words64(&[15]));
        guest.message(raw::SET_STATUS, &words64(&[0]));
        assert_eq!(guest.ask(raw::GET_STATUS), words64(&[0]));
        guest.nic.reset();
        guest.start(|_| 0);
    });
}

#[test]
fn a_front_end_that_comes_back_finds_its_rings_as_they_were() {
    let network = network(1);
    let mut guest = [guest_with_address(&network, usual(), 1)];
    for _ in 0..3 {
        let (old, ended) = (guest[0].port, raw::watch(network.handle(), guest[0].port));
        guest[0].stream.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(raw::wait(network.handle(), ended), "the guest closed the link");
        guest[0].reconnect(&network);
        assert_ne!(guest[0].port, old);
        let app = App { seed: 9, send: MUCH, close: Close::Sent, ..App::default() };
        let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
        run(&mut guest, "an echo", |guest| guest[0].smol.received(stream) == MUCH);
        assert_eq!(guest[0].smol.digest(stream), digest_of(9, MUCH));
    }
}

#[test]
fn memory_may_be_told_of_anew() {
    let network = network(1);
    Busy::plug_in(&network, usual()).meanwhile(|guest| {
        let regions = guest.regions();
        guest.front.set_mem_table(&regions).unwrap();
        // One more of the same, and away with it again.
        guest.front.add_mem_region(&regions[0]).unwrap();
        guest.front.remove_mem_region(&regions[0]).unwrap();
    });
}

#[test]
fn memory_may_come_and_go() {
    let network = network(1);
    let config = usual();
    let mut guest = [Guest::with_more_memory(&network, config, 1 << 20, 1)];
    run(&mut guest, "a lease", |guest| guest[0].smol.addr().is_some());
    let regions = guest[0].regions();
    let [.., spare] = &*regions else { panic!("there is a region behind the queues") };
    guest[0].front.remove_mem_region(spare).unwrap();
    ping(&mut guest);
    guest[0].front.add_mem_region(spare).unwrap();
    assert!(guest[0].front.add_mem_region(spare).is_ok(), "QEMU says so for each pair of queues");
    ping(&mut guest);

    // Without what its buffers are in, the device rests and says why, until it is set up anew.
    guest[0].front.remove_mem_region(&regions[0]).unwrap_err();
    let queue = &mut guest[0].nic.pairs[0].tx;
    queue.kick();
    guest[0].front.set_mem_table(&regions).unwrap();
    guest[0].front.reset_device().unwrap();
    guest[0].nic.reset();
    guest[0].set_up(|_| 0);
    ping(&mut guest);
}

#[test]
fn a_ring_that_makes_no_sense_is_told_of_and_mended() {
    let network = network(1);
    let mut guest = [guest_with_address(&network, usual(), 1)];
    let queue = &mut guest[0].nic.pairs[0].tx;
    // Far more than there are.
    queue.driver.next = queue.driver.next.wrapping_add(1000);
    queue.publish();
    queue.kick();
    run(&mut guest, "the trouble", |guest| {
        guest[0].stalled = true;
        guest[0].info(&network).unwrap().trouble.is_some()
    });
    let trouble = guest[0].info(&network).unwrap().trouble.unwrap();
    assert!(trouble.contains("descriptors available at once, more than there are"), "{trouble}");
    assert_eq!(guest[0].ask(raw::GET_STATUS), words64(&[64]), "the driver is to reset it");

    guest[0].front.reset_device().unwrap();
    guest[0].nic.reset();
    guest[0].set_up(|_| 0);
    guest[0].stalled = false;
    ping(&mut guest);
    assert_eq!(guest[0].info(&network).unwrap().trouble, None);
}

#[test]
fn a_queue_may_be_enabled_before_the_features_are_set() {
    let network = network(1);
    let config = usual();
    let mut guest = [Guest::quiet(&network, config, 0, 1)];
    for index in 0..2 {
        guest[0].message(raw::SET_VRING_ENABLE, &words(&[index, 1]));
    }
    guest[0].set_up(|_| 0);
    run(&mut guest, "a lease", |guest| guest[0].smol.addr().is_some());
}

#[test]
fn an_interrupt_may_be_changed() {
    let network = network(1);
    Busy::plug_in(&network, usual()).meanwhile(|guest| {
        let Guest { front, nic, .. } = guest;
        for (index, queue) in nic.queues().enumerate() {
            queue.hear();
            let old = std::mem::replace(&mut queue.call, bell());
            front.set_vring_call(index, &queue.call).unwrap();
            // The worker changes it with its next turn, as it answers who asks for the queues' base.
            network.handle().ports().unwrap();
            let _ = old.read();
            // What it had told already by the old one is looked at by the next turn.
            queue.kick();
        }
    });
}

#[test]
fn rings_are_named_by_other_addresses_than_buffers() {
    // A front end that mixes them up is told so.
    let network = network(1);
    let config = usual();
    let mut guest = Guest::quiet(&network, config, 0, 1);
    guest.agree();
    let mut regions = guest.regions();
    regions.iter_mut().for_each(|region| region.userspace_addr -= RINGS - 0x1000);
    guest.front.set_mem_table(&regions).unwrap();
    let queue = &guest.nic.pairs[0].rx;
    let kick = guest.front.set_vring_kick(0, &queue.kick);
    assert!(kick.is_ok(), "it is not enabled");
    guest.front.set_vring_enable(0, true).unwrap_err();
}

//! A guest with several pairs of queues, of which it uses some.

use std::net::SocketAddrV4;

use usernet_testkit::driver::{Descriptor, NEXT, WRITE};
use usernet_testkit::nic::{NicConfig, Queue, QueueConfig, feature};
use usernet_testkit::{App, Close, StreamId, digest_of};

use super::guest::{Guest, run, start};
use crate::GATEWAY;
use crate::guest::{echo_server, network};

const MUCH: u64 = 4 << 20;

/// How many pairs the device is asked to use, and whether it does.
fn set_pairs(guests: &mut [Guest], control: &mut Control, pairs: u16) -> bool {
    let [low, high] = pairs.to_le_bytes();
    control.ask(guests, &[4, 0, low, high]) == 0
}

/// A control queue of a guest's.
struct Control {
    queue: Queue,
}

impl Control {
    const CONFIG: QueueConfig =
        QueueConfig { size: 16, room: 4096, parts: 2, indirect: false, event_idx: true };

    /// The queue behind a guest's pairs.
    fn start(guest: &mut Guest) -> Self {
        let at = guest.nic.queues().last().unwrap().extent.end;
        let queue = Queue::new(&guest.memory, at, Self::CONFIG);
        start(&mut guest.front, 2 * guest.config.pairs, &queue, 0);
        Self { queue }
    }

    /// Gives a command; returns the answer.
    fn ask(&mut self, guests: &mut [Guest], command: &[u8]) -> u8 {
        let (queue, memory) = (&mut self.queue, &guests[0].memory.clone());
        let buffer = queue.buffer(0);
        memory.write(buffer, command);
        memory.write(buffer + 4095, &[0xff]);
        let asked =
            Descriptor { address: buffer, len: command.len().try_into().unwrap(), flags: NEXT, next: 1 };
        let answer = Descriptor { address: buffer + 4095, len: 1, flags: WRITE, next: 0 };
        queue.driver.describe(0, asked);
        queue.driver.describe(1, answer);
        queue.driver.offer(0);
        queue.publish();
        run(guests, "an answer to a command", |_| !queue.driver.take_back().is_empty());
        memory.read(buffer + 4095, 1)[0]
    }
}

#[test]
fn a_guest_uses_as_many_pairs_as_it_says() {
    let network = network(2);
    let features =
        feature::OFFLOADS | feature::MRG_RXBUF | feature::EVENT_IDX | feature::MQ | feature::CTRL_VQ;
    let config = NicConfig { pairs: 2, ..NicConfig::new(features, 128) };
    let mut guest = [Guest::with_more_memory(&network, config, Control::CONFIG.bytes(), 1)];
    let mut control = Control::start(&mut guest[0]);
    run(&mut guest, "a lease", |guest| guest[0].smol.addr().is_some());
    let echo = |guest: &mut [Guest], seed: u64| {
        let app = App { seed, send: MUCH, close: Close::Sent, ..App::default() };
        let streams: Vec<StreamId> =
            (0..4).map(|_| guest[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app)).collect();
        for stream in streams {
            run(guest, "an echo", |guest| guest[0].smol.received(stream) == MUCH);
            assert_eq!(guest[0].smol.digest(stream), digest_of(seed, MUCH));
        }
    };

    // At first it uses one.
    echo(&mut guest, 1);
    assert_eq!(guest[0].used()[2..], [0, 0], "the second pair rests");

    assert!(set_pairs(&mut guest, &mut control, 2));
    guest[0].sends_by = 2;
    echo(&mut guest, 2);
    let both = guest[0].used();
    assert!(both[3] > 0, "frames were taken from the second pair: {both:?}");
    assert!(both[2] > 0, "frames came by the second pair: {both:?}");

    // What cannot be is refused, and all goes on.
    for command in [
        &[4, 0, 3, 0][..],
        &[4, 0, 0, 0],
        &[4, 0, 0xff, 0xff],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[4],
        &[0; 1000],
    ] {
        assert_eq!(control.ask(&mut guest, command), 1, "{command:?}");
    }
    echo(&mut guest, 3);

    assert!(set_pairs(&mut guest, &mut control, 1));
    guest[0].sends_by = 1;
    let before = guest[0].used();
    echo(&mut guest, 4);
    let after = guest[0].used();
    assert_eq!(before[2..], after[2..], "the second pair rests");
    assert_eq!(network.handle().ports().unwrap().len(), 1);
}

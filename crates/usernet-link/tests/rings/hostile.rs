//! Rings as no driver has them. Each is refused with a reason, and the device works again after the driver
//! has set it up anew; or a frame is dropped, and counted.

use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use usernet_link::virtio::RingLayout;
use usernet_testkit::Rng;
use usernet_testkit::driver::{Descriptor, INDIRECT, NEXT};

use super::*;

/// The first is described, and made available.
fn describe(guest: &mut RingGuest, index: usize, descriptors: &[Descriptor]) {
    let driver = &mut guest.queues[index].driver;
    for (number, descriptor) in descriptors.iter().enumerate() {
        driver.describe(number as u16, *descriptor);
    }
    driver.offer(0);
    guest.publish(index);
}

/// A plain descriptor.
fn plain(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: 0, next: 0 }
}

/// The device rests for this reason, says so, and works again after it was set up anew.
fn assert_refused(guest: &mut RingGuest, index: usize, reason: &str) {
    if index == TRANSMIT {
        assert_eq!(guest.receive().unwrap(), None, "{reason}");
    } else {
        assert!(!send(guest, &bytes(60)), "{reason}");
    }
    let trouble = guest.device.trouble().unwrap_or_default();
    assert!(trouble.contains(reason), "{trouble}, where it should be: {reason}");
    assert_eq!(guest.rx.as_ref().unwrap().trouble(), Some(trouble));
    assert!(guest.refused(index), "{reason}");
    assert!(!guest.refused(1 - index));
    // It rests, kick or not.
    guest.kick(TRANSMIT);
    assert_eq!(guest.receive().unwrap(), None);
    assert!(!send(guest, &bytes(60)));
    for index in [RECEIVE, TRANSMIT] {
        guest.renew(index, 0).unwrap();
    }
    assert_eq!(guest.device.trouble(), None);
    let _ = guest.tx.flush().unwrap();
    assert_works(guest);
    for index in [RECEIVE, TRANSMIT] {
        guest.renew(index, 0).unwrap();
    }
}

#[test]
fn descriptors_that_make_no_sense_are_refused() {
    let mut guest = guest(8, ALL);
    let (at, end) = (guest.heap(), START + LEN);
    let next = |descriptor: Descriptor, next| Descriptor { flags: NEXT, next, ..descriptor };
    let cases: [(&str, &[Descriptor]); 9] = [
        ("is not in the guest's memory", &[plain(end - 99, 100)]),
        ("is not in the guest's memory", &[plain(START - 1, 100)]),
        ("is not in the guest's memory", &[plain(u64::MAX - 50, 100)]),
        ("is not in the guest's memory", &[plain(0, 100)]),
        ("is not in the guest's memory", &[plain(at, u32::MAX)]),
        ("no bytes", &[plain(at, 0)]),
        ("no descriptor 8", &[next(plain(at, 100), 8)]),
        ("has no end", &[next(plain(at, 100), 1), next(plain(at, 100), 0)]),
        ("has no end", &[next(plain(at, 100), 0)]),
    ];
    for (reason, descriptors) in cases {
        describe(&mut guest, TRANSMIT, descriptors);
        assert_refused(&mut guest, TRANSMIT, reason);
        let writable: Vec<_> =
            descriptors.iter().map(|one| Descriptor { flags: one.flags | WRITE, ..*one }).collect();
        describe(&mut guest, RECEIVE, &writable);
        assert_refused(&mut guest, RECEIVE, reason);
    }
    for (index, flags) in [(TRANSMIT, WRITE), (RECEIVE, 0)] {
        describe(&mut guest, index, &[Descriptor { flags, ..plain(at, 100) }]);
        assert_refused(&mut guest, index, "wrong direction");
    }
    describe(&mut guest, TRANSMIT, &[next(plain(at, 100), 1), Descriptor { flags: WRITE, ..plain(at, 100) }]);
    assert_refused(&mut guest, TRANSMIT, "wrong direction");
    describe(&mut guest, TRANSMIT, &[plain(at, 300_000)]);
    assert_refused(&mut guest, TRANSMIT, "more than");
}

#[test]
fn heads_and_indices_that_make_no_sense_are_refused() {
    let mut guest = guest(8, ALL);
    guest.queues[TRANSMIT].driver.offer(8);
    guest.publish(TRANSMIT);
    assert_refused(&mut guest, TRANSMIT, "no descriptor 8");
    for jump in [9, 0x7fff, 0x8000, 0xffff] {
        for index in [TRANSMIT, RECEIVE] {
            let driver = &guest.queues[index].driver;
            driver.memory.put_u16(driver.available + 2, jump);
            guest.kick(index);
            assert_refused(&mut guest, index, &format!("{jump} descriptors available at once"));
        }
    }
}

#[test]
fn indirect_tables_that_make_no_sense_are_refused() {
    let mut guest = guest(8, ALL);
    let (at, end) = (guest.heap(), START + LEN);
    let table = |len| Descriptor { flags: INDIRECT, ..plain(at, len) };
    let none = "an indirect table where there can be none";
    for len in [0, 15, 17, 16 * 32_769, 0x10_0000, u32::MAX - 15] {
        describe(&mut guest, TRANSMIT, &[table(len)]);
        assert_refused(&mut guest, TRANSMIT, none);
    }
    let write = |guest: &RingGuest, entries: &[Descriptor]| {
        let bytes: Vec<_> = entries.iter().flat_map(|entry| entry.bytes()).collect();
        guest.memory.write(at, &bytes);
    };
    let data = plain(at + 4096, 100);
    let cases: [(&str, &[Descriptor]); 5] = [
        (none, &[Descriptor { flags: INDIRECT, ..plain(at, 16) }]),
        (none, &[Descriptor { flags: NEXT, next: 2, ..data }, data]),
        (
            "has no end",
            &[Descriptor { flags: NEXT, next: 1, ..data }, Descriptor { flags: NEXT, next: 0, ..data }],
        ),
        ("no bytes", &[plain(at, 0)]),
        ("not in the guest's memory", &[plain(end, 100)]),
    ];
    for (reason, entries) in cases {
        write(&guest, entries);
        describe(&mut guest, TRANSMIT, &[table(16 * entries.len() as u32)]);
        assert_refused(&mut guest, TRANSMIT, reason);
    }
    write(&guest, &[data]);
    let with_next = Descriptor { flags: INDIRECT | NEXT, next: 1, ..plain(at, 16) };
    describe(&mut guest, TRANSMIT, &[with_next, data]);
    assert_refused(&mut guest, TRANSMIT, none);
    describe(&mut guest, TRANSMIT, &[Descriptor { flags: NEXT, next: 1, ..data }, table(16)]);
    assert_refused(&mut guest, TRANSMIT, none);
    // Outside of the memory, or half of it.
    for address in [end, end - 16, u64::MAX - 15] {
        guest.memory.write(end - 16, &Descriptor { flags: NEXT, next: 1, ..data }.bytes());
        describe(&mut guest, TRANSMIT, &[Descriptor { address, ..table(32) }]);
        assert_refused(&mut guest, TRANSMIT, none);
    }
    // Nobody has agreed to any.
    guest.set_features(ALL & !feature::INDIRECT_DESC);
    guest.renew(TRANSMIT, 0).unwrap();
    write(&guest, &[data]);
    describe(&mut guest, TRANSMIT, &[table(16)]);
    assert_refused(&mut guest, TRANSMIT, none);
}

#[test]
fn rings_that_cannot_be_are_not_started() {
    let mut guest = guest(8, ALL);
    let ring = guest.ring(TRANSMIT);
    let mut refused = |ring, reason: &str| {
        let kick = guest.queues[TRANSMIT].kick();
        let error = guest.change(|device| device.start(TRANSMIT, ring, 0, kick)).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        guest.renew(TRANSMIT, 0).unwrap();
        assert_works(&mut guest);
        guest.renew(TRANSMIT, 0).unwrap();
    };
    for size in [0, 3, 24, 0x8001, 0xffff] {
        refused(RingLayout { size, ..ring }, "is a power of two");
    }
    for at in [0, u64::MAX, ring.descriptors + LEN - 16, u64::MAX - 100] {
        refused(RingLayout { descriptors: at, ..ring }, "descriptor ring is not in");
        refused(RingLayout { available: at, ..ring }, "available ring is not in");
        refused(RingLayout { used: at, ..ring }, "used ring is not in");
    }
    refused(RingLayout { descriptors: ring.descriptors + 8, ..ring }, "not aligned");
    refused(RingLayout { available: ring.available + 1, ..ring }, "not aligned");
    refused(RingLayout { used: ring.used + 2, ..ring }, "not aligned");
}

/// Who lets the device write over its own descriptors gets what it asked for, and no more.
#[test]
fn parts_of_rings_that_lie_over_each_other_hurt_their_guest_alone() {
    let ring = guest(8, ALL).ring(TRANSMIT);
    let places = [ring.descriptors, ring.available.next_multiple_of(4), ring.used];
    for used in places {
        for descriptors in [ring.descriptors, ring.used.next_multiple_of(16)] {
            for index in [TRANSMIT, RECEIVE] {
                let mut guest = guest(8, ALL);
                let at = guest.heap();
                for head in 0..8 {
                    let flags = if index == RECEIVE { WRITE } else { 0 };
                    let driver = &mut guest.queues[index].driver;
                    // Frames lie over the rings as well.
                    let address = if head % 2 == 0 { at } else { START };
                    driver.chain(head, &[(address, 600)], flags);
                    driver.offer(head);
                }
                guest.publish(index);
                let kick = guest.queues[index].kick();
                let layout = RingLayout { used, descriptors, ..ring };
                if guest.change(|device| device.start(index, layout, 0, kick)).is_ok() {
                    for _ in 0..20 {
                        let _ = guest.receive().unwrap();
                        send(&mut guest, &bytes(300));
                        let _ = guest.tx.flush().unwrap();
                    }
                }
                for index in [RECEIVE, TRANSMIT] {
                    guest.renew(index, 0).unwrap();
                }
                let _ = guest.tx.flush().unwrap();
                assert_works(&mut guest);
            }
        }
    }
}

#[test]
fn frames_that_contradict_their_headers_are_dropped_and_counted() {
    let mut guest = guest(8, ALL);
    let at = guest.heap();
    let frame = bytes(200);
    let header = |flags, gso, size: u16, start: u16, offset: u16| {
        let mut header = [0; HEADER];
        (header[0], header[1]) = (flags, gso);
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    };
    let bad = [
        header(1, 1, 0, 34, 16),
        header(1, 0, 0, 199, 16),
        header(1, 0, 0, 0xffff, 0xffff),
        header(0, 1, 100, 34, 16),
        header(1, 7, 100, 34, 16),
        header(1, 1, 100, 195, 3),
        header(1, 5, 100, 0xfff0, 6),
    ];
    for (count, header) in bad.iter().enumerate() {
        guest.memory.write(at, &[&header[..], &frame].concat());
        describe(&mut guest, TRANSMIT, &[plain(at, 212)]);
        assert_eq!(guest.receive().unwrap(), Some(0), "{header:?}");
        assert_eq!(guest.rx.as_ref().unwrap().dropped(), count as u64 + 1, "{header:?}");
    }
    // Too short for a header.
    describe(&mut guest, TRANSMIT, &[plain(at, 11)]);
    assert_eq!(guest.receive().unwrap(), Some(0));
    assert_eq!(guest.rx.as_ref().unwrap().dropped(), bad.len() as u64 + 1);
    // A frame of none is no frame for the network, and no trouble for the link.
    guest.memory.write(at, &[0; HEADER]);
    describe(&mut guest, TRANSMIT, &[plain(at, 12)]);
    assert_eq!(guest.receive().unwrap(), Some(1));
    assert_eq!(guest.rx.as_ref().unwrap().frame_len(0), 0);
    // How many buffers it says it has is not heeded.
    guest.memory.write(at, &[&[0; 10][..], &[0xff, 0xff], &frame].concat());
    describe(&mut guest, TRANSMIT, &[plain(at, 212)]);
    assert_eq!(guest.receive().unwrap(), Some(1));
    assert_eq!(guest.frame(0), frame);
    assert_eq!(guest.device.trouble(), None);
}

/// Pieces of a byte each: a frame has as many as a system call takes, and a batch hardly more.
#[test]
fn work_in_one_turn_is_bounded() {
    let mut guest = guest(256, ALL);
    let at = guest.heap();
    guest.memory.write(at, &vec![0; 2000]);
    let ones = |count: u64| (0..count).map(|n| (at + n, 1)).collect::<Vec<_>>();
    for index in [TRANSMIT, RECEIVE] {
        let flags = if index == RECEIVE { WRITE } else { 0 };
        for head in 0..64 {
            let driver = &mut guest.queues[index].driver;
            driver.indirect(head, at + 4096 + 0x8000 * index as u64, &ones(1000), flags);
            driver.offer(head);
        }
        guest.publish(index);
    }
    let mut frames = 0;
    while let Some(count) = guest.receive().unwrap() {
        assert!((1..3).contains(&count), "a batch of {count}");
        frames += count;
        let rx = guest.rx.as_ref().unwrap();
        assert_eq!(rx.frame_len(0), 1000 - HEADER);
        let mut slices = Vec::new();
        rx.slices(0, 0..1000 - HEADER, &mut slices);
        assert_eq!(slices.len(), 1000 - HEADER);
    }
    assert_eq!(frames, 64, "no frame is lost for it");
    let mut room: Vec<IoSliceMut<'_>> = Vec::new();
    let lent = guest.tx.reserve(54, 100, 60_000, &mut room);
    assert!(lent > 100 && room.len() < 2000, "{lent} bytes in {} slices", room.len());
    drop(room);
    // As much as fits.
    assert!(send(&mut guest, &bytes(900)));
    let dropped = guest.tx.dropped();
    assert!(send(&mut guest, &bytes(9000)));
    assert_eq!(guest.tx.dropped(), dropped + 1);
    assert!(guest.tx.flush().unwrap());

    let driver = &mut guest.queues[TRANSMIT].driver;
    driver.indirect(0, at + 4096, &ones(1001), 0);
    driver.offer(0);
    guest.publish(TRANSMIT);
    assert_refused(&mut guest, TRANSMIT, "more than 1000");

    // One byte in each of thousands of chains.
    let mut guest = super::guest(4096, ALL);
    let at = guest.heap();
    for head in 0..4096 {
        let driver = &mut guest.queues[RECEIVE].driver;
        driver.chain(head, &[(at + u64::from(head), 1)], WRITE);
        driver.offer(head);
    }
    guest.publish(RECEIVE);
    let mut room: Vec<IoSliceMut<'_>> = Vec::new();
    let lent = guest.tx.reserve(54, 100, 60_000, &mut room);
    assert_eq!((lent, room.len()), (1000 - 66, 1000 - 66));
    drop(room);
    assert!(send(&mut guest, &bytes(400)));
    assert!(guest.tx.flush().unwrap());
    let used = guest.queues[RECEIVE].driver.take_back();
    assert_eq!(used.len(), 412);
    assert_eq!(guest.memory.read(at + 12, 400), bytes(400));
    assert_eq!(guest.memory.read(at + 10, 2), 412_u16.to_le_bytes());
}

/// The guest changes descriptors, headers and indices while they are read.
#[test]
fn changes_while_frames_are_taken_hurt_nobody() {
    let mut guest = guest(16, ALL);
    let mut other = super::guest(16, ALL);
    let over = AtomicBool::new(false);
    let (memory, heap) = (guest.memory.clone(), guest.heap());
    let rings: Vec<_> = guest.queues.iter().map(|queue| queue.driver.clone()).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(5);
            while !over.load(Ordering::Relaxed) {
                let driver = &rings[rng.below(2) as usize];
                let number = rng.below(16) as u16;
                let flags = rng.pick(&[0, 0, WRITE, WRITE, NEXT, NEXT | WRITE, INDIRECT]);
                let address = rng.pick(&[heap, heap + 64, heap + 4096, START, START + LEN - 20]);
                let len = rng.pick(&[0, 12, 32, 64, 200, 70_000]);
                match rng.below(4) {
                    0 => driver.describe(number, Descriptor { address, len, flags, next: number ^ 1 }),
                    1 => memory.write(heap + rng.below(64), &[rng.draw() as u8]),
                    2 => memory.write(heap + 16 * rng.below(8), &plain(heap + 512, len).bytes()),
                    _ => memory.put_u16(driver.used + 2, rng.draw() as u16),
                }
            }
        });
        let (mut frames, mut troubles) = (0, 0);
        for _ in 0..1000 {
            for index in [RECEIVE, TRANSMIT] {
                let driver = &mut guest.queues[index].driver;
                let next = driver.next;
                driver.offer(next % 16);
                guest.publish(index);
            }
            let count = guest.receive().unwrap().unwrap_or(0);
            for index in 0..count {
                let rx = guest.rx.as_ref().unwrap();
                let len = rx.frame_len(index);
                assert_eq!(guest.frame(index).len(), len);
                let mut slices = Vec::new();
                rx.slices(index, 0..len, &mut slices);
                assert_eq!(slices.iter().map(|slice| slice.len()).sum::<usize>(), len);
                let _ = rx.offload(index);
            }
            frames += count;
            send(&mut guest, &bytes(100));
            let _ = guest.tx.flush().unwrap();
            if guest.device.trouble().is_some() {
                troubles += 1;
                for index in [RECEIVE, TRANSMIT] {
                    guest.renew(index, 0).unwrap();
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(frames > 20 && troubles > 20, "{frames} frames, {troubles} troubles: both are to be seen");
    });
    for index in [RECEIVE, TRANSMIT] {
        guest.renew(index, 0).unwrap();
    }
    let _ = guest.tx.flush().unwrap();
    assert_works(&mut guest);
    assert_works(&mut other);
}

//! Rings as drivers use them.

use std::io::IoSlice;
use std::os::unix::fs::MetadataExt as _;

use etherparse::SlicedPacket;
use proptest::prelude::*;
use usernet_core::wire::MacAddr;
use usernet_testkit::driver::Used;
use usernet_testkit::udp_super_frame;

use super::*;

#[test]
fn frames_pass_both_ways_across_the_end_of_the_indices() {
    for size in [2, 4, 256, 32_768] {
        let mut guest = guest(size, ALL);
        for index in [RECEIVE, TRANSMIT] {
            guest.renew(index, 65_520).unwrap();
        }
        for _ in 0..40 {
            assert_works(&mut guest);
        }
        assert_eq!(guest.queues[RECEIVE].driver.used_index(), 24);
    }
}

#[test]
fn the_largest_ring_is_used_up_to_its_last_descriptor() {
    let mut guest = guest(32_768, ALL);
    let at = guest.heap();
    guest.memory.write(at + 12, &bytes(60));
    for head in 0..32_768 {
        let driver = &mut guest.queues[TRANSMIT].driver;
        driver.chain(head, &[(at, 72)], 0);
        driver.offer(head);
    }
    guest.publish(TRANSMIT);
    let mut frames = 0;
    while let Some(count) = guest.receive().unwrap() {
        frames += count;
    }
    assert_eq!(frames, 32_768);
    assert_eq!(guest.queues[TRANSMIT].driver.take_back().len(), 32_768);
    assert_works(&mut guest);
}

/// How a driver lays a frame out: its length, where it is cut, and whether by a table.
fn layout() -> impl Strategy<Value = (usize, Vec<usize>, bool)> {
    (14..4000_usize, prop::collection::vec(1..4011_usize, 0..6), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn frames_come_out_as_they_were_laid_out(
        size in 3..9_u32,
        layouts in prop::collection::vec(layout(), 1..40),
        base in any::<u16>(),
        batch in 1..5_usize,
    ) {
        let mut guest = guest(1 << size, ALL);
        guest.renew(TRANSMIT, base).unwrap();
        let size = guest.queues[TRANSMIT].driver.size;
        let mut layouts = layouts.iter().enumerate();
        loop {
            // As many as the ring has room for, all of them told of at once.
            let (mut head, mut sent, mut at) = (0, Vec::new(), guest.heap());
            for (number, (len, cuts, indirect)) in layouts.by_ref().take(batch) {
                let mut frame = bytes(*len);
                frame[0] = number as u8;
                let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (HEADER + len)).chain([HEADER + len]).collect();
                cuts.sort_unstable();
                cuts.dedup();
                cuts.retain(|cut| *cut > 0);
                let mut from = 0;
                let mut buffers = Vec::new();
                for cut in cuts {
                    buffers.push((at + from as u64, (cut - from) as u32));
                    from = cut;
                }
                guest.memory.write(at, &[&[0; HEADER], &*frame].concat());
                let driver = &mut guest.queues[TRANSMIT].driver;
                if *indirect || usize::from(size - head) < buffers.len() {
                    driver.indirect(head, at + 4096, &buffers, 0);
                    buffers.truncate(1);
                } else {
                    driver.chain(head, &buffers, 0);
                }
                driver.offer(head);
                sent.push((u32::from(head), frame));
                head += buffers.len() as u16;
                at += 8192;
                if head == size {
                    break;
                }
            }
            if sent.is_empty() {
                break;
            }
            guest.publish(TRANSMIT);
            prop_assert_eq!(guest.receive().unwrap(), Some(sent.len()), "{:?}", guest.device.trouble());
            for (index, (_, frame)) in sent.iter().enumerate() {
                prop_assert_eq!(&guest.frame(index), frame);
                let rx = guest.rx.as_ref().unwrap();
                let mut slices = Vec::new();
                rx.slices(index, 5..frame.len() - 3, &mut slices);
                let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                prop_assert_eq!(&joined, &frame[5..frame.len() - 3]);
            }
            // Frames lie in the guest's memory until the next batch, so they are its own only then.
            prop_assert_eq!(guest.queues[TRANSMIT].driver.take_back().len(), 0);
            prop_assert_eq!(guest.receive().unwrap(), None);
            let used = guest.queues[TRANSMIT].driver.take_back();
            let expected: Vec<_> = sent.iter().map(|(head, _)| Used { head: *head, len: 0 }).collect();
            prop_assert_eq!(used, expected);
        }
    }

    #[test]
    fn frames_are_spread_over_buffers_of_any_size(
        lens in prop::collection::vec(1..3000_u32, 1..64),
        frames in prop::collection::vec(14..9000_usize, 1..12),
        base in any::<u16>(),
    ) {
        let mut guest = guest(64, ALL);
        guest.renew(RECEIVE, base).unwrap();
        let at = |head: u32| START + LEN / 2 + u64::from(head) * 4096;
        for (head, len) in lens.iter().enumerate() {
            offer(&mut guest, head as u16, at(head as u32), *len);
        }
        let mut given = Vec::new();
        for len in &frames {
            if send(&mut guest, &bytes(*len)) {
                given.push(*len);
            }
        }
        prop_assert_eq!(guest.queues[RECEIVE].driver.used_index(), base, "all are told of at once");
        let _ = guest.tx.flush().unwrap();
        let used = guest.queues[RECEIVE].driver.take_back();
        let mut used = used.iter();
        for len in given {
            let mut came = Vec::new();
            let first = used.next().unwrap();
            came.extend(guest.memory.read(at(first.head), first.len as usize));
            // A header may itself be spread.
            let mut count = 1;
            while came.len() < HEADER + len {
                let next = used.next().unwrap();
                prop_assert!(next.len > 0);
                came.extend(guest.memory.read(at(next.head), next.len as usize));
                count += 1;
            }
            prop_assert_eq!(u16::from_le_bytes([came[10], came[11]]), count);
            prop_assert_eq!(&came[HEADER..], &bytes(len)[..]);
        }
        prop_assert!(used.next().is_none());
    }
}

#[test]
fn a_driver_without_offloads_gets_whole_packets() {
    for features in [
        feature::VERSION_1,
        feature::VERSION_1 | feature::MRG_RXBUF,
        feature::VERSION_1 | feature::GUEST_CSUM,
    ] {
        let mut guest = guest(64, features);
        for head in 0..64 {
            offer(&mut guest, head, START + LEN / 2 + u64::from(head) * 2048, 1526);
        }
        let host = (std::net::Ipv4Addr::new(10, 0, 2, 2), 53);
        let own = (std::net::Ipv4Addr::new(10, 0, 2, 15), 1024);
        let payload = bytes(5000);
        let frame = udp_super_frame(MacAddr([2; 6]), MacAddr([4; 6]), host, own, &payload, 1200);
        assert!(guest.tx.send(&[IoSlice::new(&frame.bytes)], frame.offload).unwrap());
        assert!(guest.tx.flush().unwrap());
        let used = guest.queues[RECEIVE].driver.take_back();
        assert_eq!(used.len(), 5, "1200 bytes in each packet");
        let mut came = Vec::new();
        for Used { head, len } in used {
            let bytes = guest.memory.read(START + LEN / 2 + u64::from(head) * 2048, len as usize);
            assert_eq!(bytes[..10], [0; 10], "nothing is left to do");
            let sliced = SlicedPacket::from_ethernet(&bytes[HEADER..]).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
            let right =
                udp.to_header().calc_checksum_ipv4_raw(host.0.octets(), own.0.octets(), udp.payload());
            assert_eq!(udp.checksum(), right.unwrap());
            came.extend_from_slice(udp.payload());
        }
        assert_eq!(came, payload);
    }
}

#[test]
fn a_frame_that_no_chain_can_hold_does_not_stop_those_behind_it() {
    for features in [feature::VERSION_1, ALL] {
        let mut guest = guest(4, features);
        for head in 0..4 {
            offer(&mut guest, head, START + LEN / 2 + u64::from(head) * 2048, 1526);
        }
        let before = guest.tx.dropped();
        assert!(send(&mut guest, &bytes(9000)), "it is taken, and dropped");
        assert_eq!(guest.tx.dropped(), before + 1);
        assert!(guest.tx.flush().unwrap());
        assert!(send(&mut guest, &bytes(900)));
        assert!(guest.tx.flush().unwrap());
        assert_eq!(guest.queues[RECEIVE].driver.take_back(), [Used { head: 0, len: 912 }]);
    }
}

#[test]
fn a_queue_goes_on_where_it_was() {
    let mut guest = guest(8, ALL);
    let at = guest.heap();
    for head in 0..3 {
        transmit(&mut guest, head, at + 2048 * u64::from(head), &bytes(60 + usize::from(head)));
    }
    assert_eq!(guest.receive().unwrap(), Some(3));
    // What is taken and not given back is given back by the turn that has the queue rest.
    assert_eq!(guest.stop(TRANSMIT).unwrap(), 3);
    assert_eq!(guest.queues[TRANSMIT].driver.take_back().len(), 3);
    transmit(&mut guest, 3, at, &bytes(99));
    assert_eq!(guest.receive().unwrap(), None, "it rests");
    guest.start(TRANSMIT).unwrap();
    // The start itself wakes the worker, which may have taken the frame by now.
    while guest.queues[TRANSMIT].driver.take_back().is_empty() {
        let _ = guest.receive().unwrap();
    }
    assert_works(&mut guest);

    // Buffers that were not filled are still the device's after a stop, and filled in order after a start.
    for head in 0..5 {
        offer(&mut guest, head, at + 2048 * u64::from(head), 2048);
    }
    assert!(send(&mut guest, &bytes(100)));
    let base = guest.stop(RECEIVE).unwrap();
    assert_eq!(guest.queues[RECEIVE].driver.take_back(), [Used { head: 0, len: 112 }], "told of by the stop");
    assert_eq!(guest.queues[RECEIVE].driver.seen, base);
    guest.start(RECEIVE).unwrap();
    let _ = guest.tx.flush().unwrap();
    assert!(send(&mut guest, &bytes(101)));
    let _ = guest.tx.flush().unwrap();
    assert_eq!(guest.queues[RECEIVE].driver.take_back(), [Used { head: 1, len: 113 }]);
}

#[test]
fn memory_moves_under_running_rings() {
    let mut guest = guest(8, ALL);
    assert_works(&mut guest);
    for regions in [2, 4, 1, 3] {
        let layout = guest.regions(regions);
        guest.set_memory(&layout).unwrap();
        assert_works(&mut guest);
    }
    // What was given back before is told of.
    let at = guest.heap();
    offer(&mut guest, 6, at, 2048);
    assert!(send(&mut guest, &bytes(100)));
    let layout = guest.regions(2);
    guest.set_memory(&layout).unwrap();
    let _ = guest.tx.flush().unwrap();
    assert_eq!(guest.queues[RECEIVE].driver.take_back(), [Used { head: 6, len: 112 }]);
    assert_works(&mut guest);
    // Frames that were taken before stay where they are until the next batch.
    transmit(&mut guest, 5, at, &bytes(60));
    assert_eq!(guest.receive().unwrap(), Some(1));
    let (memory, frame) = (guest.memory.clone(), guest.frame(0));
    memory.write(at, &[0; HEADER]);
    assert_eq!(guest.frame(0), frame);

    // Without the rings, nothing moves, until they are there again.
    let mut without = guest.regions(16);
    without.remove(0);
    guest.set_memory(&without).unwrap_err();
    let whole = guest.regions(1);
    guest.set_memory(&whole).unwrap();
    for index in [RECEIVE, TRANSMIT] {
        guest.renew(index, 0).unwrap();
    }
    assert_works(&mut guest);
}

#[test]
fn memory_that_was_taken_away_is_not_kept() {
    let mut guest = guest(8, ALL);
    let inode = guest.memory.file().metadata().unwrap().ino().to_string();
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
    };
    let whole = guest.regions(1);
    for reserve in [false, true] {
        assert_works(&mut guest);
        if reserve {
            let at = guest.heap();
            offer(&mut guest, 5, at, 2048);
            let mut room = Vec::new();
            assert_eq!(guest.tx.reserve(54, 1460, 1460, &mut room), 1460);
            guest.tx.commit(&[0; 54], 100, Offload::default()).unwrap();
        }
        guest.set_memory(&whole).unwrap();
        assert_eq!(mappings(), 1);
    }
}

#[test]
fn a_guest_whose_memory_is_cut_short_leaves() {
    let mut cut = guest(8, ALL);
    let mut other = guest(8, ALL);
    transmit(&mut cut, 0, START + LEN / 2, &bytes(60));
    cut.memory.file().set_len(LEN / 4).unwrap();
    let left = (0..3).find_map(|_| cut.receive().err()).expect("the link ends");
    assert_eq!(left.to_string(), "malformed: the guest's memory was cut short");
    assert_works(&mut other);

    // The same where nothing comes from the guest.
    let mut cut = guest(8, ALL);
    offer(&mut cut, 0, START + LEN / 2, 2048);
    cut.memory.file().set_len(LEN / 4).unwrap();
    assert!(send(&mut cut, &bytes(60)));
    assert!(cut.tx.flush().is_err());
    assert_works(&mut other);
}

//! A guest that writes whatever it likes to its rings and its memory.

use std::io::{IoSlice, IoSliceMut};

use arbitrary::{Result, Unstructured};
use usernet_core::offload::{Checksum, Offload, SegmentKind, Segmentation};
use usernet_link::LinkRx;
use usernet_link::virtio::feature;
use usernet_testkit::driver::{Descriptor, GuestMemory, INDIRECT, NEXT, WRITE};
use usernet_testkit::rings::{RECEIVE, RingGuest, TRANSMIT};

const START: u64 = 0x4000_0000;
const LEN: u64 = 0x2_0000;
/// The longest frame that comes out of a ring, in bytes: 64 KiB and headers.
const MAX_FRAME: usize = 66 * 1024;
const FEATURES: u64 = feature::DEVICE;
/// Changes of the queues in one run: each takes two threads.
const CHANGES: usize = 6;

/// Steps, each a byte that says what, and what it needs. The first byte says how large the rings are, the
/// second which features the driver takes. In the end the driver sets the device up anew, and it works.
pub fn vhost_ring(data: &[u8]) {
    let mut data = Unstructured::new(data);
    let Ok((size, features)) = data.arbitrary::<(u8, u8)>() else { return };
    let memory = GuestMemory::new(START, LEN);
    let mut guest = RingGuest::new(memory, 2 << (size % 9), features_of(features));
    let mut changes = CHANGES;
    while !data.is_empty() && step(&mut guest, &mut data, &mut changes).is_ok() {
        if guest.rx.is_none() {
            assert!(is_cut(&guest), "only lost memory ends a link");
            return;
        }
    }
    if is_cut(&guest) {
        return;
    }
    works_anew(&mut guest);
}

/// Whether the memory was cut short.
fn is_cut(guest: &RingGuest) -> bool {
    guest.memory.file().metadata().unwrap().len() < LEN
}

fn features_of(byte: u8) -> u64 {
    let bit = |n: u8, features: u64| if byte >> n & 1 != 0 { features } else { 0 };
    let bits = bit(0, feature::EVENT_IDX)
        | bit(1, feature::INDIRECT_DESC)
        | bit(2, feature::MRG_RXBUF)
        | bit(3, feature::GUEST_CSUM)
        | bit(4, feature::GUEST_TSO4 | feature::GUEST_TSO6)
        | bit(5, feature::GUEST_USO4 | feature::GUEST_USO6);
    bits & FEATURES
}

/// A guest address: mostly in the memory, often at a border.
fn address(data: &mut Unstructured<'_>) -> Result<u64> {
    let (kind, offset) = data.arbitrary::<(u8, u16)>()?;
    let offset = u64::from(offset);
    Ok(match kind & 7 {
        0..4 => START + (offset << 1),
        4 => START + LEN - (offset & 0xff),
        5 => START + LEN / 2 - (offset & 0xff),
        6 => u64::MAX - offset,
        _ => offset,
    })
}

fn step(guest: &mut RingGuest, data: &mut Unstructured<'_>, changes: &mut usize) -> Result<()> {
    let step = data.arbitrary::<u8>()?;
    if matches!(step & 15, 12 | 13 | 15) {
        *changes = changes.checked_sub(1).ok_or(arbitrary::Error::NotEnoughData)?;
    }
    let index = usize::from(step >> 4 & 1);
    match step & 15 {
        0 => {
            let (at, bytes) = (address(data)?, data.arbitrary::<[u8; 8]>()?);
            guest.memory.write(at, &bytes);
        }
        1 | 2 => {
            let (number, len, flags, next) = data.arbitrary::<(u8, u16, u8, u8)>()?;
            let len = if flags & 0x80 != 0 { u32::from(len) << 17 } else { u32::from(len) };
            let descriptor =
                Descriptor { address: address(data)?, len, flags: (flags & 7).into(), next: next.into() };
            if flags & 0x40 != 0 {
                let table = guest.heap() + u64::from(number & 31) * 16;
                guest.memory.write(table, &descriptor.bytes());
            } else {
                guest.queues[index].driver.describe(number.into(), descriptor);
            }
        }
        3 => {
            // As many heads, one after the other.
            let (head, count) = data.arbitrary::<(u8, u8)>()?;
            for n in 0..=u16::from(count) {
                guest.queues[index].driver.offer(u16::from(head).wrapping_add(n));
            }
            guest.publish(index);
        }
        4 => {
            // Flags, index or the event field of the available ring.
            let (field, value) = data.arbitrary::<(u8, u16)>()?;
            let driver = &guest.queues[index].driver;
            match field & 3 {
                0 => guest.memory.put_u16(driver.available, value),
                1 => guest.memory.put_u16(driver.available + 2, value),
                2 => driver.want_interrupt(value),
                _ => guest.memory.put_u16(driver.used + 2, value),
            }
        }
        5 => {
            // A good chain: buffers of one length, direct or not.
            let (head, len, count) = data.arbitrary::<(u8, u16, u8)>()?;
            let at = guest.heap() + u64::from(head) * 64;
            let count = u64::from(count % 40) + 1;
            let buffers: Vec<_> =
                (0..count).map(|n| (at + n * u64::from(len), u32::from(len).max(1))).collect();
            let flags = if index == RECEIVE { WRITE } else { 0 };
            let driver = &mut guest.queues[index].driver;
            if step & 0x80 != 0 {
                driver.indirect(head.into(), at, &buffers, flags);
            } else {
                driver.chain(head.into(), &buffers, flags);
            }
            driver.offer(head.into());
            guest.publish(index);
        }
        6 | 7 => receive(guest),
        8 => {
            let (len, wants) = data.arbitrary::<(u16, u8)>()?;
            let frame = frame(usize::from(len));
            let _ = guest.tx.send(&[IoSlice::new(&frame)], offload(wants, frame.len()));
        }
        9 => {
            let (header, max, fill, wants) = data.arbitrary::<(u8, u16, u16, u8)>()?;
            reserve(guest, usize::from(header % 90), max, fill, wants);
        }
        10 => {
            if guest.tx.flush().is_err() {
                guest.rx = None;
            }
        }
        11 => guest.kick(index),
        12 => {
            let base = data.arbitrary::<u16>()?;
            let _ = guest.renew(index, base);
        }
        13 => {
            // It goes on where it was.
            if let Ok(base) = guest.stop(index) {
                guest.queues[index].driver.seen = base;
                let _ = guest.start(index);
            }
        }
        14 => {
            let features = features_of(data.arbitrary()?);
            guest.set_features(features);
        }
        _ => {
            let how = data.arbitrary::<u8>()?;
            if how >= 0xfe {
                // All that was there is gone, and what the file is shorter by is no memory at all.
                guest.memory.file().set_len(0).unwrap();
                guest.memory.file().set_len(if how == 0xff { LEN } else { 4096 }).unwrap();
            } else if !is_cut(guest) {
                let mut regions = guest.regions(u64::from(how & 3) + 1);
                if how & 0x80 != 0 {
                    regions.swap_remove(0);
                }
                let _ = guest.set_memory(&regions);
            }
        }
    }
    Ok(())
}

fn receive(guest: &mut RingGuest) {
    let cut = is_cut(guest);
    let Some(rx) = &mut guest.rx else { return };
    let received = rx.receive();
    let Ok(count) = received else {
        guest.rx = None;
        return;
    };
    let count = count.unwrap_or(0);
    assert!(count <= 64, "a batch of {count}");
    for index in 0..count {
        look_at(&**rx, index, cut);
    }
    assert_eq!(rx.frame_len(count), 0);
}

/// Looks at a frame in all ways. What is found in memory that is cut short becomes zeros as it is looked at.
fn look_at(rx: &dyn LinkRx, index: usize, cut: bool) {
    let len = rx.frame_len(index);
    assert!(len <= MAX_FRAME, "a frame of {len}");
    let offload = rx.offload(index);
    if let Checksum::Partial { start, offset } = offload.checksum {
        assert!(usize::from(start) + usize::from(offset) + 2 <= len, "a checksum outside");
    }
    if let Some(Segmentation { size, header_len, .. }) = offload.segmentation {
        assert!(size > 0 && usize::from(header_len) + usize::from(size) < len, "nothing to cut");
    }
    let mut copy = vec![0; len + 1];
    assert_eq!(rx.copy_to(index, 0, &mut copy), len);
    copy.truncate(len);
    let mut slices = Vec::new();
    rx.slices(index, 0..len, &mut slices);
    assert!(slices.len() <= 1024, "more slices than a system call takes");
    assert!(cut || joined(&slices) == copy, "the slices of a frame");
    slices.clear();
    rx.slices(index, len / 3..len / 2, &mut slices);
    assert!(cut || joined(&slices) == copy[len / 3..len / 2], "the slices of a part");
}

fn joined(slices: &[IoSlice<'_>]) -> Vec<u8> {
    slices.iter().flat_map(|slice| slice.iter().copied()).collect()
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| n as u8).collect()
}

fn offload(wants: u8, len: usize) -> Offload {
    let start = u16::from(wants >> 2);
    let fits = len >= usize::from(start) + 20;
    let checksum =
        if wants & 1 != 0 && fits { Checksum::Partial { start, offset: 16 } } else { Checksum::Complete };
    let segmentation = (wants & 3 == 3 && len > usize::from(start) + 120).then_some(Segmentation {
        kind: [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][usize::from(start % 3)],
        size: 100,
        header_len: start + 20,
    });
    Offload { checksum, segmentation, ..Offload::default() }
}

fn reserve(guest: &mut RingGuest, header_len: usize, max: u16, fill: u16, wants: u8) {
    let segment = usize::from(max).clamp(1, 1400);
    let mut room: Vec<IoSliceMut<'_>> = Vec::new();
    let lent = guest.tx.reserve(header_len, segment, max.into(), &mut room);
    assert!(lent <= usize::from(max));
    assert!(room.len() < 2000, "no more than two chains may have, which the driver cuts");
    if lent == 0 {
        return;
    }
    assert_eq!(room.iter().map(|slice| slice.len()).sum::<usize>(), lent);
    let len = usize::from(fill).min(lent);
    let mut left = len;
    for slice in &mut room {
        let part = slice.len().min(left);
        slice[..part].fill(0x5a);
        left -= part;
    }
    drop(room);
    let headers = frame(header_len);
    let _ = guest.tx.commit(&headers, len, offload(wants, header_len + len));
}

/// After the driver has reset all, frames pass both ways.
fn works_anew(guest: &mut RingGuest) {
    let whole = guest.regions(1);
    let _ = guest.set_memory(&whole);
    if guest.rx.is_none() {
        return;
    }
    guest.set_features(FEATURES);
    for index in [RECEIVE, TRANSMIT] {
        guest.renew(index, 0xfffe).expect("a ring that is set up anew");
    }
    assert_eq!(guest.device.trouble(), None);
    let at = guest.heap();
    let size = guest.queues[TRANSMIT].driver.size;
    for round in 0..3 {
        guest.memory.write(at, &[&[0; 12], &*frame(60)].concat());
        let driver = &mut guest.queues[TRANSMIT].driver;
        let head = round % size;
        if round == 0 {
            driver.describe(head, Descriptor { address: at, len: 72, flags: 0, next: 0 });
        } else {
            let table = at + 256;
            driver.indirect(head, table, &[(at, 12), (at + 12, 60)], 0);
            guest.memory.write(table + 12, &NEXT.to_le_bytes());
            assert_eq!(guest.memory.u16(driver.descriptors + 16 * u64::from(head) + 12), INDIRECT);
        }
        guest.queues[TRANSMIT].driver.offer(head);
        guest.publish(TRANSMIT);
        let received = guest.receive().unwrap();
        assert_eq!(received, Some(1), "a frame is taken: {:?}", guest.device.trouble());
        assert_eq!(guest.frame(0), frame(60));
        assert_eq!(guest.receive().unwrap(), None);
        assert_eq!(guest.queues[TRANSMIT].driver.take_back().len(), 1);

        let driver = &mut guest.queues[RECEIVE].driver;
        driver.chain(head, &[(at + 1024, 2048)], WRITE);
        driver.offer(head);
        guest.publish(RECEIVE);
        let sent = frame(100 + usize::from(round));
        let _ = guest.tx.flush();
        assert!(guest.tx.send(&[IoSlice::new(&sent)], Offload::default()).unwrap(), "a frame is given");
        assert!(guest.tx.flush().unwrap());
        let used = guest.queues[RECEIVE].driver.take_back();
        assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [12 + sent.len() as u32]);
        assert_eq!(guest.memory.read(at + 1024 + 12, sent.len()), sent);
    }
}

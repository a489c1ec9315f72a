//! A device against a driver of the tests' own: as drivers are, and as they never should be.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "what goes wrong in here ends a test, which is what it is for"
)]

mod hostile;
mod life;
mod told;

use std::io::IoSlice;

use usernet_core::offload::Offload;
use usernet_link::virtio::feature;
use usernet_testkit::driver::{GuestMemory, WRITE};
use usernet_testkit::rings::{RECEIVE, RingGuest, TRANSMIT};

const START: u64 = 0x4000_0000;
const LEN: u64 = 16 << 20;
/// Bytes of a virtio-net header.
const HEADER: usize = 12;
const ALL: u64 = feature::DEVICE;

fn guest(size: u16, features: u64) -> RingGuest {
    RingGuest::new(GuestMemory::new(START, LEN), size, features)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
}

/// Writes a frame behind an empty header at an address, and makes it available in one descriptor.
fn transmit(guest: &mut RingGuest, head: u16, at: u64, frame: &[u8]) {
    guest.memory.write(at, &[&[0; HEADER], frame].concat());
    let driver = &mut guest.queues[TRANSMIT].driver;
    driver.chain(head, &[(at, (HEADER + frame.len()) as u32)], 0);
    driver.offer(head);
    guest.publish(TRANSMIT);
}

/// Makes a buffer available for frames to the guest.
fn offer(guest: &mut RingGuest, head: u16, at: u64, len: u32) {
    let driver = &mut guest.queues[RECEIVE].driver;
    driver.chain(head, &[(at, len)], WRITE);
    driver.offer(head);
    guest.publish(RECEIVE);
}

fn send(guest: &mut RingGuest, frame: &[u8]) -> bool {
    guest.tx.send(&[IoSlice::new(frame)], Offload::default()).unwrap()
}

/// A frame passes each way.
fn assert_works(guest: &mut RingGuest) {
    let at = guest.heap() + 0x8_0000;
    let head = guest.queues[TRANSMIT].driver.next % guest.queues[TRANSMIT].driver.size;
    transmit(guest, head, at, &bytes(70));
    assert_eq!(guest.receive().unwrap(), Some(1), "{:?}", guest.device.trouble());
    assert_eq!(guest.frame(0), bytes(70));
    assert_eq!(guest.receive().unwrap(), None);
    assert_eq!(guest.queues[TRANSMIT].driver.take_back().last().map(|used| used.head), Some(head.into()));

    let head = guest.queues[RECEIVE].driver.next % guest.queues[RECEIVE].driver.size;
    offer(guest, head, at, 2048);
    assert!(guest.tx.flush().unwrap());
    assert!(send(guest, &bytes(80)));
    guest.tx.flush().unwrap();
    let used = guest.queues[RECEIVE].driver.take_back();
    assert_eq!(used.last().map(|used| used.len), Some(92));
    assert_eq!(guest.memory.read(at + HEADER as u64, 80), bytes(80));
}

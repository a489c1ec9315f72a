//! Frames over pairs of rings, as a driver sends and receives them.

use std::collections::VecDeque;

use usernet_core::offload::{Checksum, Offload, SegmentKind};

use super::queue::{Queue, QueueConfig};
use super::super_frames::{joined, without_checksum};
use crate::Unfinished;
use crate::driver::GuestMemory;
use crate::frames::complete_checksum;

/// Features, as bits (virtio 1.2 §5.1.3, §6).
pub mod feature {
    #![allow(missing_docs, reason = "the names are those of the standard")]
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;

    /// All that spares the guest work.
    pub const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
}

/// The virtio-net header, in bytes.
const HEADER: usize = 12;
const NEEDS_CSUM: u8 = 1;
const TCP4: u8 = 1;
const TCP6: u8 = 4;

/// The guest address of the first queue.
const START: u64 = 0x1000_0000;

/// What a network card is like.
#[derive(Clone, Copy, Debug)]
pub struct NicConfig {
    /// The features that were agreed on. The rings' own are the rings' business.
    pub features: u64,
    /// The receive queues.
    pub rx: QueueConfig,
    /// The transmit queues.
    pub tx: QueueConfig,
    /// How many pairs of them there are.
    pub pairs: usize,
}

impl NicConfig {
    /// Rings of `size` descriptors with buffers as Linux has them: where a frame may have several chains
    /// one page at most, else 64 KiB where there are super-frames.
    pub fn new(features: u64, size: u16) -> Self {
        let has = |bits| features & bits != 0;
        let (indirect, event_idx) = (has(feature::INDIRECT_DESC), has(feature::EVENT_IDX));
        let super_frames = has(feature::GUEST_TSO4 | feature::GUEST_TSO6);
        let room = if super_frames && !has(feature::MRG_RXBUF) { 65_562 } else { 1536 };
        let parts = if room > 1536 { 2 } else { 1 };
        let rx = QueueConfig { size, room, parts, indirect, event_idx };
        let tx = QueueConfig { size, room: HEADER + 66_000, parts: 2, indirect, event_idx };
        Self { features, rx, tx, pairs: 1 }
    }

    /// Memory for the queues of [`Nic::new`], one after the other, and so many bytes behind them.
    pub fn memory(&self, others: u64) -> GuestMemory {
        GuestMemory::new(START, (self.rx.bytes() + self.tx.bytes()) * self.pairs as u64 + others)
    }
}

/// A pair of queues.
#[derive(Debug)]
pub struct Pair {
    /// The receive queue.
    pub rx: Queue,
    /// The transmit queue.
    pub tx: Queue,
    /// Slots that came back, and how many bytes are in each.
    received: VecDeque<(u16, usize)>,
    free: Vec<u16>,
    unsent: VecDeque<Unfinished>,
}

/// A virtio network card, as its driver has it.
#[derive(Debug)]
pub struct Nic {
    config: NicConfig,
    /// Its queues.
    pub pairs: Vec<Pair>,
    /// Buffers that came with a frame are kept, until this is no longer so.
    pub hoarding: bool,
    /// The buffers that were kept.
    hoard: Vec<(usize, u16)>,
    /// The longest frames that it has received and sent, in bytes.
    pub longest: [usize; 2],
}

impl Nic {
    /// A card with empty rings.
    pub fn new(memory: &GuestMemory, config: NicConfig) -> Self {
        let mut at = memory.start();
        let mut queue = |config| {
            let queue = Queue::new(memory, at, config);
            at = queue.extent.end;
            queue
        };
        let pairs = (0..config.pairs).map(|_| Pair {
            rx: queue(config.rx),
            tx: queue(config.tx),
            received: VecDeque::new(),
            free: Vec::new(),
            unsent: VecDeque::new(),
        });
        let pairs = pairs.collect();
        let mut nic = Self { config, pairs, hoarding: false, hoard: Vec::new(), longest: [0; 2] };
        nic.reset();
        nic
    }

    /// Starts over with fresh rings, the receive queues filled. The device must not have them.
    pub fn reset(&mut self) {
        self.hoard.clear();
        for pair in &mut self.pairs {
            pair.rx.reset();
            pair.tx.reset();
            pair.received.clear();
            pair.unsent.clear();
            pair.free = (0..pair.tx.config.slots()).collect();
            for slot in 0..pair.rx.config.slots() {
                offer_room(&mut pair.rx, slot);
            }
            pair.rx.publish();
        }
    }

    /// The queues, by their numbers.
    pub fn queues(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.pairs.iter_mut().flat_map(|pair| [&mut pair.rx, &mut pair.tx])
    }

    /// Asks to be told when something is done. Returns whether there is something to do already.
    pub fn ask_for_interrupts(&mut self) -> bool {
        let mut more = false;
        for pair in &mut self.pairs {
            more |= pair.rx.ask_for_interrupt();
            // Room to send in matters only where it is missing.
            if pair.unsent.is_empty() {
                pair.tx.decline_interrupts();
            } else {
                more |= pair.tx.ask_for_interrupt();
            }
        }
        more
    }

    /// Counts the interrupts that came.
    pub fn hear(&mut self) {
        self.queues().for_each(Queue::hear);
    }

    /// The frames that came, with their checksums completed.
    ///
    /// # Panics
    /// A frame is not as it was agreed on.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for number in 0..self.pairs.len() {
            while let Some(frame) = self.receive_from(number) {
                self.longest[0] = self.longest[0].max(frame.len());
                frames.push(frame);
            }
            self.pairs[number].rx.publish();
        }
        frames
    }

    fn receive_from(&mut self, number: usize) -> Option<Vec<u8>> {
        let Pair { rx, received, .. } = &mut self.pairs[number];
        if received.is_empty() {
            received.extend(rx.take_back());
        }
        let (slot, len) = received.pop_front()?;
        assert!(len >= HEADER && len <= rx.config.room, "{len} bytes in a buffer");
        let mut slots = vec![slot];
        let mut bytes = rx.driver.memory.read(rx.buffer(slot), len);
        let buffers = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        let mergeable = self.config.features & feature::MRG_RXBUF != 0;
        assert!(buffers == 1 || mergeable && buffers > 1, "a frame in {buffers} buffers");
        for _ in 1..buffers {
            // They are published at once.
            let (slot, len) =
                received.pop_front().expect("all buffers of a frame are there when the first is");
            slots.push(slot);
            bytes.extend(rx.driver.memory.read(rx.buffer(slot), len));
        }
        for slot in slots {
            if self.hoarding {
                self.hoard.push((number, slot));
            } else {
                offer_room(rx, slot);
            }
        }
        Some(self.complete(&bytes))
    }

    /// How many buffers to receive in the device has.
    pub fn outstanding(&self) -> usize {
        self.pairs
            .iter()
            .map(|Pair { rx, .. }| usize::from(rx.driver.next.wrapping_sub(rx.driver.used_index())))
            .sum()
    }

    /// Gives the device the buffers that were kept.
    pub fn refill(&mut self) {
        self.hoarding = false;
        for (number, slot) in std::mem::take(&mut self.hoard) {
            offer_room(&mut self.pairs[number].rx, slot);
        }
        self.pairs.iter_mut().for_each(|pair| pair.rx.publish());
    }

    /// The frame behind a header.
    fn complete(&self, bytes: &[u8]) -> Vec<u8> {
        let (header, frame) = bytes.split_at(HEADER);
        let mut frame = frame.to_vec();
        let word = |at| u16::from_le_bytes([header[at], header[at + 1]]);
        let has = |bits| self.config.features & bits != 0;
        match header[1] & 0x7f {
            0 => {}
            TCP4 => assert!(has(feature::GUEST_TSO4), "a super-frame for who takes none"),
            TCP6 => assert!(has(feature::GUEST_TSO6), "a super-frame for who takes none"),
            other => panic!("a super-frame of kind {other}"),
        }
        if header[0] & NEEDS_CSUM != 0 {
            assert!(has(feature::GUEST_CSUM), "a checksum that is left to who has not asked for it");
            let (start, offset) = (word(6), word(8));
            complete_checksum(
                &mut frame,
                Offload { checksum: Checksum::Partial { start, offset }, ..Offload::default() },
            );
        } else {
            assert_eq!(header[1], 0, "a super-frame with its checksum complete");
        }
        frame
    }

    /// Sends frames by a pair of queues, as far as there is room; the others are sent later.
    pub fn send(&mut self, number: usize, frames: Vec<Vec<u8>>) {
        let has = |bits| self.config.features & bits != 0;
        let frames: Vec<Unfinished> = if has(feature::HOST_TSO4) {
            joined(frames)
        } else if has(feature::CSUM) {
            frames.into_iter().map(without_checksum).collect()
        } else {
            frames.into_iter().map(Unfinished::from).collect()
        };
        self.pairs[number].unsent.extend(frames);
        self.flush();
    }

    /// Sends what waits for room.
    pub fn flush(&mut self) {
        for pair in &mut self.pairs {
            pair.free.extend(pair.tx.take_back().into_iter().map(|(slot, _)| slot));
            while let Some(slot) = pair.free.pop() {
                let Some(frame) = pair.unsent.pop_front() else {
                    pair.free.push(slot);
                    break;
                };
                self.longest[1] = self.longest[1].max(frame.bytes.len());
                let bytes = [&header(frame.offload), &*frame.bytes].concat();
                pair.tx.driver.memory.write(pair.tx.buffer(slot), &bytes);
                offer(&mut pair.tx, slot, bytes.len(), false);
            }
            pair.tx.publish();
        }
    }
}

fn offer_room(queue: &mut Queue, slot: u16) {
    offer(queue, slot, queue.config.room, true);
}

/// Offers so many bytes of a slot: with two parts the header is apart, with more it is cut as well.
fn offer(queue: &mut Queue, slot: u16, len: usize, writes: bool) {
    match queue.config.parts {
        1 => queue.offer(slot, &[len], writes),
        2 => queue.offer(slot, &[HEADER, len - HEADER], writes),
        _ => queue.offer(slot, &[7, HEADER + 20 - 7, len - HEADER - 20], writes),
    }
}

/// The virtio-net header of a frame (§5.1.6).
fn header(offload: Offload) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if let Checksum::Partial { start, offset } = offload.checksum {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    if let Some(segmentation) = offload.segmentation {
        header[1] = if segmentation.kind == SegmentKind::Tcp4 { TCP4 } else { TCP6 };
        header[2..4].copy_from_slice(&segmentation.header_len.to_le_bytes());
        header[4..6].copy_from_slice(&segmentation.size.to_le_bytes());
    }
    header
}

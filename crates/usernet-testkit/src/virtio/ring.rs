//! A split virtqueue from the driver's side (virtio 1.2 §2.7).

use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::memory::GuestMemory;

const DESCRIPTOR: usize = 16;
const INDEX: usize = 2;
const ELEMENTS: usize = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// What a ring is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// How many descriptors: a power of two.
    pub size: u16,
    /// Bytes of the buffer of each slot.
    pub room: usize,
    /// How many descriptors a slot has, which share its buffer.
    pub parts: u16,
    /// Whether those are in a table of their own.
    pub indirect: bool,
    /// Whether both sides say at which index they want to be told.
    pub event_idx: bool,
}

impl RingConfig {
    /// How many slots there are: buffers that the device may have at once.
    pub fn slots(&self) -> u16 {
        if self.indirect { self.size } else { self.size / self.parts }
    }

    /// Bytes that a ring and its buffers take.
    pub fn bytes(&self) -> usize {
        self.buffers() + usize::from(self.slots()) * self.room
    }

    fn available(&self) -> usize {
        DESCRIPTOR * usize::from(self.size)
    }

    fn used(&self) -> usize {
        (self.available() + 6 + 2 * usize::from(self.size)).next_multiple_of(4)
    }

    fn tables(&self) -> usize {
        (self.used() + 6 + 8 * usize::from(self.size)).next_multiple_of(DESCRIPTOR)
    }

    fn buffers(&self) -> usize {
        self.tables() + DESCRIPTOR * usize::from(self.parts) * usize::from(self.slots())
    }
}

/// A ring that takes up an area of memory, with a buffer for each slot.
#[derive(Debug)]
pub struct DriverRing {
    /// What it is like.
    pub config: RingConfig,
    /// Which area it has.
    pub area: usize,
    /// Notifies the device.
    pub kick: EventFd,
    /// Interrupts the driver.
    pub call: EventFd,
    /// How often the device was notified.
    pub kicks: u64,
    /// How often an interrupt was asked for.
    pub asked: u64,
    /// How often the driver was interrupted.
    pub interrupts: u64,
    memory: GuestMemory,
    /// The index of the next chain.
    next: u16,
    /// The index up to which the device was told of chains.
    published: u16,
    /// The index of the next chain to come back.
    used: u16,
}

impl DriverRing {
    /// A ring without a chain.
    pub fn new(memory: &GuestMemory, area: usize, config: RingConfig) -> Self {
        let mut ring = Self {
            config,
            area,
            kick: bell(),
            call: bell(),
            kicks: 0,
            asked: 0,
            interrupts: 0,
            memory: memory.clone(),
            next: 0,
            published: 0,
            used: 0,
        };
        ring.reset();
        ring
    }

    /// Starts over with an empty ring. The device must not have it.
    pub fn reset(&mut self) {
        self.memory.write(self.area, 0, &vec![0; self.config.tables()]);
        (self.next, self.published, self.used) = (0, 0, 0);
    }

    /// The addresses of the descriptors, the available and the used ring, where rings are named.
    pub fn addresses(&self) -> [u64; 3] {
        let base = self.memory.areas()[self.area].rings;
        [0, self.config.available(), self.config.used()].map(|at| base + at as u64)
    }

    /// The device's index of what it has given back, by which a front end finds where it was.
    pub fn used_index(&self) -> u16 {
        self.memory.load(self.area, self.config.used() + INDEX)
    }

    /// How many chains the device has.
    pub fn outstanding(&self) -> u16 {
        self.next.wrapping_sub(self.used)
    }

    /// Writes to a slot's buffer.
    pub fn write(&self, slot: u16, at: usize, bytes: &[u8]) {
        self.memory.write(self.area, self.buffer(slot) + at, bytes);
    }

    /// Reads the first `len` bytes of a slot's buffer.
    pub fn read(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(self.area, self.buffer(slot), &mut bytes);
        bytes
    }

    /// Lets the device have the first bytes of a slot, in so many pieces of such lengths; of each it is said
    /// whether the device writes to it. The device is told by [`DriverRing::publish`].
    pub fn offer(&mut self, slot: u16, pieces: &[(usize, bool)]) {
        let RingConfig { size, parts, indirect, .. } = self.config;
        assert!(!pieces.is_empty() && pieces.len() <= usize::from(parts));
        let head = if indirect { slot } else { slot * parts };
        let tables = self.config.tables();
        // Where the descriptors are written, and the number of the first.
        let (table, first) = if indirect {
            (tables + DESCRIPTOR * usize::from(parts) * usize::from(slot), 0)
        } else {
            (0, head)
        };
        let mut at = self.buffer(slot);
        for (number, (len, writes)) in (first..).zip(pieces) {
            let last = usize::from(number - first) + 1 == pieces.len();
            let flags = if last { 0 } else { NEXT } | if *writes { WRITE } else { 0 };
            self.describe(table, number, at, *len, flags);
            at += len;
        }
        if indirect {
            self.describe(0, head, table, DESCRIPTOR * pieces.len(), INDIRECT);
        }
        let entry = self.config.available() + ELEMENTS + 2 * usize::from(self.next % size);
        self.memory.store(self.area, entry, head);
        self.next = self.next.wrapping_add(1);
        assert!(self.outstanding() <= self.config.slots(), "a slot was offered twice");
    }

    /// Tells the device of all that was offered, and notifies it if it wants to be.
    pub fn publish(&mut self) {
        let before = std::mem::replace(&mut self.published, self.next);
        if before == self.next {
            return;
        }
        self.memory.store(self.area, self.config.available() + INDEX, self.next);
        fence(Ordering::SeqCst);
        let wanted = if self.config.event_idx {
            let at = self.config.used() + ELEMENTS + 8 * usize::from(self.config.size);
            passed(self.memory.load(self.area, at), self.next, before)
        } else {
            self.memory.load(self.area, self.config.used()) & NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        }
    }

    /// Notifies the device.
    pub fn kick(&mut self) {
        self.kick.write(1).unwrap();
        self.kicks += 1;
    }

    /// Takes what the device has given back: a slot, and how many bytes were written to it.
    pub fn take(&mut self) -> Option<(u16, usize)> {
        let index = self.used_index();
        if index == self.used {
            return None;
        }
        assert!(index.wrapping_sub(self.used) <= self.outstanding(), "more came back than was offered");
        let mut element = [0; 8];
        let slot = usize::from(self.used % self.config.size);
        self.memory.read(self.area, self.config.used() + ELEMENTS + 8 * slot, &mut element);
        let [a, b, c, d, len @ ..] = element;
        let head = u16::try_from(u32::from_le_bytes([a, b, c, d])).unwrap();
        self.used = self.used.wrapping_add(1);
        let slot = if self.config.indirect { head } else { head / self.config.parts };
        Some((slot, u32::from_le_bytes(len) as usize))
    }

    /// Asks for an interrupt when the next chain comes back. Returns whether there is one already.
    pub fn ask_for_interrupt(&mut self) -> bool {
        self.asked += 1;
        self.ask_at(self.used);
        self.used_index() != self.used
    }

    /// Asks for no interrupt, or with event indices for one in the distant future.
    pub fn decline_interrupts(&mut self) {
        if self.config.event_idx {
            self.ask_at(self.used.wrapping_add(0x8000));
        } else {
            self.memory.store(self.area, self.config.available(), NO_INTERRUPT);
        }
    }

    /// Asks for an interrupt when the chain of index `event` comes back; without event indices, at once.
    fn ask_at(&self, event: u16) {
        let available = self.config.available();
        if self.config.event_idx {
            self.memory.store(self.area, available + ELEMENTS + 2 * usize::from(self.config.size), event);
        } else {
            self.memory.store(self.area, available, 0);
        }
        fence(Ordering::SeqCst);
    }

    /// Counts the interrupts that came.
    pub fn hear(&mut self) {
        self.interrupts += self.call.read().unwrap_or(0);
    }

    fn buffer(&self, slot: u16) -> usize {
        self.config.buffers() + usize::from(slot) * self.config.room
    }

    /// Writes a descriptor of a table of bytes at a place of the area.
    fn describe(&self, table: usize, number: u16, at: usize, len: usize, flags: u16) {
        let address = self.memory.areas()[self.area].guest + at as u64;
        let next = number.wrapping_add(1);
        let fields: [&[u8]; 4] =
            [&address.to_le_bytes(), &(len as u32).to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.memory.write(self.area, table + DESCRIPTOR * usize::from(number), &fields.concat());
    }
}

/// What notifies or interrupts: an eventfd that never makes anybody wait.
pub fn bell() -> EventFd {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap()
}

/// Whether index `event` was passed on the way from `old` to `new` (§2.7.7.2).
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

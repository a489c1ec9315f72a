//! A virtqueue of a network card: a buffer for each slot, and who is told when.

use std::ops::Range;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::driver::{Driver, GuestMemory, WRITE};

const DESCRIPTOR: u64 = 16;
const PAGE: u64 = 4096;

/// What a queue is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
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

impl QueueConfig {
    /// How many slots there are: buffers that the device may have at once.
    pub fn slots(&self) -> u16 {
        if self.indirect { self.size } else { self.size / self.parts }
    }

    /// Bytes of memory that a queue and its buffers take, in whole pages.
    pub fn bytes(&self) -> u64 {
        let ring = 26 * u64::from(self.size) + 32;
        (ring + u64::from(self.slots()) * (self.room as u64 + self.table())).next_multiple_of(PAGE)
    }

    fn table(&self) -> u64 {
        DESCRIPTOR * u64::from(self.parts)
    }
}

/// A queue, as its driver has it.
#[derive(Debug)]
pub struct Queue {
    /// What it is like.
    pub config: QueueConfig,
    /// Its ring.
    pub driver: Driver,
    /// Which guest addresses its ring and buffers have.
    pub extent: Range<u64>,
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
}

impl Queue {
    /// An empty queue from a guest address on.
    pub fn new(memory: &GuestMemory, at: u64, config: QueueConfig) -> Self {
        Self {
            config,
            driver: Driver::new(memory, at, config.size, 0),
            extent: at..at + config.bytes(),
            kick: bell(),
            call: bell(),
            kicks: 0,
            asked: 0,
            interrupts: 0,
        }
    }

    /// Starts over with an empty ring. The device must not have it.
    pub fn reset(&mut self) {
        self.driver = Driver::new(&self.driver.memory, self.extent.start, self.config.size, 0);
    }

    /// Lets the device have the first bytes of a slot, in pieces of such lengths, to write to if it says so.
    /// The device is told by [`Queue::publish`].
    pub fn offer(&mut self, slot: u16, pieces: &[usize], writes: bool) {
        let QueueConfig { parts, indirect, .. } = self.config;
        let buffers = pieces.iter().scan(self.buffer(slot), |at, len| {
            *at += *len as u64;
            Some((*at - *len as u64, *len as u32))
        });
        let buffers: Vec<_> = buffers.collect();
        let flags = if writes { WRITE } else { 0 };
        let head = if indirect { slot } else { slot * parts };
        if indirect {
            let table =
                self.driver.end().next_multiple_of(DESCRIPTOR) + self.config.table() * u64::from(slot);
            self.driver.indirect(head, table, &buffers, flags);
        } else {
            self.driver.chain(head, &buffers, flags);
        }
        self.driver.offer(head);
    }

    /// Tells the device of all that was offered, and notifies it if it wants to be.
    pub fn publish(&mut self) {
        let QueueConfig { event_idx, .. } = self.config;
        if self.driver.publish(event_idx) {
            self.kick();
        }
    }

    /// Notifies the device.
    pub fn kick(&mut self) {
        self.kick.write(1).unwrap();
        self.kicks += 1;
    }

    /// The slots that the device has given back, and how many bytes were written to each.
    pub fn take_back(&mut self) -> Vec<(u16, usize)> {
        let QueueConfig { parts, indirect, .. } = self.config;
        let used = self.driver.take_back();
        assert!(used.len() <= self.config.slots().into(), "more came back than was offered");
        let slot = |head: u32| if indirect { head as u16 } else { head as u16 / parts };
        used.into_iter().map(|used| (slot(used.head), used.len as usize)).collect()
    }

    /// Asks for an interrupt when the next chain comes back. Returns whether there is one already.
    pub fn ask_for_interrupt(&mut self) -> bool {
        self.asked += 1;
        self.want(self.driver.seen, false);
        self.driver.used_index() != self.driver.seen
    }

    /// Asks for no interrupt, or with event indices for one in the distant future.
    pub fn decline_interrupts(&mut self) {
        self.want(self.driver.seen.wrapping_add(0x8000), true);
    }

    fn want(&self, index: u16, none: bool) {
        if self.config.event_idx {
            self.driver.want_interrupt(index);
        } else {
            self.driver.no_interrupt(none);
        }
    }

    /// Counts the interrupts that came.
    pub fn hear(&mut self) {
        self.interrupts += self.call.read().unwrap_or(0);
    }

    /// The guest address of a slot's buffer.
    pub fn buffer(&self, slot: u16) -> u64 {
        let tables = self.driver.end().next_multiple_of(DESCRIPTOR);
        let buffers = tables + self.config.table() * u64::from(self.config.slots());
        buffers + u64::from(slot) * self.config.room as u64
    }
}

/// What notifies or interrupts: an eventfd that never makes anybody wait.
pub fn bell() -> EventFd {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap()
}

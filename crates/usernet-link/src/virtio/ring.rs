//! A split virtqueue, from the device's side (virtio 1.2 §2.7).
//!
//! ```text
//! descriptors  16 bytes each: address (8), length (4), flags (2), next (2)
//! available    flags (2), index (2), heads (2 each), used_event (2)     written by the driver
//! used         flags (2), index (2), id and length (8 each), avail_event (2)     written by us
//! ```
//!
//! All that is read here was written by a guest. What makes no sense is a [`RingError`], after which the
//! ring is not looked at again: nothing is guessed.

use std::sync::atomic::{Ordering, fence};

use super::memory::{Memory, Window};

const DESCRIPTOR: usize = 16;
/// Bytes of the available and used rings beside their elements: flags, index, and the event field.
const AVAILABLE_EXTRA: usize = 6;
const USED_EXTRA: usize = 6;
const INDEX: usize = 2;
const ELEMENTS: usize = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// In the flags of the used ring: the driver need not notify us.
const NO_NOTIFY: u16 = 1;
/// In those of the available ring: we need not interrupt the driver.
const NO_INTERRUPT: u16 = 1;

/// The largest ring (§2.7).
pub const MAX_SIZE: u16 = 32_768;

/// Descriptors that a chain has at most: somewhat fewer than a system call takes slices (`IOV_MAX`), so that
/// headers may go in front. Drivers come by with 20, and no work for a frame is long.
pub(super) const MAX_CHAIN: u16 = 1000;

/// What a ring is made of, as the front end says it. Addresses are those of [`super::RegionLayout::rings`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingLayout {
    /// How many descriptors: a power of two, [`MAX_SIZE`] at most.
    pub size: u16,
    /// Where the descriptors are.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// Whether both sides say at which index they want to be told (`VIRTIO_F_EVENT_IDX`).
    pub event_idx: bool,
    /// Whether a descriptor may stand for a table of them (`VIRTIO_F_INDIRECT_DESC`).
    pub indirect: bool,
}

/// What is wrong with a ring. Its device rests for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is no power of two, 0 or too large.
    #[error("a ring of {0} descriptors: the size is a power of two, 32768 at most")]
    Size(u16),
    /// A part of the ring lies outside of the guest's memory, or is not aligned.
    #[error("the {0} ring is not in the guest's memory, or not aligned")]
    Place(&'static str),
    /// The driver claims to have made more available than there are descriptors.
    #[error("the driver has made {0} descriptors available at once, more than there are")]
    Index(u16),
    /// A head or a link that is no descriptor's number.
    #[error("there is no descriptor {0}")]
    Descriptor(u16),
    /// A chain that is longer than the ring, or its table, or 1000 descriptors: it may be a loop.
    #[error("a chain of descriptors has no end, or more than 1000 of them")]
    Loop,
    /// A descriptor without bytes.
    #[error("a descriptor of no bytes")]
    Empty,
    /// A descriptor whose bytes are not all in one part of the guest's memory.
    #[error("a descriptor of {len} bytes at {address:#x} is not in the guest's memory")]
    Address {
        /// Its guest address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A descriptor that we should write to where one to read was expected, or the other way around.
    #[error("a descriptor has the wrong direction")]
    Direction,
    /// An indirect table in an indirect table, with more than itself in the chain, of a strange length, or
    /// when none was agreed on.
    #[error("an indirect table where there can be none, or of a wrong length")]
    Indirect,
    /// What the driver notifies us by has gone.
    #[error("what notifies us of a queue is closed at its other end")]
    Kick,
    /// More bytes in a chain than a frame may have.
    #[error("a chain of more than {0} bytes")]
    TooLong(usize),
}

/// Who writes to the bytes of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The driver has: we read.
    FromGuest,
    /// We do.
    ToGuest,
    /// The driver has to some of them, we do to others.
    Both,
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    /// Its guest address.
    pub address: u64,
    /// Its length in bytes, never 0.
    pub len: usize,
    /// Whether we write to it.
    pub to_guest: bool,
}

/// A chain of descriptors that the driver has made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The number by which it is given back.
    pub head: u16,
    /// Bytes in all.
    pub len: usize,
}

/// A descriptor as it was read, once.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(bytes: [u8; DESCRIPTOR]) -> Self {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// A split virtqueue.
#[derive(Debug)]
pub(super) struct Ring {
    layout: RingLayout,
    descriptors: Window,
    available: Window,
    used: Window,
    /// The index of the next chain to take.
    next: u16,
    /// The index of the first chain that was not given back: they are given back in order.
    returned: u16,
    /// The index up to which chains have been put into the used ring.
    filled: u16,
    /// The index up to which the driver has been told of them.
    published: u16,
    /// The index that was published when the driver was last considered for an interrupt.
    considered: Option<u16>,
    /// Something was published since.
    unconsidered: bool,
    /// The driver's index, as it was last read.
    seen: u16,
}

impl Ring {
    /// A ring whose next chain has the index `base`.
    ///
    /// # Errors
    /// It is not all in the guest's memory, or has an impossible size.
    pub(super) fn new(layout: RingLayout, memory: &Memory, base: u16) -> Result<Self, RingError> {
        let RingLayout { size, .. } = layout;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(RingError::Size(size));
        }
        let n = usize::from(size);
        let window =
            |what, address, len, align| memory.window(address, len, align).ok_or(RingError::Place(what));
        let descriptors = window("descriptor", layout.descriptors, DESCRIPTOR * n, 16)?;
        let available = window("available", layout.available, AVAILABLE_EXTRA + 2 * n, 2)?;
        let used = window("used", layout.used, USED_EXTRA + 8 * n, 4)?;
        let mut ring = Self {
            layout,
            descriptors,
            available,
            used,
            next: base,
            returned: base,
            filled: base,
            published: base,
            considered: None,
            unconsidered: false,
            seen: base,
        };
        // A front end that is back after we have gone finds here what was given back.
        ring.filled = ring.used.load(INDEX);
        ring.published = ring.filled;
        Ok(ring)
    }

    /// The index of the first chain that was not given back, where another ring goes on when this one
    /// stops.
    pub(super) fn base(&self) -> u16 {
        self.returned
    }

    /// How many descriptors it has.
    pub(super) fn size(&self) -> u16 {
        self.layout.size
    }

    /// The same ring in memory that is mapped anew.
    pub(super) fn moved(self, memory: &Memory) -> Result<Self, RingError> {
        Self::new(self.layout, memory, self.returned)
    }

    /// How many chains wait to be taken.
    ///
    /// # Errors
    /// More than the ring has.
    pub(super) fn waiting(&mut self) -> Result<u16, RingError> {
        self.seen = self.available.load(INDEX);
        let waiting = self.seen.wrapping_sub(self.next);
        if waiting > self.layout.size { Err(RingError::Index(waiting)) } else { Ok(waiting) }
    }

    /// Takes the next chain, and pushes its buffers; `None` when there is none. One that has more than
    /// `max` bytes is refused.
    ///
    /// # Errors
    /// The chain makes no sense.
    pub(super) fn take(
        &mut self,
        memory: &Memory,
        direction: Direction,
        max: usize,
        buffers: &mut Vec<Buffer>,
    ) -> Result<Option<Chain>, RingError> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let slot = usize::from(self.next % self.layout.size);
        let head = u16::from_le_bytes(self.available.bytes(ELEMENTS + 2 * slot));
        let len = self.walk(memory, head, direction, max, buffers)?;
        self.next = self.next.wrapping_add(1);
        Ok(Some(Chain { head, len }))
    }

    fn walk(
        &self,
        memory: &Memory,
        head: u16,
        direction: Direction,
        max: usize,
        buffers: &mut Vec<Buffer>,
    ) -> Result<usize, RingError> {
        let mut total = 0;
        let mut number = head;
        for _ in 0..self.layout.size.min(MAX_CHAIN) {
            if number >= self.layout.size {
                return Err(RingError::Descriptor(number));
            }
            let descriptor = Descriptor::parse(self.descriptors.bytes(DESCRIPTOR * usize::from(number)));
            if descriptor.flags & INDIRECT != 0 {
                // §2.7.5.3.1: nothing is chained to it. Plain descriptors could come before it, which no
                // driver does, so one that is not the head is refused.
                if number != head || descriptor.flags & NEXT != 0 || !self.layout.indirect {
                    return Err(RingError::Indirect);
                }
                return walk_table(memory, &descriptor, direction, max, buffers);
            }
            total += buffer(memory, &descriptor, direction, buffers)?;
            if total > max {
                return Err(RingError::TooLong(max));
            }
            if descriptor.flags & NEXT == 0 {
                return Ok(total);
            }
            number = descriptor.next;
        }
        Err(RingError::Loop)
    }

    /// Puts back what was taken and not given back, to be taken again.
    pub(super) fn rewind(&mut self) {
        self.next = self.returned;
    }

    /// Gives a chain back, with how many bytes were written to it. The driver is told by
    /// [`Ring::publish`].
    pub(super) fn give_back(&mut self, head: u16, written: u32) {
        let slot = usize::from(self.filled % self.layout.size);
        let mut element = [0; 8];
        let (id, len) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        len.copy_from_slice(&written.to_le_bytes());
        self.used.put(ELEMENTS + 8 * slot, element);
        self.filled = self.filled.wrapping_add(1);
        self.returned = self.returned.wrapping_add(1);
    }

    /// Tells the driver of all that was given back, at once. Returns whether it wants to be
    /// interrupted.
    #[must_use]
    pub(super) fn publish(&mut self) -> bool {
        self.show();
        self.wants_interrupt()
    }

    /// Lets the driver see all that was given back, if it looks.
    pub(super) fn show(&mut self) {
        if self.published != self.filled {
            self.used.store(INDEX, self.filled);
            self.published = self.filled;
            self.unconsidered = true;
        }
    }

    /// Whether the driver wants to be interrupted for what it was shown since the last time.
    pub(super) fn wants_interrupt(&mut self) -> bool {
        if !std::mem::take(&mut self.unconsidered) {
            return false;
        }
        // The index must be seen before we look at what the driver asks for (§2.7.7.2).
        fence(Ordering::SeqCst);
        let before = self.considered.replace(self.published);
        if !self.layout.event_idx {
            return self.available.load(0) & NO_INTERRUPT == 0;
        }
        let wanted = self.available.load(ELEMENTS + 2 * usize::from(self.layout.size));
        before.is_none_or(|before| passed(wanted, self.published, before))
    }

    /// Asks the driver to notify us of the next chain that it makes available after those that were seen.
    /// Returns whether there is one already, of which it may not do so.
    ///
    /// # Errors
    /// As for [`Ring::waiting`].
    pub(super) fn ask_for_notification(&mut self) -> Result<bool, RingError> {
        let seen = self.seen;
        if self.layout.event_idx {
            self.used.store(USED_EXTRA - 2 + 8 * usize::from(self.layout.size), seen);
        } else {
            self.used.store(0, 0);
        }
        // What is asked must be seen before we look for the last time (§2.7.10.1).
        fence(Ordering::SeqCst);
        self.waiting()?;
        Ok(self.seen != seen)
    }

    /// Tells the driver that it need not notify us. With event indices it knows by itself: the index that
    /// we asked for has passed.
    pub(super) fn decline_notifications(&mut self) {
        if !self.layout.event_idx {
            self.used.store(0, NO_NOTIFY);
        }
    }
}

/// Whether index `event` was passed on the way from `old` to `new` (§2.7.7.2).
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Walks the table that an indirect descriptor points to. Each of its descriptors is read once.
fn walk_table(
    memory: &Memory,
    table: &Descriptor,
    direction: Direction,
    max: usize,
    buffers: &mut Vec<Buffer>,
) -> Result<usize, RingError> {
    let len = table.len as usize;
    if len == 0 || !len.is_multiple_of(DESCRIPTOR) || len / DESCRIPTOR > usize::from(MAX_SIZE) {
        return Err(RingError::Indirect);
    }
    let entries = len / DESCRIPTOR;
    let mut total = 0;
    let mut number = 0;
    for _ in 0..entries.min(usize::from(MAX_CHAIN)) {
        let mut bytes = [0; DESCRIPTOR];
        let at = table.address.checked_add((DESCRIPTOR * number) as u64);
        if number >= entries || !at.is_some_and(|at| memory.read(at, &mut bytes)) {
            return Err(RingError::Indirect);
        }
        let descriptor = Descriptor::parse(bytes);
        if descriptor.flags & INDIRECT != 0 {
            return Err(RingError::Indirect);
        }
        total += buffer(memory, &descriptor, direction, buffers)?;
        if total > max {
            return Err(RingError::TooLong(max));
        }
        if descriptor.flags & NEXT == 0 {
            return Ok(total);
        }
        number = usize::from(descriptor.next);
    }
    Err(RingError::Loop)
}

/// Pushes the buffer of a descriptor; returns its length.
fn buffer(
    memory: &Memory,
    descriptor: &Descriptor,
    direction: Direction,
    buffers: &mut Vec<Buffer>,
) -> Result<usize, RingError> {
    let &Descriptor { address, len, flags, .. } = descriptor;
    let to_guest = flags & WRITE != 0;
    if direction != Direction::Both && to_guest != (direction == Direction::ToGuest) {
        return Err(RingError::Direction);
    }
    let bytes = len as usize;
    if bytes == 0 {
        return Err(RingError::Empty);
    }
    if !memory.holds(address, bytes) {
        return Err(RingError::Address { address, len });
    }
    buffers.push(Buffer { address, len: bytes, to_guest });
    Ok(bytes)
}

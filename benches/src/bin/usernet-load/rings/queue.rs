//! A split virtqueue, from the driver's side (virtio 1.2 §2.7), with EVENT_IDX.
//!
//! ```text
//! descriptors  16 bytes each: address (8), length (4), flags (2), next (2)
//! available    flags (2), index (2), heads (2 each), used_event (2)     written by us
//! used         flags (2), index (2), id and length (8 each), avail_event (2)     written by the device
//! ```

use std::sync::atomic::{Ordering, fence};

use vm_memory::{AtomicAccess, Bytes as _, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

/// Bytes that a ring takes at most, for a size of up to 1024.
pub(super) const ROOM: usize = 32 << 10;

const DESCRIPTOR: usize = 16;
const INDEX: usize = 2;
const ELEMENTS: usize = 4;

/// In a descriptor's flags: another one follows.
const NEXT: u16 = 1;
/// The device writes to the buffer.
const WRITE: u16 = 2;

const INSIDE: &str = "the ring is inside the memory";

/// Where the three parts of a ring of `size` descriptors at `start` are.
pub(super) fn parts(start: usize, size: u16) -> [usize; 3] {
    let available = start + DESCRIPTOR * usize::from(size);
    // Aligned to 4 bytes, since the size is even.
    [start, available, available + 6 + 2 * usize::from(size) + 2]
}

/// One queue.
pub(super) struct Queue<'m> {
    memory: VolatileSlice<'m>,
    kick: &'m EventFd,
    size: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    /// The index of the next chain that we make available.
    next: u16,
    /// The index up to which the device knows of them.
    told: u16,
    /// The index of the next chain that comes back.
    returned: u16,
}

/// A buffer of the guest's.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    /// Its guest address.
    pub(super) address: u64,
    /// Its length in bytes.
    pub(super) len: usize,
}

impl<'m> Queue<'m> {
    pub(super) fn new(memory: VolatileSlice<'m>, start: usize, size: u16, kick: &'m EventFd) -> Self {
        let [descriptors, available, used] = parts(start, size);
        Self { memory, kick, size, descriptors, available, used, next: 0, told: 0, returned: 0 }
    }

    /// Makes a buffer for the device to write to available.
    pub(super) fn offer_room(&mut self, head: u16, buffer: Buffer) {
        self.describe(head, buffer, WRITE);
        self.offer(head);
    }

    /// Makes one or two buffers for the device to read from available; the second has the next number.
    pub(super) fn offer_bytes(&mut self, head: u16, first: Buffer, second: Option<Buffer>) {
        self.describe(head, first, if second.is_some() { NEXT } else { 0 });
        if let Some(second) = second {
            self.describe(head + 1, second, 0);
        }
        self.offer(head);
    }

    fn describe(&self, number: u16, Buffer { address, len }: Buffer, flags: u16) {
        let len = u32::try_from(len).expect("a buffer is shorter than 4 GiB");
        let mut bytes = [0; DESCRIPTOR];
        let fields = address.to_le_bytes().into_iter().chain(len.to_le_bytes());
        let fields = fields.chain(flags.to_le_bytes()).chain((number + 1).to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, byte)| *to = byte);
        let at = self.descriptors + DESCRIPTOR * usize::from(number);
        self.memory.write_slice(&bytes, at).expect(INSIDE);
    }

    fn offer(&mut self, head: u16) {
        let at = self.available + ELEMENTS + 2 * self.place(self.next);
        self.store(at, head, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Lets the device have what was made available, and notifies it if it wants to be.
    pub(super) fn publish(&mut self) {
        if self.next == self.told {
            return;
        }
        self.store(self.available + INDEX, self.next, Ordering::Release);
        // The device may sleep: it has written its wish and looked for more, or will see the index.
        fence(Ordering::SeqCst);
        let wish: u16 = self.load(self.used + ELEMENTS + 8 * usize::from(self.size), Ordering::Relaxed);
        // vring_need_event, §2.7.7.2
        if self.next.wrapping_sub(wish).wrapping_sub(1) < self.next.wrapping_sub(self.told) {
            self.kick.write(1).expect("an eventfd can be written to");
        }
        self.told = self.next;
    }

    /// Takes a chain that has come back: its number, and how many bytes the device wrote.
    pub(super) fn take(&mut self) -> Option<(u16, usize)> {
        if !self.has_returned() {
            return None;
        }
        let at = self.used + ELEMENTS + 8 * self.place(self.returned);
        let [id, len]: [u32; 2] = [self.load(at, Ordering::Relaxed), self.load(at + 4, Ordering::Relaxed)];
        self.returned = self.returned.wrapping_add(1);
        let id = u16::try_from(id).ok().filter(|id| *id < self.size).expect("the device is no liar");
        Some((id, usize::try_from(len).expect("a length is an address")))
    }

    /// Asks for an interrupt with the next chain that comes back. Returns whether there is one by now.
    pub(super) fn ask(&mut self) -> bool {
        let at = self.available + ELEMENTS + 2 * usize::from(self.size);
        self.store(at, self.returned, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.has_returned()
    }

    /// Whether everything has come back.
    pub(super) fn is_idle(&self) -> bool {
        self.next == self.returned
    }

    fn has_returned(&self) -> bool {
        self.load::<u16>(self.used + INDEX, Ordering::Acquire) != self.returned
    }

    fn place(&self, index: u16) -> usize {
        usize::from(index % self.size)
    }

    fn load<T: AtomicAccess>(&self, at: usize, order: Ordering) -> T {
        self.memory.load(at, order).expect(INSIDE)
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T, order: Ordering) {
        self.memory.store(value, at, order).expect(INSIDE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_1024_fits_in_its_room_and_is_aligned() {
        for size in [256, 1024] {
            let [descriptors, available, used] = parts(ROOM, size);
            assert_eq!([descriptors % 16, available % 2, used % 4], [0; 3]);
            assert!(used + ELEMENTS + 8 * usize::from(size) + 2 <= 2 * ROOM);
        }
    }

    #[test]
    fn what_is_offered_is_published_once_and_notified_of_when_asked_for() {
        let mut memory = vec![0_u8; ROOM];
        let memory = VolatileSlice::from(memory.as_mut_slice());
        let kick = EventFd::new(0).unwrap();
        let mut queue = Queue::new(memory, 0, 4, &kick);
        let [_, available, used] = parts(0, 4);
        let index = |at: usize| memory.load::<u16>(at + INDEX, Ordering::Relaxed).unwrap();

        queue.offer_bytes(0, Buffer { address: 7, len: 12 }, Some(Buffer { address: 9, len: 100 }));
        assert_eq!(index(available), 0, "nothing is there before it is published");
        queue.publish();
        assert_eq!((index(available), kick.read().unwrap()), (1, 1));
        // The device is busy: it has not moved its wish.
        queue.offer_room(2, Buffer { address: 7, len: 12 });
        queue.publish();
        kick.write(1).unwrap();
        assert_eq!((index(available), kick.read().unwrap()), (2, 1));

        assert!(queue.take().is_none() && !queue.ask());
        memory.write_obj([2_u32, 12], used + ELEMENTS).unwrap();
        memory.store(1_u16, used + INDEX, Ordering::Release).unwrap();
        assert!(queue.ask() && !queue.is_idle());
        assert_eq!(queue.take(), Some((2, 12)));
        assert_eq!(queue.take(), None);
    }
}

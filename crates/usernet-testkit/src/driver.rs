//! A guest's side of a split virtqueue (virtio 1.2 §2.7), in a memory file: well behaved, or not at all.
//!
//! It reads and writes by system calls, so it sees what another mapping of the file sees, and nothing that is
//! in the file can hurt it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

/// A descriptor goes on with the next one.
pub const NEXT: u16 = 1;
/// The device writes to the descriptor's bytes.
pub const WRITE: u16 = 2;
/// The descriptor stands for a table of them.
pub const INDIRECT: u16 = 4;

const DESCRIPTOR: u64 = 16;

/// The memory of a guest: a file, whose first byte has a guest address.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    file: Arc<File>,
    start: u64,
    len: u64,
}

impl GuestMemory {
    /// Zeros, `len` bytes, from guest address `start` on.
    ///
    /// # Panics
    /// The system has no memory.
    pub fn new(start: u64, len: u64) -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        Self { file: Arc::new(file), start, len }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The guest address of its first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes, as it was made.
    #[expect(clippy::len_without_is_empty, reason = "memory of no bytes is none")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Writes what fits at a guest address; nothing outside of the memory.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let Some(offset) = at.checked_sub(self.start).filter(|offset| *offset < self.len) else { return };
        let len = bytes.len().min((self.len - offset) as usize);
        let _ = self.file.write_all_at(&bytes[..len], offset);
    }

    /// The bytes at a guest address; zeros outside of the memory.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        if let Some(offset) = at.checked_sub(self.start) {
            let _ = self.file.read_at(&mut bytes, offset);
        }
        bytes
    }

    /// The little-endian 16-bit number at a guest address.
    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    /// Writes a little-endian 16-bit number.
    pub fn put_u16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
}

/// A descriptor of a ring, or of an indirect table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// A guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The number of the one that it goes on with.
    pub next: u16,
}

impl Descriptor {
    /// As it stands in memory.
    pub fn bytes(self) -> [u8; 16] {
        let Self { address, len, flags, next } = self;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }
}

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The number of its first descriptor.
    pub head: u32,
    /// Bytes that were written to it.
    pub len: u32,
}

/// The driver of one ring.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Descriptors.
    pub size: u16,
    /// Guest address of the descriptors.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The index of the next chain to be made available.
    pub next: u16,
    /// The index of the next chain to be taken back.
    pub seen: u16,
}

impl Driver {
    /// A ring of `size` descriptors, all zeros, whose parts lie one after the other from `at` on, and whose
    /// first index is `base`.
    pub fn new(memory: &GuestMemory, at: u64, size: u16, base: u16) -> Self {
        let available = at + DESCRIPTOR * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let driver =
            Self { memory: memory.clone(), size, descriptors: at, available, used, next: base, seen: base };
        memory.write(at, &vec![0; (driver.end() - at) as usize]);
        memory.put_u16(available + 2, base);
        memory.put_u16(used + 2, base);
        driver
    }

    /// The guest address behind all parts of the ring.
    pub fn end(&self) -> u64 {
        self.used + 6 + 8 * u64::from(self.size)
    }

    /// Writes a descriptor.
    pub fn describe(&self, number: u16, descriptor: Descriptor) {
        self.memory.write(self.descriptors + DESCRIPTOR * u64::from(number), &descriptor.bytes());
    }

    /// Writes a chain of buffers (address, length) into the descriptors from `head` on.
    pub fn chain(&self, head: u16, buffers: &[(u64, u32)], flags: u16) {
        self.write_chain(self.descriptors + DESCRIPTOR * u64::from(head), head, buffers, flags);
    }

    /// Writes the same into a table at `at`, for which descriptor `head` stands.
    pub fn indirect(&self, head: u16, at: u64, buffers: &[(u64, u32)], flags: u16) {
        self.write_chain(at, 0, buffers, flags);
        let len = DESCRIPTOR as u32 * buffers.len() as u32;
        self.describe(head, Descriptor { address: at, len, flags: INDIRECT, next: 0 });
    }

    fn write_chain(&self, at: u64, first: u16, buffers: &[(u64, u32)], flags: u16) {
        let last = buffers.len() - 1;
        let descriptors = buffers.iter().enumerate().flat_map(|(index, &(address, len))| {
            let goes_on = if index < last { NEXT } else { 0 };
            let next = if index < last { first + index as u16 + 1 } else { 0 };
            Descriptor { address, len, flags: flags | goes_on, next }.bytes()
        });
        self.memory.write(at, &descriptors.collect::<Vec<_>>());
    }

    /// Puts a chain into the available ring, of which [`Driver::publish`] tells.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next % self.size);
        self.memory.put_u16(self.available + 4 + 2 * slot, head);
        self.next = self.next.wrapping_add(1);
    }

    /// Tells of the chains that were offered. Returns whether the device wants to be notified: `event_idx`
    /// says by which rule (§2.7.10).
    pub fn publish(&self, event_idx: bool) -> bool {
        let before = self.memory.u16(self.available + 2);
        self.memory.put_u16(self.available + 2, self.next);
        if event_idx {
            let event = self.memory.u16(self.used + 4 + 8 * u64::from(self.size));
            self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(before)
        } else {
            self.memory.u16(self.used) & 1 == 0
        }
    }

    /// Asks to be interrupted once the device has given back the chain of this index (`used_event`).
    pub fn want_interrupt(&self, index: u16) {
        self.memory.put_u16(self.available + 4 + 2 * u64::from(self.size), index);
    }

    /// Says that no interrupts are wanted, or that they are, where there are no event indices.
    pub fn no_interrupt(&self, none: bool) {
        self.memory.put_u16(self.available, none.into());
    }

    /// The index up to which the device has given back chains.
    pub fn used_index(&self) -> u16 {
        self.memory.u16(self.used + 2)
    }

    /// Takes back what the device has given back.
    pub fn take_back(&mut self) -> Vec<Used> {
        let mut taken = Vec::new();
        while self.seen != self.used_index() {
            let slot = u64::from(self.seen % self.size);
            let element = self.memory.read(self.used + 4 + 8 * slot, 8);
            let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
            taken.push(Used { head: word(0), len: word(4) });
            self.seen = self.seen.wrapping_add(1);
        }
        taken
    }
}

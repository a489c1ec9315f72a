//! The memory of a guest, which it shares.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _, VolatileSlice};

const PAGE: usize = 4096;
/// The guest address of the first area, and how far the areas are apart beyond their lengths.
const GUEST: u64 = 0x1000_0000;
const GAP: u64 = 0x10_0000;
/// How much higher the addresses are by which rings are named.
const RINGS: u64 = 0x7f00_0000_0000;

/// Where an area lies.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Its first address for the guest.
    pub guest: u64,
    /// Its first address where rings are named.
    pub rings: u64,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A guest's memory: areas of a memory file.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    file: Arc<File>,
    mapping: Arc<MmapRegion>,
    areas: Arc<[Area]>,
}

impl GuestMemory {
    /// Areas of at least so many bytes each.
    pub fn new(lens: &[usize]) -> Self {
        let (mut offset, mut guest) = (0, GUEST);
        let areas = lens.iter().map(|len| {
            let len = len.next_multiple_of(PAGE) as u64;
            let area = Area { guest, rings: guest + RINGS, offset, len };
            (offset, guest) = (offset + len, guest + len + GAP);
            area
        });
        let areas: Arc<[Area]> = areas.collect();
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, offset).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let mapping = Arc::new(MmapRegion::from_file(mapped, offset as usize).unwrap());
        Self { file: Arc::new(file), mapping, areas }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the areas lie.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Writes bytes at a place of an area.
    pub fn write(&self, area: usize, at: usize, bytes: &[u8]) {
        self.slice(area).write_slice(bytes, at).unwrap();
    }

    /// Reads bytes at a place of an area.
    pub fn read(&self, area: usize, at: usize, bytes: &mut [u8]) {
        self.slice(area).read_slice(bytes, at).unwrap();
    }

    /// Writes a little-endian number, after all that was written before.
    pub fn store(&self, area: usize, at: usize, value: u16) {
        self.slice(area).store(value.to_le(), at, Ordering::SeqCst).unwrap();
    }

    /// Reads a little-endian number, before all that is read later.
    pub fn load(&self, area: usize, at: usize) -> u16 {
        u16::from_le(self.slice(area).load(at, Ordering::SeqCst).unwrap())
    }

    fn slice(&self, area: usize) -> VolatileSlice<'_> {
        let Area { offset, len, .. } = self.areas[area];
        self.mapping.get_slice(offset as usize, len as usize).unwrap()
    }
}

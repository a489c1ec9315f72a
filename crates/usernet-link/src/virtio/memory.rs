//! A guest's memory, as it is shared with us. All access to it is `unsafe` in here and nowhere else;
//! `fault.rs` beside it minds the signal of memory that was cut short.
//!
//! # Invariants
//!
//! 1. Every pointer that is used lies in a region, with all the bytes that are touched: [`Region::pointer`]
//!    makes it, and checks both ends; [`Window::at`] goes on from such a one, and checks them again.
//! 2. A mapping lives as long as anything that points into it: a [`Window`] holds the [`Region`], and a
//!    slice borrows the [`Memory`] or the window that it came from.
//! 3. The guest writes to its memory whenever it likes. So no reference to a value in it is made, but for
//!    the slices of bytes that system calls and copies get; every field of a ring is read once, by a volatile
//!    access, or an atomic one where it orders others. What else is looked at is copied first. It is what was
//!    read that is checked, not what lies there.
//! 4. A mapping is shared and writable. What it maps may have been cut short: a system call that meets the
//!    hole fails with `EFAULT`, an access of ours is mended by the handler in `fault.rs`.

#![expect(unsafe_code, reason = "the guest's memory is no Rust object")]

use std::ffi::c_void;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use super::fault::Guarded;
use super::pair::lock;

/// File systems whose files somebody else serves, who may take as long as they like: FUSE, 9P, NFS, SMB
/// (`linux/magic.h`).
const SERVED: [u32; 5] = [0x6573_5546, 0x0102_1997, 0x6969, 0xff53_4d42, 0xfe53_4d42];
const HUGETLBFS: u32 = 0x9584_58f6;

/// Bytes that are mapped at most, all guests together: half of an address space. Without the other half, the
/// process ends with the next allocation.
const MAX_MAPPED: u64 = 64 << 40;
/// Mappings at most: about half of what Linux lets a process have (`vm.max_map_count`).
const MAX_MAPPINGS: usize = 32_000;

/// Why memory cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// It has no length, or ends beyond the end of an address space.
    #[error("a region of {:#x} bytes at {:#x} is no region", .0.len, .0.guest)]
    Layout(RegionLayout),
    /// What is to be mapped is no file on a file system of this host's own: an access could take for ever.
    #[error("memory is to be a memory file, or one on tmpfs, hugetlbfs or a local disk")]
    File,
    /// The file has no such bytes.
    #[error("the file has {0} bytes only")]
    Short(u64),
    /// There is too much of others already.
    #[error("all guests together share more memory, or more parts of it, than one process can map")]
    Full,
    /// The system does not map it.
    #[error("it cannot be mapped: {0}")]
    System(#[from] Errno),
}

/// Where one part of the guest's memory lies: for the guest, for the front end, and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Its first address for the guest's devices.
    pub guest: u64,
    /// Its first address where rings are named: in the front end's process for vhost-user. A VMM that names
    /// them by guest addresses says the same as above.
    pub rings: u64,
    /// Bytes.
    pub len: u64,
    /// Where it begins in the file that is mapped.
    pub offset: u64,
}

impl RegionLayout {
    /// Where it ends in the file; `None` when it is none: it has no length, or ends nowhere.
    pub fn end(self) -> Option<u64> {
        let ends = [self.guest, self.rings, self.offset].map(|start| start.checked_add(self.len));
        let [Some(_), Some(_), end] = ends else { return None };
        end.filter(|_| self.len > 0)
    }

    /// Whether another is in the same place; where in the file that is does not matter.
    fn is_at(self, other: Self) -> bool {
        (self.guest, self.rings, self.len) == (other.guest, other.rings, other.len)
    }
}

/// A mapped part of the guest's memory.
#[derive(Debug)]
pub struct Region {
    layout: RegionLayout,
    /// Its first byte.
    start: NonNull<u8>,
    /// None where somebody else minds the mapping.
    mapping: Option<Mapping>,
}

// SAFETY: it is memory of other processes as much as of ours; every access to it is volatile, atomic, or a
// system call's, whichever thread makes it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// A file from its start on, in our address space.
#[derive(Debug)]
struct Mapping {
    base: NonNull<c_void>,
    len: usize,
    /// Ends before the mapping does.
    guarded: Option<Guarded>,
    /// Ends after it.
    #[expect(dead_code, reason = "it is only held")]
    share: Share,
}

/// A mapping's share of what this process can map.
#[derive(Debug)]
struct Share {
    len: u64,
}

/// All shares: their bytes, and how many there are.
static SHARED_OUT: Mutex<(u64, usize)> = Mutex::new((0, 0));

impl Share {
    fn new(len: u64) -> Option<Self> {
        let (bytes, mappings) = &mut *lock(&SHARED_OUT);
        if len > MAX_MAPPED - *bytes || *mappings >= MAX_MAPPINGS {
            return None;
        }
        (*bytes, *mappings) = (*bytes + len, *mappings + 1);
        Some(Self { len })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let (bytes, mappings) = &mut *lock(&SHARED_OUT);
        (*bytes, *mappings) = (*bytes - self.len, *mappings - 1);
    }
}

impl Region {
    /// Maps a region of `file`. It may become shorter later: that costs its guest the link, and nobody
    /// else anything.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn map(layout: RegionLayout, file: &File) -> Result<Self, RegionError> {
        let end = layout.end().ok_or(RegionError::Layout(layout))?;
        let size = rustix::fs::fstat(file)?;
        let system = rustix::fs::fstatfs(file)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the type has 32 bits")]
        let kind = system.f_type as u32;
        if FileType::from_raw_mode(size.st_mode) != FileType::RegularFile || SERVED.contains(&kind) {
            return Err(RegionError::File);
        }
        let size = u64::try_from(size.st_size).unwrap_or(0);
        if end > size {
            return Err(RegionError::Short(size));
        }
        // Of huge pages there are only whole ones, also to be unmapped.
        let page = if kind == HUGETLBFS { u64::try_from(system.f_bsize).unwrap_or(1) } else { 1 };
        let len = end.checked_next_multiple_of(page).and_then(|len| usize::try_from(len).ok());
        let offset = usize::try_from(layout.offset).ok();
        let (len, offset) = len.zip(offset).ok_or(RegionError::Layout(layout))?;
        let mapping = Mapping::new(file, len)?;
        // SAFETY: the region ends where the mapping does, and its offset is not beyond its end.
        let start = unsafe { mapping.base.cast::<u8>().add(offset) };
        Ok(Self { layout, start, mapping: Some(mapping) })
    }

    /// A region of memory that the caller has mapped, at `start`: a VMM's own guest. The layout's offset is
    /// not heeded.
    ///
    /// # Errors
    /// [`RegionError::Layout`].
    ///
    /// # Safety
    /// As long as the region is there, or a [`Memory`] that it was added to, or a [`super::Device`] that has
    /// that memory: all of its bytes can be read and written there, no access raises a signal that is not
    /// handled, and nobody has a Rust reference to any of them other than to atomics.
    pub unsafe fn at(layout: RegionLayout, start: NonNull<u8>) -> Result<Self, RegionError> {
        layout.end().ok_or(RegionError::Layout(layout))?;
        Ok(Self { layout, start, mapping: None })
    }

    /// Where it lies.
    pub fn layout(&self) -> RegionLayout {
        self.layout
    }

    /// A pointer to `len` bytes from `at` bytes after the start of the region, all of which lie in it.
    fn pointer(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        let end = at.checked_add(u64::try_from(len).ok()?)?;
        if end > self.layout.len {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        // SAFETY: all of the region is mapped, and `at` is not beyond its end.
        Some(unsafe { self.start.add(at) })
    }

    /// Whether it was cut short, and is nothing but zeros now.
    pub(super) fn is_lost(&self) -> bool {
        self.mapping.as_ref().and_then(|mapping| mapping.guarded.as_ref()).is_some_and(Guarded::is_lost)
    }
}

impl Mapping {
    fn new(file: &File, len: usize) -> Result<Self, RegionError> {
        let share = Share::new(len as u64).ok_or(RegionError::Full)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a place where nothing is mapped.
        let base = unsafe { mm::mmap(ptr::null_mut(), len, access, flags, file, 0)? };
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        let mut mapping = Self { base, len, guarded: None, share };
        mapping.guarded = Some(Guarded::new(base.as_ptr().expose_provenance(), len)?);
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guarded = None;
        // SAFETY: it was mapped with this length, and whatever points into it borrows or holds its region.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}

/// The memory of a guest: its regions, which do not overlap, by their guest addresses.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    regions: Vec<Arc<Region>>,
}

impl Memory {
    /// Adds a region; `None` when it overlaps another one. The same may be added several times, as QEMU does
    /// for each pair of queues, and is there until it was removed as often.
    pub fn add(&mut self, region: Region) -> Option<()> {
        let new = region.layout;
        let apart = |from: u64, other: u64, len: u64| from + new.len <= other || other + len <= from;
        let fits = |old: RegionLayout| {
            let apart = apart(new.guest, old.guest, old.len) && apart(new.rings, old.rings, old.len);
            apart || old.is_at(new)
        };
        if !self.regions.iter().all(|region| fits(region.layout)) {
            return None;
        }
        let at = self.regions.partition_point(|other| other.layout.guest < new.guest);
        self.regions.insert(at, Arc::new(region));
        Some(())
    }

    /// Removes a region that is at this place; `None` when there is none.
    pub fn remove(&mut self, layout: RegionLayout) -> Option<()> {
        let at = self.regions.iter().position(|region| region.layout.is_at(layout))?;
        self.regions.remove(at);
        Some(())
    }

    /// Whether a region was cut short since it was mapped. Its guest can only be given up.
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.is_lost())
    }

    /// How many bytes of address space the regions take up.
    pub fn mapped(&self) -> u64 {
        self.regions.iter().filter_map(|region| region.layout.end()).sum()
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// `len` bytes at a guest address, to read or write.
    fn pointer(&self, guest: u64, len: usize) -> Option<NonNull<u8>> {
        let at = self.regions.partition_point(|region| region.layout.guest <= guest).checked_sub(1)?;
        let region = self.regions.get(at)?;
        region.pointer(guest - region.layout.guest, len)
    }

    /// Whether `len` bytes at a guest address lie in one region.
    pub(super) fn holds(&self, guest: u64, len: usize) -> bool {
        self.pointer(guest, len).is_some()
    }

    /// The bytes at a guest address, for a system call or a copy.
    pub(super) fn slice(&self, guest: u64, len: usize) -> Option<IoSlice<'_>> {
        let pointer = self.pointer(guest, len)?;
        // SAFETY: invariants 1 and 2; that the bytes change meanwhile is of no matter to who copies them.
        Some(IoSlice::new(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), len) }))
    }

    /// The bytes at a guest address, for a system call or a copy to write to.
    pub(super) fn slice_mut(&self, guest: u64, len: usize) -> Option<IoSliceMut<'_>> {
        let pointer = self.pointer(guest, len)?;
        // SAFETY: as above; whoever else writes there is the guest, or it gave us these bytes twice.
        Some(IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), len) }))
    }

    /// Copies bytes at a guest address into `to`; returns whether they lie in one region.
    pub(super) fn read(&self, guest: u64, to: &mut [u8]) -> bool {
        let Some(from) = self.pointer(guest, to.len()) else { return false };
        // SAFETY: invariant 1; ours is not theirs, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies `from` to a guest address; returns whether it lies in one region.
    ///
    /// The two may overlap: a guest can name the same bytes in both directions. So this takes no reference to
    /// bytes, which would say that they do not change.
    pub(super) fn write(&self, guest: u64, from: IoSlice<'_>) -> bool {
        let Some(to) = self.pointer(guest, from.len()) else { return false };
        // SAFETY: invariant 1.
        unsafe { ptr::copy(from.as_ptr(), to.as_ptr(), from.len()) };
        true
    }

    /// `len` bytes at an address by which rings are named, aligned to `align`, to be looked at for long.
    pub(super) fn window(&self, at: u64, len: usize, align: u64) -> Option<Window> {
        let inside = |region: &&Arc<Region>| {
            let RegionLayout { rings: start, len, .. } = region.layout;
            start <= at && at - start < len
        };
        let region = self.regions.iter().find(inside)?;
        let pointer = region.pointer(at - region.layout.rings, len)?;
        (pointer.as_ptr().addr() as u64).is_multiple_of(align).then(|| Window {
            region: Arc::clone(region),
            pointer,
            len,
        })
    }
}

/// A few bytes of a region that are looked at again and again: a part of a ring.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Keeps the mapping.
    #[expect(dead_code, reason = "it is only held")]
    region: Arc<Region>,
    pointer: NonNull<u8>,
    len: usize,
}

// SAFETY: as for the region that it points into.
unsafe impl Send for Window {}

impl Window {
    /// A pointer to the `N` bytes at `at`.
    ///
    /// # Panics
    /// They do not all lie in the window: a mistake of ours, since where to look follows from the ring's
    /// size.
    fn at<const N: usize>(&self, at: usize) -> *mut u8 {
        assert!(at.checked_add(N).is_some_and(|end| end <= self.len), "an access stays in its window");
        // SAFETY: just checked.
        unsafe { self.pointer.as_ptr().add(at) }
    }

    /// Bytes at `at`.
    pub(super) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let from = self.at::<N>(at).cast::<[u8; N]>();
        // SAFETY: invariants 1 to 3; bytes have no alignment.
        unsafe { from.read_volatile() }
    }

    /// Writes bytes at `at`.
    pub(super) fn put<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        let to = self.at::<N>(at).cast::<[u8; N]>();
        // SAFETY: as above.
        unsafe { to.write_volatile(bytes) };
    }

    fn atomic(&self, at: usize) -> &AtomicU16 {
        let field = self.at::<2>(at).cast::<u16>();
        assert!(field.is_aligned(), "the fields of a ring are aligned as the ring is");
        // SAFETY: in the window and aligned; the guest, too, writes it as a whole.
        unsafe { AtomicU16::from_ptr(field) }
    }

    /// The little-endian field at `at`, before whatever it tells of is looked at.
    pub(super) fn load(&self, at: usize) -> u16 {
        u16::from_le(self.atomic(at).load(Ordering::Acquire))
    }

    /// Writes the little-endian field at `at`, after everything that it tells of.
    pub(super) fn store(&self, at: usize, value: u16) {
        self.atomic(at).store(value.to_le(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use usernet_testkit::driver::GuestMemory;

    use super::*;

    fn layout(guest: u64, len: u64) -> RegionLayout {
        RegionLayout { guest, rings: guest + 0x7000_0000, len, offset: 0 }
    }

    /// Memory of this process: everything here but mappings can run where there is no kernel.
    fn own(words: &[AtomicU64], guest: u64) -> Region {
        let start = NonNull::from(words).cast();
        // SAFETY: all of it are atomics that outlive what the tests do with the region.
        unsafe { Region::at(layout(guest, size_of_val(words) as u64), start).unwrap() }
    }

    #[test]
    fn nothing_outside_of_a_region_is_touched() {
        let words: [AtomicU64; 8] = Default::default();
        let mut memory = Memory::default();
        memory.add(own(&words[..4], 0x1000)).unwrap();
        memory.add(own(&words[4..], 0x1020)).unwrap();
        assert!(memory.write(0x1000, IoSlice::new(&[1; 32])) && memory.write(0x1020, IoSlice::new(&[2; 32])));
        for (at, len) in
            [(0xfff, 2), (0xfff, 1), (0, 0x2000), (0x101f, 2), (0x1001, 32), (0x1040, 1), (u64::MAX, 2)]
        {
            assert!(!memory.holds(at, len), "{len} bytes at {at:#x}");
            assert!(!memory.read(at, &mut vec![0; len]) && !memory.write(at, IoSlice::new(&vec![0; len])));
            assert!(memory.slice(at, len).is_none() && memory.slice_mut(at, len).is_none());
        }
        let mut bytes = [0; 2];
        assert!(memory.read(0x101e, &mut bytes));
        assert_eq!(bytes, [1; 2]);
        assert_eq!(memory.slice(0x1020, 32).unwrap()[..], [2; 32]);
        memory.slice_mut(0x103f, 1).unwrap()[0] = 9;
        assert_eq!(words[7].load(Ordering::Relaxed).to_ne_bytes(), [2, 2, 2, 2, 2, 2, 2, 9]);
        // A guest may name the same bytes in both directions.
        assert!(memory.write(0x1000, IoSlice::new(&[1, 2, 3, 4, 5, 6, 7, 8])));
        assert!(memory.write(0x1002, memory.slice(0x1000, 8).unwrap()));
        assert_eq!(memory.slice(0x1000, 10).unwrap()[..], [1, 2, 1, 2, 3, 4, 5, 6, 7, 8]);
        memory.remove(layout(0x1000, 32)).unwrap();
        assert!(memory.remove(layout(0x1000, 32)).is_none());
        assert!(!memory.holds(0x1000, 1) && memory.holds(0x1020, 32));
    }

    #[test]
    fn windows_lie_in_one_region_and_keep_it() {
        let words: [AtomicU64; 8] = Default::default();
        let mut memory = Memory::default();
        memory.add(own(&words, 0x1000)).unwrap();
        let rings = 0x7000_1000;
        for (at, len, align) in [(rings - 1, 2, 1), (rings + 63, 2, 1), (rings + 2, 8, 4), (0x1000, 2, 2)] {
            assert!(memory.window(at, len, align).is_none(), "{len} bytes at {at:#x}");
        }
        let window = memory.window(rings + 32, 32, 16).unwrap();
        drop(memory);
        window.put(0, 0x0807_0605_0403_0201_u64.to_le_bytes());
        assert_eq!(window.bytes(4), [5, 6, 7, 8]);
        assert_eq!(window.load(2), 0x0403);
        window.store(30, 0xabcd);
        assert_eq!(words[7].load(Ordering::Relaxed).to_ne_bytes()[6..], [0xcd, 0xab]);
        let beyond = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| window.bytes::<4>(30)));
        assert!(beyond.is_err(), "a mistake of ours is no access");
    }

    #[test]
    fn all_guests_together_map_no_more_than_a_process_can() {
        let file = GuestMemory::new(0, MAX_MAPPED + 1);
        assert!(matches!(Region::map(layout(0, file.len()), file.file()), Err(RegionError::Full)));
        // What is no longer mapped does not count.
        for _ in 0..=MAX_MAPPINGS {
            Region::map(layout(0, 1 << 40), file.file()).unwrap();
        }
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let guest = GuestMemory::new(0, 0x10000);
        let refused = |layout, reason: &str| {
            let error = Region::map(layout, guest.file()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        let good = layout(0, 0x10000);
        refused(RegionLayout { len: 0, ..good }, "is no region");
        refused(RegionLayout { guest: u64::MAX - 0xffff, len: 0x10001, ..good }, "is no region");
        refused(RegionLayout { rings: u64::MAX - 0xfff0, ..good }, "is no region");
        refused(RegionLayout { offset: u64::MAX, ..good }, "is no region");
        refused(RegionLayout { offset: 1, ..good }, "65536 bytes only");
        refused(RegionLayout { len: 1 << 62, ..good }, "65536 bytes only");
        let null = File::options().read(true).write(true).open("/dev/zero").unwrap();
        assert!(matches!(Region::map(good, &null), Err(RegionError::File)));
        let read_only =
            File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(guest.file())));
        assert!(matches!(Region::map(good, &read_only.unwrap()), Err(RegionError::System(Errno::ACCESS))));

        let mut memory = Memory::default();
        let map = |guest_address, rings, len| {
            let layout = RegionLayout { guest: guest_address, rings, len, offset: 0 };
            Region::map(layout, guest.file()).unwrap()
        };
        memory.add(map(0x10000, 0x50000, 0x10000)).unwrap();
        for (at, rings) in [(0x8000, 0), (0x1ffff, 0), (0, 0x58000), (0x10000, 0x60000), (0x10000, 0x50001)] {
            assert!(memory.add(map(at, rings, 0x10000)).is_none(), "{at:#x} {rings:#x}");
        }
        memory.add(map(0x12000, 0x90000, 0x100)).ok_or(()).unwrap_err();
        memory.add(map(0x20000, 0x60000, 0x10000)).unwrap();
        memory.add(map(0, 0, 0x10000)).unwrap();
        // The same is there until it was removed as often as it was added.
        memory.add(map(0x10000, 0x50000, 0x10000)).unwrap();
        let twice = RegionLayout { guest: 0x10000, rings: 0x50000, len: 0x10000, offset: 0 };
        memory.remove(twice).unwrap();
        assert!(memory.holds(0x10000, 0x10000));
        memory.remove(twice).unwrap();
        assert!(!memory.holds(0x10000, 1));
        assert_eq!(memory.regions(), 2);
    }
}

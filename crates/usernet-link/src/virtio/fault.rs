//! What happens when memory that a front end has shared is cut short: the guest is lost, nobody else.
//!
//! Whoever has the file behind a mapping can make it shorter. The next access to what is gone raises
//! `SIGBUS`, which ends the process. (A memory file can be sealed against that, and QEMU does so where it is
//! told to, but nobody has to.) So the first region that is mapped installs a handler, for all of the
//! process: where the address is one of a region's, it puts zeros in the place of all of the region, notes
//! that the region is lost, and the access is made again. Links look at that with each batch. All other
//! faults go to the handler that was there before.
//!
//! A handler may call next to nothing. It finds regions in a table that is never freed and has no lock: each
//! slot has a version, which is odd while the slot is written to.

#![expect(
    unsafe_code,
    reason = "signals have no safe interface, and the mapping is replaced under its users"
)]

use std::ffi::{c_int, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, Result};
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

/// Slots that are made at once.
const BLOCK: usize = 64;

/// The place of one mapping.
#[derive(Debug)]
struct Slot {
    /// Whether it is a region's.
    taken: AtomicBool,
    /// Odd while the place is written to.
    version: AtomicUsize,
    base: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            version: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Says where the mapping lies. Only whoever has taken the slot does.
    fn set(&self, base: usize, len: usize) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Where the mapping lies, if it is known and `address` is in it. A region that somebody has an address
    /// in is not written to, so one that just changes is another.
    fn around(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let (base, len) = (self.base.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let same = before.is_multiple_of(2) && before == self.version.load(Ordering::Relaxed);
        (same && address.wrapping_sub(base) < len).then_some((base, len))
    }
}

/// Slots, and those that came when they were all taken. How many there can be, mappings of the process bound.
struct Block {
    slots: [Slot; BLOCK],
    more: OnceLock<Box<Self>>,
}

impl Block {
    const fn new() -> Self {
        Self { slots: [const { Slot::new() }; BLOCK], more: OnceLock::new() }
    }
}

static TABLE: Block = Block::new();
/// How many regions were lost so far.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// How many regions were lost so far, anybody's: as long as that does not change, none was.
pub(super) fn losses() -> usize {
    LOSSES.load(Ordering::Acquire)
}

/// A mapping whose faults are mended. It ends before the mapping does.
#[derive(Debug)]
pub(super) struct Guarded {
    slot: &'static Slot,
}

impl Guarded {
    /// Minds a mapping of shared memory, which lies at `base` with `len` bytes.
    ///
    /// # Errors
    /// The handler cannot be installed.
    pub(super) fn new(base: usize, len: usize) -> Result<Self> {
        install()?;
        let mut block = &TABLE;
        let slot = loop {
            if let Some(slot) = block.slots.iter().find(|slot| !slot.taken.swap(true, Ordering::Acquire)) {
                break slot;
            }
            block = block.more.get_or_init(|| Box::new(Block::new()));
        };
        slot.lost.store(false, Ordering::Relaxed);
        slot.set(base, len);
        Ok(Self { slot })
    }

    /// Whether it was cut short, and is nothing but zeros now.
    pub(super) fn is_lost(&self) -> bool {
        self.slot.lost.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.slot.set(0, 0);
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// Installs the handler, once.
fn install() -> Result<()> {
    static INSTALLED: OnceLock<Result<()>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: nothing is changed, and what is written is the size of it.
        let read = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) };
        if read != 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: it was zeros, all of which are valid, and then written by the call.
        let before = unsafe { before.assume_init() };
        // The handler finds it from the start.
        let before = BEFORE.get_or_init(|| before);
        let mut action = *before;
        action.sa_sigaction = handle as *const () as usize;
        // Where the stack of a thread has run out, there is another one.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler does what a handler may, and has the signature that the flags say.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        if set == 0 { Ok(()) } else { Err(Errno::INVAL) }
    })
}

/// Mends a fault of ours, and leaves all others to whoever was there before.
extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands over what it wrote, for as long as this takes.
    let what = unsafe { &*info };
    let code = what.si_code;
    // SAFETY: a signal that comes from a fault has an address, and no other is asked.
    let address = (code > 0).then(|| unsafe { what.si_addr() }.addr());
    if address.is_some_and(mend) {
        return;
    }
    let before = BEFORE.get();
    match before.map_or(libc::SIG_DFL, |before| before.sa_sigaction) {
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zeros is the default action.
            let default = unsafe { mem::zeroed::<libc::sigaction>() };
            // SAFETY: it outlives the call. A fault happens again with that, and ends the process.
            unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) };
            if code <= 0 {
                // SAFETY: it has no memory to do with. What somebody has sent does not happen again.
                unsafe { libc::raise(signal) };
            }
        }
        action if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: with this flag, a handler has this signature.
            let action: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { mem::transmute::<usize, _>(action) };
            action(signal, info, context);
        }
        action => {
            // SAFETY: without the flag, it has this one.
            let action: extern "C" fn(c_int) = unsafe { mem::transmute::<usize, _>(action) };
            action(signal);
        }
    }
}

/// Puts zeros in the place of the region around an address; `false` when there is none.
fn mend(address: usize) -> bool {
    let mut block = Some(&TABLE);
    while let Some(Block { slots, more }) = block {
        for slot in slots {
            let Some((base, len)) = slot.around(address) else { continue };
            if shared_zeros(base, len).or_else(|_| own_zeros(base, len)).is_err() {
                return false;
            }
            slot.lost.store(true, Ordering::Release);
            LOSSES.fetch_add(1, Ordering::AcqRel);
            return true;
        }
        block = more.get().map(|more| &**more);
    }
    false
}

const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Puts a file without content in the place of a region. However large it is, it takes up no more memory than is
/// written to, also where the system promises no more than it has (`vm.overcommit_memory=2`).
fn shared_zeros(base: usize, len: usize) -> Result<()> {
    let size = u64::try_from(len).map_err(|_| Errno::FBIG)?;
    // Who makes a file too long gets a signal.
    if getrlimit(Resource::Fsize).current.is_some_and(|most| most < size) {
        return Err(Errno::FBIG);
    }
    let file = memfd_create(c"lost", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, size)?;
    let place = ptr::with_exposed_provenance_mut(base);
    // SAFETY: a region has all of this mapping, and the guest may write anything there at any time.
    unsafe { mm::mmap(place, len, ACCESS, MapFlags::SHARED | MapFlags::FIXED, &file, 0)? };
    Ok(())
}

/// The same with memory of the process's own, where there can be no such file: no descriptors are left, say.
fn own_zeros(base: usize, len: usize) -> Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    let place = ptr::with_exposed_provenance_mut(base);
    // SAFETY: as above.
    unsafe { mm::mmap_anonymous(place, len, ACCESS, flags)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use rustix::process::{Signal, getpid, kill_process};
    use usernet_testkit::driver::GuestMemory;

    use super::super::{Memory, Region, RegionLayout};
    use super::*;

    const LEN: u64 = 0x10000;

    fn map(file: &std::fs::File, guest: u64) -> Region {
        Region::map(RegionLayout { guest, rings: guest, len: LEN, offset: 0 }, file).unwrap()
    }

    #[test]
    fn memory_that_is_cut_short_is_zeros_and_known_to_be_lost() {
        let guests: Vec<_> = (0..200).map(|n| GuestMemory::new(n * LEN, LEN)).collect();
        let memories = guests.iter().map(|guest| {
            let mut memory = Memory::default();
            memory.add(map(guest.file(), guest.start())).unwrap();
            memory
        });
        let memories: Vec<_> = memories.collect();
        for guest in &guests {
            guest.write(guest.start(), &[7; 0x10000]);
        }
        let before = losses();
        let lost = 137;
        guests[lost].file().set_len(0x2000).unwrap();

        let read = |n: usize, at| {
            let mut byte = [1];
            assert!(memories[n].read(guests[n].start() + at, &mut byte));
            byte[0]
        };
        assert_eq!(read(lost, 0x1000), 7, "what is there is there");
        assert_eq!(losses(), before);
        assert_eq!(read(lost, 0x9000), 0);
        assert_eq!(losses(), before + 1);
        assert!(memories[lost].write(guests[lost].start() + 0xffff, IoSlice::new(&[1])));
        for (n, memory) in memories.iter().enumerate() {
            assert_eq!(memory.is_lost(), n == lost, "{n}");
            assert_eq!(read(n, 0x9000), if n == lost { 0 } else { 7 });
        }
        // What was lost is no more than a mapping: its place can be used anew.
        drop(memories);
        let again = map(guests[0].file(), 0);
        assert!(!again.is_lost());
    }

    #[test]
    fn memory_that_is_lost_reads_as_zeros_either_way() {
        let guest = GuestMemory::new(0, LEN);
        for zeros in [shared_zeros, own_zeros] {
            let mut memory = Memory::default();
            memory.add(map(guest.file(), 0)).unwrap();
            guest.write(0, &[7; 0x10000]);
            let base = memory.slice(0, 1).unwrap().as_ptr().expose_provenance();
            zeros(base, 0x10000).unwrap();
            let mut bytes = [1; 0x10000];
            assert!(memory.read(0, &mut bytes));
            assert_eq!(bytes, [0; 0x10000]);
            assert!(memory.write(0xffff, IoSlice::new(&[1])));
            assert_eq!(guest.read(0xffff, 1), [7]);
        }
    }

    /// What a handler sees that was there before is not ours, and without one the process ends.
    #[test]
    fn faults_of_others_are_left_to_others() {
        let run = |test: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--ignored", "--exact", test]).output().unwrap()
        };
        for test in ["a_signal_is_sent", "a_mapping_of_somebody_elses"] {
            let output = run(&format!("virtio::fault::tests::{test}"));
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{test}: {output:?}");
        }
    }

    #[test]
    #[ignore = "it ends its process: `faults_of_others_are_left_to_others` runs it in one of its own"]
    fn a_signal_is_sent() {
        let guest = GuestMemory::new(0, LEN);
        let _region = map(guest.file(), 0);
        // Rust's own handler, which was there before, takes the first for a fault that will happen again.
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            kill_process(getpid(), Signal::BUS).unwrap();
        }
    }

    #[test]
    #[ignore = "it ends its process: `faults_of_others_are_left_to_others` runs it in one of its own"]
    fn a_mapping_of_somebody_elses() {
        let guest = GuestMemory::new(0, LEN);
        let _region = map(guest.file(), 0);
        // SAFETY: the kernel chooses a place where nothing is mapped.
        let other =
            unsafe { mm::mmap(ptr::null_mut(), 4096, ACCESS, MapFlags::SHARED, guest.file(), 0).unwrap() };
        guest.file().set_len(0).unwrap();
        // SAFETY: it is mapped; that there is nothing behind it is the point.
        unsafe { other.cast::<u8>().read_volatile() };
    }
}

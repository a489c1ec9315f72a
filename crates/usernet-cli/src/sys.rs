//! The system calls that have no safe wrapper: the only `unsafe` of the program.
#![expect(unsafe_code, reason = "descriptors that were inherited by number, and namespaces")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::fd::BorrowedFd;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::thread::UnshareFlags;

/// Takes over a descriptor that this process was started with and was told the number of. It is
/// not passed on to processes that this one starts.
///
/// To be called before this process opens anything, lest the number be one of its own.
///
/// # Errors
/// There is no such descriptor.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is not -1. It is borrowed for this call alone, which fails with EBADF when it is closed.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as the call above has shown, and nobody else in this process owns it: the
    // process was given it by number, and takes it over once, before it opens anything itself.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Moves this process into new namespaces of users, networks and mounts.
///
/// # Errors
/// The system does not allow it, or this process has more than one thread.
pub(crate) fn unshare() -> io::Result<()> {
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // SAFETY: the flags leave the table of descriptors shared (no CLONE_FILES).
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

//! The system calls that neither `rustix` nor `socket2` wraps.
#![allow(unsafe_code, reason = "these calls have no safe wrapper")]

use std::io::IoSliceMut;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use libc::{c_int, c_void, socklen_t};
use rustix::io::{Errno, Result};
use socket2::{SockAddr, SockAddrStorage};

/// What [`receive`] returned.
pub(crate) struct Message {
    /// Bytes put into the buffers.
    pub(crate) len: usize,
    /// Bytes of control messages.
    pub(crate) control: usize,
    pub(crate) from: Option<SocketAddr>,
    /// `MSG_*`, as `recvmsg` returned them.
    pub(crate) flags: c_int,
}

/// Sets a socket option that takes an `int`.
pub(crate) fn set_int(fd: impl AsFd, level: c_int, name: c_int, value: c_int) -> Result<()> {
    // SAFETY: the value is an int that outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            socklen::<c_int>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Some of a socket's memory counters (`SO_MEMINFO`), in bytes of memory.
pub(crate) struct Memory {
    pub(crate) send_buffer: u32,
    /// In the send queue (stream sockets of IP).
    pub(crate) queued: u32,
    /// Handed on, and not yet freed by whoever has it.
    pub(crate) allocated: u32,
}

pub(crate) fn memory(fd: impl AsFd) -> Result<Memory> {
    let mut counters = [0u32; 9];
    let mut len = socklen::<[u32; 9]>();
    // SAFETY: the kernel writes at most `len` bytes into `counters`, which has that size.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            counters.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    // SK_MEMINFO_WMEM_ALLOC is 2, SNDBUF 3, WMEM_QUEUED 5 (linux/sock_diag.h).
    let [_, _, allocated, send_buffer, _, queued, ..] = counters;
    Ok(Memory { send_buffer, queued, allocated })
}

/// Drops up to `len` bytes from the front of a TCP socket's receive queue; returns how many.
pub(crate) fn discard(fd: impl AsFd, len: usize) -> Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP copies nothing and never looks at the buffer (tcp(7)).
    let result = unsafe { libc::recv(fd.as_fd().as_raw_fd(), ptr::null_mut(), len, flags) };
    usize::try_from(result).map_err(|_| last_errno())
}

/// `recvmsg` with room for control messages that `rustix` does not know.
pub(crate) fn receive(
    fd: impl AsFd,
    iov: &mut [IoSliceMut<'_>],
    control: &mut [u8],
    flags: c_int,
) -> Result<Message> {
    let mut name = SockAddrStorage::zeroed();
    // SAFETY: all zeros is a valid msghdr: null pointers and zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = ptr::from_mut(&mut name).cast::<c_void>();
    header.msg_namelen = name.size_of();
    // IoSliceMut has the layout of iovec on Unix, by its documentation.
    header.msg_iov = iov.as_mut_ptr().cast();
    header.msg_iovlen = iov.len() as _;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    // SAFETY: every pointer in the header is to a live buffer of the length given beside it.
    let result = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut header, flags) };
    let len = usize::try_from(result).map_err(|_| last_errno())?;
    // SAFETY: the kernel wrote `msg_namelen` bytes of an address, and zeros follow them.
    let from = unsafe { SockAddr::new(name, header.msg_namelen) };
    Ok(Message { len, control: header.msg_controllen as _, from: from.as_socket(), flags: header.msg_flags })
}

#[expect(clippy::cast_possible_truncation, reason = "options are a few bytes long")]
const fn socklen<T>() -> socklen_t {
    size_of::<T>() as socklen_t
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

//! The system calls that neither `rustix` nor `socket2` wraps.
#![allow(unsafe_code, reason = "these calls have no safe wrapper")]

use std::io::{IoSlice, IoSliceMut};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use libc::{c_int, c_void, socklen_t};
use rustix::io::{Errno, Result};
use socket2::{SockAddr, SockAddrStorage};

/// What [`receive`] or [`receive_many`] took in.
pub(crate) struct Message {
    /// Bytes put into the buffers.
    pub(crate) len: usize,
    /// Bytes of control messages.
    pub(crate) control: usize,
    pub(crate) from: Option<SocketAddr>,
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

/// A socket option that is an `int`.
pub(crate) fn get_int(fd: impl AsFd, level: c_int, name: c_int) -> Result<c_int> {
    let mut value: c_int = 0;
    let mut len = socklen::<c_int>();
    // SAFETY: the kernel writes at most `len` bytes into the value, which has that size.
    let result = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, ptr::from_mut(&mut value).cast(), &mut len)
    };
    if result == 0 { Ok(value) } else { Err(last_errno()) }
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
    let mut header = receive_header(&mut name, iov, control);
    // SAFETY: every pointer in the header is to a live buffer of the length given beside it.
    let result = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut header, flags) };
    let len = usize::try_from(result).map_err(|_| last_errno())?;
    Ok(Message::new(&header, name, len))
}

/// Where the sender of a message and its control messages go.
#[derive(Debug)]
pub(crate) struct Slot {
    name: SockAddrStorage,
    control: [u8; CONTROL_LEN],
}

/// Bytes of control messages that come with one message at most: a local address, a time to live, a
/// size and more.
const CONTROL_LEN: usize = 128;

impl Slot {
    pub(crate) fn new() -> Self {
        Self { name: SockAddrStorage::zeroed(), control: [0; CONTROL_LEN] }
    }
}

/// `recvmmsg`: one message into each buffer, for as long as there are any. Hands each to `take`, with
/// its control messages; returns how many there were.
pub(crate) fn receive_many<const N: usize>(
    fd: impl AsFd,
    buffers: &mut [IoSliceMut<'_>; N],
    slots: &mut [Slot; N],
    flags: c_int,
    mut take: impl FnMut(Message, &[u8]),
) -> Result<usize> {
    // SAFETY: all zeros is a valid mmsghdr: null pointers and zero lengths.
    let mut headers: [libc::mmsghdr; N] = unsafe { mem::zeroed() };
    for ((header, buffer), slot) in headers.iter_mut().zip(buffers).zip(&mut *slots) {
        header.msg_hdr = receive_header(&mut slot.name, std::slice::from_mut(buffer), &mut slot.control);
    }
    // SAFETY: there are N headers, and every pointer in them is to a live buffer of the length given
    // beside it.
    let result = unsafe {
        libc::recvmmsg(fd.as_fd().as_raw_fd(), headers.as_mut_ptr(), count(N), flags, ptr::null_mut())
    };
    let count = usize::try_from(result).map_err(|_| last_errno())?;
    for (header, slot) in headers.iter().zip(slots).take(count) {
        let name = mem::replace(&mut slot.name, SockAddrStorage::zeroed());
        let message = Message::new(&header.msg_hdr, name, header.msg_len as usize);
        let control = slot.control.get(..message.control).unwrap_or_default();
        take(message, control);
    }
    Ok(count)
}

fn receive_header(
    name: &mut SockAddrStorage,
    iov: &mut [IoSliceMut<'_>],
    control: &mut [u8],
) -> libc::msghdr {
    let mut header = empty_header();
    header.msg_name = ptr::from_mut(name).cast::<c_void>();
    header.msg_namelen = name.size_of();
    // IoSliceMut has the layout of iovec on Unix, by its documentation.
    header.msg_iov = iov.as_mut_ptr().cast();
    header.msg_iovlen = iov.len() as _;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    header
}

impl Message {
    fn new(header: &libc::msghdr, name: SockAddrStorage, len: usize) -> Self {
        // SAFETY: the kernel wrote `msg_namelen` bytes of an address, and zeros follow them.
        let from = unsafe { SockAddr::new(name, header.msg_namelen) };
        let control = header.msg_controllen as _;
        Self { len, control, from: from.as_socket() }
    }
}

/// One message of [`send_many`].
pub(crate) struct Outgoing<'a, C> {
    pub(crate) to: SockAddr,
    /// Control messages, as bytes.
    pub(crate) control: C,
    pub(crate) payload: &'a [IoSlice<'a>],
}

/// `sendmmsg`. Returns how many messages were sent: at least one.
pub(crate) fn send_many<C: AsRef<[u8]>>(
    fd: impl AsFd,
    messages: &[Outgoing<'_, C>],
    flags: c_int,
) -> Result<usize> {
    let mut headers: Vec<_> = messages
        .iter()
        .map(|message| {
            let mut header = empty_header();
            header.msg_name = message.to.as_ptr().cast_mut().cast();
            header.msg_namelen = message.to.len();
            // IoSlice has the layout of iovec on Unix, by its documentation.
            header.msg_iov = message.payload.as_ptr().cast_mut().cast();
            header.msg_iovlen = message.payload.len() as _;
            let control = message.control.as_ref();
            header.msg_control = control.as_ptr().cast_mut().cast();
            header.msg_controllen = control.len() as _;
            libc::mmsghdr { msg_hdr: header, msg_len: 0 }
        })
        .collect();
    // SAFETY: every pointer in the headers is to a live buffer of the length given beside it, of which
    // the kernel writes none; it writes `msg_len` of each header.
    let result =
        unsafe { libc::sendmmsg(fd.as_fd().as_raw_fd(), headers.as_mut_ptr(), count(headers.len()), flags) };
    usize::try_from(result).map_err(|_| last_errno())
}

/// A number of messages, as the calls take it.
fn count(messages: usize) -> libc::c_uint {
    messages.try_into().unwrap_or(0)
}

fn empty_header() -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr: null pointers and zero lengths.
    unsafe { mem::zeroed() }
}

#[expect(clippy::cast_possible_truncation, reason = "options are a few bytes long")]
const fn socklen<T>() -> socklen_t {
    size_of::<T>() as socklen_t
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

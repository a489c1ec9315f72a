//! The system calls on a TAP device's descriptor, behind safe functions. All `unsafe` of this crate's
//! TAP link is here.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{self, IntegerSetter, Opcode, Setter, Updater, opcode};

/// Frames with an Ethernet header.
pub(super) const IFF_TAP: u16 = 0x0002;
/// No `struct tun_pi` in front of each frame.
pub(super) const IFF_NO_PI: u16 = 0x1000;
/// One of several queues: each descriptor that is attached to the device with this flag.
pub(super) const IFF_MULTI_QUEUE: u16 = 0x0100;
/// A virtio-net header in front of each frame.
pub(super) const IFF_VNET_HDR: u16 = 0x4000;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const TUNGETIFF: Opcode = opcode::read::<c_int>(b'T', 210);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);

/// `struct ifreq` with its union as these calls use it. They number their opcodes by `int` and still
/// take this struct, at most 40 bytes of it.
#[repr(C)]
#[derive(Default)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl IfReq {
    fn name(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

/// Attaches `/dev/net/tun` to the device of that name, made if there is none, and returns its real
/// name: an empty one, or one with `%d`, is filled in by the kernel.
pub(super) fn set_interface(fd: BorrowedFd<'_>, name: &str, flags: u16) -> io::Result<String> {
    let mut request = IfReq { flags, ..IfReq::default() };
    match request.name.get_mut(..name.len()) {
        Some(to) if name.len() < 16 && !name.contains('\0') => to.copy_from_slice(name.as_bytes()),
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an interface name has at most 15 bytes",
            ));
        }
    }
    // SAFETY: the opcode reads and writes one `struct ifreq`, which `IfReq` is at least as long as.
    let updater = unsafe { Updater::<TUNSETIFF, IfReq>::new(&mut request) };
    // SAFETY: `updater` holds a valid pointer to what the opcode takes.
    unsafe { ioctl::ioctl(fd, updater) }?;
    Ok(request.name())
}

/// The flags of the device that `fd` is attached to.
pub(super) fn interface_flags(fd: BorrowedFd<'_>) -> io::Result<u16> {
    let mut request = IfReq::default();
    // SAFETY: the opcode writes one `struct ifreq`, which `IfReq` is at least as long as.
    let updater = unsafe { Updater::<TUNGETIFF, IfReq>::new(&mut request) };
    // SAFETY: `updater` holds a valid pointer to what the opcode takes.
    unsafe { ioctl::ioctl(fd, updater) }?;
    Ok(request.flags)
}

/// Sets how long the virtio-net header is, in bytes, and that its fields are little-endian.
pub(super) fn set_vnet_header(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = c_int::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the opcode reads one int.
    let setter = unsafe { Setter::<TUNSETVNETHDRSZ, c_int>::new(len) };
    // SAFETY: `setter` holds a valid pointer to what the opcode takes.
    unsafe { ioctl::ioctl(fd, setter) }?;
    // SAFETY: the opcode reads one int.
    let setter = unsafe { Setter::<TUNSETVNETLE, c_int>::new(1) };
    // SAFETY: `setter` holds a valid pointer to what the opcode takes.
    unsafe { ioctl::ioctl(fd, setter) }?;
    Ok(())
}

/// Sets what the reader of `fd` takes undone: checksums, TCP super-frames with or without CWR, and
/// UDP super-frames where the kernel knows them (Linux 6.2). Returns whether it does.
pub(super) fn set_offloads(fd: BorrowedFd<'_>) -> io::Result<bool> {
    const TUN_F_CSUM: usize = 0x01;
    const TUN_F_TSO4: usize = 0x02;
    const TUN_F_TSO6: usize = 0x04;
    const TUN_F_TSO_ECN: usize = 0x08;
    // Both or neither.
    const TUN_F_USO: usize = 0x20 | 0x40;
    let set = |offloads| {
        // SAFETY: the opcode takes flags by value and touches no memory of ours.
        let setter = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads) };
        // SAFETY: `setter` holds the flags that the opcode takes.
        unsafe { ioctl::ioctl(fd, setter) }
    };
    let offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    match set(offloads | TUN_F_USO) {
        Ok(()) => Ok(true),
        Err(_) => Ok(set(offloads).map(|()| false)?),
    }
}

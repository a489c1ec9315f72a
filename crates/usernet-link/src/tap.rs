//! A TAP device: the kernel's own network stack as a guest, in whatever network namespace the device
//! was made.
//!
//! Each frame goes by one system call, behind a virtio-net header ([`crate::vnet`]). With checksums
//! and segmentation left undone, one call moves up to 64 KiB at any MTU, which is what makes a
//! TAP fast.
//!
//! One descriptor is one queue of the device, and one queue a [`Link`]. A device has one, or several that
//! its kernel deals flows to ([`TapLink::open_queues`]); what is sent may go by any of them.

mod ioctl;

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use usernet_core::frame::FrameBytes;
use usernet_core::offload::{Capabilities, Offload, SegmentKind, Segmentation};

use crate::segment::{Cutter, MAX_HEADERS};
use crate::{Link, LinkError, LinkRx, LinkTx, gather, vnet};

/// Frames that one batch has at most.
const BATCH: usize = 8;
/// Room for the longest frame, in bytes: a super-frame of 64 KiB behind an Ethernet header and a
/// VLAN tag.
const MAX_FRAME: usize = 66 * 1024;
/// Payload that one frame takes at most, in bytes: with the longest headers IP can still count it.
const MAX_PAYLOAD: usize = 65_535 - MAX_HEADERS;

/// A guest on a TAP device.
#[derive(Debug)]
pub struct TapLink;

impl TapLink {
    /// Opens the TAP device `name` in the current network namespace, or makes it, and returns its
    /// real name, too. An empty name, or one with `%d` in it, is filled in by the kernel.
    ///
    /// # Errors
    /// `/dev/net/tun` cannot be opened, or there may be no such device; the message says which.
    pub fn open(name: &str) -> io::Result<(Link, String)> {
        Self::open_queue(name, 0)
    }

    /// Opens the device with `count` queues, as [`TapLink::open`] does with one, and at least that. With
    /// several, all of them must be read: frames that the kernel has dealt to one wait there.
    ///
    /// # Errors
    /// As for [`TapLink::open`]; or the system does not let the device have so many.
    pub fn open_queues(name: &str, count: usize) -> io::Result<(Vec<Link>, String)> {
        let several = if count > 1 { ioctl::IFF_MULTI_QUEUE } else { 0 };
        let (first, name) = Self::open_queue(name, several)?;
        let mut links = vec![first];
        while links.len() < count {
            links.push(Self::open_queue(&name, several)?.0);
        }
        Ok((links, name))
    }

    fn open_queue(name: &str, flags: u16) -> io::Result<(Link, String)> {
        let access = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", access, Mode::empty())
            .map_err(|error| context("cannot open /dev/net/tun", error.into()))?;
        let flags = flags | ioctl::IFF_TAP | ioctl::IFF_NO_PI | ioctl::IFF_VNET_HDR;
        let name = ioctl::set_interface(fd.as_fd(), name, flags)
            .map_err(|error| context(&format!("cannot make the TAP device `{name}`"), error))?;
        Ok((Self::from_fd(fd)?, name))
    }

    /// Takes over a descriptor of `/dev/net/tun`, a queue, that is attached to a TAP device with
    /// `IFF_NO_PI` and `IFF_VNET_HDR`. It becomes non-blocking. Whether `IFF_NO_PI` was set is the
    /// caller's word: the kernel reports another flag in its place (`IFF_NOFILTER`).
    ///
    /// # Errors
    /// It is something else (`InvalidInput`; the message says what), or the system refuses.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Link> {
        let flags = ioctl::interface_flags(fd.as_fd())
            .map_err(|error| context("the descriptor is not attached to a TAP device", error))?;
        let unfit = |reason| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        if flags & ioctl::IFF_TAP == 0 {
            return unfit("the descriptor is a TUN device, whose packets have no Ethernet header");
        }
        if flags & ioctl::IFF_VNET_HDR == 0 {
            return unfit("the descriptor is a TAP device without a virtio-net header (IFF_VNET_HDR)");
        }
        let uso = ioctl::set_vnet_header(fd.as_fd(), vnet::HEADER_LEN)
            .and_then(|()| ioctl::set_offloads(fd.as_fd()))
            .map_err(|error| context("the TAP device does not take offloads", error))?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::with(fd, uso)
    }

    fn with(fd: OwnedFd, uso: bool) -> io::Result<Link> {
        Ok(Link {
            kind: "tap",
            rx: Box::new(TapRx {
                fd: fd.try_clone()?,
                buffers: vec![0; BATCH * BUFFER].into(),
                frames: Vec::with_capacity(BATCH),
                wanted: 1,
                over: false,
                dropped: 0,
            }),
            tx: Box::new(TapTx { fd, scratch: vec![0; MAX_FRAME].into(), reserved: 0, uso, dropped: 0 }),
        })
    }
}

/// One frame behind its virtio-net header.
const BUFFER: usize = vnet::HEADER_LEN + MAX_FRAME;

struct TapRx {
    fd: OwnedFd,
    /// [`BATCH`] times [`BUFFER`]. Pages that no frame ever reached cost nothing.
    buffers: Box<[u8]>,
    /// Where the batch's frames lie in `buffers`.
    frames: Vec<(Range<usize>, Offload)>,
    /// How many frames the next batch asks for: as many as there were, or twice that when those were
    /// all that was asked for. Where one comes at a time, finding that there is no other costs a call.
    wanted: usize,
    /// The last batch was the last for now.
    over: bool,
    dropped: u64,
}

impl LinkRx for TapRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&mut self) -> Result<Option<usize>, LinkError> {
        self.frames.clear();
        if std::mem::take(&mut self.over) {
            return Ok(None);
        }
        let wanted = self.wanted;
        self.over = wanted < BATCH;
        self.wanted = (2 * wanted).min(BATCH);
        for (index, buffer) in self.buffers.chunks_exact_mut(BUFFER).take(wanted).enumerate() {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(len) => match parse(buffer.get(..len).unwrap_or_default()) {
                    Some(offload) => {
                        let start = index * BUFFER;
                        self.frames.push((start + vnet::HEADER_LEN..start + len, offload));
                    }
                    None => self.dropped += 1,
                },
                Err(Errno::AGAIN) if index == 0 => {
                    (self.wanted, self.over) = (wanted, false);
                    return Ok(None);
                }
                Err(Errno::AGAIN) => {
                    (self.wanted, self.over) = (index, true);
                    break;
                }
                // It will fail again, when what came before has been seen to.
                Err(_) if index > 0 => break,
                Err(error) => return Err(ended(error)),
            }
        }
        Ok(Some(self.frames.len()))
    }

    fn frame_len(&self, index: usize) -> usize {
        self.frame(index).len()
    }

    fn offload(&self, index: usize) -> Offload {
        self.frames.get(index).map(|(_, offload)| *offload).unwrap_or_default()
    }

    fn copy_to(&self, index: usize, at: usize, to: &mut [u8]) -> usize {
        self.frame(index).copy_to(at, to)
    }

    fn slices<'a>(&'a self, index: usize, range: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.frame(index).get(range).map(IoSlice::new));
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl TapRx {
    fn frame(&self, index: usize) -> &[u8] {
        self.frames.get(index).and_then(|(range, _)| self.buffers.get(range.clone())).unwrap_or_default()
    }
}

struct TapTx {
    fd: OwnedFd,
    /// The reserved room, or a frame that has to be cut.
    scratch: Box<[u8]>,
    /// How much of it is reserved.
    reserved: usize,
    /// The device takes super-frames of UDP.
    uso: bool,
    dropped: u64,
}

impl LinkTx for TapTx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { checksum: true, tcp4: true, tcp6: true, udp: self.uso }
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, LinkError> {
        self.reserved = 0;
        let len = frame.iter().map(|part| part.len()).sum::<usize>();
        match offload.segmentation {
            Some(Segmentation { kind: SegmentKind::Udp, size, header_len }) if !self.uso => {
                let header_len = usize::from(header_len);
                let mut header = [0; MAX_HEADERS];
                let (Some(header), Some(payload)) = (
                    header.get_mut(..header_len),
                    len.checked_sub(header_len).and_then(|len| self.scratch.get_mut(..len)),
                ) else {
                    self.dropped += 1;
                    return Ok(true);
                };
                gather(frame, 0, header);
                gather(frame, header_len, payload);
                let len = payload.len();
                self.write_cut(header, len, size)?;
            }
            _ => {
                let header = vnet::encode(offload);
                let mut parts = Vec::with_capacity(frame.len() + 1);
                parts.push(IoSlice::new(&header));
                parts.extend_from_slice(frame);
                self.dropped += write(&self.fd, &parts)?;
            }
        }
        Ok(true)
    }

    fn reserve<'a>(
        &'a mut self,
        _header_len: usize,
        _segment: usize,
        max: usize,
        out: &mut Vec<IoSliceMut<'a>>,
    ) -> usize {
        self.reserved = max.min(MAX_PAYLOAD);
        out.extend(self.scratch.get_mut(..self.reserved).map(IoSliceMut::new));
        self.reserved
    }

    fn commit(&mut self, header: &[u8], len: usize, offload: Offload) -> Result<(), LinkError> {
        debug_assert!(len <= self.reserved, "what is committed was reserved");
        let len = len.min(std::mem::take(&mut self.reserved));
        if let Some(Segmentation { kind: SegmentKind::Udp, size, .. }) = offload.segmentation
            && !self.uso
        {
            return self.write_cut(header, len, size);
        }
        let payload = self.scratch.get(..len).unwrap_or_default();
        let vnet_header = vnet::encode(offload);
        let parts = [&vnet_header, header, payload].map(IoSlice::new);
        self.dropped += write(&self.fd, &parts)?;
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, LinkError> {
        Ok(true)
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl TapTx {
    /// Cuts the first `len` bytes of the scratch in software, where the device does not do it, and
    /// writes the wire packets.
    fn write_cut(&mut self, header: &[u8], len: usize, size: u16) -> Result<(), LinkError> {
        let Some(cutter) = Cutter::new(header, size.into(), len) else {
            self.dropped += 1;
            return Ok(());
        };
        let vnet_header = vnet::encode(Offload::default());
        let mut packet_header = [0; MAX_HEADERS];
        let (packet_header, _) = packet_header.split_at_mut(header.len());
        for index in 0..cutter.packets() {
            let payload = self.scratch.get(cutter.payload(index)).unwrap_or_default();
            cutter.write_header(index, payload, packet_header);
            self.dropped += write(&self.fd, &[&vnet_header, &*packet_header, payload].map(IoSlice::new))?;
        }
        Ok(())
    }
}

/// What a frame behind its virtio-net header leaves undone; `None` when it is none.
fn parse(bytes: &[u8]) -> Option<Offload> {
    let (header, frame) = bytes.split_first_chunk()?;
    vnet::decode(header, frame)
}

/// Writes one frame behind its virtio-net header. Returns how many frames were dropped: the kernel
/// refuses one that makes no sense to it, that it has no memory for, or that comes while the device
/// is down. The next may do better.
fn write(fd: &OwnedFd, parts: &[IoSlice<'_>]) -> Result<u64, LinkError> {
    match rustix::io::writev(fd, parts) {
        Ok(_) => Ok(0),
        Err(Errno::IO | Errno::INVAL | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN) => Ok(1),
        Err(error) => Err(ended(error)),
    }
}

/// A device that was deleted leaves its descriptor behind, in a bad state.
fn ended(error: Errno) -> LinkError {
    match error {
        Errno::BADFD => LinkError::Closed,
        error => LinkError::Io(error.into()),
    }
}

fn context(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests;

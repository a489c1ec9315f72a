//! QEMU's `-netdev stream`: over a Unix or TCP stream socket, each Ethernet frame behind its length
//! (u32, big-endian).
//!
//! There is no header for offloads and no system call for many packets, so what helps is large reads
//! and writes. One read brings in as many frames as there are, and they are handled where they lie.
//! Frames for the guest gather in one buffer that a single write empties; payload is read from the
//! host straight into its place there, with gaps for the length and the headers of each wire packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, sockopt};
use usernet_core::frame::FrameBytes;
use usernet_core::offload::{Capabilities, Offload, Segmentation};

use crate::segment::{Cutter, MAX_HEADERS, finish_checksum};
use crate::{Link, LinkError, LinkRx, LinkTx, gather};

/// The longest frame, in bytes: QEMU's own bound. It is above what IP can fill (65,553 with a VLAN
/// tag), so that a guest's oversized frame costs it that frame and not its link.
pub const MAX_FRAME: usize = 69_632;
/// The shortest frame that is taken: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Frames to the guest are padded with zeros to this many bytes, the shortest frame on a wire.
const PADDED: usize = 60;
/// The length in front of each frame, in bytes.
const PREFIX: usize = 4;
/// Bytes that one read takes at most. Above a Unix socket's default send buffer, so that most reads
/// end where a frame does and nothing needs to be moved.
const RX_BUFFER: usize = 256 * 1024;
/// Bytes that wait for the guest at most; then there is no room.
const TX_BUFFER: usize = 256 * 1024;
/// Bytes that one reservation takes at most, packets with all that goes around them.
const MAX_RESERVED: usize = TX_BUFFER / 2;
/// Slices that one reservation has at most: half of what a system call takes (`UIO_MAXIOV`), the
/// rest is the caller's.
const MAX_SLICES: usize = 512;

/// A guest on a stream socket.
#[derive(Debug)]
pub struct StreamLink;

impl StreamLink {
    /// Takes over a connected stream socket. It becomes non-blocking and, over TCP, sends without
    /// delay.
    ///
    /// # Errors
    /// It is no stream socket (`InvalidInput`), or the system refuses.
    #[expect(clippy::new_ret_no_self, reason = "every kind of link makes a `Link`")]
    pub fn new(fd: OwnedFd) -> io::Result<Link> {
        let kind = sockopt::socket_type(&fd)?;
        if kind != SocketType::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        }
        if matches!(sockopt::socket_domain(&fd)?, AddressFamily::INET | AddressFamily::INET6) {
            sockopt::set_tcp_nodelay(&fd, true)?;
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Link {
            kind: "stream",
            rx: Box::new(StreamRx { fd: fd.try_clone()?, deframer: Deframer::new() }),
            tx: Box::new(StreamTx {
                fd,
                buffer: vec![0; TX_BUFFER].into(),
                pending: 0..0,
                reserved: None,
                dropped: 0,
            }),
        })
    }
}

struct StreamRx {
    fd: OwnedFd,
    deframer: Deframer,
}

impl LinkRx for StreamRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&mut self) -> Result<Option<usize>, LinkError> {
        match rustix::net::recv(&self.fd, self.deframer.room(), RecvFlags::empty()) {
            Ok((_, 0)) => Err(LinkError::Closed),
            Ok((_, len)) => self.deframer.advance(len).map(Some),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(ended(error)),
        }
    }

    fn frame_len(&self, index: usize) -> usize {
        self.deframer.frame(index).len()
    }

    fn offload(&self, _index: usize) -> Offload {
        Offload::default()
    }

    fn copy_to(&self, index: usize, at: usize, to: &mut [u8]) -> usize {
        self.deframer.frame(index).copy_to(at, to)
    }

    fn slices<'a>(&'a self, index: usize, range: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.deframer.frame(index).get(range).map(IoSlice::new));
    }
}

/// Finds frames in a byte stream, where they lie.
///
/// Put bytes into [`Deframer::room`], tell how many with [`Deframer::advance`], look at the frames,
/// and again. Its one buffer never grows.
#[derive(Debug)]
pub struct Deframer {
    buffer: Box<[u8]>,
    /// The bytes behind the last whole frame.
    rest: Range<usize>,
    frames: Vec<Range<usize>>,
}

impl Default for Deframer {
    fn default() -> Self {
        Self::new()
    }
}

impl Deframer {
    /// A deframer at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: vec![0; RX_BUFFER].into(), rest: 0..0, frames: Vec::new() }
    }

    /// Forgets the frames and lends room for more bytes, never none.
    pub fn room(&mut self) -> &mut [u8] {
        self.frames.clear();
        let len = self.rest.len();
        self.buffer.copy_within(self.rest.clone(), 0);
        self.rest = 0..len;
        self.buffer.get_mut(len..).unwrap_or_default()
    }

    /// Takes the first `len` bytes of the room, and returns how many whole frames there are.
    ///
    /// # Errors
    /// [`LinkError::Malformed`]: a length that no frame has.
    pub fn advance(&mut self, len: usize) -> Result<usize, LinkError> {
        self.rest.end = (self.rest.end + len).min(self.buffer.len());
        while let Some(rest) = self.buffer.get(self.rest.clone())
            && let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>()
        {
            let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
            if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
                let reason = format!("a frame of {len} bytes, where {MIN_FRAME} to {MAX_FRAME} are possible");
                return Err(LinkError::Malformed(reason));
            }
            if rest.len() < len {
                break;
            }
            let start = self.rest.start + PREFIX;
            self.frames.push(start..start + len);
            self.rest.start = start + len;
        }
        Ok(self.frames.len())
    }

    /// Frame `index` of the batch, from its Ethernet header on; empty when there is none.
    #[must_use]
    pub fn frame(&self, index: usize) -> &[u8] {
        self.frames.get(index).and_then(|range| self.buffer.get(range.clone())).unwrap_or_default()
    }
}

struct StreamTx {
    fd: OwnedFd,
    buffer: Box<[u8]>,
    /// What waits for the guest. What is free is behind it.
    pending: Range<usize>,
    reserved: Option<Reserved>,
    dropped: u64,
}

/// Room behind `pending` that was lent: see [`stride`].
struct Reserved {
    header_len: usize,
    segment: usize,
    room: usize,
}

impl LinkTx for StreamTx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, LinkError> {
        self.reserved = None;
        let len = frame.iter().map(|part| part.len()).sum();
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            self.dropped += 1;
            return Ok(true);
        }
        match offload.segmentation {
            None => Ok(self.send_whole(frame, len, offload)),
            Some(segmentation) => Ok(self.send_cut(frame, len, segmentation)),
        }
    }

    fn reserve<'a>(
        &'a mut self,
        header_len: usize,
        segment: usize,
        max: usize,
        out: &mut Vec<IoSliceMut<'a>>,
    ) -> usize {
        self.reserved = None;
        let segment = segment.min(max).clamp(1, MAX_FRAME);
        let stride = stride(header_len, segment);
        let packets = max.div_ceil(segment).min(MAX_SLICES).min(MAX_RESERVED / stride);
        // All or nothing: what is left of a nearly full buffer is not worth a read from the host.
        if !self.make_room(packets * stride) {
            return 0;
        }
        let room = max.min(packets * segment);
        self.reserved = Some(Reserved { header_len, segment, room });
        let free = self.buffer.get_mut(self.pending.end..).unwrap_or_default();
        let mut rest = room;
        for packet in free.chunks_exact_mut(stride).take(packets) {
            let (_, payload) = packet.split_at_mut(PREFIX + header_len);
            let (payload, _) = payload.split_at_mut(segment.min(rest));
            rest -= payload.len();
            out.push(IoSliceMut::new(payload));
        }
        room
    }

    fn commit(&mut self, header: &[u8], len: usize, offload: Offload) -> Result<(), LinkError> {
        let reserved = self.reserved.take().filter(|it| it.header_len == header.len() && len <= it.room);
        debug_assert!(reserved.is_some(), "what is committed was reserved");
        let sent = match reserved {
            None => false,
            Some(Reserved { segment, .. }) if len > segment => {
                Cutter::new(header, segment, len).is_some_and(|cutter| self.write_packets(&cutter, |_, _| ()))
            }
            Some(_) => self.write_packet(header.len() + len, |frame| {
                frame.split_at_mut(header.len()).0.copy_from_slice(header);
                finish_checksum(frame, offload.checksum)
            }),
        };
        self.dropped += u64::from(!sent);
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, LinkError> {
        self.reserved = None;
        while let Some(bytes) = self.buffer.get(self.pending.clone()).filter(|bytes| !bytes.is_empty()) {
            match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Ok(len) => self.pending.start += len,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(ended(error)),
            }
        }
        self.pending = 0..0;
        Ok(true)
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl StreamTx {
    fn send_whole(&mut self, parts: &[IoSlice<'_>], len: usize, offload: Offload) -> bool {
        if !self.make_room(stride(0, len)) {
            return false;
        }
        let sent = self.write_packet(len, |frame| {
            gather(parts, 0, frame);
            finish_checksum(frame, offload.checksum)
        });
        self.dropped += u64::from(!sent);
        true
    }

    fn send_cut(&mut self, parts: &[IoSlice<'_>], len: usize, segmentation: Segmentation) -> bool {
        let header_len = usize::from(segmentation.header_len);
        let mut header = [0; MAX_HEADERS];
        let cutter = header.get_mut(..header_len).and_then(|header| {
            gather(parts, 0, header);
            Cutter::new(header, segmentation.size.into(), len.checked_sub(header_len)?)
        });
        let room = |cutter: &Cutter<'_>| cutter.packets() * stride(header_len, segmentation.size.into());
        // One that is cut so small that it never fits would keep all others waiting.
        let Some(cutter) = cutter.filter(|cutter| room(cutter) <= TX_BUFFER) else {
            self.dropped += 1;
            return true;
        };
        if !self.make_room(room(&cutter)) {
            return false;
        }
        self.write_packets(&cutter, |at, payload| gather(parts, header_len + at, payload))
    }

    /// Writes all packets of a super-frame behind what is pending. Each packet's payload lies in
    /// its place when `fill`, which is given its offset, is done.
    fn write_packets(&mut self, cutter: &Cutter<'_>, fill: impl Fn(usize, &mut [u8])) -> bool {
        (0..cutter.packets()).all(|index| {
            let range = cutter.payload(index);
            self.write_packet(cutter.header_len() + range.len(), |frame| {
                let (header, payload) = frame.split_at_mut(cutter.header_len());
                fill(range.start, payload);
                cutter.write_header(index, payload, header);
                true
            })
        })
    }

    /// Writes one frame of `len` bytes behind what is pending, where there must be room: its length,
    /// what `fill` writes, and padding. Takes it back when `fill` returns `false`.
    fn write_packet(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let end = self.pending.end + stride(0, len);
        let Some((prefix, frame)) = self
            .buffer
            .get_mut(self.pending.end..end)
            .and_then(|slot| slot.split_first_chunk_mut::<PREFIX>())
        else {
            return false;
        };
        let (padded, (frame, padding)) = (frame.len(), frame.split_at_mut(len));
        if !fill(frame) {
            return false;
        }
        padding.fill(0);
        *prefix = u32::try_from(padded).unwrap_or_default().to_be_bytes();
        self.pending.end = end;
        true
    }

    /// Whether there are `len` free bytes behind what is pending.
    fn make_room(&mut self, len: usize) -> bool {
        // Moved only to where it does not overlap, so that every byte is moved at most once for
        // each one that the guest took.
        if self.buffer.len() - self.pending.end < len && self.pending.len() <= self.pending.start {
            self.buffer.copy_within(self.pending.clone(), 0);
            self.pending = 0..self.pending.len();
        }
        self.buffer.len() - self.pending.end >= len
    }
}

/// The room that a frame takes, in bytes: its length in front, and padding behind where it is short.
fn stride(header_len: usize, payload_len: usize) -> usize {
    PREFIX + PADDED.max(header_len + payload_len)
}

/// A guest that is gone has closed the link, however it went.
fn ended(error: Errno) -> LinkError {
    match error {
        Errno::PIPE | Errno::CONNRESET => LinkError::Closed,
        error => LinkError::Io(error.into()),
    }
}

#[cfg(test)]
mod tests;

//! Frames into the guest's receive queue.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use usernet_core::frame::FrameBytes as _;
use usernet_core::offload::{Capabilities, Checksum, Offload, SegmentKind};

use super::memory::Memory;
use super::pair::{Pair, Queue, RECEIVE, State, lock};
use super::ring::{Buffer, Direction, MAX_CHAIN, Ring, RingError};
use super::scattered::Scattered;
use crate::segment::{MAX_HEADERS, finished};
use crate::{LinkError, LinkTx, RoomTold, vnet};

/// The longest frame, in bytes: a super-frame of 64 KiB behind an Ethernet header and a VLAN tag.
pub(super) const MAX_FRAME: usize = 66 * 1024;
/// Payload that one frame takes at most, in bytes: with the longest headers IP can still count it.
const MAX_PAYLOAD: usize = 65_535 - MAX_HEADERS;

/// How often the ring is looked at for room in a row.
const LOOKS: usize = 4;

/// The half of a link that has the receive queue.
pub(super) struct QueueTx {
    pair: Arc<Pair>,
    poll: OwnedFd,
    writer: Writer,
}

/// Puts frames into buffers of the guest's.
#[derive(Default)]
struct Writer {
    /// The chains that were taken, and not given back.
    chains: Vec<Room>,
    buffers: Vec<Buffer>,
    lent: Lent,
    /// Payload for a guest that takes no super-frames, allocated when there is such a one.
    scratch: Vec<u8>,
    /// Bytes that there was no room for, or 0: the guest's kick tells when there may be.
    wanted: usize,
    dropped: u64,
}

/// A chain of buffers to be filled.
struct Room {
    head: u16,
    len: usize,
}

/// What came of taking chains.
enum Taken {
    /// They have this many bytes.
    Bytes(usize),
    /// The guest has made too few available.
    Short,
    /// It has made as many available as a frame can have, and they are too small.
    Never,
}

/// What room was lent.
#[derive(Default)]
enum Lent {
    #[default]
    Nothing,
    /// The guest's own buffers, behind the virtio-net header and so many bytes of headers. The memory is held
    /// no longer than that: a guest may take it away.
    Buffers { memory: Arc<Memory>, header_len: usize, room: usize },
    /// The scratch, since frames have to be cut for this guest.
    Scratch { room: usize },
}

impl QueueTx {
    pub(super) fn new(pair: Arc<Pair>, poll: OwnedFd) -> Self {
        Self { pair, poll, writer: Writer::default() }
    }
}

impl LinkTx for QueueTx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn room_told_by(&self) -> RoomTold {
        RoomTold::Readable
    }

    fn capabilities(&self) -> Capabilities {
        lock(&self.pair.state).takes
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, LinkError> {
        let state = &mut *lock(&self.pair.state);
        self.writer.forget(&mut state.to_guest);
        let put = self.writer.put(state, frame, offload);
        Ok(self.pair.or_break_down(state, RECEIVE, put))
    }

    fn reserve<'a>(
        &'a mut self,
        header_len: usize,
        segment: usize,
        max: usize,
        out: &mut Vec<IoSliceMut<'a>>,
    ) -> usize {
        let state = &mut *lock(&self.pair.state);
        self.writer.forget(&mut state.to_guest);
        let room = self.writer.reserve(state, header_len, segment, max.min(MAX_PAYLOAD));
        let room = self.pair.or_break_down(state, RECEIVE, room);
        self.writer.lend(room, out)
    }

    fn commit(&mut self, header: &[u8], len: usize, offload: Offload) -> Result<(), LinkError> {
        let state = &mut *lock(&self.pair.state);
        let committed = self.writer.commit(state, header, len, offload);
        self.pair.or_break_down(state, RECEIVE, committed);
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, LinkError> {
        let state = &mut *lock(&self.pair.state);
        self.writer.forget(&mut state.to_guest);
        state.to_guest.publish();
        state.check_memory()?;
        let has_room = self.writer.await_room(state);
        Ok(self.pair.or_break_down(state, RECEIVE, has_room) || self.pair.is_idle(state))
    }

    fn is_idle(&self) -> bool {
        self.pair.is_idle(&lock(&self.pair.state))
    }

    fn dropped(&self) -> u64 {
        self.writer.dropped
    }
}

impl Writer {
    /// Gives up what was reserved.
    fn forget(&mut self, queue: &mut Queue) {
        self.lent = Lent::Nothing;
        self.chains.clear();
        self.buffers.clear();
        if let Some(ring) = &mut queue.ring {
            ring.rewind();
        }
    }

    /// Returns whether there is room for what there was none for, or asks the guest to tell when there may be.
    fn await_room(&mut self, state: &mut State) -> Result<bool, RingError> {
        for _ in 0..LOOKS {
            let wanted = std::mem::take(&mut self.wanted);
            if wanted == 0 || !matches!(self.take(state, wanted, wanted)?, Taken::Short) {
                self.forget(&mut state.to_guest);
                return Ok(true);
            }
            if !state.to_guest.await_kick()? {
                return Ok(false);
            }
        }
        // The guest fills its ring bit by bit as we look: it goes on with the next turn.
        state.to_guest.look_again();
        Ok(false)
    }

    /// Takes chains until they have `enough` bytes, or a frame can have no more of them, but none when they
    /// have fewer than `least`.
    fn take(&mut self, state: &mut State, least: usize, enough: usize) -> Result<Taken, RingError> {
        let mut len = 0;
        let mut most = usize::MAX;
        if let Some(ring) = &mut state.to_guest.ring {
            most = if state.mergeable { ring.size().into() } else { 1 };
            while len < enough
                && self.chains.len() < most
                && self.buffers.len() < usize::from(MAX_CHAIN)
                && let Some(chain) =
                    ring.take(&state.memory, Direction::ToGuest, usize::MAX, &mut self.buffers)?
            {
                len += chain.len;
                self.chains.push(Room { head: chain.head, len: chain.len });
            }
        }
        if len >= least {
            // Whoever wanted more before tries again.
            self.wanted = 0;
            return Ok(Taken::Bytes(len));
        }
        let never = self.chains.len() >= most || self.buffers.len() >= usize::from(MAX_CHAIN);
        self.forget(&mut state.to_guest);
        self.wanted = if never { 0 } else { least };
        Ok(if never { Taken::Never } else { Taken::Short })
    }

    /// Makes room for up to `max` bytes of payload; returns how much there is.
    fn reserve(
        &mut self,
        state: &mut State,
        header_len: usize,
        segment: usize,
        max: usize,
    ) -> Result<usize, RingError> {
        let in_front = vnet::HEADER_LEN + header_len;
        let packet = in_front + segment.min(max);
        let whole = state.takes.tcp4 && state.takes.tcp6 || max <= segment;
        let enough = if whole { in_front + max } else { packet };
        let Taken::Bytes(len) = self.take(state, packet, enough)? else { return Ok(0) };
        if whole {
            let room = (len - in_front).min(max);
            self.lent = Lent::Buffers { memory: Arc::clone(&state.memory), header_len, room };
            return Ok(room);
        }
        // Each packet takes as many chains, so no more of them are made than there is room for.
        let each = self.chains.len();
        self.forget(&mut state.to_guest);
        let waiting = state.to_guest.ring.as_mut().map_or(Ok(0), Ring::waiting)?;
        let room = (usize::from(waiting) / each.max(1) * segment).min(max);
        self.lent = Lent::Scratch { room };
        Ok(room)
    }

    /// Pushes the `room` that was reserved.
    fn lend<'a>(&'a mut self, room: usize, out: &mut Vec<IoSliceMut<'a>>) -> usize {
        match &self.lent {
            Lent::Nothing => return 0,
            Lent::Buffers { memory, header_len, .. } => {
                let in_front = vnet::HEADER_LEN + header_len;
                self.taken(memory).slices_mut(in_front..in_front + room, out);
            }
            Lent::Scratch { room } => {
                self.scratch.resize(*room, 0);
                out.push(IoSliceMut::new(&mut self.scratch));
            }
        }
        room
    }

    fn commit(
        &mut self,
        state: &mut State,
        header: &[u8],
        len: usize,
        offload: Offload,
    ) -> Result<(), RingError> {
        let payload = match std::mem::take(&mut self.lent) {
            Lent::Buffers { memory, header_len, room } if header_len == header.len() && len <= room => {
                if takes(state.takes, offload) {
                    self.finish(&mut state.to_guest, &memory, header, header.len() + len, offload);
                    return Ok(());
                }
                // What the guest cannot take is taken back out of its memory: it was never told of it.
                let mut payload = vec![0; len];
                self.taken(&memory).copy_to(vnet::HEADER_LEN + header_len, &mut payload);
                self.forget(&mut state.to_guest);
                payload
            }
            Lent::Scratch { room } if len <= room => std::mem::take(&mut self.scratch),
            _ => {
                debug_assert!(false, "what is committed was reserved");
                self.forget(&mut state.to_guest);
                return Ok(());
            }
        };
        let parts = [header, payload.get(..len).unwrap_or_default()].map(IoSlice::new);
        let put = self.put(state, &parts, offload);
        self.scratch = payload;
        self.dropped += u64::from(!put?);
        Ok(())
    }

    /// Puts a frame into the ring, or what it stands for where the guest would not take it so. `false`:
    /// there is no room.
    fn put(&mut self, state: &mut State, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, RingError> {
        if takes(state.takes, offload) {
            return self.put_one(state, frame, offload);
        }
        let packets = finished(frame, offload);
        let count = packets.len();
        self.dropped += u64::from(count == 0);
        for (index, packet) in packets.enumerate() {
            if !self.put_one(state, &[IoSlice::new(&packet)], Offload::default())? {
                // The first decides: the rest of a burst that finds the ring full is lost, as on any wire.
                self.dropped += if index > 0 { (count - index) as u64 } else { 0 };
                return Ok(index > 0);
            }
        }
        Ok(true)
    }

    fn put_one(
        &mut self,
        state: &mut State,
        frame: &[IoSlice<'_>],
        offload: Offload,
    ) -> Result<bool, RingError> {
        let len = frame.iter().map(|part| part.len()).sum::<usize>();
        let total = vnet::HEADER_LEN + len;
        if len > MAX_FRAME {
            self.dropped += 1;
            return Ok(true);
        }
        match self.take(state, total, total)? {
            Taken::Bytes(_) => {}
            Taken::Short => return Ok(false),
            Taken::Never => {
                self.dropped += 1;
                return Ok(true);
            }
        }
        let mut at = vnet::HEADER_LEN;
        for part in frame {
            self.taken(&state.memory).write_slice(at, *part);
            at += part.len();
        }
        self.finish(&mut state.to_guest, &state.memory, &[], len, offload);
        Ok(true)
    }

    /// Gives the guest a frame of `len` bytes, of which all but the `start` lies in the chains.
    fn finish(&mut self, queue: &mut Queue, memory: &Memory, start: &[u8], len: usize, offload: Offload) {
        let total = vnet::HEADER_LEN + len;
        let filled = |chain: &Room, left: &mut usize| {
            let written = chain.len.min(*left);
            *left -= written;
            (written > 0).then_some((chain.head, written))
        };
        let used = self.chains.iter().scan(total, |left, chain| filled(chain, left)).count();
        let mut header = vnet::encode(offload);
        if let Some(buffers) = header.last_chunk_mut() {
            *buffers = u16::try_from(used).unwrap_or(u16::MAX).to_le_bytes();
        }
        self.taken(memory).write(0, &header);
        self.taken(memory).write(header.len(), start);
        if let Some(ring) = &mut queue.ring {
            for (head, written) in self.chains.iter().scan(total, |left, chain| filled(chain, left)) {
                ring.give_back(head, u32::try_from(written).unwrap_or(u32::MAX));
            }
        }
        self.forget(queue);
    }

    /// The chains that were taken, as bytes.
    fn taken<'a>(&'a self, memory: &'a Memory) -> Scattered<'a> {
        let len = self.chains.iter().map(|chain| chain.len).sum();
        Scattered { memory, buffers: &self.buffers, len }
    }
}

/// Whether a driver that finishes `by_itself` takes a frame as it is.
fn takes(by_itself: Capabilities, offload: Offload) -> bool {
    let segments = offload.segmentation.is_none_or(|segmentation| match segmentation.kind {
        SegmentKind::Tcp4 => by_itself.tcp4,
        SegmentKind::Tcp6 => by_itself.tcp6,
        SegmentKind::Udp => by_itself.udp,
    });
    segments && (by_itself.checksum || offload.checksum == Checksum::Complete)
}

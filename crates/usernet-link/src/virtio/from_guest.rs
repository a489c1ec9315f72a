//! Frames from the guest's transmit queue.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use usernet_core::frame::FrameBytes as _;
use usernet_core::offload::Offload;

use super::memory::Memory;
use super::pair::{Pair, Queue, State, TRANSMIT, lock};
use super::ring::{Buffer, Direction, Ring, RingError};
use super::scattered::Scattered;
use super::to_guest::MAX_FRAME;
use crate::{LinkError, LinkRx, vnet};

/// Frames that one batch has at most.
const BATCH: usize = 64;
/// Bytes that one batch has about: what a host's socket may take at once.
const BATCH_BYTES: usize = 1 << 20;
/// Buffers that one batch has about, however small they are.
const BATCH_BUFFERS: usize = 1024;

/// Bytes that are given back at most without an interrupt until the worker sleeps: what little a guest has sent
/// is often answered before that, and with the answer it sees that, too.
const LITTLE: usize = 8192;

/// The half of a link that has the transmit queue.
pub(super) struct QueueRx {
    pair: Arc<Pair>,
    poll: OwnedFd,
    batch: Batch,
}

/// Frames where they lie.
#[derive(Default)]
struct Batch {
    memory: Arc<Memory>,
    frames: Vec<Frame>,
    buffers: Vec<Buffer>,
    /// The chains of the frames, to be given back with the next batch.
    heads: Vec<u16>,
    /// Bytes that were given back since the guest was last interrupted, if it wanted to be.
    owed: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Frame {
    /// Which of the batch's buffers hold it.
    buffers: Range<usize>,
    len: usize,
    offload: Offload,
}

impl QueueRx {
    pub(super) fn new(pair: Arc<Pair>, poll: OwnedFd) -> Self {
        Self { pair, poll, batch: Batch::default() }
    }
}

impl LinkRx for QueueRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn receive(&mut self) -> Result<Option<usize>, LinkError> {
        let state = &mut *lock(&self.pair.state);
        self.batch.give_back(state);
        state.check_memory()?;
        self.pair.make_changes(state);
        if let Some(why) = state.ended.take() {
            return Err(why);
        }
        let received = self.batch.receive(state);
        if received.is_err() {
            self.batch.clear();
        }
        Ok(self.pair.or_break_down(state, TRANSMIT, received))
    }

    fn frame_len(&self, index: usize) -> usize {
        self.batch.frames.get(index).map_or(0, |frame| frame.len)
    }

    fn offload(&self, index: usize) -> Offload {
        self.batch.frames.get(index).map(|frame| frame.offload).unwrap_or_default()
    }

    fn copy_to(&self, index: usize, at: usize, to: &mut [u8]) -> usize {
        self.batch.frame(index).map_or(0, |frame| frame.copy_to(at, to))
    }

    fn slices<'a>(&'a self, index: usize, range: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        if let Some(frame) = self.batch.frame(index) {
            frame.slices(range, out);
        }
    }

    fn settle(&mut self) {
        let state = &mut *lock(&self.pair.state);
        self.batch.interrupt(&mut state.from_guest);
    }

    fn dropped(&self) -> u64 {
        self.batch.dropped
    }

    fn trouble(&self) -> Option<String> {
        self.pair.health.why()
    }
}

impl Drop for QueueRx {
    fn drop(&mut self) {
        self.pair.end();
    }
}

impl Batch {
    /// Lets the guest have the buffers of the last batch again.
    fn give_back(&mut self, state: &mut State) {
        let queue = &mut state.from_guest;
        if let Some(ring) = &mut queue.ring {
            self.heads.iter().for_each(|head| ring.give_back(*head, 0));
        }
        queue.show();
        self.owed += self.frames.iter().map(|frame| frame.len).sum::<usize>();
        if self.owed > LITTLE {
            self.interrupt(queue);
        }
        self.clear();
    }

    fn interrupt(&mut self, queue: &mut Queue) {
        queue.interrupt();
        self.owed = 0;
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.frames.clear();
        self.buffers.clear();
    }

    fn receive(&mut self, state: &mut State) -> Result<Option<usize>, RingError> {
        if !Arc::ptr_eq(&self.memory, &state.memory) {
            self.memory = Arc::clone(&state.memory);
        }
        let queue = &mut state.from_guest;
        loop {
            if let Some(ring) = &mut queue.ring {
                self.take(ring)?;
                if !self.heads.is_empty() {
                    ring.decline_notifications();
                    return Ok(Some(self.frames.len()));
                }
            }
            if !queue.await_kick()? {
                return Ok(None);
            }
        }
    }

    fn take(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        let mut bytes = 0;
        while self.heads.len() < BATCH && bytes < BATCH_BYTES && self.buffers.len() < BATCH_BUFFERS {
            let start = self.buffers.len();
            let max = vnet::HEADER_LEN + MAX_FRAME;
            let Some(chain) = ring.take(&self.memory, Direction::FromGuest, max, &mut self.buffers)? else {
                break;
            };
            self.heads.push(chain.head);
            bytes += chain.len;
            match self.parse(start, chain.len) {
                Some(frame) => self.frames.push(frame),
                None => self.dropped += 1,
            }
        }
        Ok(())
    }

    /// Reads the virtio-net header of the frame in the buffers from `start` on, and takes it off them.
    fn parse(&mut self, start: usize, chain_len: usize) -> Option<Frame> {
        let buffers = self.buffers.get_mut(start..)?;
        let whole = Scattered { memory: &self.memory, buffers, len: chain_len };
        let mut header = [0; vnet::HEADER_LEN];
        if whole.copy_to(0, &mut header) < header.len() {
            return None;
        }
        let mut skip = header.len();
        for buffer in &mut *buffers {
            let skipped = skip.min(buffer.len);
            skip -= skipped;
            buffer.address += skipped as u64;
            buffer.len -= skipped;
        }
        let len = chain_len - header.len();
        let offload = vnet::decode(&header, &Scattered { memory: &self.memory, buffers, len })?;
        Some(Frame { buffers: start..self.buffers.len(), len, offload })
    }

    fn frame(&self, index: usize) -> Option<Scattered<'_>> {
        let Frame { buffers, len, .. } = self.frames.get(index)?;
        Some(Scattered { memory: &self.memory, buffers: self.buffers.get(buffers.clone())?, len: *len })
    }
}

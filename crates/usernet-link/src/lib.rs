//! Where guests plug in: one file a kind of link, one trait over all.
//!
//! A link has two halves, so that frames which came in can be looked at where they lie while others
//! go out: [`LinkRx`] takes frames from the guest, [`LinkTx`] gives frames to it. Both are polled
//! by a worker on an edge-triggered epoll, each by a descriptor of its own.

#[cfg(test)]
mod inspect;
pub mod segment;
pub mod stream;
pub mod tap;
pub mod vhost_user;
pub mod virtio;
pub mod vnet;

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use usernet_core::frame::FrameBytes;
use usernet_core::offload::{Capabilities, Offload};

/// A guest's place to plug in: both halves of a link.
pub struct Link {
    /// What kind of link it is, for tables and logs: `stream`, `tap`, `vhost-user`.
    pub kind: &'static str,
    /// Frames from the guest.
    pub rx: Box<dyn LinkRx>,
    /// Frames to the guest.
    pub tx: Box<dyn LinkTx>,
}

/// Why a link has ended. It takes its own guest off the network and nothing else.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The guest closed the link.
    #[error("the guest closed the link")]
    Closed,
    /// What came over the link is no frame.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The system failed us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The half of a link that takes frames from the guest.
///
/// [`LinkRx::receive`] brings in a batch; its frames are numbered from 0 and stay where they are
/// until the next call.
pub trait LinkRx: Send {
    /// What to poll for readability.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Releases the last batch and brings in the next one, with one system call where it can.
    /// Returns how many frames it has; `None` when it is time to wait for the fd to be readable, which
    /// it may still be. `Some(0)` means that bytes came but no whole frame yet.
    ///
    /// # Errors
    /// The link has ended.
    fn receive(&mut self) -> Result<Option<usize>, LinkError>;

    /// Tells the guest what can wait until there is nothing else to do: called soon after
    /// [`LinkRx::receive`], before the worker sleeps.
    fn settle(&mut self) {}

    /// The length of frame `index` in bytes, from its Ethernet header on; 0 when there is none.
    fn frame_len(&self, index: usize) -> usize;

    /// What frame `index` leaves undone.
    fn offload(&self, index: usize) -> Offload;

    /// Copies bytes of frame `index` from offset `at` into `to`; returns how many there were.
    fn copy_to(&self, index: usize, at: usize, to: &mut [u8]) -> usize;

    /// Pushes the slices in which bytes `range` of frame `index` lie.
    fn slices<'a>(&'a self, index: usize, range: Range<usize>, out: &mut Vec<IoSlice<'a>>);

    /// How many frames were dropped so far because what came with them contradicts itself.
    fn dropped(&self) -> u64 {
        0
    }

    /// Why nothing comes or goes until the guest does something about it, if so.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// One frame of a batch.
#[derive(Clone, Copy)]
pub struct RxFrame<'a> {
    /// The link that it lies in.
    pub rx: &'a dyn LinkRx,
    /// Its number in the batch.
    pub index: usize,
}

impl FrameBytes for RxFrame<'_> {
    fn len(&self) -> usize {
        self.rx.frame_len(self.index)
    }

    fn offload(&self) -> Offload {
        self.rx.offload(self.index)
    }

    fn copy_to(&self, at: usize, to: &mut [u8]) -> usize {
        self.rx.copy_to(self.index, at, to)
    }
}

/// How a descriptor tells that a link has room again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomTold {
    /// It is writable: bytes are written to it.
    Writable,
    /// It is readable: the guest has said so.
    Readable,
}

/// The half of a link that gives frames to the guest.
pub trait LinkTx: Send {
    /// What to poll after [`LinkTx::flush`] returned `false` or there was no room.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// What to poll it for.
    fn room_told_by(&self) -> RoomTold {
        RoomTold::Writable
    }

    /// What the link finishes by itself. Frames that ask for more are finished in software first,
    /// by the link.
    fn capabilities(&self) -> Capabilities;

    /// Takes one whole frame, given in parts. `false`: nothing was taken, there is no room before a
    /// [`LinkTx::flush`] has returned `true`. A frame that can never be sent is taken and dropped.
    ///
    /// # Errors
    /// The link has ended.
    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, LinkError>;

    /// Lends room for up to `max` bytes of payload in wire packets of `segment` bytes each, with
    /// `header_len` bytes kept free in front of each (once in all, where the link segments), and
    /// pushes it as slices. Returns the room in bytes; 0 when there is none, as in
    /// [`LinkTx::send`]. Any other call but [`LinkTx::commit`] forgets it.
    fn reserve<'a>(
        &'a mut self,
        header_len: usize,
        segment: usize,
        max: usize,
        out: &mut Vec<IoSliceMut<'a>>,
    ) -> usize;

    /// Sends the first `len` bytes that were put into the reserved room, behind `header`: the
    /// Ethernet, IP and transport headers of the first wire packet, lengths as if all of `len` were
    /// one packet, and its transport checksum as `offload` says. The header has the length that
    /// was reserved. A link that cuts in software computes all checksums itself, whatever the header
    /// holds.
    ///
    /// # Errors
    /// The link has ended.
    fn commit(&mut self, header: &[u8], len: usize, offload: Offload) -> Result<(), LinkError>;

    /// Hands what was taken to the system, or the guest. `false`: it does not take all of it now, or there is
    /// still no room for what was wanted: wait for the fd ([`LinkTx::room_told_by`]) and flush again.
    ///
    /// # Errors
    /// The link has ended.
    fn flush(&mut self) -> Result<bool, LinkError>;

    /// Whether what is for the guest should go by its first queue, when there is no room here: the guest does
    /// not use this one now.
    fn is_idle(&self) -> bool {
        false
    }

    /// How many frames were taken and dropped so far: too short or long, impossible to finish as
    /// they asked, or refused by the system.
    fn dropped(&self) -> u64 {
        0
    }
}

/// Copies the bytes of a frame in parts, from offset `at` on, into `to`.
fn gather(parts: &[IoSlice<'_>], at: usize, to: &mut [u8]) {
    let (mut skip, mut to) = (at, to);
    for part in parts {
        let len = part.get(skip..).unwrap_or_default().copy_to(0, to);
        skip = skip.saturating_sub(part.len());
        to = to.split_at_mut(len).1;
    }
}

//! Datagrams that came to one socket, many of them by one call (`recvmmsg`).

use std::array;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::host::HostError;

use crate::datagram::Received;
use crate::error::host_error;
use crate::sys;

/// Messages that one call takes in at most: some kilobytes of datagrams at a time, or what many of
/// them would be when the kernel has joined them.
pub const MESSAGES: usize = 16;
/// Room for one message, in bytes: what the kernel joins at most. A little more than a power of two,
/// so that the starts of messages do not share a few lines of the processor's cache.
const SLOT: usize = 65_536 + 1088;

/// Room for what one call takes in, to be used again and again for all sockets.
#[derive(Debug)]
pub struct Inbox {
    /// [`MESSAGES`] times `SLOT`. Pages that no message ever reached cost nothing.
    buffer: Box<[u8]>,
    slots: Box<[sys::Slot; MESSAGES]>,
    received: Vec<Received>,
    full: bool,
}

/// Datagrams in a row of one origin, and of one size but the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// From whom, and how.
    pub origin: Origin,
    /// How many, and how long.
    pub datagrams: Datagrams,
    /// Which messages of the inbox hold them.
    pub messages: Range<usize>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Inbox {
    /// Room that holds nothing.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; MESSAGES * SLOT].into(),
            slots: Box::new(array::from_fn(|_| sys::Slot::new())),
            received: Vec::with_capacity(MESSAGES),
            full: false,
        }
    }

    /// Whether all room was used: there may be more in the socket. With room left there is not, and
    /// an event tells of the next.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// How many datagrams were taken in.
    pub fn datagrams(&self) -> usize {
        self.received.iter().map(|message| message.datagrams().count()).sum()
    }

    /// The batch that begins with message `first`, which is 0 or the end of another batch's messages.
    pub fn batch(&self, first: usize) -> Option<Batch> {
        let (message, others) = self.received.get(first..)?.split_first()?;
        let origin = message.origin();
        let mut batch = Batch { origin, datagrams: message.datagrams(), messages: first..first + 1 };
        for next in others {
            if next.origin() != origin || !batch.datagrams.join(next.datagrams()) {
                break;
            }
            batch.messages.end += 1;
        }
        Some(batch)
    }

    /// Where the payload of a batch lies.
    pub fn payload(&self, batch: &Batch) -> impl Iterator<Item = IoSlice<'_>> {
        let messages = self.received.iter().zip(self.buffer.chunks_exact(SLOT));
        let messages = messages.skip(batch.messages.start).take(batch.messages.len());
        messages.map(|(received, slot)| IoSlice::new(slot.get(..received.len).unwrap_or_default()))
    }

    /// Takes in what there is, up to the room. What was there before is forgotten. An error that waits
    /// for an earlier datagram is passed over: the error queue keeps it.
    pub(crate) fn receive(&mut self, fd: impl AsFd) -> Result<(), HostError> {
        self.received.clear();
        let Self { buffer, slots, received, .. } = self;
        let mut buffers = buffer.chunks_exact_mut(SLOT);
        let mut buffers: [_; MESSAGES] =
            array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
        let mut receive = || {
            sys::receive_many(&fd, &mut buffers, slots, libc::MSG_DONTWAIT, |message, control| {
                received.extend(Received::parse(&message, control));
            })
        };
        let count =
            match receive().or_else(|errno| if errno == Errno::AGAIN { Err(errno) } else { receive() }) {
                Err(Errno::AGAIN) => 0,
                count => count.map_err(host_error)?,
            };
        self.full = count == MESSAGES;
        Ok(())
    }
}

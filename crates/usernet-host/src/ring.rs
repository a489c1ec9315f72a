//! The receive queue of a host end that cannot be peeked in place.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, Result};
use usernet_core::host::PeekEnd;

/// Bytes held at most: 20 Gbit/s on a link with an RTT of 0.1 ms.
const MAX: usize = 256 * 1024;
/// The first allocation.
const MIN: usize = 4096;

/// Bytes read from a descriptor and not yet discarded. Holds no memory while it is empty.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    head: usize,
    len: usize,
    eof: bool,
    /// A peek ended because the ring was full, which no edge will end.
    full: bool,
}

impl Ring {
    /// Fills `iov` with the bytes from offset `at` on, reading more from `fd` where need be.
    pub(crate) fn peek(
        &mut self,
        fd: &OwnedFd,
        at: usize,
        iov: &mut [IoSliceMut<'_>],
    ) -> Result<(usize, PeekEnd)> {
        let room: usize = iov.iter().map(|slice| slice.len()).sum();
        let want = at.saturating_add(room).min(MAX);
        while self.len < want && !self.eof {
            self.grow(want);
            match rustix::io::readv(fd, &mut self.free()) {
                Ok(0) => self.eof = true,
                Ok(len) => self.len += len,
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        self.release_if_empty();
        let len = self.copy(at, iov);
        let end = if len == room {
            PeekEnd::More
        } else if self.eof {
            PeekEnd::Eof
        } else {
            self.full = self.len == MAX;
            PeekEnd::Empty
        };
        Ok((len, end))
    }

    /// Drops `len` bytes from the front. Returns whether a peek that found the ring full may now go
    /// on.
    pub(crate) fn discard(&mut self, len: usize) -> bool {
        let len = len.min(self.len);
        self.len -= len;
        if let Some(head) = (self.head + len).checked_rem(self.bytes.len()) {
            self.head = head;
        }
        self.release_if_empty();
        std::mem::take(&mut self.full)
    }

    fn release_if_empty(&mut self) {
        if self.len == 0 {
            self.bytes = Box::default();
            self.head = 0;
        }
    }

    fn grow(&mut self, want: usize) {
        if want <= self.bytes.len() {
            return;
        }
        let mut grown = vec![0; want.next_power_of_two().clamp(MIN, MAX)].into_boxed_slice();
        self.copy(0, &mut [IoSliceMut::new(&mut grown)]);
        self.bytes = grown;
        self.head = 0;
    }

    /// What is held, from offset `at` on, in order.
    fn held(&self, at: usize) -> [&[u8]; 2] {
        let (wrapped, front) = self.bytes.split_at(self.head);
        let front = front.get(..self.len).unwrap_or(front);
        let wrapped = wrapped.get(..self.len - front.len()).unwrap_or_default();
        let skip = at.min(front.len());
        let (_, front) = front.split_at(skip);
        [front, wrapped.get(at - skip..).unwrap_or_default()]
    }

    /// What is free, in order.
    fn free(&mut self) -> [IoSliceMut<'_>; 2] {
        let free = self.bytes.len() - self.len;
        let tail = (self.head + self.len).checked_rem(self.bytes.len()).unwrap_or(0);
        let (wrapped, back) = self.bytes.split_at_mut(tail);
        let back_len = back.len().min(free);
        let (back, _) = back.split_at_mut(back_len);
        let (wrapped, _) = wrapped.split_at_mut(free - back_len);
        [IoSliceMut::new(back), IoSliceMut::new(wrapped)]
    }

    fn copy(&self, at: usize, iov: &mut [IoSliceMut<'_>]) -> usize {
        let [mut source, mut next] = self.held(at);
        let mut copied = 0;
        for slice in iov {
            let mut room: &mut [u8] = slice;
            loop {
                if source.is_empty() {
                    source = std::mem::take(&mut next);
                }
                let len = room.len().min(source.len());
                if len == 0 {
                    break;
                }
                let (to, rest) = room.split_at_mut(len);
                let (from, left) = source.split_at(len);
                to.copy_from_slice(from);
                (room, source) = (rest, left);
                copied += len;
            }
        }
        copied
    }
}

//! Bytes that lie in several buffers of guest memory.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use usernet_core::frame::FrameBytes;
use usernet_core::offload::Offload;

use super::memory::Memory;
use super::ring::Buffer;

/// The first `len` bytes of some buffers, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Scattered<'a> {
    pub(super) memory: &'a Memory,
    pub(super) buffers: &'a [Buffer],
    pub(super) len: usize,
}

impl<'a> Scattered<'a> {
    /// The pieces of the buffers that hold bytes `range`.
    fn pieces(self, range: Range<usize>) -> impl Iterator<Item = Buffer> + 'a {
        let mut skip = range.start;
        let mut left = range.len();
        self.buffers.iter().filter_map(move |buffer| {
            let skipped = skip.min(buffer.len);
            skip -= skipped;
            let len = (buffer.len - skipped).min(left);
            left -= len;
            (len > 0).then_some(Buffer { address: buffer.address + skipped as u64, len, ..*buffer })
        })
    }

    /// Pushes the slices in which bytes `range` lie.
    pub(super) fn slices(self, range: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.pieces(range).filter_map(|piece| self.memory.slice(piece.address, piece.len)));
    }

    /// The same, to be written to.
    pub(super) fn slices_mut(self, range: Range<usize>, out: &mut Vec<IoSliceMut<'a>>) {
        out.extend(self.pieces(range).filter_map(|piece| self.memory.slice_mut(piece.address, piece.len)));
    }

    /// Copies `from`, which is ours, to the bytes from `at` on.
    pub(super) fn write(self, at: usize, from: &[u8]) {
        self.write_slice(at, IoSlice::new(from));
    }

    /// Copies `from`, which may be the same guest's, to the bytes from `at` on.
    pub(super) fn write_slice(self, at: usize, mut from: IoSlice<'_>) {
        for Buffer { address, len, .. } in self.pieces(at..at + from.len()) {
            // That a buffer lies in memory was looked at when its chain was taken.
            let _ = self.memory.write(address, IoSlice::new(from.get(..len).unwrap_or_default()));
            from.advance(len);
        }
    }
}

impl FrameBytes for Scattered<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn offload(&self) -> Offload {
        Offload::default()
    }

    fn copy_to(&self, at: usize, to: &mut [u8]) -> usize {
        let wanted = self.len.saturating_sub(at).min(to.len());
        let mut rest = to;
        for Buffer { address, len, .. } in self.pieces(at..at + wanted) {
            let (part, others) = rest.split_at_mut(len.min(rest.len()));
            let _ = self.memory.read(address, part);
            rest = others;
        }
        wanted
    }
}

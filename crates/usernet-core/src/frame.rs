//! A guest's frame, as the core sees it: a length, what is left undone, and bytes that it copies when
//! it must.

use crate::offload::Offload;

/// The bytes of a frame, wherever they lie.
///
/// The core copies headers out before it reads them, since memory that a guest shares can change at
/// any time.
pub trait FrameBytes {
    /// The frame's length in bytes, from the Ethernet header on.
    fn len(&self) -> usize;

    /// Whether the frame has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the frame leaves undone.
    fn offload(&self) -> Offload {
        Offload::default()
    }

    /// Copies bytes from offset `at` into `to`; returns how many there were.
    fn copy_to(&self, at: usize, to: &mut [u8]) -> usize;
}

impl FrameBytes for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy_to(&self, at: usize, to: &mut [u8]) -> usize {
        let from = self.get(at..).unwrap_or_default();
        let len = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
        }
        len
    }
}

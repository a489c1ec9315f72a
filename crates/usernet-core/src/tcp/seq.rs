//! Sequence numbers (RFC 9293 §3.4).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// A position in a TCP stream, modulo 2³².
///
/// Arithmetic wraps and never panics. Order is by the shorter way round, so it means something only
/// between positions less than 2³¹ apart, which every window guarantees.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// How far this is ahead of `other`; 0 when it is behind.
    pub fn ahead_of(self, other: Self) -> u32 {
        if self > other { self.0.wrapping_sub(other.0) } else { 0 }
    }

    /// The later of two positions.
    pub fn later(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl PartialOrd for SeqNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.0.wrapping_sub(other.0).cast_signed().cmp(&0))
    }
}

impl Add<u32> for SeqNumber {
    type Output = Self;

    fn add(self, rhs: u32) -> Self {
        Self(self.0.wrapping_add(rhs))
    }
}

impl AddAssign<u32> for SeqNumber {
    fn add_assign(&mut self, rhs: u32) {
        *self = *self + rhs;
    }
}

impl Sub<u32> for SeqNumber {
    type Output = Self;

    fn sub(self, rhs: u32) -> Self {
        Self(self.0.wrapping_sub(rhs))
    }
}

/// The distance from `rhs` forward to `self`, modulo 2³².
impl Sub for SeqNumber {
    type Output = u32;

    fn sub(self, rhs: Self) -> u32 {
        self.0.wrapping_sub(rhs.0)
    }
}

impl fmt::Debug for SeqNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

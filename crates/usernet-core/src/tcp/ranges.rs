//! A few disjoint ranges of a stream: what lies beyond a hole.

use super::SeqNumber;

/// Up to `N` disjoint, non-adjacent ranges in ascending order; first byte and the byte behind the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges<const N: usize> {
    len: u8,
    ranges: [(SeqNumber, SeqNumber); N],
}

impl<const N: usize> Default for Ranges<N> {
    fn default() -> Self {
        Self { len: 0, ranges: [(SeqNumber(0), SeqNumber(0)); N] }
    }
}

impl<const N: usize> Ranges<N> {
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (SeqNumber, SeqNumber)> + '_ {
        self.ranges.iter().take(usize::from(self.len)).copied()
    }

    pub(super) fn first(&self) -> Option<(SeqNumber, SeqNumber)> {
        self.iter().next()
    }

    /// The byte behind the highest range.
    pub(super) fn end(&self) -> Option<SeqNumber> {
        self.iter().next_back().map(|(_, right)| right)
    }

    /// How many ranges there are.
    pub(super) fn count(&self) -> usize {
        self.len.into()
    }

    /// The bytes in all ranges.
    pub(super) fn total(&self) -> u32 {
        self.iter().map(|(left, right)| right - left).sum()
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a range and joins what it touches. `false`: there was no room, and nothing changed.
    pub(super) fn insert(&mut self, mut left: SeqNumber, mut right: SeqNumber) -> bool {
        if left >= right {
            return true;
        }
        let mut joined = Self::default();
        let mut placed = false;
        for (l, r) in self.iter() {
            if r < left || (placed && l > right) {
                if !joined.push(l, r) {
                    return false;
                }
            } else if l > right {
                if !joined.push(left, right) || !joined.push(l, r) {
                    return false;
                }
                placed = true;
            } else {
                if l < left {
                    left = l;
                }
                right = right.later(r);
            }
        }
        if !placed && !joined.push(left, right) {
            return false;
        }
        *self = joined;
        true
    }

    /// Forgets everything below `seq`.
    pub(super) fn remove_below(&mut self, seq: SeqNumber) {
        let mut rest = Self::default();
        for (left, right) in self.iter() {
            if right > seq {
                rest.push(left.later(seq), right);
            }
        }
        *self = rest;
    }

    /// The part of `left..right` that starts at or behind `left` and touches no range; empty when
    /// there is none.
    pub(super) fn first_gap(&self, mut left: SeqNumber, right: SeqNumber) -> (SeqNumber, SeqNumber) {
        for (l, r) in self.iter() {
            if l > left {
                return (left, if l < right { l } else { right });
            }
            left = left.later(r);
        }
        (left, right)
    }

    fn push(&mut self, left: SeqNumber, right: SeqNumber) -> bool {
        let Some(slot) = self.ranges.get_mut(usize::from(self.len)) else { return false };
        *slot = (left, right);
        self.len += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: &Ranges<4>) -> Vec<(u32, u32)> {
        ranges.iter().map(|(l, r)| (l.0, r.0)).collect()
    }

    #[test]
    fn ranges_stay_sorted_and_joined() {
        let mut ranges = Ranges::<4>::default();
        for (l, r) in [(50, 60), (10, 20), (30, 40), (20, 30)] {
            assert!(ranges.insert(SeqNumber(l), SeqNumber(r)));
        }
        assert_eq!(list(&ranges), [(10, 40), (50, 60)]);
        assert!(ranges.insert(SeqNumber(5), SeqNumber(100)));
        assert_eq!(list(&ranges), [(5, 100)]);
    }

    #[test]
    fn a_range_without_room_changes_nothing() {
        let mut ranges = Ranges::<4>::default();
        for n in 0..4 {
            assert!(ranges.insert(SeqNumber(n * 10), SeqNumber(n * 10 + 5)));
        }
        assert!(!ranges.insert(SeqNumber(100), SeqNumber(105)));
        assert_eq!(list(&ranges), [(0, 5), (10, 15), (20, 25), (30, 35)]);
        assert!(ranges.insert(SeqNumber(5), SeqNumber(10)));
        assert_eq!(list(&ranges), [(0, 15), (20, 25), (30, 35)]);
    }

    #[test]
    fn gaps_lie_between_ranges_also_across_the_wrap() {
        let mut ranges = Ranges::<4>::default();
        let base = SeqNumber(u32::MAX - 4);
        assert!(ranges.insert(base + 10, base + 20));
        assert_eq!(ranges.first_gap(base, base + 30), (base, base + 10));
        assert_eq!(ranges.first_gap(base + 12, base + 30), (base + 20, base + 30));
        assert_eq!(ranges.total(), 10);
        ranges.remove_below(base + 15);
        assert_eq!(ranges.first(), Some((base + 15, base + 20)));
    }
}

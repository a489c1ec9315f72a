//! One direction of a link, with what can go wrong on it.

use std::collections::BTreeMap;
use std::time::Duration;

use usernet_core::time::Instant;

use crate::Rng;

/// What happens to frames. The default is a cable of 50 µs without a fault.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// How long a frame is on its way.
    pub delay: Duration,
    /// Frames lost, in a thousand.
    pub loss: u32,
    /// Every `n`th frame is lost.
    pub every: Option<u64>,
    /// Frames that come twice, in a thousand.
    pub duplicate: u32,
    /// Frames that come late, behind others, in a thousand.
    pub reorder: u32,
    /// How much later those come, at most.
    pub late: Duration,
    /// How often, in a thousand, a peek finds no room and none for up to 5 ms (towards the guest).
    pub full: u32,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(50),
            loss: 0,
            every: None,
            duplicate: 0,
            reorder: 0,
            late: Duration::from_millis(1),
            full: 0,
        }
    }
}

/// Frames on their way, in one direction.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) faults: Faults,
    on_way: BTreeMap<(Instant, u64), Vec<u8>>,
    count: u64,
    next_id: u64,
}

impl Lane {
    pub(crate) fn new(faults: Faults) -> Self {
        Self { faults, ..Self::default() }
    }

    pub(crate) fn push(&mut self, frame: Vec<u8>, now: Instant, rng: &mut Rng) {
        self.count += 1;
        let faults = self.faults;
        if rng.chance(faults.loss) || faults.every.is_some_and(|n| self.count.is_multiple_of(n)) {
            return;
        }
        let mut at = now + faults.delay;
        if rng.chance(faults.reorder) {
            at += Duration::from_micros(rng.below(faults.late.as_micros() as u64));
        }
        if rng.chance(faults.duplicate) {
            let later = at + Duration::from_micros(rng.below(faults.late.as_micros() as u64));
            self.insert(later, frame.clone());
        }
        self.insert(at, frame);
    }

    fn insert(&mut self, at: Instant, frame: Vec<u8>) {
        self.next_id += 1;
        self.on_way.insert((at, self.next_id), frame);
    }

    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let first = self.on_way.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.on_way.first_key_value().map(|((at, _), _)| *at)
    }
}

//! A hierarchical timing wheel: deadlines of any number of flows at a constant cost each.
//!
//! Four levels of 64 slots, ticks of 1,024 µs. An entry fires up to one tick late and never early.
//! Who is called looks at its own deadline, and comes back later if it has moved. So a flow that
//! re-arms with every packet touches the wheel once a timeout; it cancels only for an earlier one.

use slab::Slab;

use crate::time::Instant;

const LEVELS: u32 = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: u64 = 1 << SLOT_BITS;
const TICK_BITS: u32 = 10;
/// The farthest that the wheel reaches, in ticks: 4.7 hours. What lies beyond is called early, then
/// again.
const REACH: u64 = (1 << (SLOT_BITS * LEVELS)) - 1;

/// Entries of type `T`, by deadline.
#[derive(Debug)]
pub struct TimerWheel<T> {
    /// The last tick that has been expired.
    now: u64,
    levels: [Level; LEVELS as usize],
    entries: Slab<Entry<T>>,
}

#[derive(Debug)]
struct Level {
    /// A bit for each slot that holds an entry.
    occupied: u64,
    /// The first entry of each slot.
    slots: [Option<usize>; 64],
}

#[derive(Debug)]
struct Entry<T> {
    tick: u64,
    value: T,
    level: u32,
    previous: Option<usize>,
    next: Option<usize>,
}

/// An entry that has neither fired nor been cancelled.
#[derive(Debug, PartialEq, Eq)]
pub struct TimerId(usize);

impl<T> Default for TimerWheel<T> {
    fn default() -> Self {
        let level = || Level { occupied: 0, slots: [None; 64] };
        Self { now: 0, levels: std::array::from_fn(|_| level()), entries: Slab::new() }
    }
}

impl<T> TimerWheel<T> {
    /// Adds an entry.
    pub fn insert(&mut self, at: Instant, value: T) -> TimerId {
        let tick = at.as_micros().div_ceil(1 << TICK_BITS).clamp(self.now + 1, self.now + REACH);
        let index = self.entries.insert(Entry { tick, value, level: 0, previous: None, next: None });
        self.link(index);
        TimerId(index)
    }

    /// Takes an entry out.
    pub fn cancel(&mut self, timer: TimerId) {
        self.unlink(timer.0);
        self.entries.try_remove(timer.0);
    }

    fn link(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let delta = entry.tick.saturating_sub(self.now);
        entry.level = (64 - delta.leading_zeros()).saturating_sub(1) / SLOT_BITS;
        entry.previous = None;
        let slot = (entry.tick >> (SLOT_BITS * entry.level)) % SLOTS;
        let Some(level) = self.levels.get_mut(entry.level as usize) else { return };
        level.occupied |= 1 << slot;
        entry.next = level.slots.get_mut(slot as usize).and_then(|first| first.replace(index));
        if let Some(next) = entry.next
            && let Some(next) = self.entries.get_mut(next)
        {
            next.previous = Some(index);
        }
    }

    fn unlink(&mut self, index: usize) {
        let Some(entry) = self.entries.get(index) else { return };
        let (previous, next) = (entry.previous, entry.next);
        let slot = (entry.tick >> (SLOT_BITS * entry.level)) % SLOTS;
        let level = self.levels.get_mut(entry.level as usize);
        if let Some(next) = next.and_then(|next| self.entries.get_mut(next)) {
            next.previous = previous;
        }
        if let Some(previous) = previous.and_then(|previous| self.entries.get_mut(previous)) {
            previous.next = next;
        } else if let Some(level) = level
            && let Some(first) = level.slots.get_mut(slot as usize)
        {
            *first = next;
            if next.is_none() {
                level.occupied &= !(1 << slot);
            }
        }
    }

    /// The first tick at which a slot is due, to fire or to move down a level.
    fn next_tick(&self) -> Option<u64> {
        let mut next = None;
        for (level, shift) in self.levels.iter().zip((0..).step_by(SLOT_BITS as usize)) {
            if level.occupied == 0 {
                continue;
            }
            let position = self.now >> shift;
            let rotated = level.occupied.rotate_right(u32::try_from(position % SLOTS).unwrap_or(0));
            // The slot of the present position is a whole turn ahead.
            let distance = if rotated & !1 == 0 { SLOTS } else { u64::from((rotated & !1).trailing_zeros()) };
            let tick = (position + distance) << shift;
            next = Some(next.map_or(tick, |next: u64| next.min(tick)));
        }
        next
    }

    /// When to call [`TimerWheel::expire`] at the latest.
    pub fn next(&self) -> Option<Instant> {
        self.next_tick().map(|tick| Instant::from_micros(tick << TICK_BITS))
    }

    /// Takes out one entry that is due at `now`; to be called until there is none.
    pub fn expire(&mut self, now: Instant) -> Option<T> {
        let target = now.as_micros() >> TICK_BITS;
        loop {
            if let Some(index) = self.first(0) {
                self.unlink(index);
                return self.entries.try_remove(index).map(|entry| entry.value);
            }
            let Some(tick) = self.next_tick().filter(|tick| *tick <= target) else { break };
            self.now = tick;
            for level in (1..LEVELS).rev().filter(|level| tick % (1 << (SLOT_BITS * level)) == 0) {
                while let Some(index) = self.first(level) {
                    self.unlink(index);
                    self.link(index);
                }
            }
        }
        self.now = self.now.max(target);
        None
    }

    /// The first entry in the slot of the present position of a level.
    fn first(&self, level: u32) -> Option<usize> {
        let slot = (self.now >> (SLOT_BITS * level)) % SLOTS;
        *self.levels.get(level as usize)?.slots.get(slot as usize)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Instant {
        Instant::from_micros(n * 1000)
    }

    #[test]
    fn every_entry_fires_once_never_early_and_at_most_a_tick_late() {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed >> 33
        };
        let mut wheel = TimerWheel::default();
        let deadlines: Vec<u64> =
            (0..2000).map(|i| next() % [100, 10_000, 1_000_000, 9_000_000][i % 4]).collect();
        for (i, at) in deadlines.iter().enumerate() {
            wheel.insert(ms(*at), i);
        }
        let mut fired = vec![None; deadlines.len()];
        while let Some(at) = wheel.next() {
            while let Some(i) = wheel.expire(at) {
                assert!(fired[i].is_none());
                fired[i] = Some(at.as_micros());
            }
        }
        for (at, fired) in deadlines.iter().zip(fired) {
            let late = fired.unwrap() as i64 - (*at as i64) * 1000;
            assert!((0..=2048).contains(&late), "deadline {at} ms fired {late} us late");
        }
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        let mut wheel = TimerWheel::default();
        assert_eq!(wheel.expire(ms(50_000)), None);
        wheel.insert(ms(3), 7);
        assert!(wheel.next().unwrap() <= ms(50_002));
        assert_eq!(wheel.expire(ms(50_002)), Some(7));
        assert_eq!(wheel.expire(ms(50_002)), None);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_jump_over_many_slots_loses_nothing() {
        let mut wheel = TimerWheel::default();
        for n in 0..1000 {
            wheel.insert(ms(n * 61), n);
        }
        let due = std::iter::from_fn(|| wheel.expire(ms(10_000_000)));
        assert_eq!(due.count(), 1000);
    }

    #[test]
    fn a_cancelled_entry_never_fires_and_leaves_nothing_behind() {
        let mut wheel = TimerWheel::default();
        let at = |n: u64| ms(n * n * n % 9_000_000);
        let timers: Vec<_> = (0..3000).map(|n| wheel.insert(at(n), n)).collect();
        // Half of them once others have moved down the levels.
        let mut fired: Vec<u64> = std::iter::from_fn(|| wheel.expire(ms(100_000))).collect();
        for (n, timer) in (0..).zip(timers) {
            if n % 3 > 0 && !fired.contains(&n) {
                wheel.cancel(timer);
            }
        }
        while let Some(at) = wheel.next() {
            fired.extend(std::iter::from_fn(|| wheel.expire(at)));
        }
        fired.sort_unstable();
        let expected: Vec<u64> = (0..3000).filter(|n| n % 3 == 0 || at(*n) <= ms(99_998)).collect();
        assert_eq!(fired, expected);
        assert!(wheel.entries.is_empty());
    }

    #[test]
    fn what_lies_beyond_the_reach_is_called_early() {
        let mut wheel = TimerWheel::default();
        wheel.insert(ms(100_000_000), 1);
        assert!(wheel.next().unwrap() < ms(20_000_000));
    }
}

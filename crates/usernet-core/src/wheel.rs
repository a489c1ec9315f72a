//! A hierarchical timing wheel: deadlines of any number of flows at a constant cost each.
//!
//! Four levels of 64 slots, ticks of 1,024 µs. An entry fires up to one tick late and never early.
//! There is no cancelling: who is called looks at its own deadline, and comes back later if it has
//! moved. So a flow that re-arms with every packet touches the wheel once a timeout.

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
    levels: [Level<T>; LEVELS as usize],
}

#[derive(Debug)]
struct Level<T> {
    /// A bit for each slot that holds an entry.
    occupied: u64,
    slots: Vec<Vec<(u64, T)>>,
}

impl<T> Default for TimerWheel<T> {
    fn default() -> Self {
        let level = || Level { occupied: 0, slots: (0..SLOTS).map(|_| Vec::new()).collect() };
        Self { now: 0, levels: std::array::from_fn(|_| level()) }
    }
}

impl<T: Copy> TimerWheel<T> {
    /// Adds an entry.
    pub fn insert(&mut self, at: Instant, entry: T) {
        let tick = at.as_micros().div_ceil(1 << TICK_BITS);
        self.place(tick.clamp(self.now + 1, self.now + REACH), entry);
    }

    fn place(&mut self, tick: u64, entry: T) {
        let delta = tick - self.now;
        let level = (64 - delta.leading_zeros()).saturating_sub(1) / SLOT_BITS;
        let slot = (tick >> (SLOT_BITS * level)) % SLOTS;
        if let Some(level) = self.levels.get_mut(level as usize) {
            level.occupied |= 1 << slot;
            if let Some(entries) = level.slots.get_mut(slot as usize) {
                entries.push((tick, entry));
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

    /// Moves all entries that are due at `now` to `due`.
    pub fn expire(&mut self, now: Instant, due: &mut Vec<T>) {
        let target = now.as_micros() >> TICK_BITS;
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= target) {
            self.now = tick;
            for level in (0..LEVELS).rev() {
                let shift = SLOT_BITS * level;
                if tick & ((1 << shift) - 1) != 0 {
                    continue;
                }
                let slot = (tick >> shift) % SLOTS;
                let Some(level) = self.levels.get_mut(level as usize) else { continue };
                level.occupied &= !(1 << slot);
                let entries = level.slots.get_mut(slot as usize).map(std::mem::take).unwrap_or_default();
                for (at, entry) in entries {
                    if at <= tick { due.push(entry) } else { self.place(at, entry) }
                }
            }
        }
        self.now = self.now.max(target);
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
        let mut due = Vec::new();
        while let Some(at) = wheel.next() {
            wheel.expire(at, &mut due);
            for i in due.drain(..) {
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
        let mut due = Vec::new();
        wheel.expire(ms(50_000), &mut due);
        wheel.insert(ms(3), 7);
        assert!(wheel.next().unwrap() <= ms(50_002));
        wheel.expire(ms(50_002), &mut due);
        assert_eq!(due, [7]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_jump_over_many_slots_loses_nothing() {
        let mut wheel = TimerWheel::default();
        for n in 0..1000 {
            wheel.insert(ms(n * 61), n);
        }
        let mut due = Vec::new();
        wheel.expire(ms(10_000_000), &mut due);
        assert_eq!(due.len(), 1000);
    }

    #[test]
    fn what_lies_beyond_the_reach_is_called_early() {
        let mut wheel = TimerWheel::default();
        wheel.insert(ms(100_000_000), 1);
        assert!(wheel.next().unwrap() < ms(20_000_000));
    }
}

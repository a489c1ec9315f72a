//! Which workers have which guests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use usernet_core::port::PortId;

/// The guests, and the workers that have their queues, the first queue's first.
#[derive(Debug)]
pub(crate) struct Roster {
    workers: usize,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    last: u32,
    workers: BTreeMap<PortId, Vec<usize>>,
}

impl Roster {
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, guests: Mutex::default() }
    }

    /// Gives a guest a port, and each of its queues the worker that has the fewest; `None` when it has
    /// more queues than there are workers.
    pub(crate) fn add(&self, queues: usize) -> Option<(PortId, Vec<usize>)> {
        let mut guests = self.lock();
        let load = |worker| guests.workers.values().flatten().filter(|other| **other == worker).count();
        let mut by_load: Vec<usize> = (0..self.workers).collect();
        by_load.sort_by_key(|worker| load(*worker));
        let workers = by_load.get(..queues)?.to_vec();
        guests.last += 1;
        let port = PortId(guests.last);
        guests.workers.insert(port, workers.clone());
        Some((port, workers))
    }

    /// The workers that have a guest's queues.
    pub(crate) fn of(&self, port: PortId) -> Vec<usize> {
        self.lock().workers.get(&port).cloned().unwrap_or_default()
    }

    /// Strikes a guest off. The first to do so learns which workers have its queues.
    pub(crate) fn remove(&self, port: PortId) -> Vec<usize> {
        self.lock().workers.remove(&port).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_go_where_the_fewest_are() {
        let roster = Roster::new(3);
        let add = |queues| roster.add(queues).map(|(port, workers)| (port.0, workers));
        assert_eq!(add(1), Some((1, vec![0])));
        assert_eq!(add(2), Some((2, vec![1, 2])));
        assert_eq!(roster.remove(PortId(1)), [0]);
        assert_eq!(roster.remove(PortId(1)), [0; 0]);
        assert_eq!(add(1), Some((3, vec![0])));
        assert_eq!(roster.of(PortId(2)), [1, 2]);
        assert_eq!(add(4), None);
    }
}

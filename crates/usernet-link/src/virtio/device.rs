//! What a device is told by whoever has the guest.

use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use usernet_core::offload::Capabilities;

use super::feature;
use super::memory::Memory;
use super::pair::{Bell, Health, Pair, Queue, State, lock};
use super::ring::{Ring, RingError, RingLayout};
use crate::{Link, LinkError};

/// Why a device does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no such queue.
    #[error("there is no queue {index}: the device has {queues}")]
    NoSuchQueue {
        /// The number that was given.
        index: usize,
        /// How many there are.
        queues: usize,
    },
    /// A ring that cannot be one.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A descriptor cannot be polled.
    #[error("the kick of a queue cannot be polled: {0}")]
    Kick(io::Error),
    /// The guest was taken off the network.
    #[error("the guest was taken off the network")]
    Gone,
}

/// A virtio network device of one or more pairs of queues. Queue 0 is the receive queue of the first pair,
/// queue 1 its transmit queue, and so on (virtio 1.2 §5.1.2); a control queue is the business of whoever has
/// the device.
///
/// A call that changes a queue waits for a turn of the worker that has the pair's link, so the links are
/// attached first. When the device is dropped, they end.
#[derive(Debug)]
pub struct Device {
    pairs: Vec<Arc<Pair>>,
    health: Arc<Health>,
    ended: Arc<Bell>,
}

impl Device {
    /// A device whose queues rest, and a link for each pair of them.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(pairs: NonZeroU16) -> io::Result<(Self, Vec<Link>)> {
        let health = Arc::new(Health::default());
        let ended = Arc::new(Bell::new()?);
        let made =
            (0..pairs.get()).map(|index| Pair::new(index == 0, Arc::clone(&health), Arc::clone(&ended)));
        let (pairs, links) = made.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        Ok((Self { pairs, health, ended }, links))
    }

    /// How many queues there are.
    pub fn queues(&self) -> usize {
        2 * self.pairs.len()
    }

    /// Readable when a link of the device has gone: nothing moves any more.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Why nothing moves, when the guest has made a mistake: until all queues that moved are started anew, or
    /// stopped.
    pub fn trouble(&self) -> Option<String> {
        self.health.why()
    }

    /// Has all queues rest until one is started anew: the guest has made this mistake with a queue that
    /// is not the device's own.
    pub fn break_down(&self, error: &RingError) {
        self.health.break_down(error);
    }

    /// Takes note of the features that were agreed on ([`feature`]), [`feature::VERSION_1`] always among them. Of the rings' own, the caller minds in
    /// [`RingLayout`].
    ///
    /// # Errors
    /// The guest was taken off the network.
    pub fn set_features(&self, features: u64) -> Result<(), DeviceError> {
        let has = |bits| features & bits == bits;
        let takes = Capabilities {
            checksum: has(feature::GUEST_CSUM),
            tcp4: has(feature::GUEST_TSO4),
            tcp6: has(feature::GUEST_TSO6),
            udp: has(feature::GUEST_USO4 | feature::GUEST_USO6),
        };
        let mergeable = has(feature::MRG_RXBUF);
        let mut pairs = self.pairs.iter();
        pairs
            .try_for_each(|pair| wait(pair, move |state| (state.takes, state.mergeable) = (takes, mergeable)))
    }

    /// Gives the device other memory. Queues that move go on in it.
    ///
    /// # Errors
    /// A ring that moves is not in it; the queues then rest.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), DeviceError> {
        let memory = Arc::new(memory.clone());
        // All of them are told, whatever comes of it.
        let moved = self.pairs.iter().map(|pair| {
            let memory = Arc::clone(&memory);
            Ok(wait(pair, move |state| state.remap(memory))??)
        });
        let moved: Result<(), DeviceError> = moved.fold(Ok(()), Result::and);
        if let Err(DeviceError::Ring(error)) = &moved {
            self.health.break_down(error);
        }
        moved
    }

    /// Starts a queue, which goes on with the chain of index `base`. The guest notifies us by `kick`, a
    /// non-blocking eventfd.
    ///
    /// # Errors
    /// There is no such queue, or no such ring.
    pub fn start(&self, index: usize, ring: RingLayout, base: u16, kick: OwnedFd) -> Result<(), DeviceError> {
        let health = Arc::clone(&self.health);
        wait(self.pair(index)?, move |state| {
            let ring = Ring::new(ring, &state.memory, base)?;
            let queue = state.queue(index);
            health.mend(queue);
            queue.start(ring, kick).map_err(DeviceError::Kick)
        })?
    }

    /// Has a queue rest. Returns the index of the first chain that was not given back, with which it may be
    /// started again: none before that is still in use.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn stop(&self, index: usize) -> Result<u16, DeviceError> {
        let health = Arc::clone(&self.health);
        wait(self.pair(index)?, move |state| {
            let queue = state.queue(index);
            health.mend(queue);
            queue.rest()
        })
    }

    /// Gives a queue what interrupts the guest: a non-blocking eventfd.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn set_call(&self, index: usize, call: Option<OwnedFd>) -> Result<(), DeviceError> {
        self.set(index, move |queue| queue.set_call(call))
    }

    /// Gives a queue what tells that its ring made no sense: a non-blocking eventfd.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn set_err(&self, index: usize, err: Option<OwnedFd>) -> Result<(), DeviceError> {
        self.set(index, move |queue| queue.set_err(err))
    }

    /// Closes all descriptors that the queues were given, which rest. Where others may have made them such that
    /// to close them takes a while, that is done before the links end, and not by their worker.
    pub fn let_go(&self) {
        for pair in &self.pairs {
            if wait(pair, State::let_go).is_err() {
                // Nobody has the queues any more.
                let state = &mut *lock(&pair.state);
                state.let_go();
                drop(state.discarded());
            }
        }
    }

    /// Ends the links: the guest is closed, or what the front end said makes no sense.
    pub fn end(&self, why: Option<&str>) {
        for pair in &self.pairs {
            let why = why.map(str::to_owned);
            pair.change(move |state| {
                state.ended.get_or_insert_with(|| why.map_or(LinkError::Closed, LinkError::Malformed));
            });
        }
    }

    fn set(&self, index: usize, set: impl FnOnce(&mut Queue) + Send + 'static) -> Result<(), DeviceError> {
        wait(self.pair(index)?, move |state| set(state.queue(index)))
    }

    fn pair(&self, index: usize) -> Result<&Pair, DeviceError> {
        let pair = self.pairs.get(index / 2);
        pair.map(|pair| &**pair).ok_or(DeviceError::NoSuchQueue { index, queues: self.queues() })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What ended it first counts.
        self.end(None);
    }
}

/// Has the worker make a change, and waits until it is made. Closes what is of no use any more after it.
fn wait<T: Send + 'static>(
    pair: &Pair,
    change: impl FnOnce(&mut State) -> T + Send + 'static,
) -> Result<T, DeviceError> {
    let (done, outcome) = sync_channel(1);
    pair.change(move |state| {
        // Whoever asked is waiting for it.
        let _ = done.send((change(state), state.discarded()));
    });
    outcome.recv().map(|(outcome, _)| outcome).map_err(|_| DeviceError::Gone)
}

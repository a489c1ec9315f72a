//! A pair of queues: what the two halves of its link share, and how it is told of changes.
//!
//! The worker that has the link has the rings. The device makes every change by way of that worker
//! ([`Pair::change`]), between two batches, so no ring is touched by two threads, and none after it was said
//! to rest.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use usernet_core::offload::Capabilities;

use super::fault::losses;
use super::from_guest::QueueRx;
use super::memory::Memory;
use super::ring::{Ring, RingError};
use super::to_guest::QueueTx;
use crate::{Link, LinkError};

/// The numbers of a pair's queues.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// None while it rests.
    pub(super) ring: Option<Ring>,
    /// Where it goes on after it has rested: the index of the first chain that was not given back.
    base: u16,
    /// Interrupts the guest.
    call: Option<OwnedFd>,
    /// Tells the front end that the ring made no sense.
    err: Option<OwnedFd>,
    /// Where the guest notifies us.
    kick: Option<OwnedFd>,
    /// It rests since the device broke down.
    broken: bool,
    /// Descriptors that are of no use any more, for whoever has the device to close: with what a front end
    /// hands over, that may take a while.
    discarded: Vec<OwnedFd>,
    /// Rung when the ring starts to move or to rest.
    turned: Bell,
    /// Readable when one of the two is: one descriptor for all kicks that come and go.
    poll: OwnedFd,
}

impl Queue {
    fn new() -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let turned = Bell::new()?;
        epoll::add(&poll, &turned, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let discarded = Vec::new();
        let broken = false;
        Ok(Self { ring: None, base: 0, call: None, err: None, kick: None, broken, discarded, turned, poll })
    }

    /// Has the ring move.
    ///
    /// # Errors
    /// The kick cannot be polled.
    pub(super) fn start(&mut self, ring: Ring, kick: OwnedFd) -> io::Result<()> {
        self.rest();
        epoll::add(&self.poll, &kick, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        // The driver may have filled the ring before there was anybody to notify.
        self.turned.ring();
        (self.ring, self.kick) = (Some(ring), Some(kick));
        Ok(())
    }

    /// Has the ring rest, when the guest knows of all that was given back. Returns the index of the first chain
    /// that was not.
    pub(super) fn rest(&mut self) -> u16 {
        self.publish();
        if let Some(ring) = self.ring.take() {
            self.base = ring.base();
            self.turned.ring();
        }
        if let Some(kick) = self.kick.take() {
            // Others have it as well, so closing it is not enough. It was added, so it can be removed.
            let _ = epoll::delete(&self.poll, &kick);
            self.discarded.push(kick);
        }
        self.base
    }

    /// Interrupts the guest by another descriptor.
    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.discarded.extend(std::mem::replace(&mut self.call, call));
    }

    /// Tells the front end by another descriptor that the ring made no sense.
    pub(super) fn set_err(&mut self, err: Option<OwnedFd>) {
        self.discarded.extend(std::mem::replace(&mut self.err, err));
    }

    /// Takes back that there was a notification, and asks for the next one. Returns whether there is
    /// something new in the ring by now.
    pub(super) fn await_kick(&mut self) -> Result<bool, RingError> {
        self.turned.hear();
        if let Some(kick) = &self.kick {
            hear(kick)?;
        }
        self.ring.as_mut().map_or(Ok(false), Ring::ask_for_notification)
    }

    /// Has the ring looked at again soon, kick or not.
    pub(super) fn look_again(&self) {
        self.turned.ring();
    }

    /// Tells the guest what was given back.
    pub(super) fn publish(&mut self) {
        self.show();
        self.interrupt();
    }

    /// The same, but it is not interrupted yet.
    pub(super) fn show(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.show();
        }
    }

    /// Interrupts the guest, if it wants to be for what it was shown.
    pub(super) fn interrupt(&mut self) {
        if let Some(ring) = &mut self.ring
            && ring.wants_interrupt()
            && let Some(call) = &self.call
        {
            ring_bell(call);
        }
    }

    /// The ring in the memory as it is mapped now.
    fn remap(&mut self, memory: &Memory) -> Result<(), RingError> {
        self.publish();
        if let Some(ring) = self.ring.take() {
            self.base = ring.base();
            self.ring = Some(ring.moved(memory)?);
        }
        Ok(())
    }
}

/// What the halves of a link share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) to_guest: Queue,
    pub(super) from_guest: Queue,
    pub(super) memory: Arc<Memory>,
    /// What the guest's driver finishes by itself.
    pub(super) takes: Capabilities,
    /// Whether a frame to the guest may have several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    pub(super) mergeable: bool,
    /// There is no device any more, and why.
    pub(super) ended: Option<LinkError>,
    /// How often the device had broken down when that was last looked at.
    breakdowns: usize,
    /// Lost regions of anybody's, when it was last looked whether one of them is in this memory.
    losses: usize,
}

impl State {
    /// A queue by its number: even ones are receive queues, odd ones transmit queues (virtio 1.2 §5.1.2).
    pub(super) fn queue(&mut self, number: usize) -> &mut Queue {
        if number % 2 == RECEIVE { &mut self.to_guest } else { &mut self.from_guest }
    }

    /// Looks whether the guest's memory is still whole.
    ///
    /// # Errors
    /// It was cut short.
    pub(super) fn check_memory(&mut self) -> Result<(), LinkError> {
        let losses = losses();
        if self.losses != losses {
            self.losses = losses;
            if self.memory.is_lost() {
                return Err(LinkError::Malformed("the guest's memory was cut short".into()));
            }
        }
        Ok(())
    }

    fn rest(&mut self) {
        self.to_guest.rest();
        self.from_guest.rest();
    }

    /// Rests, if the device has broken down since the last time.
    fn heed(&mut self, health: &Health) {
        let breakdowns = health.breakdowns.load(Ordering::Acquire);
        if std::mem::replace(&mut self.breakdowns, breakdowns) == breakdowns {
            return;
        }
        for queue in [&mut self.to_guest, &mut self.from_guest] {
            if queue.ring.is_some() && !std::mem::replace(&mut queue.broken, true) {
                health.resting.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.rest();
    }

    /// Gives up all that was handed over.
    pub(super) fn let_go(&mut self) {
        self.rest();
        for queue in [&mut self.to_guest, &mut self.from_guest] {
            queue.set_call(None);
            queue.set_err(None);
        }
    }

    /// The descriptors that are of no use any more.
    pub(super) fn discarded(&mut self) -> Vec<OwnedFd> {
        let queues = [&mut self.to_guest, &mut self.from_guest];
        queues.into_iter().flat_map(|queue| queue.discarded.drain(..)).collect()
    }

    /// Moves the rings to other memory.
    ///
    /// # Errors
    /// One of them is not in it.
    pub(super) fn remap(&mut self, memory: Arc<Memory>) -> Result<(), RingError> {
        let moved = self.to_guest.remap(&memory).and(self.from_guest.remap(&memory));
        self.memory = memory;
        // A part of it may have been lost before it came here.
        self.losses = 0;
        moved
    }
}

/// Whether a device works, as all of its pairs see it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// How often it has broken down.
    breakdowns: AtomicUsize,
    /// Queues that rest for that, until they are started anew or stopped.
    resting: AtomicUsize,
    /// It was logged once.
    told: AtomicBool,
    /// What was wrong the last time.
    why: Mutex<String>,
    bells: Mutex<Vec<Arc<Bell>>>,
}

impl Health {
    /// Why nothing moves, if so.
    pub(super) fn why(&self) -> Option<String> {
        (self.resting.load(Ordering::Acquire) > 0).then(|| lock(&self.why).clone())
    }

    /// Has all queues of the device rest, whose guest has made a mistake, until they are started anew.
    pub(super) fn break_down(&self, error: &RingError) {
        // A guest that goes on like that does not fill the log.
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "a guest's ring makes no sense: its device rests until it is set up anew");
        }
        *lock(&self.why) = error.to_string();
        self.breakdowns.fetch_add(1, Ordering::AcqRel);
        lock(&self.bells).iter().for_each(|bell| bell.ring());
    }

    /// A queue that rested is started anew, or stopped.
    pub(super) fn mend(&self, queue: &mut Queue) {
        if std::mem::take(&mut queue.broken) {
            self.resting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

type Change = Box<dyn FnOnce(&mut State) + Send>;

/// A pair of queues.
#[derive(Debug)]
pub(super) struct Pair {
    /// Locked by the worker alone.
    pub(super) state: Mutex<State>,
    pub(super) health: Arc<Health>,
    /// Whether it is the one that a guest always uses.
    is_first: bool,
    changes: Mutex<Changes>,
    /// Rung when there is something to change; in the transmit queue's poll.
    bell: Arc<Bell>,
    /// Rung when the link has gone.
    ended: Arc<Bell>,
}

/// What is to be changed.
#[derive(Default)]
struct Changes {
    waiting: Vec<Change>,
    /// There is nobody any more who would make them.
    over: bool,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("waiting", &self.waiting.len()).field("over", &self.over).finish()
    }
}

impl Pair {
    /// A pair whose queues rest, and its link. `ended` is rung when the link goes.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(
        is_first: bool,
        health: Arc<Health>,
        ended: Arc<Bell>,
    ) -> io::Result<(Arc<Self>, Link)> {
        let bell = Arc::new(Bell::new()?);
        lock(&health.bells).push(Arc::clone(&bell));
        let (to_guest, from_guest) = (Queue::new()?, Queue::new()?);
        epoll::add(&from_guest.poll, &bell.fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let (rx_poll, tx_poll) = (from_guest.poll.try_clone()?, to_guest.poll.try_clone()?);
        let state = State {
            to_guest,
            from_guest,
            memory: Arc::default(),
            takes: Capabilities::default(),
            mergeable: false,
            ended: None,
            breakdowns: 0,
            losses: 0,
        };
        let (state, changes) = (Mutex::new(state), Mutex::default());
        let pair = Arc::new(Self { state, health, is_first, changes, bell, ended });
        let link = Link {
            kind: "virtio",
            rx: Box::new(QueueRx::new(Arc::clone(&pair), rx_poll)),
            tx: Box::new(QueueTx::new(Arc::clone(&pair), tx_poll)),
        };
        Ok((pair, link))
    }

    /// Has the worker make a change. When the link has gone, `change` is dropped as it is.
    pub(super) fn change(&self, change: impl FnOnce(&mut State) + Send + 'static) {
        let mut changes = lock(&self.changes);
        if !changes.over {
            changes.waiting.push(Box::new(change));
            self.bell.ring();
        }
    }

    /// Makes the changes that wait.
    pub(super) fn make_changes(&self, state: &mut State) {
        if !self.bell.hear() {
            return;
        }
        // What is started now is started after that.
        state.heed(&self.health);
        let waiting = std::mem::take(&mut lock(&self.changes).waiting);
        waiting.into_iter().for_each(|change| change(state));
    }

    /// What came of using one of the queues. A guest that has made a mistake has all queues of its device
    /// rest until it sets them up anew.
    pub(super) fn or_break_down<T: Default>(
        &self,
        state: &mut State,
        queue: usize,
        outcome: Result<T, RingError>,
    ) -> T {
        outcome.unwrap_or_else(|error| {
            self.health.break_down(&error);
            if let Some(err) = &state.queue(queue).err {
                ring_bell(err);
            }
            state.heed(&self.health);
            T::default()
        })
    }

    /// Whether the guest does without this pair.
    pub(super) fn is_idle(&self, state: &State) -> bool {
        !self.is_first && state.to_guest.ring.is_none()
    }

    /// The link has gone: nobody makes changes any more.
    pub(super) fn end(&self) {
        let mut changes = lock(&self.changes);
        changes.over = true;
        changes.waiting.clear();
        self.ended.ring();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What wakes somebody, who first looks at a flag.
#[derive(Debug)]
pub(super) struct Bell {
    rung: AtomicBool,
    fd: OwnedFd,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { rung: AtomicBool::new(false), fd })
    }

    /// Whoever hears it looks after that at what it is about, so it is of no matter that a ring which comes
    /// just then is heard along with the last one.
    pub(super) fn ring(&self) {
        ring_bell(&self.fd);
        self.rung.store(true, Ordering::Release);
    }

    /// Whether it was rung since the last time.
    fn hear(&self) -> bool {
        let rung = self.rung.swap(false, Ordering::AcqRel);
        if rung {
            drain(&self.fd);
        }
        rung
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes back that a guest has notified us; returns whether it has. Others have the kick as well, and its flags
/// as they like: so it is said with the call that we do not wait.
///
/// # Errors
/// There is nothing that could: it would be readable for ever. Or the system cannot read it without waiting, as
/// it can eventfds since Linux 5.8, and pipes and sockets since 6.5.
pub(crate) fn hear(kick: impl AsFd) -> Result<bool, RingError> {
    const NO_OFFSET: u64 = u64::MAX;
    let bytes = &mut [0; 8];
    match preadv2(&kick, &mut [IoSliceMut::new(bytes)], NO_OFFSET, ReadWriteFlags::NOWAIT) {
        Ok(1..) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        _ => Err(RingError::Kick),
    }
}

/// Reads an eventfd back to 0.
fn drain(fd: impl AsFd) {
    // There may be nothing to read.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

/// Adds to an eventfd.
pub(super) fn ring_bell(fd: impl AsFd) {
    // It fails where it was rung 2^64 - 2 times and never read, or is no eventfd: nobody listens.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

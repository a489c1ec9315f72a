//! Waiting: an epoll, edge-triggered but for [`Interest::ReadLevel`], and the descriptor that wakes it.
//!
//! An edge is told once. Whoever gets one works until the descriptor says `EAGAIN`, or keeps a note
//! that there is more to do. [`Poll::modify`] looks again and tells an edge that holds at that
//! moment, which is how a flow asks to hear of room in a send buffer that it has not yet filled.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

/// An epoll instance.
#[derive(Debug)]
pub struct Poll(OwnedFd);

/// What to be told of. The end of the stream, urgent data and errors are always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read, or to accept.
    Read,
    /// The same, told by each wait for as long as it holds: whoever always reads need not find out
    /// where it ends.
    ReadLevel,
    /// There is room to write.
    Write,
    /// Both.
    ReadWrite,
}

/// What happened to one descriptor since it was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What the descriptor was added with.
    pub token: u64,
    flags: EventFlags,
}

/// Where [`Poll::wait`] puts its events; reused, so that waiting allocates nothing.
pub struct Events(Vec<epoll::Event>);

/// Wakes the thread that waits on a [`Poll`]; to be cloned to whoever may need to.
///
/// Add it to the poll with [`Interest::Read`]. Each wake is an edge, so it need not be read.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Poll {
    /// Makes an epoll instance.
    ///
    /// # Errors
    /// No descriptors or memory are left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches `fd`. What already holds is told by the next wait.
    ///
    /// # Errors
    /// `fd` is watched already or cannot be, or memory or `fs.epoll.max_user_watches` is used up.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), interest.flags())?)
    }

    /// Changes what is told of `fd`, and tells what holds now once more.
    ///
    /// # Errors
    /// `fd` is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(token), interest.flags())?)
    }

    /// Stops watching `fd`. Closing the only descriptor of a socket does the same.
    ///
    /// # Errors
    /// `fd` is not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits for events, but no longer than `timeout` (to the nanosecond; `None`: for ever), and
    /// replaces what `events` holds. Being interrupted by a signal leaves it empty.
    ///
    /// # Errors
    /// None that correct use can meet: the kernel lacks `epoll_pwait2` (Linux before 5.11).
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        // A timeout that no timespec holds is as good as none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        events.0.clear();
        match epoll::wait(&self.0, spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// For a poll inside another: readable when it has events.
impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Interest {
    fn flags(self) -> EventFlags {
        let always = EventFlags::ET | EventFlags::RDHUP | EventFlags::PRI;
        match self {
            Self::Read => always | EventFlags::IN,
            Self::ReadLevel => EventFlags::IN,
            Self::Write => always | EventFlags::OUT,
            Self::ReadWrite => always | EventFlags::IN | EventFlags::OUT,
        }
    }
}

impl Event {
    /// There is something to read, or the end of the stream.
    pub fn readable(self) -> bool {
        self.flags.intersects(EventFlags::IN)
    }

    /// There is room to write.
    pub fn writable(self) -> bool {
        self.flags.intersects(EventFlags::OUT)
    }

    /// An error waits: for the next call, or in the error queue.
    pub fn error(self) -> bool {
        self.flags.intersects(EventFlags::ERR)
    }

    /// The peer has closed its sending side.
    pub fn read_closed(self) -> bool {
        self.flags.intersects(EventFlags::RDHUP)
    }

    /// Both directions are closed.
    pub fn hang_up(self) -> bool {
        self.flags.intersects(EventFlags::HUP)
    }

    /// There is urgent data in the stream.
    pub fn urgent(self) -> bool {
        self.flags.intersects(EventFlags::PRI)
    }
}

impl Events {
    /// Room for `capacity` events a wait; those that do not fit come with the next one.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity.max(1)))
    }

    /// The events of the last wait.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Event> + '_ {
        self.0.iter().map(|event| Event { token: event.data.u64(), flags: event.flags })
    }
}

impl Waker {
    /// Makes a waker.
    ///
    /// # Errors
    /// No descriptors or memory are left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    /// Wakes the waiting thread, or makes its next wait return at once.
    pub fn wake(&self) {
        // Only a counter near 2^64 can refuse, and it would be readable.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

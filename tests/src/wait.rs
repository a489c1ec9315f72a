//! Waiting for a condition, with a deadline.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take that a person would expect to happen at once. Wide, since the machine
/// may be busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// Tries until `condition` gives a value.
///
/// # Panics
/// It gave none [`SOON`]; the message says `what` did not happen.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the descriptor has something to read (or has ended). `false`: not by the deadline.
pub fn readable(fd: impl AsFd, deadline: Instant) -> bool {
    poll_until(fd, PollFlags::IN, deadline)
}

/// Waits for any of `events`, an end or an error on the descriptor. `false`: not by the deadline.
pub(crate) fn poll_until(fd: impl AsFd, events: PollFlags, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).unwrap();
    poll(&mut [PollFd::new(&fd, events)], Some(&timeout)).unwrap() > 0
}

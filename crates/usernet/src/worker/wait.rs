//! Waiting for events, at first without sleeping when that is likely to pay.
//!
//! To be woken takes a thread longer than all that it does for a small message. So after a turn that moved
//! little, a worker looks a few times more before it sleeps, as long as that has been worth it lately. A
//! worker with nothing to do sleeps, and so does one that moves bulk: there are others who need the
//! processor.

use std::io;
use std::time::{Duration, Instant};

use usernet_host::epoll::{Events, Poll};

/// How long it looks.
const LOOK: Duration = Duration::from_micros(50);
/// A sleep this short could have been spared: waking up is a good part of it.
const SHORT: Duration = Duration::from_micros(100);
/// How long what can wait does at most, while there is always something else to do.
const UNSETTLED: Duration = Duration::from_micros(200);
/// Looks in vain, one after the other, until it looks no more.
const PATIENCE: u8 = 8;
/// Bytes of frames in a turn up to which it moved little.
const LITTLE: usize = 8192;

/// What is remembered from one wait to the next.
#[derive(Debug, Default)]
pub(super) struct Wait {
    patience: u8,
    /// Bytes of frames that were moved since the last wait.
    moved: usize,
    /// When what could wait was last told.
    settled: Option<Instant>,
}

impl Wait {
    /// Takes note of a frame.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
    }

    /// Waits for events, but no longer than `timeout`. Calls `settle` before it sleeps, or when it has not
    /// for long.
    pub(super) fn wait(
        &mut self,
        poll: &Poll,
        events: &mut Events,
        timeout: Option<Duration>,
        mut settle: impl FnMut(),
    ) -> io::Result<()> {
        let little = std::mem::take(&mut self.moved) <= LITTLE;
        let start = Instant::now();
        if self.settled.is_none_or(|settled| start - settled > UNSETTLED) {
            settle();
            self.settled = Some(start);
        }
        if little && self.patience > 0 && timeout.is_none_or(|timeout| timeout > LOOK) {
            while start.elapsed() < LOOK {
                poll.wait(events, Some(Duration::ZERO))?;
                if events.iter().len() > 0 {
                    self.patience = PATIENCE;
                    return Ok(());
                }
            }
            self.patience -= 1;
        }
        settle();
        poll.wait(events, timeout)?;
        // What it was woken for can wait as long.
        self.settled = Some(Instant::now());
        if start.elapsed() < SHORT {
            self.patience = PATIENCE;
        }
        Ok(())
    }
}

//! What is sent to a worker: commands, and what other workers hand over.
//!
//! Neither waits for the other, and no sender waits. Commands have no bound of their own, for whoever sends
//! them has one: callers wait for the answer, queries are counted for each guest, connections hold
//! descriptors. What guests can make as much of as they like is handed over, and what finds no room is lost.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};

use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::offload::Offload;
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_host::epoll::Waker;

use super::port::FRAMES;
use super::{Command, Worker};

/// Commands that a worker takes in before others have their turn.
const COMMANDS: usize = 128;
/// What waits for a worker at most of what was handed over, in pieces and in bytes.
const HANDED: usize = 1024;
const HANDED_BYTES: usize = 8 << 20;

/// What one worker hands to another. What finds no room is lost, as on a wire, and counted.
pub(crate) enum Handed {
    /// A frame for a guest.
    ToGuest { port: PortId, frame: Vec<u8>, offload: Offload },
    /// A frame from a guest, for a flow.
    FromGuest { port: PortId, frame: Vec<u8>, offload: Offload },
    /// Datagrams for a guest, which came to a forwarded port.
    Forwarded { forward: u32, guest: Endpoint, origin: Origin, datagrams: Datagrams, payload: Vec<u8> },
    /// An address has been found.
    Found(IpAddr),
}

impl Handed {
    fn len(&self) -> usize {
        match self {
            Self::ToGuest { frame, .. } | Self::FromGuest { frame, .. } => frame.len(),
            Self::Forwarded { payload, .. } => payload.len(),
            Self::Found(_) => 0,
        }
    }
}

/// Sends things to a worker and wakes it.
#[derive(Clone)]
pub(crate) struct Commands {
    commands: Sender<Command>,
    handed: SyncSender<Handed>,
    notes: Arc<Notes>,
    pub(crate) waker: Waker,
}

/// What was sent to a worker.
pub(crate) struct Mail {
    commands: Receiver<Command>,
    handed: Receiver<Handed>,
    notes: Arc<Notes>,
}

#[derive(Default)]
struct Notes {
    handed_bytes: AtomicUsize,
    /// The resolver is to be told the names anew.
    names_changed: AtomicBool,
}

/// Both ends of what is sent to one worker.
pub(crate) fn mail() -> io::Result<(Commands, Mail)> {
    let (commands, received) = channel();
    let (handed, taken) = sync_channel(HANDED);
    let notes = Arc::new(Notes::default());
    let mail = Mail { commands: received, handed: taken, notes: Arc::clone(&notes) };
    Ok((Commands { commands, handed, notes, waker: Waker::new()? }, mail))
}

impl Commands {
    /// Returns whether the worker is there to hear it.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.waker.wake();
        sent
    }

    /// Returns whether there was room for it.
    pub(super) fn hand(&self, handed: Handed) -> bool {
        let len = handed.len();
        let waiting = self.notes.handed_bytes.fetch_add(len, Ordering::Relaxed);
        let sent = waiting + len <= HANDED_BYTES && self.handed.try_send(handed).is_ok();
        if sent {
            self.waker.wake();
        } else {
            self.notes.handed_bytes.fetch_sub(len, Ordering::Relaxed);
        }
        sent
    }

    /// Has the worker tell the resolver the names anew.
    pub(super) fn names_changed(&self) {
        self.notes.names_changed.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Mail {
    fn take_handed(&self) -> Option<Handed> {
        let handed = self.handed.try_recv().ok()?;
        self.notes.handed_bytes.fetch_sub(handed.len(), Ordering::Relaxed);
        Some(handed)
    }
}

impl Worker {
    /// Takes in a turn's share of what was sent. What is left waits for the next turn.
    pub(super) fn read_mail(&mut self) {
        if std::mem::take(&mut self.mail_waits) {
            self.names_changed |= self.parts.mail.notes.names_changed.swap(false, Ordering::Acquire);
            let more_commands = self.read_commands();
            self.mail_waits = self.read_handed() || more_commands;
        }
    }

    /// Returns whether there may be more.
    fn read_commands(&mut self) -> bool {
        for _ in 0..COMMANDS {
            match self.parts.mail.commands.try_recv() {
                Ok(command) => self.handle_command(command),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => self.stop = true,
            }
            if self.stop {
                return false;
            }
        }
        true
    }

    /// Returns whether there may be more.
    fn read_handed(&mut self) -> bool {
        let mut budget = FRAMES;
        while budget > 0 && !self.stop {
            let Some(handed) = self.parts.mail.take_handed() else { return false };
            self.take_handed(handed, &mut budget);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Handed {
        Handed::ToGuest { port: PortId(1), frame: vec![0; len], offload: Offload::default() }
    }

    fn fill(commands: &Commands, len: usize) -> usize {
        (0..).take_while(|_| commands.hand(frame(len))).count()
    }

    #[test]
    fn what_is_handed_over_is_bounded_in_pieces_and_bytes() {
        let (commands, mail) = mail().unwrap();
        assert_eq!(fill(&commands, 60), HANDED);
        while mail.take_handed().is_some() {}
        assert_eq!(fill(&commands, 1 << 16), HANDED_BYTES >> 16);
        assert!(mail.take_handed().is_some());
        assert_eq!(fill(&commands, 1 << 16), 1, "there is room for what was taken");
    }

    #[test]
    fn commands_pass_what_is_handed_over() {
        let (commands, mail) = mail().unwrap();
        fill(&commands, 60);
        for _ in 0..2 * HANDED {
            assert!(commands.send(Command::CheckFlows { routes: false }));
        }
        assert_eq!(mail.commands.try_iter().count(), 2 * HANDED);
    }
}

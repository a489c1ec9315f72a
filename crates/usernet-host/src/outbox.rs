//! Datagrams that leave by one socket.
//!
//! Those of one size to one peer in a row are joined, for the kernel to cut (`UDP_SEGMENT`, Linux
//! 4.18); what cannot be joined goes by one call all the same (`sendmmsg`).

use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use usernet_core::datagrams::Datagrams;
use usernet_core::host::HostError;
use usernet_core::wire::ICMP_MAX_QUOTE;

use crate::datagram::{self, Control, Envelope};
use crate::sys;

/// Messages that one call takes at most.
const MESSAGES: usize = 16;

/// Datagrams on their way out, where they lie.
#[derive(Debug, Default)]
pub struct Outbox<'a> {
    messages: Vec<Message>,
    slices: Vec<IoSlice<'a>>,
}

/// What one system call of its own would send.
#[derive(Debug)]
struct Message {
    envelope: Envelope,
    datagrams: Datagrams,
    /// Where the payload is among the slices.
    slices: Range<usize>,
}

/// Datagrams that could not be sent, and are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsent {
    /// Where they would have gone.
    pub to: SocketAddr,
    /// How many of them.
    pub datagrams: usize,
    /// Why.
    pub error: HostError,
    /// How the first of them begins, as far as an ICMP error would quote it.
    pub payload: Vec<u8>,
}

impl<'a> Outbox<'a> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the first datagram goes; `None` when there is none.
    pub fn first_to(&self) -> Option<SocketAddr> {
        self.messages.first().map(|message| message.envelope.to)
    }

    /// Puts `datagrams` behind what is there. `slices` pushes the slices in which they lie.
    pub fn push(
        &mut self,
        envelope: Envelope,
        datagrams: Datagrams,
        slices: impl FnOnce(&mut Vec<IoSlice<'a>>),
    ) {
        let start = self.slices.len();
        slices(&mut self.slices);
        let end = self.slices.len();
        if let Some(last) = self.messages.last_mut().filter(|last| last.envelope == envelope)
            && last.datagrams.join(datagrams)
        {
            last.slices.end = end;
        } else {
            self.messages.push(Message { envelope, datagrams, slices: start..end });
        }
    }

    /// Sends all, and tells `unsent` of what could not be sent. The outbox is empty then.
    ///
    /// An error that came back for an earlier datagram, to whomever, waits in the socket and is told
    /// to the next call, which then does nothing else. It says nothing about this one, and the error
    /// queue keeps it, so a failed call is made once more. Datagrams whose message was refused are
    /// sent one by one: a path with a smaller MTU takes no joined ones, and fragments may still pass.
    pub(crate) fn send(&mut self, fd: impl AsFd, mut unsent: impl FnMut(Unsent)) {
        let mut rest = self.messages.as_slice();
        while let Some((first, others)) = rest.split_first() {
            let sent = if others.is_empty() {
                self.send_one(&fd, first).map(|()| 1)
            } else {
                self.send_many(&fd, rest)
            };
            rest = match sent {
                Ok(sent) => rest.get(sent..).unwrap_or_default(),
                Err(_) => {
                    self.send_again(&fd, first, &mut unsent);
                    others
                }
            };
        }
        self.clear();
    }

    /// Forgets what is there.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.slices.clear();
    }

    /// Sends the message whose turn it was when a call failed.
    fn send_again(&self, fd: impl AsFd, message: &Message, unsent: &mut impl FnMut(Unsent)) {
        let Err(error) = self.send_one(&fd, message) else { return };
        let to = message.envelope.to;
        let count = message.datagrams.count();
        let mut payload = self.payload(message).iter().flat_map(|slice| slice.iter().copied());
        // There is no more room for a part of them.
        if count == 1 || error == Errno::AGAIN {
            let payload = payload.take(ICMP_MAX_QUOTE).collect();
            let error = datagram::unsent(error, &message.envelope);
            return unsent(Unsent { to, datagrams: count, error, payload });
        }
        for _ in 0..count {
            let mut datagram: Vec<u8> = payload.by_ref().take(message.datagrams.longest()).collect();
            let slices = [IoSlice::new(&datagram)];
            if let Err(error) = datagram::send(&fd, &slices, &message.envelope) {
                datagram.truncate(ICMP_MAX_QUOTE);
                unsent(Unsent { to, datagrams: 1, error, payload: datagram });
            }
        }
    }

    fn send_one(&self, fd: impl AsFd, message: &Message) -> Result<(), Errno> {
        datagram::send_once(fd, self.payload(message), &message.envelope, message.datagrams.segment)
    }

    /// Returns how many messages were sent: at least one.
    fn send_many(&self, fd: impl AsFd, messages: &[Message]) -> Result<usize, Errno> {
        let outgoing = messages.iter().take(MESSAGES).map(|message| sys::Outgoing {
            to: message.envelope.to.into(),
            control: Control::new(&message.envelope, message.datagrams.segment),
            payload: self.payload(message),
        });
        sys::send_many(fd, &outgoing.collect::<Vec<_>>(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    }

    fn payload(&self, message: &Message) -> &[IoSlice<'a>] {
        self.slices.get(message.slices.clone()).unwrap_or_default()
    }
}

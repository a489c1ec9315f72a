//! What the tests of host ends share: pairs of connected sockets, and waiting with a deadline.
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use socket2::Socket;
use usernet_core::datagrams::Datagrams;
use usernet_core::host::HostError;
use usernet_host::epoll::{Event, Events, Interest, Poll};
use usernet_host::outbox::Outbox;
use usernet_host::tcp::TcpEnd;
use usernet_host::udp::UdpEnd;
use usernet_host::{Envelope, Source};

pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);

/// A poll that watches one descriptor.
pub(crate) struct Watch {
    pub(crate) poll: Poll,
    events: Events,
}

impl Watch {
    pub(crate) fn new(fd: impl AsFd) -> Self {
        let poll = Poll::new().unwrap();
        poll.add(fd, 7, Interest::ReadWrite).unwrap();
        Self { poll, events: Events::with_capacity(4) }
    }

    /// The next event, within `patience`.
    pub(crate) fn next_within(&mut self, patience: Duration) -> Option<Event> {
        self.poll.wait(&mut self.events, Some(patience)).unwrap();
        self.events.iter().next()
    }

    /// Waits for the first event that `wanted` accepts.
    #[track_caller]
    pub(crate) fn until(&mut self, mut wanted: impl FnMut(Event) -> bool) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.checked_duration_since(Instant::now()).expect("no such event in time");
            if let Some(event) = self.next_within(left)
                && wanted(event)
            {
                return event;
            }
        }
    }

    /// Tells `end` of events until there are none left.
    pub(crate) fn drain_into(&mut self, end: &mut TcpEnd) {
        while let Some(event) = self.next_within(Duration::ZERO) {
            end.note(event);
        }
    }
}

/// Connects to `to` and waits for the outcome.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpEnd, HostError> {
    let mut end = TcpEnd::connect(to, Source::default(), 0)?;
    let mut watch = Watch::new(&end);
    loop {
        watch.until(|_| true);
        if end.finish_connect()? {
            return Ok(end);
        }
    }
}

/// A host end and the socket at its other end: over TCP to `address`.
pub(crate) fn tcp_pair(address: IpAddr) -> (TcpEnd, Socket) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let end = connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    (end, peer.into())
}

/// A host end and the socket at its other end: a Unix socket pair.
pub(crate) fn unix_pair() -> (TcpEnd, Socket) {
    let (ours, service) = UnixStream::pair().unwrap();
    (TcpEnd::from_unix(ours).unwrap(), service.into())
}

/// Every kind of host end.
pub(crate) fn pairs() -> [(&'static str, (TcpEnd, Socket)); 3] {
    [("IPv4", tcp_pair(LOCALHOST)), ("IPv6", tcp_pair("::1".parse().unwrap())), ("Unix", unix_pair())]
}

/// Bytes of a stream from position `at` on; they do not repeat within any window.
pub(crate) fn stream_bytes(at: usize, len: usize) -> Vec<u8> {
    (at..at + len)
        .map(|position| {
            let mixed = (position as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ (mixed >> 29)).to_le_bytes()[position % 8]
        })
        .collect()
}

/// Numbers that look random and are the same in each run (xorshift).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to `below` - 1.
    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).unwrap()
    }
}

/// Sends one datagram.
pub(crate) fn send(end: &UdpEnd, parts: &[&[u8]], envelope: Envelope) -> Result<(), HostError> {
    let mut outbox = Outbox::new();
    let len = parts.iter().map(|part| part.len()).sum();
    outbox.push(envelope, Datagrams::one(len), |out| out.extend(parts.iter().map(|part| IoSlice::new(part))));
    let mut outcome = Ok(());
    end.send(&mut outbox, |unsent| outcome = Err(unsent.error));
    outcome
}

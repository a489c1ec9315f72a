//! The host, in memory: TCP ends with the semantics of real ones, and peers that do as they are told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use usernet_core::host::{HostError, HostEvent, PeekEnd};
use usernet_core::table::FlowId;
use usernet_core::time::Instant;

use crate::bytes::{Digest, Hasher, Rng, fill};

/// How a connect to a peer goes.
#[derive(Clone, Copy, Debug)]
pub enum Connect {
    /// It succeeds after this long.
    After(Duration),
    /// It fails after this long.
    Fails(HostError, Duration),
    /// Nothing is ever heard.
    Never,
}

/// What a peer does when it has sent all that it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It waits for the guest's end of the stream, then ends its own.
    Waits,
    /// It ends its stream at once.
    Fin,
    /// It never ends its stream.
    Stays,
}

/// What a host peer is and does.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// How a connect to it goes.
    pub connect: Connect,
    /// Which stream it sends.
    pub seed: u64,
    /// How many bytes of it.
    pub send: u64,
    /// Whether it sends back what it receives.
    pub echo: bool,
    /// What it does then.
    pub then: Then,
    /// How fast it reads, in bytes a millisecond; `None`: at once. Zero: not at all.
    pub reads: Option<u32>,
    /// It resets the connection when it has received this many bytes.
    pub reset_after: Option<u64>,
    /// Bytes that the host takes for it at a time (`SO_SNDBUF`).
    pub room: usize,
    /// Bytes that the host holds from it at a time (`SO_RCVBUF`).
    pub queue: usize,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            connect: Connect::After(Duration::from_micros(100)),
            seed: 0,
            send: 0,
            echo: false,
            then: Then::Waits,
            reads: None,
            reset_after: None,
            room: 256 << 10,
            queue: 6 << 20,
        }
    }
}

/// How the peer saw its connection end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is open yet.
    Open,
    /// It was closed in order.
    Closed,
    /// It was reset by the network.
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting { outcome: Option<(Instant, Result<(), HostError>)> },
    Connected,
    Broken,
    Gone,
}

/// A host end and its peer.
#[derive(Debug)]
pub struct End {
    /// The flow.
    pub flow: FlowId,
    /// Where it was connected to.
    pub to: Option<SocketAddr>,
    /// The peer.
    pub peer: Peer,
    /// How it ended.
    pub ended: Ended,
    /// Whether the peer saw the end of the guest's stream.
    pub guest_fin: bool,
    state: State,
    /// What the peer has received.
    received: Hasher,
    /// On its way to the peer.
    to_peer: VecDeque<u8>,
    shut: bool,
    wants_space: bool,
    next_read: Option<Instant>,
    /// In the host's queue, not yet discarded.
    to_guest: VecDeque<u8>,
    sent: u64,
    echoes: VecDeque<u8>,
    fin: bool,
    events: VecDeque<HostEvent>,
}

impl End {
    fn new(flow: FlowId, to: Option<SocketAddr>, peer: Peer, state: State) -> Self {
        Self {
            flow,
            to,
            peer,
            ended: Ended::Open,
            guest_fin: false,
            state,
            received: Hasher::default(),
            to_peer: VecDeque::new(),
            shut: false,
            wants_space: false,
            next_read: None,
            to_guest: VecDeque::new(),
            sent: 0,
            echoes: VecDeque::new(),
            fin: false,
            events: VecDeque::new(),
        }
    }

    /// Bytes that the peer has received.
    pub fn received(&self) -> u64 {
        self.received.len
    }

    /// The digest of what the peer has received.
    pub fn digest(&self) -> Digest {
        self.received.digest()
    }

    /// Bytes that lie in the host's queue, not yet discarded.
    pub fn queued(&self) -> usize {
        self.to_guest.len()
    }

    fn free(&self) -> u32 {
        (self.peer.room - self.to_peer.len().min(self.peer.room)) as u32
    }

    /// The peer sends what there is room for.
    fn pump(&mut self) {
        if self.state != State::Connected || self.fin {
            return;
        }
        let before = self.to_guest.len();
        let room = self.peer.queue.saturating_sub(before);
        let n = (self.peer.send - self.sent).min(room as u64) as usize;
        let mut bytes = vec![0; n];
        fill(self.peer.seed, self.sent, &mut bytes);
        self.sent += n as u64;
        self.to_guest.extend(bytes);
        let room = self.peer.queue.saturating_sub(self.to_guest.len());
        let n = self.echoes.len().min(room);
        self.to_guest.extend(self.echoes.drain(..n));
        let all = self.sent == self.peer.send && self.echoes.is_empty();
        let over = match self.peer.then {
            Then::Fin => !self.peer.echo || self.guest_fin,
            Then::Waits => self.guest_fin,
            Then::Stays => false,
        };
        self.fin = all && over;
        if self.to_guest.len() > before || self.fin {
            self.events.push_back(HostEvent::Readable);
        }
    }

    /// The peer reads what it reads by now.
    fn read(&mut self, now: Instant) {
        if self.state != State::Connected || self.next_read.is_some_and(|at| now < at) {
            return;
        }
        let n = self.to_peer.len().min(self.peer.reads.map_or(usize::MAX, |n| n as usize));
        let bytes: Vec<u8> = self.to_peer.drain(..n).collect();
        self.next_read = self.peer.reads.map(|_| now + Duration::from_millis(1));
        self.received.update(&bytes);
        if self.peer.echo {
            self.echoes.extend(&bytes);
        }
        self.guest_fin |= self.shut && self.to_peer.is_empty();
        if n > 0 && std::mem::take(&mut self.wants_space) {
            self.events.push_back(HostEvent::SendSpace { free: self.free() });
        }
        if self.peer.reset_after.is_some_and(|limit| self.received.len >= limit) {
            self.state = State::Broken;
            self.events.push_back(HostEvent::Failed(HostError::Reset));
        }
        self.pump();
    }

    fn next(&self) -> Option<Instant> {
        match self.state {
            State::Connecting { outcome } => outcome.map(|(at, _)| at),
            State::Connected if !self.to_peer.is_empty() && self.peer.reads != Some(0) => {
                Some(self.next_read.unwrap_or(Instant::ZERO))
            }
            _ => None,
        }
    }
}

/// The host ends of all flows.
#[derive(Debug, Default)]
pub struct FakeHost {
    /// What peers do, by the port that they listen on; others refuse.
    pub peers: BTreeMap<u16, Peer>,
    ends: Vec<End>,
    by_flow: HashMap<FlowId, usize>,
}

impl FakeHost {
    /// All ends that there ever were, in the order in which they were made.
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// Ends that are not closed.
    pub fn open(&self) -> usize {
        self.by_flow.len()
    }

    /// Changes a peer's ways.
    pub fn change(&mut self, flow: FlowId, change: impl FnOnce(&mut Peer)) {
        let end = self.end(flow).expect("an open end");
        change(&mut end.peer);
        end.pump();
    }

    pub(crate) fn connect(&mut self, flow: FlowId, to: SocketAddr, now: Instant) {
        let refuses = Peer { connect: Connect::Fails(HostError::Refused, Duration::ZERO), ..Peer::default() };
        let peer = self.peers.get(&to.port()).copied().unwrap_or(refuses);
        let outcome = match peer.connect {
            Connect::After(delay) => Some((now + delay, Ok(()))),
            Connect::Fails(error, delay) => Some((now + delay, Err(error))),
            Connect::Never => None,
        };
        self.add(End::new(flow, Some(to), peer, State::Connecting { outcome }));
    }

    pub(crate) fn accepted(&mut self, flow: FlowId, peer: Peer) {
        let mut end = End::new(flow, None, peer, State::Connected);
        end.events.push_back(HostEvent::SendSpace { free: end.free() });
        end.pump();
        self.add(end);
    }

    fn add(&mut self, end: End) {
        let old = self.by_flow.insert(end.flow, self.ends.len());
        assert!(old.is_none(), "two ends for one flow");
        self.ends.push(end);
    }

    fn end(&mut self, flow: FlowId) -> Option<&mut End> {
        self.by_flow.get(&flow).map(|index| &mut self.ends[*index])
    }

    fn connected(&mut self, flow: FlowId) -> &mut End {
        let end = self.end(flow).expect("an operation on a flow without a host end");
        assert!(!matches!(end.state, State::Connecting { .. }), "an operation before the connect is over");
        end
    }

    /// A peek: bytes from the front of what was not discarded.
    pub(crate) fn peek(
        &mut self,
        flow: FlowId,
        at: u32,
        max: u32,
        rng: &mut Rng,
    ) -> Result<(Vec<u8>, PeekEnd), HostError> {
        let end = self.connected(flow);
        if end.state == State::Broken {
            return Err(HostError::Reset);
        }
        assert!(max > 0, "a peek for nothing");
        let (at, mut max) = (at as usize, max as usize);
        assert!(at <= end.to_guest.len(), "a peek at {at} of {}", end.to_guest.len());
        let available = end.to_guest.len() - at;
        if available == 0 {
            return Ok((Vec::new(), if end.fin { PeekEnd::Eof } else { PeekEnd::Empty }));
        }
        // Now and then a system call returns less than it could.
        let cut = rng.chance(20);
        if cut {
            max = max.min(1 + rng.below(max as u64) as usize);
        }
        let bytes: Vec<u8> = end.to_guest.range(at..at + available.min(max)).copied().collect();
        let short = bytes.len() < max && !cut;
        // The end of the stream may be told with its last bytes, or behind them.
        Ok((
            bytes,
            match end.fin {
                false if short => PeekEnd::Empty,
                true if short && rng.chance(500) => PeekEnd::Eof,
                _ => PeekEnd::More,
            },
        ))
    }

    pub(crate) fn discard(&mut self, flow: FlowId, len: u32) {
        let end = self.connected(flow);
        assert!(len as usize <= end.to_guest.len(), "a discard of {len} of {}", end.to_guest.len());
        end.to_guest.drain(..len as usize);
        end.pump();
    }

    pub(crate) fn write(&mut self, flow: FlowId, bytes: &[u8]) -> Result<usize, HostError> {
        let end = self.connected(flow);
        if end.state == State::Broken {
            return Err(HostError::Reset);
        }
        assert!(!end.shut, "a write behind the end of the stream");
        let n = bytes.len().min(end.free() as usize);
        end.to_peer.extend(&bytes[..n]);
        end.wants_space |= n < bytes.len();
        Ok(n)
    }

    pub(crate) fn space(&mut self, flow: FlowId) -> u32 {
        self.connected(flow).free()
    }

    pub(crate) fn watch_space(&mut self, flow: FlowId) -> u32 {
        let end = self.connected(flow);
        end.wants_space = true;
        end.free()
    }

    pub(crate) fn shutdown(&mut self, flow: FlowId) {
        let end = self.connected(flow);
        assert!(!end.shut, "the end of the stream, twice");
        end.shut = true;
        if end.state == State::Connected && end.to_peer.is_empty() {
            end.guest_fin = true;
            end.pump();
        }
    }

    pub(crate) fn close(&mut self, flow: FlowId) {
        let end = self.connected(flow);
        assert!(end.to_guest.is_empty(), "a close with {} bytes unread", end.to_guest.len());
        // What is queued still arrives, then the end of the stream.
        let rest: Vec<u8> = end.to_peer.drain(..).collect();
        end.received.update(&rest);
        end.guest_fin = true;
        self.remove(flow, Ended::Closed);
    }

    /// Resets an end; one that could not be connected has nothing to reset.
    pub(crate) fn reset(&mut self, flow: FlowId) {
        self.remove(flow, Ended::Reset);
    }

    fn remove(&mut self, flow: FlowId, ended: Ended) {
        if let Some(end) = self.end(flow) {
            end.state = State::Gone;
            end.ended = ended;
            end.to_guest = VecDeque::new();
            end.to_peer = VecDeque::new();
            end.events.clear();
        }
        self.by_flow.remove(&flow);
    }

    /// What happens by `now`.
    pub(crate) fn poll(&mut self, now: Instant, rng: &mut Rng) -> Vec<(FlowId, HostEvent)> {
        let mut events = Vec::new();
        for end in &mut self.ends {
            if let State::Connecting { outcome: Some((at, outcome)) } = end.state
                && at <= now
            {
                if let Err(error) = outcome {
                    end.state = State::Broken;
                    end.events.push_back(HostEvent::Failed(error));
                } else {
                    end.state = State::Connected;
                    // A driver may tell the room before the SYN-ACK, or when it is asked.
                    if rng.chance(800) {
                        end.events.push_back(HostEvent::SendSpace { free: end.free() });
                    }
                    end.events.push_back(HostEvent::Connected);
                    end.pump();
                }
            }
            if !end.to_peer.is_empty() {
                end.read(now);
            }
            events.extend(end.events.drain(..).map(|event| (end.flow, event)));
        }
        events
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        let waiting = self.ends.iter().find(|end| !end.events.is_empty()).map(|_| Instant::ZERO);
        waiting.or_else(|| self.ends.iter().filter_map(End::next).min())
    }
}

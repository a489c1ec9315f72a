//! Guests that run as long as they are waited for, and what they talk to.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use usernet::link::stream::StreamLink;
use usernet::{Config, Network};
use usernet_core::time::Instant;
use usernet_core::wire::MacAddr;
use usernet_testkit::{Guest as _, GuestConfig, SmolGuest};

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A guest with queues that take turns: what it sends at one time and at the next comes by two of them.
pub(crate) struct Guest {
    pub(crate) port: u32,
    pub(crate) smol: SmolGuest,
    pub(crate) queues: Vec<Queue>,
    /// It takes no frame from its link.
    pub(crate) stalled: bool,
    next: usize,
    started: std::time::Instant,
}

pub(crate) struct Queue {
    pub(crate) stream: UnixStream,
    received: Vec<u8>,
    unsent: VecDeque<u8>,
}

impl Guest {
    pub(crate) fn plug_in(network: &Network, queues: usize, last_octet: u8) -> Self {
        let (mut ours, mut links) = (Vec::new(), Vec::new());
        for _ in 0..queues {
            let (stream, theirs) = UnixStream::pair().unwrap();
            stream.set_nonblocking(true).unwrap();
            links.push(StreamLink::new(theirs.into()).unwrap());
            ours.push(Queue { stream, received: Vec::new(), unsent: VecDeque::new() });
        }
        let port = network.handle().attach_queues(links, "guest").unwrap();
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, last_octet]);
        let config = GuestConfig { mac, addr: None, seed: last_octet.into(), ..GuestConfig::default() };
        let (smol, started) = (SmolGuest::new(config), std::time::Instant::now());
        Self { port, smol, queues: ours, stalled: false, next: 0, started }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros().try_into().unwrap())
    }

    /// Does what can be done now; returns how long it may wait for more.
    fn turn(&mut self) -> Duration {
        for queue in self.queues.iter_mut().filter(|_| !self.stalled) {
            for frame in queue.receive() {
                self.smol.receive(frame, Instant::ZERO);
            }
        }
        let now = self.now();
        let frames = self.smol.poll(now);
        if !frames.is_empty() {
            self.next = (self.next + 1) % self.queues.len();
        }
        let queue = &mut self.queues[self.next];
        for frame in frames {
            queue.unsent.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
            queue.unsent.extend(frame);
        }
        self.queues.iter_mut().for_each(Queue::send);
        self.smol.next(now).map_or(SOON, |at| at.since(now))
    }
}

impl Queue {
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 1 << 16];
        while let Ok(len @ 1..) = self.stream.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..len]);
        }
        let mut frames = Vec::new();
        while let Some((len, rest)) = self.received.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*len).try_into().unwrap();
            let Some(frame) = rest.get(..len) else { break };
            frames.push(frame.to_vec());
            self.received.drain(..4 + len);
        }
        frames
    }

    fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.make_contiguous()) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Runs guests until `done`, which looks at each.
pub(crate) fn run(guests: &mut [Guest], what: &str, mut done: impl FnMut(&mut [Guest]) -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let wait = guests.iter_mut().map(Guest::turn).min().unwrap();
        if done(guests) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{what} did not come in time");
        // Programs of the host, which `done` may be waiting for, are looked at now and then.
        let wait = Timespec::try_from(wait.min(Duration::from_millis(20))).unwrap();
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for guest in guests.iter() {
            let input = if guest.stalled { PollFlags::empty() } else { PollFlags::IN };
            for queue in &guest.queues {
                let output = if queue.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                fds.push(PollFd::new(&queue.stream, input | output));
            }
        }
        poll(&mut fds, Some(&wait)).unwrap();
    }
}

pub(crate) fn network(workers: u16) -> Network {
    let workers = NonZeroU16::new(workers);
    Network::start(Config {
        workers,
        dns_upstreams: vec!["127.0.0.1:9".parse().unwrap()],
        ..Config::default()
    })
    .unwrap()
}

pub(crate) fn guest_with_address(network: &Network, queues: usize, last_octet: u8) -> Guest {
    let mut guest = [Guest::plug_in(network, queues, last_octet)];
    run(&mut guest, "a lease", |guest| guest[0].smol.addr().is_some());
    let [guest] = guest;
    guest
}

/// A host's program that sends back what it gets on one connection.
pub(crate) fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // It ends when the guest is unplugged.
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    port
}

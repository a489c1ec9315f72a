//! Several workers: a guest whose frames come to any of its queues, and guests of different workers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what goes wrong in here ends a test")]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use usernet::link::stream::StreamLink;
use usernet::{Config, Error, Network};
use usernet_core::time::Instant;
use usernet_core::wire::MacAddr;
use usernet_testkit::{App, Close, Guest as _, GuestConfig, SmolGuest, digest_of, fill};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const BULK: u64 = 4 << 20;
const SOON: Duration = Duration::from_secs(30);

/// A guest with queues that take turns: what it sends at one time and at the next comes by two of them.
struct Guest {
    port: u32,
    smol: SmolGuest,
    queues: Vec<Queue>,
    next: usize,
    started: std::time::Instant,
}

struct Queue {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: VecDeque<u8>,
}

impl Guest {
    fn plug_in(network: &Network, queues: usize, last_octet: u8) -> Self {
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
        Self { port, smol, queues: ours, next: 0, started }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros().try_into().unwrap())
    }

    /// Does what can be done now; returns how long it may wait for more.
    fn turn(&mut self) -> Duration {
        for queue in &mut self.queues {
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
fn run(guests: &mut [Guest], what: &str, mut done: impl FnMut(&mut [Guest]) -> bool) {
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
        for queue in guests.iter().flat_map(|guest| &guest.queues) {
            let out = if queue.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(&queue.stream, PollFlags::IN | out));
        }
        poll(&mut fds, Some(&wait)).unwrap();
    }
}

fn network(workers: u16) -> Network {
    let workers = NonZeroU16::new(workers);
    Network::start(Config {
        workers,
        dns_upstreams: vec!["127.0.0.1:9".parse().unwrap()],
        ..Config::default()
    })
    .unwrap()
}

fn guest_with_address(network: &Network, queues: usize, last_octet: u8) -> Guest {
    let mut guest = [Guest::plug_in(network, queues, last_octet)];
    run(&mut guest, "a lease", |guest| guest[0].smol.addr().is_some());
    let [guest] = guest;
    guest
}

/// A host's program that sends back what it gets on one connection.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // It ends when the guest is unplugged.
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    port
}

#[test]
fn a_flow_may_come_by_any_queue() {
    let network = network(3);
    let mut guest = [guest_with_address(&network, 3, 1)];

    let app = App { seed: 7, send: BULK, close: Close::Sent, ..App::default() };
    let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
    run(&mut guest, "an echo", |guest| guest[0].smol.received(stream) == BULK);
    assert_eq!(guest[0].smol.digest(stream), digest_of(7, BULK));

    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let to = SocketAddrV4::new(GATEWAY, host.local_addr().unwrap().port());
    let socket = guest[0].smol.udp(5000);
    let mut from = Vec::new();
    for n in 0..9_u8 {
        guest[0].smol.udp_send(socket, to, &[n]);
        run(&mut guest, "a datagram", |_| {
            let mut buffer = [0; 1];
            let received = host.recv_from(&mut buffer);
            from.extend(received.iter().map(|(_, from)| *from));
            received.is_ok_and(|_| buffer == [n])
        });
    }
    from.dedup();
    assert_eq!(from.len(), 1, "one port of the host for one of the guest: {from:?}");
    host.send_to(b"reply", from[0]).unwrap();
    run(&mut guest, "a reply", |guest| {
        guest[0].smol.udp_received(socket).iter().any(|(_, got)| got == b"reply")
    });

    let flows = network.handle().flows().unwrap();
    let of = |protocol: &str| flows.iter().filter(|flow| flow.protocol == protocol).count();
    assert_eq!((of("udp"), of("tcp").min(1)), (1, of("tcp")), "each flow is one worker's: {flows:#?}");
    let ports = network.handle().ports().unwrap();
    assert_eq!(ports.len(), 1, "{ports:#?}");
    assert!(ports[0].rx_bytes > BULK && ports[0].tx_bytes > BULK, "{ports:#?}");

    network.handle().detach(guest[0].port).unwrap();
    let gone = |queue: &mut Queue| matches!(queue.stream.read(&mut [0; 1 << 16]), Ok(0));
    let deadline = std::time::Instant::now() + SOON;
    for queue in &mut guest[0].queues {
        queue.stream.set_nonblocking(false).unwrap();
        while !gone(queue) {
            assert!(std::time::Instant::now() < deadline, "a queue stays");
        }
    }
    assert!(network.handle().ports().unwrap().is_empty());
    assert!(network.handle().leases().unwrap().is_empty());
}

#[test]
fn a_guest_with_more_queues_than_workers_is_told_the_way_out() {
    let network = network(1);
    let link = || StreamLink::new(UnixStream::pair().unwrap().0.into()).unwrap();
    let error = network.handle().attach_queues(vec![link(), link()], "guest").unwrap_err();
    assert!(matches!(error, Error::TooManyQueues { queues: 2, workers: 1 }));
    assert!(error.to_string().contains("--workers 2"), "{error}");
}

#[test]
fn guests_of_different_workers_are_on_one_network() {
    let network = network(2);
    let mut guests = [guest_with_address(&network, 1, 1), guest_with_address(&network, 1, 2)];
    let [first, second] = [0, 1].map(|n: usize| guests[n].smol.addr().unwrap());
    assert_eq!([first.octets()[3], second.octets()[3]], [15, 16]);
    assert_eq!(network.handle().leases().unwrap().len(), 2);

    // From guest to guest.
    let server = App { echo: true, ..App::default() };
    guests[1].smol.listen(80, server);
    let app = App { seed: 3, send: BULK, close: Close::Sent, ..App::default() };
    let stream = guests[0].smol.connect(SocketAddrV4::new(second, 80), app);
    run(&mut guests, "an echo of the other guest", |guests| guests[0].smol.received(stream) == BULK);
    assert_eq!(guests[0].smol.digest(stream), digest_of(3, BULK));

    // From the host to each.
    for (n, addr) in [first, second].into_iter().enumerate() {
        let forward = format!("tcp:127.0.0.1:0-{addr}:90").parse().unwrap();
        let host = network.handle().add_forward(&forward).unwrap().host;
        guests[n].smol.listen(90, server);
        let client = std::thread::spawn(move || echoed(host));
        run(&mut guests, "a forwarded connection", |_| client.is_finished());
        assert!(client.join().unwrap(), "to {addr}");

        let forward = format!("udp:127.0.0.1:0-{addr}:91").parse().unwrap();
        let host = network.handle().add_forward(&forward).unwrap().host;
        let socket = guests[n].smol.udp(91);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        client.send_to(b"question", host).unwrap();
        run(&mut guests, "a forwarded datagram and its reply", |guests| {
            for (from, payload) in guests[n].smol.udp_received(socket) {
                assert_eq!(payload, b"question");
                let smoltcp_addr = from.to_string().parse().unwrap();
                guests[n].smol.udp_send(socket, smoltcp_addr, b"answer");
            }
            let mut buffer = [0; 16];
            client.recv_from(&mut buffer).is_ok_and(|(len, from)| buffer[..len] == *b"answer" && from == host)
        });
    }
}

#[test]
fn a_connection_waits_for_a_guest_that_another_worker_finds() {
    let network = network(2);
    // The first worker, which has the forwards, gets another guest.
    let mut bystander = [guest_with_address(&network, 1, 1)];
    let host = network.handle().add_forward(&"tcp:127.0.0.1:0-10.0.2.16:90".parse().unwrap()).unwrap().host;
    let client = std::thread::spawn(move || echoed(host));
    run(&mut bystander, "a connection", |_| network.handle().forwards().unwrap()[0].accepted == 1);
    let mut guests = [Guest::plug_in(&network, 1, 2)];
    guests[0].smol.listen(90, App { echo: true, ..App::default() });
    run(&mut guests, "the waiting connection", |_| client.is_finished());
    assert!(client.join().unwrap());
}

/// Sends a megabyte to an echo and gets it back.
fn echoed(to: SocketAddr) -> bool {
    let mut sent = vec![0; 1 << 20];
    fill(9, 0, &mut sent);
    let mut stream = TcpStream::connect(to).unwrap();
    let (mut writer, copy) = (stream.try_clone().unwrap(), sent.clone());
    std::thread::spawn(move || writer.write_all(&copy));
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).is_ok() && received == sent
}

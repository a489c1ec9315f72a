//! UDP: how many datagrams get through, at which rate all of them do, round trips.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Value, json};

use crate::serve::{DATA, ECHO, RECEIVED, SENT, SOURCE};
use crate::{Datagrams, nanos, percentiles};

/// What a sender that is not held back may be behind its plan before it gives up on the missed part:
/// a processor that was away shall not be followed by a flood.
const BURST: u64 = 32;
/// How long a pause has to be for a sleep.
const NAP: Duration = Duration::from_micros(100);
/// A trial with no more than one in this many lost counts as free of loss.
const LOSS: u64 = 1000;
/// How long nothing has to come for a run to be over.
const QUIET: Duration = Duration::from_millis(50);
/// How long an answer may take, and how often it is asked for.
const ANSWER: (Duration, u32) = (Duration::from_millis(200), 25);
/// How many trials the search for a rate may take.
const TRIALS: u32 = 10;
/// The room that receivers ask for; the host may give less.
const RECEIVE_BUFFER: usize = 4 << 20;

pub(crate) fn socket(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).context("cannot bind a UDP socket")?;
    set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    Ok(socket)
}

/// A socket for this server alone.
fn connect(server: SocketAddr) -> Result<UdpSocket> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = socket(SocketAddr::new(any, 0))?;
    socket.connect(server).with_context(|| format!("cannot connect to {server}"))?;
    Ok(socket)
}

/// A message: what it is, the run that it belongs to, and more.
pub(crate) fn message(op: u8, run: u32, rest: &[u8]) -> Vec<u8> {
    [&[op], run.to_le_bytes().as_slice(), rest].concat()
}

pub(crate) fn parse(message: &[u8]) -> Option<(u8, u32, &[u8])> {
    let (op, rest) = message.split_first()?;
    let (run, rest) = rest.split_first_chunk()?;
    Some((*op, u32::from_le_bytes(*run), rest))
}

/// Datagrams at a constant rate.
#[derive(Clone, Copy)]
pub(crate) struct Trial {
    size: u16,
    /// Datagrams a second; `u32::MAX`: as many as the socket takes.
    rate: u32,
    millis: u32,
}

/// How many datagrams, in which time.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) packets: u64,
    time: Duration,
}

impl Run {
    fn rate(self) -> u32 {
        let rate = self.packets * 1_000_000_000 / nanos(self.time).max(1);
        u32::try_from(rate).unwrap_or(u32::MAX - 1)
    }
}

impl Trial {
    fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        let parts = self.size.to_le_bytes().into_iter().chain(self.rate.to_le_bytes());
        for (to, byte) in bytes.iter_mut().zip(parts.chain(self.millis.to_le_bytes())) {
            *to = byte;
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (size, rest) = bytes.split_first_chunk()?;
        let (rate, rest) = rest.split_first_chunk()?;
        Some(Self {
            size: u16::from_le_bytes(*size),
            rate: u32::from_le_bytes(*rate),
            millis: u32::from_le_bytes(*rest.first_chunk()?),
        })
    }

    /// Sends by `send`. What is not taken counts as lost.
    pub(crate) fn send(self, run: u32, send: impl Fn(&[u8]) -> io::Result<usize>) -> Run {
        let mut datagram = message(DATA, run, &[]);
        datagram.resize(datagram.len().max(self.size.into()), 0);
        let duration = Duration::from_millis(self.millis.into());
        let began = Instant::now();
        let (mut sent, mut missed) = (0, 0);
        loop {
            let elapsed = began.elapsed();
            if elapsed >= duration {
                return Run { packets: sent, time: elapsed };
            }
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or_default();
            let due = (micros * u64::from(self.rate) / 1_000_000).saturating_sub(missed);
            let behind = due.saturating_sub(sent);
            missed += behind.saturating_sub(BURST);
            for _ in 0..behind.min(BURST) {
                let _ = send(&datagram);
                sent += 1;
            }
            if behind == 0 {
                let pause = Duration::from_secs(1) / self.rate.max(1);
                thread::sleep(pause.max(NAP).min(duration - elapsed));
            }
        }
    }
}

/// What got through of what was sent.
pub(crate) struct Outcome {
    sent: u64,
    received: Run,
}

impl Outcome {
    fn free_of_loss(&self) -> bool {
        self.received.packets > 0 && self.sent.saturating_sub(self.received.packets) * LOSS <= self.sent
    }
}

/// The rate that gets through when more is sent, and the highest that gets through as a whole.
pub(crate) fn rates(datagrams: &Datagrams, run: fn(&UdpSocket, Trial) -> Result<Outcome>) -> Result<Value> {
    let socket = connect(datagrams.timed.server)?;
    let size = u16::try_from(datagrams.size).context("a datagram is at most 65,507 bytes")?;
    let flood = run(&socket, Trial { size, rate: u32::MAX, millis: datagrams.timed.time })?;
    let through = flood.received.rate();

    // Up or down by a third from there, then halving what lies between.
    let (mut good, mut bad) = (0, None);
    let mut rate = through;
    for _ in 0..TRIALS {
        let outcome = run(&socket, Trial { size, rate: rate.max(1), millis: datagrams.trial })?;
        if outcome.free_of_loss() {
            // What the sender achieved, which may be less than it was told.
            good = good.max(outcome.received.rate().min(rate));
            if outcome.received.rate() < rate / 4 * 3 {
                break;
            }
        } else {
            bad = Some(rate);
        }
        rate = match (good, bad) {
            (_, None) => rate.saturating_add(rate / 3),
            (0, Some(bad)) => bad / 3 * 2,
            (good, Some(bad)) if bad > good.saturating_add(good / 20) => good.midpoint(bad),
            _ => break,
        };
    }
    Ok(json!({ "sent": flood.sent, "through_per_s": through, "loss_free_per_s": good }))
}

/// A number that tells a run from others.
fn new_run() -> u32 {
    static RUN: AtomicU32 = AtomicU32::new(0);
    std::process::id() << 8 | RUN.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn send(socket: &UdpSocket, trial: Trial) -> Result<Outcome> {
    let run = new_run();
    let sent = trial.send(run, |datagram| socket.send(datagram));
    // Whatever is still under way has arrived when the count stands still.
    let mut packets = 0;
    loop {
        thread::sleep(QUIET);
        let count = ask(socket, RECEIVED, run)?;
        if count == packets {
            break;
        }
        packets = count;
    }
    Ok(Outcome { sent: sent.packets, received: Run { packets, time: sent.time } })
}

pub(crate) fn receive(socket: &UdpSocket, trial: Trial) -> Result<Outcome> {
    let run = new_run();
    let mut buffer = vec![0; 1 << 16];
    let mut packets = 0;
    let mut last = Instant::now();
    let mut first = None;
    socket.set_read_timeout(Some(QUIET))?;
    socket.send(&message(SOURCE, run, &trial.to_bytes()))?;
    let deadline = last + Duration::from_millis(trial.millis.into()) + QUIET;
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                let of_run = |(op, number, _)| op == DATA && number == run;
                if buffer.get(..len).and_then(parse).is_some_and(of_run) {
                    last = Instant::now();
                    first.get_or_insert(last);
                    packets += 1;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    break;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    let sent = ask(socket, SENT, run)?;
    let time = first.map_or(Duration::ZERO, |first| last.duration_since(first));
    ensure!(packets == 0 || !time.is_zero(), "only one datagram came");
    Ok(Outcome { sent, received: Run { packets, time } })
}

/// Asks the server for a count of a run.
fn ask(socket: &UdpSocket, op: u8, run: u32) -> Result<u64> {
    let (patience, times) = ANSWER;
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..times {
        socket.send(&message(op, run, &[]))?;
        while let Ok(len) = socket.recv(&mut buffer) {
            let answer = buffer.get(..len).and_then(parse);
            if let Some((_, _, count)) = answer.filter(|(o, r, _)| (*o, *r) == (op, run))
                && let Some(count) = count.first_chunk()
            {
                return Ok(u64::from_le_bytes(*count));
            }
        }
    }
    bail!("the server does not answer over UDP")
}

pub(crate) fn round_trips(server: SocketAddr, time: Duration) -> Result<Value> {
    let socket = connect(server)?;
    socket.set_read_timeout(Some(ANSWER.0))?;
    let mut buffer = [0; 64];
    let mut lost = 0;
    let mut trips = Vec::with_capacity(1 << 17);
    let began = Instant::now();
    for run in 0u32.. {
        if began.elapsed() > time {
            break;
        }
        let sent = Instant::now();
        socket.send(&message(ECHO, run, &[]))?;
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) if buffer.get(..len).and_then(parse).is_some_and(|(_, r, _)| r == run) => {
                    trips.push(nanos(sent.elapsed()));
                    break;
                }
                // An answer that was given up on.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    lost += 1;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    percentiles(trips, lost)
}

//! TCP: streams, round trips, connections.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

use crate::serve::{ECHO, ONE, SINK, SOURCE};
use crate::{Bulk, nanos, percentiles, report};

/// What is read and written at a time.
pub(crate) const CHUNK: usize = 128 << 10;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What went through a stream.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Bytes in the time that was measured.
    pub(crate) measured: u64,
    /// That time.
    pub(crate) time: Duration,
    /// All bytes, those of the warm-up included.
    pub(crate) moved: u64,
}

impl Counts {
    /// Bytes of an answer.
    pub(crate) const LEN: usize = 24;

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        for (to, number) in bytes.chunks_mut(8).zip([self.measured, nanos(self.time), self.moved]) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut numbers = bytes.chunks(8).map(|number| number.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || numbers.next().unwrap_or_default();
        Self { measured: next(), time: Duration::from_nanos(next()), moved: next() }
    }
}

/// Reads for the time of the warm-up and counts for the time after it.
pub(crate) fn measure(stream: &mut TcpStream, [warm_up, time]: [Duration; 2]) -> io::Result<Counts> {
    let mut buffer = vec![0; CHUNK];
    let mut counts = Counts::default();
    let mut began = Instant::now();
    let mut warm = false;
    // A stream that stalls must not outlast its time.
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    loop {
        let limit = if warm { time } else { warm_up };
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() && warm {
            counts.time = began.elapsed();
            return Ok(counts);
        }
        if left.is_zero() {
            (warm, began) = (true, Instant::now());
            continue;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                let len = u64::try_from(len).unwrap_or_default();
                counts.moved += len;
                counts.measured += if warm { len } else { 0 };
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Runs all streams at once.
pub(crate) fn bulk(bulk: &Bulk, stream: fn(SocketAddr, [Duration; 2]) -> Result<Counts>) -> Result<Value> {
    let (times, server) = (bulk.times(), bulk.timed.server);
    let streams: Vec<_> = (0..bulk.streams).map(|_| thread::spawn(move || stream(server, times))).collect();
    let counts = streams.into_iter().map(|stream| stream.join().expect("a stream does not panic"));
    Ok(rates(counts.collect::<Result<_>>()?))
}

/// The rates of all streams, added up.
pub(crate) fn rates(counts: Vec<Counts>) -> Value {
    let bits_per_second: f64 = counts.iter().map(|counts| per_second(counts.measured * 8, counts.time)).sum();
    let moved: u64 = counts.iter().map(|counts| counts.moved).sum();
    json!({ "gbit_per_s": bits_per_second / 1e9, "moved_bytes": moved })
}

/// Sends until the server has counted enough.
pub(crate) fn send(server: SocketAddr, times: [Duration; 2]) -> Result<Counts> {
    let mut stream = connect(server, SINK)?;
    for time in times {
        let millis = u32::try_from(time.as_millis()).context("the time is too long")?;
        stream.write_all(&millis.to_le_bytes())?;
    }
    let mut answers = stream.try_clone()?;
    answers.set_read_timeout(Some(times.iter().sum::<Duration>() + PATIENCE * 2))?;
    let answer = thread::spawn(move || {
        let mut counts = [0; Counts::LEN];
        let result = answers.read_exact(&mut counts);
        // Wakes the writer, which may wait for room.
        let _ = answers.shutdown(std::net::Shutdown::Both);
        result.map(|()| Counts::from_bytes(&counts))
    });
    let chunk = vec![0; CHUNK];
    while stream.write_all(&chunk).is_ok() {}
    let counts = answer.join().expect("the reader does not panic");
    abort(&stream)?;
    counts.context("no answer to what was sent")
}

/// Receives for as long as it takes.
pub(crate) fn receive(server: SocketAddr, times: [Duration; 2]) -> Result<Counts> {
    let mut stream = connect(server, SOURCE)?;
    let counts = measure(&mut stream, times)?;
    abort(&stream)?;
    Ok(counts)
}

/// What is still under way is of no interest: the next measurement shall not wait for it.
fn abort(stream: &TcpStream) -> Result<()> {
    Ok(set_socket_linger(stream, Some(Duration::ZERO))?)
}

pub(crate) fn round_trips(server: SocketAddr, time: Duration) -> Result<Value> {
    let mut stream = connect(server, ECHO)?;
    let mut trip = || -> Result<u64> {
        let began = Instant::now();
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        Ok(nanos(began.elapsed()))
    };
    let began = Instant::now();
    while began.elapsed() < time / 10 {
        trip()?;
    }
    let mut trips = Vec::with_capacity(1 << 17);
    let began = Instant::now();
    while began.elapsed() < time {
        trips.push(trip()?);
    }
    percentiles(trips, 0)
}

pub(crate) fn connections(server: SocketAddr, time: Duration) -> Result<Value> {
    let mut count = 0;
    let began = Instant::now();
    while began.elapsed() < time {
        let mut stream = connect(server, ONE)?;
        stream.read_exact(&mut [0])?;
        if stream.read(&mut [0])? != 0 {
            bail!("there was more than one byte");
        }
        count += 1;
    }
    Ok(json!({ "per_s": per_second(count, began.elapsed()) }))
}

pub(crate) fn hold(server: SocketAddr, count: usize, time: Duration) -> Result<()> {
    let began = Instant::now();
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let left = time.saturating_sub(began.elapsed());
        ensure!(!left.is_zero(), "only {number} connections in {} s", time.as_secs());
        let stream = TcpStream::connect_timeout(&server, left);
        held.push(stream.with_context(|| format!("after {number} connections"))?);
    }
    report(&json!({ "held": held.len(), "seconds": began.elapsed().as_secs_f64() }))?;
    loop {
        thread::park();
    }
}

/// Connects and asks for a service.
fn connect(server: SocketAddr, service: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[service])?;
    Ok(stream)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

//! `usernet-load`: the work of the comparison, and the servers that it is done against.
//!
//! `serve` runs outside of the guest, every other command inside. Each prints one line of JSON. All
//! of it is plain blocking sockets, so that what is measured is the network and not the tool.

mod rings;
mod serve;
mod tcp;
mod udp;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use serde_json::Value;

/// Network load, native
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs all servers until its parent ends; prints their address and ports
    Serve {
        /// The address to listen on
        #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
        address: IpAddr,
    },
    /// Sends over TCP; what the server received counts
    TcpOut(Bulk),
    /// Receives over TCP
    TcpIn(Bulk),
    /// Sends one byte over TCP and waits for it to come back, again and again
    Rr(Timed),
    /// Connects, exchanges one byte, and sees the connection closed, again and again
    Crr(Timed),
    /// Sends datagrams; what the server received counts
    UdpOut(Datagrams),
    /// Receives datagrams
    UdpIn(Datagrams),
    /// Sends one small datagram and waits for it to come back, again and again
    UdpRr(Timed),
    /// Is a guest of vhost-user without a kernel, and measures what goes through its rings
    Rings(rings::Rings),
    /// Opens idle TCP connections and holds them until its parent ends
    Hold {
        /// The idle server
        server: SocketAddr,
        /// How many connections
        count: usize,
        /// How long opening them may take, in milliseconds
        #[arg(long, value_name = "MS", default_value_t = 60_000)]
        time: u64,
    },
}

/// A measurement that takes a given time.
#[derive(Args)]
struct Timed {
    /// The server
    server: SocketAddr,
    /// How long to measure, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    time: u32,
}

impl Timed {
    fn time(&self) -> Duration {
        Duration::from_millis(self.time.into())
    }
}

#[derive(Args)]
struct Bulk {
    #[command(flatten)]
    timed: Timed,
    /// How long to send before the measurement, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    warm_up: u32,
    /// How many connections at once
    #[arg(long, default_value_t = 1)]
    streams: usize,
}

impl Bulk {
    /// Warm-up and measurement.
    fn times(&self) -> [Duration; 2] {
        [Duration::from_millis(self.warm_up.into()), self.timed.time()]
    }
}

#[derive(Args)]
struct Datagrams {
    #[command(flatten)]
    timed: Timed,
    /// Payload bytes of a datagram
    #[arg(long, default_value_t = 1400)]
    size: usize,
    /// How long each trial of the search for the loss-free rate takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    trial: u32,
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match allow_descriptors().and_then(|()| die_with_parent()).and_then(|()| run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("usernet-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve { address } => serve::run(address),
        Command::TcpOut(bulk) => report(&tcp::bulk(&bulk, tcp::send)?),
        Command::TcpIn(bulk) => report(&tcp::bulk(&bulk, tcp::receive)?),
        Command::Rr(timed) => report(&tcp::round_trips(timed.server, timed.time())?),
        Command::Crr(timed) => report(&tcp::connections(timed.server, timed.time())?),
        Command::UdpOut(datagrams) => report(&udp::rates(&datagrams, udp::send)?),
        Command::UdpIn(datagrams) => report(&udp::rates(&datagrams, udp::receive)?),
        Command::UdpRr(timed) => report(&udp::round_trips(timed.server, timed.time())?),
        Command::Rings(rings) => report(&rings.run()?),
        Command::Hold { server, count, time } => tcp::hold(server, count, Duration::from_millis(time)),
    }
}

/// Prints a result.
fn report(result: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{result}")?;
    stdout.flush()?;
    Ok(())
}

/// Idle connections need many descriptors: takes as many as may be had.
fn allow_descriptors() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(())
}

/// What a shell runs ends with it, however that ends.
fn die_with_parent() -> Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The median and the 99th percentile of times in nanoseconds, as microseconds. `lost` never ended.
fn percentiles(mut nanos: Vec<u64>, lost: u64) -> Result<Value> {
    ensure!(!nanos.is_empty(), "nothing came back");
    nanos.sort_unstable();
    let at = |percent: usize| {
        let nanos = nanos.get((nanos.len() - 1) * percent / 100).copied().unwrap_or_default();
        Duration::from_nanos(nanos).as_secs_f64() * 1e6
    };
    Ok(serde_json::json!({ "p50_us": at(50), "p99_us": at(99), "count": nanos.len(), "lost": lost }))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

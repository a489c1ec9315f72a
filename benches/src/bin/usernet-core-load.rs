//! `usernet-core-load`: a fixed amount of work for the core alone, for counting what it takes.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use usernet_benches::Family;
use usernet_benches::relay::Relay;

/// Work for the network core, with nothing around it
#[derive(Parser)]
struct Arguments {
    work: Work,
    /// How much: times 64 KiB, or flows
    amount: u32,
    /// Over which Internet Protocol
    #[arg(long, default_value = "4")]
    family: Family,
}

#[derive(Clone, Copy, ValueEnum)]
enum Work {
    /// A guest sends 64 KiB in segments of an MTU of 1500 bytes
    OutSegments,
    /// A guest sends 64 KiB in one super-frame
    OutSuper,
    /// A guest is sent 64 KiB
    In,
    /// A guest sends 64 KiB in datagrams of 1400 bytes
    UdpOut,
    /// A guest is sent 64 KiB in datagrams of 1400 bytes
    UdpIn,
    /// Idle flows; prints the bytes of memory that each takes
    Flows,
}

fn main() -> ExitCode {
    let Arguments { work, amount, family } = Arguments::parse();
    match run(work, amount, family) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("usernet-core-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(work: Work, amount: u32, family: Family) -> Result<()> {
    match work {
        Work::OutSegments => {
            let mut relay = Relay::new(family, 1500, if family == Family::V4 { 1460 } else { 1440 });
            (0..amount * 45).for_each(|_| relay.guest_sends());
        }
        Work::OutSuper => {
            let mut relay = Relay::new(family, 1500, 65_000);
            (0..amount).for_each(|_| relay.guest_sends());
        }
        Work::In => {
            let mut relay = Relay::new(family, 1500, 0);
            (0..amount).for_each(|_| relay.host_sends(65_536));
        }
        Work::UdpOut => {
            let mut relay = Relay::new(family, 1500, 0);
            (0..amount * 47).for_each(|_| relay.guest_sends_datagram());
        }
        Work::UdpIn => {
            let mut relay = Relay::new(family, 1500, 0);
            (0..amount * 47).for_each(|_| relay.host_sends_datagram());
        }
        Work::Flows => {
            let mut relay = Relay::new(family, 1500, 0);
            let before = resident()?;
            relay.add_idle(amount);
            let bytes = (resident()? - before) / u64::from(amount.max(1));
            use std::io::Write as _;
            writeln!(std::io::stdout(), "{bytes}")?;
        }
    }
    Ok(())
}

/// The resident memory of this process in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no resident memory")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

//! A contender that runs: where work is done, and what its relay spends.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::lab::Servers;
use super::machine;
use super::shell::Shell;
use crate::Family;

/// How long what takes no time may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a machine may take to boot on an emulated processor.
const BOOT: Duration = Duration::from_secs(60);

/// A contender that runs.
pub(super) struct Guest {
    /// Where the work is done. Dropped first: the relay goes when its guest has gone.
    shell: Shell,
    /// The relays, where they are other programs than the one that the shell runs in.
    around: Vec<Shell>,
    /// The processes that move the bytes.
    relays: Vec<u32>,
    /// The servers of each family, as they are reached here.
    pub(super) servers: Vec<Servers>,
    /// What runs `usernet-load` here.
    pub(super) load: String,
    is_machine: bool,
}

impl Guest {
    pub(super) fn new(shell: Shell, servers: Vec<Servers>) -> Self {
        let load = r#""$LOAD""#.to_owned();
        Self { shell, around: Vec::new(), relays: Vec::new(), servers, load, is_machine: false }
    }

    /// A virtual machine, which may have its network from another process. Without servers it has its own.
    pub(super) fn machine(shell: Shell, around: Option<Shell>, servers: Vec<Servers>) -> Self {
        Self { around: around.into_iter().collect(), is_machine: true, ..Self::new(shell, servers) }
    }

    /// Waits until all of it is set up.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.is_machine {
            machine::set_up(&mut self.shell, &mut self.servers, BOOT)?;
        }
        self.shell.run("true", PATIENCE)?;
        Ok(())
    }

    /// Whether it can do more work: not when the last is still not over.
    pub(super) fn is_idle(&mut self) -> bool {
        self.shell.run("true", Duration::from_secs(1)).is_ok()
    }

    /// A guest whose network is the process that it was started by.
    pub(super) fn relayed(shell: Shell, servers: Vec<Servers>) -> Self {
        let relays = vec![shell.pid()];
        Self { relays, ..Self::new(shell, servers) }
    }

    /// The servers of a family.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn servers(&self, family: Family) -> Result<Servers> {
        let servers = self.servers.iter().find(|servers| servers.family() == family);
        servers.copied().with_context(|| format!("no servers of {family:?}"))
    }

    /// Runs a command of `usernet-load` and reads its result.
    pub(super) fn load(&mut self, arguments: &str, patience: Duration) -> Result<Value> {
        parse(&self.shell.run(&format!("{} {arguments}", self.load), patience)?)
    }

    /// Has `usernet-load` hold idle connections in the background, and waits until it does.
    pub(super) fn hold(&mut self, family: Family, count: usize, patience: Duration) -> Result<()> {
        let server = self.servers(family)?.idle();
        let answer = format!("hold-$$-{count}");
        let time = patience.as_millis();
        let command = format!(r#""$LOAD" hold {server} {count} --time {time} >{answer} 2>&1 &"#);
        self.shell.run(&command, PATIENCE)?;
        self.wait_for(&format!("test -s {answer}"), patience + PATIENCE)
            .with_context(|| format!("{count} idle flows were not to be had"))?;
        let answer = self.shell.run(&format!("cat {answer}; rm {answer}"), PATIENCE)?;
        ensure!(parse(&answer).is_ok(), "{}", answer.trim());
        Ok(())
    }

    /// Waits until `script` succeeds, and returns what it wrote.
    pub(super) fn wait_for(&mut self, script: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.shell.run(script, PATIENCE) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(10)),
                done => return done,
            }
        }
    }

    /// Adds a relay that the shell does not run in.
    pub(super) fn attach(&mut self, relay: Shell) {
        self.relays.push(relay.pid());
        self.around.push(relay);
    }

    /// The processor time that the relays have used; none where the kernel is the network.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        let mut sum = 0;
        for relay in &self.relays {
            sum += ticks(*relay)?;
            // A relay with a shell of its own for a child has the guest for one; others make their children
            // for connections.
            if !self.around.is_empty() {
                let children = fs::read_to_string(format!("/proc/{relay}/task/{relay}/children")).ok()?;
                let children = children.split_whitespace().filter_map(|child| ticks(child.parse().ok()?));
                sum += children.sum::<u64>();
            }
        }
        let time = Duration::from_millis(sum * 1000 / rustix::param::clock_ticks_per_second());
        (!self.relays.is_empty()).then_some(time)
    }

    /// The resident memory of the relay in bytes.
    pub(super) fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.relays.first()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }
}

/// The processor time of a process and of its children that have ended, in clock ticks.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 to 17 (man 5 proc_pid_stat), counted from behind the name, which is the second.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line.trim()).with_context(|| format!("not a result: {}", line.trim()))
}

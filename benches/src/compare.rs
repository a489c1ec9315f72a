//! The side-by-side comparison: the same work in every contender, one after the other, several rounds.
//!
//! The figures of a machine drift by a third from one minute to the next. So every contender does a
//! piece of work before the next piece begins, a round is over when all work is done, and ratios are
//! taken within a round before their median is.

mod chart;
mod contender;
mod report;
mod shell;
mod work;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Programs;
use contender::{Contender, Guest, Lab};
use report::Report;
use work::{Figure, IDLE, Kind, MTUS, Times, Work};

/// What may take how long in a quick run: a new round is begun only if it is likely to be over by then.
const QUICK: Duration = Duration::from_secs(270);
/// What is not tried again by those that have not managed it.
const IDLE_FLOWS: &str = "idle flows";

/// What to compare, and where to put the outcome.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// End within five minutes: short measurements, two or three rounds
    #[arg(long)]
    pub quick: bool,
    /// How many times to measure everything [default: 5, or what --quick has time for]
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,
    /// How long one measurement takes, in milliseconds [default: 2000, quick: 500]
    #[arg(long, value_name = "MS")]
    pub time: Option<u64>,
    /// Only contenders or work whose name contains this; repeatable
    ///
    /// Contenders: loopback, socat, veth, slirp4netns, pasta, usernet. Work: such as "TCP out", "round
    /// trip", "connections", "UDP in", "idle", "memory". Patterns that name contenders choose among
    /// those, all others among the work.
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// Write all samples to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the medians to this file as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Runs the comparison and prints its tables.
///
/// # Errors
/// Nothing can be measured at all, or the outcome cannot be written. A contender that fails is named
/// in the outcome.
pub fn run(options: &Options, programs: &Programs) -> Result<()> {
    let choice = Choice::new(&options.only)?;
    // Idle flows need descriptors, also in the contenders.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let folder = tempfile::Builder::new().prefix("usernet-bench-").tempdir()?.keep();
    remove_at_end(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let lab = Lab::new(&folder, programs)?;

    let millis = Duration::from_millis;
    let measure = millis(options.time.unwrap_or(if options.quick { 500 } else { 2000 }));
    let times = Times {
        warm_up: (measure / 4).clamp(millis(100), millis(300)),
        measure,
        trial: (measure / 5).clamp(millis(100), millis(400)),
        hold: Duration::from_secs(if options.quick { 10 } else { 60 }),
    };
    let mut run = Run { report: Report::new(times.measure), lab, choice, times };
    run.look_up_versions();
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 });
    let began = Instant::now();
    for round in 0..rounds {
        eprintln!("==> round {} of {rounds}", round + 1);
        let round_began = Instant::now();
        run.round(round);
        if options.quick && began.elapsed() + round_began.elapsed() > QUICK {
            break;
        }
    }

    let report = run.report;
    report.print()?;
    if let Some(path) = &options.json {
        write(path, &format!("{:#}\n", report.to_json()))?;
    }
    if let Some(path) = &options.svg {
        write(path, &chart::draw(&report))?;
    }
    ensure!(!report.is_empty(), "nothing could be measured");
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Has the folder removed when this process ends, however it does.
fn remove_at_end(folder: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", r#"read -r _; rm -rf "$0""#]).arg(folder).stdin(Stdio::piped());
    // Ctrl-C goes to the group of whoever is in the foreground.
    let child = command.process_group(0).spawn()?;
    // Its input ends when this process does.
    std::mem::forget(child);
    Ok(())
}

/// What was asked for.
struct Choice {
    contenders: Vec<Contender>,
    work: Vec<Work>,
    memory: bool,
}

impl Choice {
    fn new(only: &[String]) -> Result<Self> {
        let matches = |name: &str, pattern: &String| name.to_lowercase().contains(&pattern.to_lowercase());
        let (contenders, works): (Vec<_>, Vec<_>) =
            only.iter().partition(|pattern| Contender::ALL.iter().any(|c| matches(c.name(), pattern)));
        for pattern in &works {
            let known =
                Work::all().iter().any(|work| matches(&work.name, pattern)) || matches("memory", pattern);
            if !known {
                bail!("--only {pattern}: no contender and no work has such a name");
            }
        }
        let chosen = |name: &str, patterns: &[&String]| {
            patterns.is_empty() || patterns.iter().any(|pattern| matches(name, pattern))
        };
        Ok(Self {
            contenders: Contender::ALL.into_iter().filter(|c| chosen(c.name(), &contenders)).collect(),
            work: Work::all().into_iter().filter(|work| chosen(&work.name, &works)).collect(),
            memory: chosen("memory", &works),
        })
    }
}

struct Run {
    lab: Lab,
    choice: Choice,
    times: Times,
    report: Report,
}

/// The guests of a round, by contender and MTU.
type Guests = HashMap<(Contender, u16), Guest>;

impl Run {
    /// Notes the versions, and leaves out who is not there.
    fn look_up_versions(&mut self) {
        let Self { lab, choice, report, .. } = self;
        choice.contenders.retain(|contender| match contender.version(lab) {
            Ok(version) => {
                report.versions.extend(version.map(|version| (contender.name(), version)));
                true
            }
            Err(error) => {
                report.fail(*contender, "start", &error);
                false
            }
        });
    }

    /// Has every contender, freshly started, do all work once.
    fn round(&mut self, round: usize) {
        let mut guests = self.start_all(round);
        for work in self.choice.work.clone().iter().filter(|work| !work.idle) {
            eprintln!("    {}", work.name);
            for contender in self.choice.contenders.clone() {
                self.work(round, work, contender, &mut guests);
            }
        }
        let idle: Vec<Work> = self.choice.work.iter().filter(|work| work.idle).cloned().collect();
        if idle.is_empty() && !self.choice.memory {
            return;
        }
        // One at a time: the flows of all together would need more descriptors than the servers have.
        let [mtu, _] = MTUS;
        guests.retain(|(contender, with), _| *with == mtu && contender.is_network());
        for contender in self.choice.contenders.clone() {
            if !contender.is_network() || self.report.has_failed(contender, IDLE_FLOWS) {
                continue;
            }
            eprintln!("    {}: {IDLE_FLOWS}", contender.name());
            if let Err(error) = self.beside_idle(round, &idle, contender, &mut guests) {
                self.report.fail(contender, IDLE_FLOWS, &error);
            }
            guests.remove(&(contender, mtu));
        }
    }

    fn start_all(&mut self, round: usize) -> Guests {
        let mut guests = Guests::new();
        let [small, _] = MTUS;
        for mtu in MTUS {
            if mtu != small && !self.choice.work.iter().any(|work| work.mtu == mtu) {
                continue;
            }
            for contender in self.choice.contenders.clone() {
                match contender.start(&self.lab, mtu) {
                    Ok(guest) => {
                        if mtu == small && contender.is_network() && self.choice.memory {
                            self.add_resident(round, contender, &guest, "at start");
                        }
                        guests.insert((contender, mtu), guest);
                    }
                    Err(error) => self.report.fail(contender, &format!("start with MTU {mtu}"), &error),
                }
            }
        }
        guests
    }

    fn work(&mut self, round: usize, work: &Work, contender: Contender, guests: &mut Guests) {
        if !work.suits(contender) {
            return;
        }
        let Some(guest) = guests.get_mut(&(contender, work.mtu)) else { return };
        match work.run(guest, self.times) {
            Ok(figures) => figures.into_iter().for_each(|figure| self.report.add(round, contender, figure)),
            Err(error) => self.report.fail(contender, &work.name, &error),
        }
    }

    /// The work beside idle flows, and what those take.
    fn beside_idle(
        &mut self,
        round: usize,
        works: &[Work],
        contender: Contender,
        guests: &mut Guests,
    ) -> Result<()> {
        let [mtu, _] = MTUS;
        let [some, many] = IDLE;
        let Some(guest) = guests.get_mut(&(contender, mtu)) else { return Ok(()) };
        guest.hold(some, self.times.hold)?;
        for work in works {
            self.work(round, work, contender, guests);
        }
        if self.choice.memory
            && let Some(guest) = guests.get_mut(&(contender, mtu))
        {
            guest.hold(many - some, self.times.hold)?;
            self.add_resident(round, contender, guest, &format!("with {many} idle flows"));
        }
        Ok(())
    }

    fn add_resident(&mut self, round: usize, contender: Contender, guest: &Guest, row: &str) {
        if let Some(bytes) = guest.resident() {
            #[expect(clippy::cast_precision_loss, reason = "memory is far below 2⁵³ bytes")]
            let value = bytes as f64 / f64::from(1 << 20);
            self.report.add(round, contender, Figure { kind: Kind::Memory, row: row.into(), value });
        }
    }
}

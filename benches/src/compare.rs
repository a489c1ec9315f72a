//! The side-by-side comparison: the same work in every contender, one after the other, several rounds.
//!
//! The figures of a machine drift by a third from one minute to the next. So every contender does a
//! piece of work before the next piece begins, a round is over when all work is done, and ratios are
//! taken within a round before their median is.

mod chart;
mod contender;
mod guest;
mod lab;
mod machine;
mod marks;
mod report;
mod shell;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Family, Programs, budget};
use contender::Contender;
use guest::Guest;
use lab::Lab;
use report::Report;
use work::{CORE_FLOWS, Figure, HOLD, IDLE, Kind, MTUS, Place, Times, Work};

/// When a run ends, whatever it has measured by then: a quick one, and one that is not told how many
/// rounds it has. A last piece of work may be under way.
const LIMITS: [Duration; 2] = [Duration::from_secs(250), Duration::from_secs(35 * 60)];
/// How often work is done with and without idle flows in a round.
const PAIRS: usize = 2;
/// What is not tried again by those that have not managed it.
const IDLE_FLOWS: &str = "idle flows";

/// What to compare, and where to put the outcome.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// End within five minutes: short measurements, three rounds or what there is time for, neither
    /// 8 streams nor 64-byte datagrams, and over IPv6 only the key figures
    #[arg(long)]
    pub quick: bool,
    /// How many times to measure everything, however long that takes [default: 5, quick: 3]
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,
    /// How long one measurement takes, in milliseconds [default: 2000, quick: 500]
    #[arg(long, value_name = "MS")]
    pub time: Option<u64>,
    /// Only contenders or work whose name contains this; repeatable
    ///
    /// Contenders: loopback, socat, veth, slirp4netns, pasta, usernet, rings, qemu-libslirp, qemu-passt,
    /// qemu-usernet, qemu-vhost-user, qemu-two-queues, uml-loopback, uml-tap, uml-usernet. Work: such as "TCP out", "round trip", "connections", "UDP in", "idle", "guest",
    /// "memory". Patterns that name contenders choose among those, all others among the work.
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// Only over this version of the Internet Protocol [default: both]
    #[arg(long, value_name = "VERSION")]
    pub family: Option<Family>,
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
    let choice = Choice::new(options)?;
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
    };
    let [quick, full] = LIMITS;
    let limit = if options.quick { quick } else { full };
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 });
    let deadline = options.rounds.is_none().then(|| Instant::now() + limit);
    let mut run = Run { report: Report::new(times.measure), lab, choice, times, deadline };
    run.look_up_versions();
    for round in 0..rounds {
        if run.is_over() {
            break;
        }
        eprintln!("==> round {} of {rounds}", round + 1);
        run.round(round);
    }
    if run.is_over() {
        run.report.cut_short = true;
        eprintln!("==> the time of {} s is over", limit.as_secs());
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
    fn new(options: &Options) -> Result<Self> {
        let only = &options.only;
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
            contenders: Contender::ALL
                .into_iter()
                .filter(|c| chosen(c.name(), &contenders))
                .filter(|c| !options.quick || *c != Contender::QemuTwoQueues)
                .collect(),
            work: Work::all()
                .into_iter()
                .filter(|work| chosen(&work.name, &works) && (work.quick || !options.quick))
                .filter(|work| options.family.is_none_or(|family| work.family == family))
                .collect(),
            memory: chosen("memory", &works),
        })
    }
}

struct Run {
    lab: Lab,
    choice: Choice,
    times: Times,
    report: Report,
    deadline: Option<Instant>,
}

/// The guests of a round, by contender and MTU.
type Guests = HashMap<(Contender, u16), Guest>;

impl Run {
    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

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
        let [small, _] = MTUS;
        let works = |place| self.choice.work.iter().filter(|work| work.place == place).cloned().collect();
        let (works, beside): (Vec<_>, Vec<_>) = (works(Place::Namespace), works(Place::BesideIdle));

        let in_namespaces = self.contenders_at(Place::Namespace);
        let mut guests = Guests::new();
        for mtu in MTUS {
            let wanted = mtu == small && (!beside.is_empty() || self.choice.memory);
            if wanted || works.iter().any(|work| work.mtu == mtu) {
                guests.extend(self.start(&in_namespaces, mtu));
            }
        }
        if self.choice.memory {
            self.add_memory_at_start(round, &guests);
        }
        self.work_in_turn(round, &works, &mut guests);
        guests.retain(|(contender, mtu), _| *mtu == small && contender.is_on_tap());
        if !beside.is_empty() || self.choice.memory {
            self.work_beside_idle(round, &beside, guests);
        }

        for place in [Place::Qemu, Place::Uml] {
            self.work_in_machines(round, place);
        }
    }

    /// All work that is done in machines of a kind. Those with one MTU at a time: they are many processes.
    fn work_in_machines(&mut self, round: usize, place: Place) {
        for mtu in MTUS {
            let works = self.choice.work.iter().filter(|work| work.place == place && work.mtu == mtu);
            let works: Vec<_> = works.cloned().collect();
            let mut machines = self.contenders_at(place);
            machines.retain(|machine| works.iter().any(|work| work.suits(*machine)));
            let mut guests = self.start(&machines, mtu);
            self.work_in_turn(round, &works, &mut guests);
        }
    }

    fn contenders_at(&self, place: Place) -> Vec<Contender> {
        self.choice.contenders.iter().copied().filter(|contender| contender.place() == place).collect()
    }

    /// Starts these contenders all at once.
    fn start(&mut self, contenders: &[Contender], mtu: u16) -> Guests {
        let mut guests = Guests::new();
        if self.is_over() {
            return guests;
        }
        let started: Vec<_> = contenders.iter().map(|contender| contender.start(&self.lab, mtu)).collect();
        for (contender, guest) in contenders.iter().zip(started) {
            match guest.and_then(|mut guest| guest.settle().map(|()| guest)) {
                Ok(guest) => drop(guests.insert((*contender, mtu), guest)),
                Err(error) => self.report.fail(*contender, &format!("start with MTU {mtu}"), &error),
            }
        }
        guests
    }

    /// Every piece of work is done by all before the next begins.
    fn work_in_turn(&mut self, round: usize, works: &[Work], guests: &mut Guests) {
        for work in works {
            if self.is_over() {
                return;
            }
            eprintln!("    {}", work.name);
            for contender in self.choice.contenders.clone() {
                let key = (contender, work.mtu);
                let Some(guest) = guests.get_mut(&key).filter(|_| work.suits(contender)) else { continue };
                match work.run(guest, self.times) {
                    Ok(figures) => {
                        figures.into_iter().for_each(|figure| self.report.add(round, contender, figure));
                    }
                    Err(error) => {
                        self.report.fail(contender, &work.name, &error);
                        if !guest.is_idle() {
                            guests.remove(&key);
                            guests.extend(self.start(&[contender], work.mtu));
                        }
                    }
                }
            }
        }
    }

    /// What idle flows change, and what they take. One contender at a time: the flows of all together
    /// would need more descriptors than the servers have.
    fn work_beside_idle(&mut self, round: usize, works: &[Work], mut guests: Guests) {
        let [mtu, _] = MTUS;
        for contender in self.choice.contenders.clone() {
            let Some(mut without) = guests.remove(&(contender, mtu)) else { continue };
            if self.is_over() || self.report.has_failed(contender, IDLE_FLOWS) {
                continue;
            }
            eprintln!("    {}: {IDLE_FLOWS}", contender.name());
            let Some(mut with) = self.start(&[contender], mtu).remove(&(contender, mtu)) else { continue };
            if let Err(error) = self.beside_idle(round, works, contender, [&mut without, &mut with]) {
                self.report.fail(contender, IDLE_FLOWS, &error);
            }
        }
    }

    fn beside_idle(
        &mut self,
        round: usize,
        works: &[Work],
        contender: Contender,
        [without, with]: [&mut Guest; 2],
    ) -> Result<()> {
        let [some, many] = IDLE;
        let works: Vec<_> = works.iter().filter(|work| work.suits(contender)).collect();
        // As many of each family that there is work of.
        let mut families: Vec<_> = works.iter().map(|work| work.family).collect();
        families.sort();
        families.dedup();
        if families.is_empty() {
            families.push(Family::V4);
        }
        let hold = |guest: &mut Guest, count| {
            families.iter().try_for_each(|family| guest.hold(*family, count / families.len(), HOLD))
        };
        hold(with, some)?;
        for work in works {
            if self.is_over() {
                return Ok(());
            }
            let mut sums = [BTreeMap::new(), BTreeMap::new()];
            for pair in 0..PAIRS {
                // Whoever was first is second the next time: what drifts does so for both.
                for beside in [pair % 2 == 1, pair % 2 == 0] {
                    let figures = work.run(if beside { with } else { without }, self.times)?;
                    let [sum, sum_beside] = &mut sums;
                    for Figure { kind, row, value } in figures {
                        if kind != Kind::Processor {
                            *(if beside { &mut *sum_beside } else { &mut *sum }).entry(row).or_insert(0.0) +=
                                value;
                        }
                    }
                }
            }
            let [sum, sum_beside] = sums;
            for (row, value) in sum_beside {
                let value = value / sum.get(&row).copied().unwrap_or(f64::NAN);
                self.report.add(round, contender, Figure { kind: Kind::Beside, row, value });
            }
        }
        if self.choice.memory && !self.is_over() {
            hold(with, many - some)?;
            self.add_resident(round, contender, with, &format!("with {many} idle flows"));
        }
        Ok(())
    }

    fn add_memory_at_start(&mut self, round: usize, guests: &Guests) {
        let [mtu, _] = MTUS;
        for contender in Contender::ALL {
            if let Some(guest) = guests.get(&(contender, mtu)).filter(|_| contender.is_on_tap()) {
                self.add_resident(round, contender, guest, "at start");
            }
        }
        if !self.choice.contenders.contains(&Contender::Usernet) {
            return;
        }
        for family in Family::ALL {
            let row = marks::core_memory(family);
            match budget::bytes_per_flow(&self.lab.core_load, family, CORE_FLOWS) {
                Ok(bytes) => {
                    let value = bytes * f64::from(CORE_FLOWS) / 1e6;
                    self.report.add(round, Contender::Usernet, Figure { kind: Kind::Memory, row, value });
                }
                Err(error) => self.report.fail(Contender::Usernet, &row, &error),
            }
        }
    }

    fn add_resident(&mut self, round: usize, contender: Contender, guest: &Guest, row: &str) {
        if let Some(bytes) = guest.resident() {
            #[expect(clippy::cast_precision_loss, reason = "memory is far below 2⁵³ bytes")]
            let value = bytes as f64 / 1e6;
            self.report.add(round, contender, Figure { kind: Kind::Memory, row: row.into(), value });
        }
    }
}

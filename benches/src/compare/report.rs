//! What was measured, as tables and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use super::contender::Contender;
use super::marks;
use super::work::{Figure, Kind};
use crate::Family;

/// The samples of a figure: a value for each round that has one.
pub(super) type Samples = BTreeMap<usize, f64>;

/// All that was measured.
pub(super) struct Report {
    /// The versions of the programs.
    pub(super) versions: Vec<(&'static str, String)>,
    measure: Duration,
    rows: Vec<Row>,
    /// Who could not do what, and why.
    failures: Vec<(Contender, String, String)>,
    /// Whether its time was over before its work was.
    pub(super) cut_short: bool,
}

/// The same figure of all contenders.
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) name: String,
    samples: Vec<(Contender, Samples)>,
}

impl Row {
    pub(super) fn get(&self, contender: Contender) -> Option<&Samples> {
        self.samples.iter().find(|(c, _)| *c == contender).map(|(_, samples)| samples)
    }

    /// What it is without any network: both ends in the host, or in the guest.
    pub(super) fn loopback(&self) -> Option<&Samples> {
        self.get(Contender::Loopback).or_else(|| self.get(Contender::UmlLoopback))
    }

    /// Contenders and their samples, in the order of the contenders.
    pub(super) fn contenders(&self) -> impl Iterator<Item = (Contender, &Samples)> {
        Contender::ALL.into_iter().filter_map(|contender| Some((contender, self.get(contender)?)))
    }

    /// The best of the peers in each round.
    pub(super) fn best_peer(&self) -> Samples {
        let mut best = Samples::new();
        for (_, samples) in self.contenders().filter(|(contender, _)| contender.is_peer()) {
            for (round, value) in samples {
                let best = best.entry(*round).or_insert(*value);
                *best = if self.kind.is_rate() { best.max(*value) } else { best.min(*value) };
            }
        }
        best
    }

    /// What a value is as time, in microseconds.
    fn latencies(&self, samples: &Samples) -> Samples {
        samples.iter().filter_map(|(round, value)| Some((*round, self.kind.latency(*value)?))).collect()
    }

    /// What a contender adds to the loopback in each round, in microseconds.
    pub(super) fn added(&self, samples: &Samples) -> Samples {
        let Some(loopback) = self.get(Contender::Loopback) else { return Samples::new() };
        pairs(samples, loopback, |value, loopback| {
            Some(self.kind.latency(value)? - self.kind.latency(loopback)?)
        })
    }
}

impl Report {
    pub(super) fn new(measure: Duration) -> Self {
        Self { versions: Vec::new(), measure, rows: Vec::new(), failures: Vec::new(), cut_short: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn add(&mut self, round: usize, contender: Contender, figure: Figure) {
        let Figure { kind, row: name, value } = figure;
        let at = self.rows.iter().position(|row| row.kind == kind && row.name == name);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row { kind, name, samples: Vec::new() });
            self.rows.len() - 1
        });
        let Some(row) = self.rows.get_mut(at) else { return };
        match row.samples.iter_mut().find(|(c, _)| *c == contender) {
            Some((_, samples)) => drop(samples.insert(round, value)),
            None => row.samples.push((contender, Samples::from([(round, value)]))),
        }
    }

    /// Notes that something cannot be measured, once for each reason.
    pub(super) fn fail(&mut self, contender: Contender, what: &str, error: &anyhow::Error) {
        let failure = (contender, what.to_owned(), format!("{error:#}"));
        eprintln!("    {}: {what}: {}", contender.name(), failure.2);
        if !self.failures.contains(&failure) {
            self.failures.push(failure);
        }
    }

    pub(super) fn has_failed(&self, contender: Contender, what: &str) -> bool {
        self.failures.iter().any(|(c, w, _)| *c == contender && w == what)
    }

    /// A row by its name.
    pub(super) fn row(&self, kind: Kind, name: &str) -> Option<&Row> {
        self.rows(kind).find(|row| row.name == name)
    }

    /// The rows of a table.
    pub(super) fn rows(&self, kind: Kind) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.kind == kind)
    }

    /// Prints a table for each kind of work.
    pub(super) fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        for line in self.heading().lines() {
            writeln!(out, "- {line}")?;
        }
        for kind in Kind::ALL {
            if self.rows(kind).next().is_some() {
                writeln!(out, "\n### {}\n\n{}", kind.title(), self.table(kind))?;
            }
        }
        if !self.failures.is_empty() {
            writeln!(out, "\n### Not measured\n")?;
        }
        for (contender, what, why) in &self.failures {
            writeln!(out, "- {}: {what}: {why}", contender.name())?;
        }
        if let Some(marks) = marks::table(self) {
            writeln!(out, "\n### Marks\n\n{marks}")?;
        }
        Ok(())
    }

    /// Where and how it was measured.
    pub(super) fn heading(&self) -> String {
        let most = self.rows.iter().flat_map(|row| &row.samples).map(|(_, s)| s.len()).max().unwrap_or(0);
        let cut = if self.cut_short { " (the last cut short)" } else { "" };
        let machine = Machine::look();
        let mut lines = vec![
            format!("{}, {} processors, {}", machine.processor, machine.processors, machine.system),
            format!("commit {}, TCP congestion control {}", machine.commit, machine.congestion_control),
            format!(
                "{most} rounds{cut}, {} ms a measurement; medians, then the least and the most; ratios are medians \
                 of the ratios in each round",
                self.measure.as_millis()
            ),
        ];
        lines.extend(self.versions.iter().map(|(name, version)| format!("{name}: {version}")));
        lines.join("\n")
    }

    fn table(&self, kind: Kind) -> Table {
        let latency = kind.latency(1.0).is_some();
        let mut columns = vec!["work", "contender", "median", "min .. max"];
        columns.extend(match (kind.is_rate(), latency) {
            (_, true) => vec!["adds, µs", "adds / best peer"],
            (true, false) => vec!["/ loopback", "/ socat", "/ veth", "/ best peer"],
            (false, false) if kind == Kind::Beside => Vec::new(),
            (false, false) => vec!["/ best peer"],
        });
        let over_ipv4 = |row: &Row| self.row(kind, &Family::name_over_ipv4(&row.name)?);
        let has_ipv6 = kind != Kind::Beside && self.rows(kind).any(|row| over_ipv4(row).is_some());
        columns.extend(has_ipv6.then_some("/ IPv4"));
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(&columns);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in self.rows(kind) {
            let mut name = row.name.as_str();
            for (contender, samples) in row.contenders() {
                let (low, high) = spread(samples);
                let mut cells = vec![
                    std::mem::take(&mut name).to_owned(),
                    contender.name().to_owned(),
                    number(median(samples)),
                    format!("{} .. {}", number(low), number(high)),
                ];
                let ratio = |of: &Samples, to: &Samples| {
                    let ratios = pairs(of, to, |of, to| Some(of / to));
                    if ratios.is_empty() { String::new() } else { format!("{:.2}", median(&ratios)) }
                };
                if latency {
                    let added = row.added(samples);
                    let text = if added.is_empty() { String::new() } else { number(median(&added)) };
                    // Machines have no loopback to be compared with.
                    let to_best = match row.get(Contender::Loopback) {
                        Some(_) => ratio(&added, &row.added(&row.best_peer())),
                        None => ratio(&row.latencies(samples), &row.latencies(&row.best_peer())),
                    };
                    cells.extend([text, to_best]);
                } else {
                    if kind.is_rate() {
                        let (socat, veth) = (row.get(Contender::Socat), row.get(Contender::Veth));
                        for yardstick in [row.loopback(), socat, veth] {
                            cells.push(yardstick.map_or_else(String::new, |to| ratio(samples, to)));
                        }
                    }
                    if kind != Kind::Beside {
                        cells.push(ratio(samples, &row.best_peer()));
                    }
                }
                if has_ipv6 {
                    let same = over_ipv4(row).and_then(|row| row.get(contender));
                    cells.push(same.map_or_else(String::new, |over_ipv4| ratio(samples, over_ipv4)));
                }
                table.add_row(cells);
            }
        }
        table
    }

    pub(super) fn to_json(&self) -> Value {
        let machine = Machine::look();
        let figures = self.rows.iter().flat_map(|row| {
            row.contenders().map(|(contender, samples)| {
                let (min, max) = spread(samples);
                json!({
                    "work": row.name,
                    "contender": contender.name(),
                    "unit": row.kind.unit(),
                    "table": row.kind.title(),
                    "median": median(samples),
                    "min": min,
                    "max": max,
                    "samples": samples.values().collect::<Vec<_>>(),
                })
            })
        });
        let failures = self.failures.iter().map(|(contender, work, reason)| {
            json!({ "contender": contender.name(), "work": work, "reason": reason })
        });
        json!({
            "machine": { "processor": machine.processor, "processors": machine.processors },
            "system": machine.system,
            "congestion_control": machine.congestion_control,
            "commit": machine.commit,
            "measurement_ms": self.measure.as_millis(),
            "versions": self.versions.iter().cloned().collect::<BTreeMap<_, _>>(),
            "figures": figures.collect::<Vec<_>>(),
            "failures": failures.collect::<Vec<_>>(),
            "marks": marks::to_json(self),
        })
    }
}

/// Where this runs.
struct Machine {
    processor: String,
    processors: usize,
    system: String,
    congestion_control: String,
    commit: String,
}

impl Machine {
    fn look() -> Self {
        let unknown = || "unknown".to_owned();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let uname = rustix::system::uname();
        let [sysname, release, machine] = [uname.sysname(), uname.release(), uname.machine()]
            .map(|text| text.to_string_lossy().into_owned());
        let git = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).output();
        let commit = git.ok().filter(|output| output.status.success());
        Self {
            processor: model
                .and_then(|line| line.split_once(": "))
                .map_or_else(unknown, |(_, name)| name.trim().to_owned()),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            system: format!("{sysname} {release} {machine}"),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
            commit: commit
                .map_or_else(unknown, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        }
    }
}

/// Something of two values of the same round.
pub(super) fn pairs(of: &Samples, to: &Samples, make: impl Fn(f64, f64) -> Option<f64>) -> Samples {
    of.iter().filter_map(|(round, of)| Some((*round, make(*of, *to.get(round)?)?))).collect()
}

/// The middle one; NaN when there is none.
pub(super) fn median(samples: &Samples) -> f64 {
    let mut values: Vec<f64> = samples.values().copied().collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = values.len().checked_sub(1).and_then(|last| values.get(last / 2));
    lower.map_or(f64::NAN, |lower| f64::midpoint(*lower, upper))
}

/// The least and the most.
pub(super) fn spread(samples: &Samples) -> (f64, f64) {
    let fold = |pick: fn(f64, f64) -> f64| samples.values().copied().reduce(pick).unwrap_or(f64::NAN);
    (fold(f64::min), fold(f64::max))
}

/// A number with three digits that matter, or all that are before the point.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(Duration::from_secs(1));
        let mut add = |round, contender, kind, value| {
            report.add(round, contender, Figure { kind, row: "work".into(), value });
        };
        for (round, drift) in [(0, 1.0), (1, 0.5), (2, 0.8)] {
            add(round, Contender::Loopback, Kind::Bulk, 20.0 * drift);
            add(round, Contender::Socat, Kind::Bulk, 10.0 * drift);
            add(round, Contender::Pasta, Kind::Bulk, 2.0 * drift);
            add(round, Contender::Usernet, Kind::Bulk, 12.0 * drift);
            add(round, Contender::Loopback, Kind::Connections, 10_000.0);
            add(round, Contender::Slirp4netns, Kind::Connections, 4000.0);
            add(round, Contender::Pasta, Kind::Connections, 5000.0);
            add(round, Contender::Usernet, Kind::Connections, 8000.0);
        }
        report
    }

    fn line(report: &Report, kind: Kind, contender: &str) -> Vec<String> {
        let table = report.table(kind).to_string();
        let line = table.lines().find(|line| line.contains(contender)).unwrap();
        line.split('|').map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        let report = report();
        assert_eq!(
            line(&report, Kind::Bulk, "usernet"),
            ["usernet", "9.60", "6.00 .. 12.0", "0.60", "1.20", "6.00"]
        );
    }

    #[test]
    fn what_is_done_over_ipv6_is_compared_with_the_same_over_ipv4() {
        let mut report = report();
        for (round, value) in [(0, 6.0), (1, 6.0), (2, 9.6)] {
            let row = "work over IPv6".into();
            report.add(round, Contender::Usernet, Figure { kind: Kind::Bulk, row, value });
        }
        let table = report.table(Kind::Bulk).to_string();
        let line = table.lines().find(|line| line.contains("over IPv6")).unwrap();
        assert!(line.replace(' ', "").ends_with("|1.00|"), "{table}");
        assert!(line.contains("6.00 .. 9.60"), "{table}");
    }

    #[test]
    fn what_a_connection_adds_is_compared_with_the_best_peer() {
        let report = report();
        // 125 µs of which 100 are the loopback's; pasta takes 200.
        assert_eq!(
            line(&report, Kind::Connections, "usernet"),
            ["usernet", "8000", "8000 .. 8000", "25.0", "0.25"]
        );
    }

    #[test]
    fn a_median_of_an_even_number_lies_between() {
        assert_eq!(median(&Samples::from([(0, 1.0), (1, 4.0), (2, 2.0), (3, 8.0)])), 3.0);
        assert_eq!(median(&Samples::from([(0, 1.0), (1, 4.0), (2, 2.0)])), 2.0);
        assert!(median(&Samples::new()).is_nan());
    }
}

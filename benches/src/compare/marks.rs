//! What the figures are to show: bars for `usernet` against yardsticks and peers, and whether they are met.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use super::contender::Contender;
use super::report::{Report, Row, Samples, median, number, pairs, spread};
use super::work::{Kind, direction};
use crate::Family;

/// The row of the core's memory, which no socket is part of.
pub(super) fn core_memory(family: Family) -> String {
    format!("core alone, 100,000 idle flows{}", family.suffix())
}

/// A mark, and what was measured in each round.
struct Mark {
    name: String,
    bar: Bar,
    samples: Samples,
}

enum Bar {
    AtLeast(f64),
    AtMost(f64),
    Above(f64),
    Below(f64),
}

impl Bar {
    fn is_met(&self, value: f64) -> bool {
        match *self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
            Self::Above(bar) => value > bar,
            Self::Below(bar) => value < bar,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::AtLeast(bar) => format!("≥ {bar}"),
            Self::AtMost(bar) => format!("≤ {bar}"),
            Self::Above(bar) => format!("> {bar}"),
            Self::Below(bar) => format!("< {bar}"),
        }
    }
}

/// The marks that this run has the figures for; none when it has none of them.
pub(super) fn table(report: &Report) -> Option<Table> {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["mark", "wanted", "measured", "min .. max", ""]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let marks = marks(report);
    for mark in &marks {
        let value = median(&mark.samples);
        let (low, high) = spread(&mark.samples);
        table.add_row([
            mark.name.clone(),
            mark.bar.text(),
            number(value),
            format!("{} .. {}", number(low), number(high)),
            if mark.bar.is_met(value) { "pass" } else { "MISS" }.to_owned(),
        ]);
    }
    (!marks.is_empty()).then_some(table)
}

pub(super) fn to_json(report: &Report) -> Value {
    let mark = |mark: &Mark| {
        let value = median(&mark.samples);
        json!({
            "mark": mark.name,
            "wanted": mark.bar.text(),
            "measured": value,
            "samples": mark.samples.values().collect::<Vec<_>>(),
            "met": mark.bar.is_met(value),
        })
    };
    marks(report).iter().map(mark).collect()
}

fn marks(report: &Report) -> Vec<Mark> {
    let mut marks = Marks { report, list: Vec::new() };
    for family in Family::ALL {
        marks.over(family);
        marks.vhost_user(family);
    }
    // Of the slowest round trips no run is long enough to tell 5 %.
    for row in report.rows(Kind::Beside).filter(|row| !row.name.ends_with("p99")) {
        // Of a rate no less is wanted, of a time no more.
        let bar = if row.name.ends_with("p50") { Bar::AtMost(1.05) } else { Bar::AtLeast(0.95) };
        let samples = row.get(Contender::Usernet).cloned();
        marks.add(format!("{} / without", row.name), bar, samples);
    }
    for family in Family::ALL {
        let name = core_memory(family);
        let memory = report.row(Kind::Memory, &name).and_then(|row| row.get(Contender::Usernet));
        marks.add(format!("{name}, MB"), Bar::Below(100.0), memory.cloned());
    }
    for row in report.rows(Kind::Processor) {
        marks.against_peers(Kind::Processor, &row.name, Contender::Usernet, Bar::AtMost(0.5));
    }
    for out in [true, false] {
        marks.two_queues(out);
    }
    marks.list
}

struct Marks<'a> {
    report: &'a Report,
    list: Vec<Mark>,
}

impl Marks<'_> {
    /// Adds a mark, if it was measured.
    fn add(&mut self, name: String, bar: Bar, samples: Option<Samples>) {
        self.list.extend(samples.filter(|samples| !samples.is_empty()).map(|samples| Mark {
            name,
            bar,
            samples,
        }));
    }

    /// A rate of streams at least this many times that of another.
    fn against(&mut self, name: &str, to: Contender, bar: f64) {
        self.between(Kind::Bulk, name, [Contender::Usernet, to], Bar::AtLeast(bar));
    }

    /// A figure of one contender as a ratio to another's.
    fn between(&mut self, kind: Kind, name: &str, [of, to]: [Contender; 2], bar: Bar) {
        let row = self.report.row(kind, name);
        let ratios = row.and_then(|row| ratio(row.get(of)?, row.get(to)?));
        let of = if of == Contender::Usernet { String::new() } else { format!(": {}", of.name()) };
        self.add(format!("{name}{of} / {}", to.name()), bar, ratios);
    }

    fn against_peers(&mut self, kind: Kind, name: &str, contender: Contender, bar: Bar) {
        let ratios = self.report.row(kind, name).and_then(|row| ratio(row.get(contender)?, &row.best_peer()));
        let what = if kind == Kind::Processor { format!("processor time, {name}") } else { name.to_owned() };
        self.add(format!("{what} / best peer"), bar, ratios);
    }

    /// What is wanted of both families.
    fn over(&mut self, family: Family) {
        for (mtu, out, bar) in
            [(1500, true, 0.95), (1500, false, 1.2), (65520, true, 1.2), (65520, false, 1.3)]
        {
            self.against(&bulk(family, mtu, out), Contender::Socat, bar);
        }
        for out in [true, false] {
            self.against(&bulk(family, 1500, out), Contender::Slirp4netns, 5.0);
        }
        self.latency(family);
        for out in [true, false] {
            self.against_peers(
                Kind::Datagrams,
                &format!("UDP {}, 1400 bytes{}, free of loss", direction(out), family.suffix()),
                Contender::Usernet,
                Bar::AtLeast(3.0),
            );
        }
        for out in [true, false] {
            let row = format!("QEMU guest: {}", bulk(family, 1500, out));
            self.against_peers(Kind::Bulk, &row, Contender::QemuUsernet, Bar::Above(1.0));
        }
    }

    /// What is wanted of rings in the memory of a guest.
    fn vhost_user(&mut self, family: Family) {
        for (mtu, out, bar) in
            [(1500, true, 2.5), (1500, false, 1.0), (65520, true, 3.2), (65520, false, 1.1)]
        {
            let name = bulk(family, mtu, out);
            let rings = [Contender::Rings, Contender::Usernet];
            self.between(Kind::Bulk, &name, rings, Bar::AtLeast(1.3));
            let name = format!("UML guest: {name}");
            let guests = [Contender::UmlUsernet, Contender::UmlLoopback];
            self.between(Kind::Bulk, &name, guests, Bar::AtLeast(bar));
        }
        let guests = [Contender::QemuVhostUser, Contender::QemuLibslirp];
        for out in [true, false] {
            let name = format!("QEMU guest: {}", bulk(family, 1500, out));
            self.between(Kind::Bulk, &name, guests, Bar::AtLeast(1.0));
            for what in ["free of loss", "flood"] {
                let name =
                    format!("QEMU guest: UDP {}, 1400 bytes{}, {what}", direction(out), family.suffix());
                self.between(Kind::Datagrams, &name, guests, Bar::AtLeast(1.0));
            }
        }
        let trip = format!("QEMU guest: TCP round trip{}, p50", family.suffix());
        self.between(Kind::RoundTrip, &trip, guests, Bar::AtMost(1.0));
        let connections = format!("QEMU guest: connections{}", family.suffix());
        self.between(Kind::Connections, &connections, guests, Bar::AtLeast(1.0));
    }

    /// Two pairs of queues are to move more than one, on a machine that has the processors for it.
    fn two_queues(&mut self, out: bool) {
        let two = format!("TCP {}, MTU 1500, 2 streams", direction(out));
        let rings = |name: &str| self.report.row(Kind::Bulk, name)?.get(Contender::Rings);
        let ratios = rings(&two).zip(rings(&bulk(Family::V4, 1500, out)));
        let ratios = ratios.and_then(|(two, one)| ratio(two, one));
        self.add(format!("{two}: rings / 1 stream"), Bar::Above(1.0), ratios);
    }

    /// What a round trip and a connection add.
    fn latency(&mut self, family: Family) {
        let usernet = |row: &Row| row.get(Contender::Usernet).cloned();
        let added = |row: &Row| Some(row.added(row.get(Contender::Usernet)?));
        let against = |row: &Row| ratio(&added(row)?, &row.added(&row.best_peer()));
        let trip = format!("TCP round trip{}", family.suffix());
        let p50 = self.report.row(Kind::RoundTrip, &format!("{trip}, p50"));
        let p99 = self.report.row(Kind::RoundTrip, &format!("{trip}, p99"));
        self.add(format!("{trip} adds, p50, µs"), Bar::AtMost(10.0), p50.and_then(added));
        self.add(format!("{trip} adds, p50 / best peer"), Bar::AtMost(0.7), p50.and_then(against));
        let tail = p50.zip(p99).and_then(|(p50, p99)| ratio(&usernet(p99)?, &usernet(p50)?));
        self.add(format!("{trip}, p99 / p50"), Bar::Below(3.0), tail);
        let connections = self.report.row(Kind::Connections, &format!("connections{}", family.suffix()));
        let name = format!("connection{} adds / best peer", family.suffix());
        self.add(name, Bar::AtMost(0.5), connections.and_then(against));
    }
}

fn bulk(family: Family, mtu: u16, out: bool) -> String {
    format!("TCP {}, MTU {mtu}, 1 stream{}", direction(out), family.suffix())
}

fn ratio(of: &Samples, to: &Samples) -> Option<Samples> {
    Some(pairs(of, to, |of, to| Some(of / to)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::work::{Figure, Work};
    use super::*;

    #[test]
    fn a_mark_is_met_or_missed_by_the_median_of_the_rounds() {
        let mut report = Report::new(Duration::from_secs(1));
        let row = bulk(Family::V6, 1500, true);
        for (round, value) in [(0, 9.0), (1, 9.6), (2, 9.7)] {
            report.add(round, Contender::Socat, Figure { kind: Kind::Bulk, row: row.clone(), value: 10.0 });
            report.add(round, Contender::Usernet, Figure { kind: Kind::Bulk, row: row.clone(), value });
        }
        let [mark] = marks(&report).try_into().ok().expect("one mark was measured");
        assert_eq!(median(&mark.samples), 0.96);
        assert!(table(&report).expect("there is a mark").to_string().contains("pass"));
        assert!(!Bar::AtLeast(0.97).is_met(0.96) && Bar::Above(0.95).is_met(0.96));
    }

    #[test]
    fn the_work_that_marks_speak_of_is_done() {
        let all = Work::all();
        let exists = |name: String| assert!(all.iter().any(|work| work.name == name), "{name}");
        for family in Family::ALL {
            for (mtu, out) in [(1500, true), (1500, false), (65520, true), (65520, false)] {
                exists(bulk(family, mtu, out));
            }
            for name in ["TCP round trip", "connections", "UDP in, 1400 bytes", "UDP out, 1400 bytes"] {
                exists(format!("{name}{}", family.suffix()));
            }
            for machine in ["QEMU guest", "UML guest"] {
                exists(format!("{machine}: {}", bulk(family, 1500, true)));
            }
            exists(format!("UML guest: {}", bulk(family, 65520, false)));
            for name in ["TCP round trip", "connections", "UDP in, 1400 bytes", "UDP out, 1400 bytes"] {
                exists(format!("QEMU guest: {name}{}", family.suffix()));
            }
        }
    }
}

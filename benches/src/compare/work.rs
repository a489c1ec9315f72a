//! The work: what is done in each contender, and which figures that gives.

use std::time::Duration;

use serde_json::Value;

use super::contender::Contender;
use super::guest::Guest;
use crate::Family;

/// The MTU that guests have unless someone changes it, and about the largest.
pub(super) const MTUS: [u16; 2] = [1500, 65520];
/// Idle flows beside the work, and how many there are in the end.
pub(super) const IDLE: [usize; 2] = [10_000, 15_000];
/// Idle flows of the core alone, which needs no descriptors for them.
pub(super) const CORE_FLOWS: u32 = 100_000;
/// How long opening idle flows may take: some peers slow down with each.
pub(super) const HOLD: Duration = Duration::from_secs(20);

/// What work may take beyond its time, on a busy machine.
const SLACK: Duration = Duration::from_secs(15);

/// How long things take.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// Before a bulk measurement.
    pub(super) warm_up: Duration,
    /// A measurement.
    pub(super) measure: Duration,
    /// A step in the search for a rate.
    pub(super) trial: Duration,
}

/// A kind of work, which has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Bulk,
    RoundTrip,
    Connections,
    Datagrams,
    Processor,
    Beside,
    Memory,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::Bulk,
        Self::RoundTrip,
        Self::Connections,
        Self::Datagrams,
        Self::Processor,
        Self::Beside,
        Self::Memory,
    ];

    /// The head of its table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Bulk => "TCP streams, Gbit/s",
            Self::RoundTrip => "Round trips of one small message, µs",
            Self::Connections => "TCP connect, request and close, per second",
            Self::Datagrams => "UDP datagrams, per second",
            Self::Processor => "Processor time of the relay, s per GB moved",
            Self::Beside => "With 10,000 idle flows beside, against without: ratio",
            Self::Memory => "Resident memory of the relay, MB",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "Gbit/s",
            Self::RoundTrip => "us",
            Self::Connections | Self::Datagrams => "per s",
            Self::Processor => "s/GB",
            Self::Beside => "ratio",
            Self::Memory => "MB",
        }
    }

    /// Whether more is better.
    pub(super) fn is_rate(self) -> bool {
        matches!(self, Self::Bulk | Self::Connections | Self::Datagrams)
    }

    /// What of a value adds up along a path, in microseconds; none where nothing does.
    pub(super) fn latency(self, value: f64) -> Option<f64> {
        match self {
            Self::RoundTrip => Some(value),
            Self::Connections => Some(1e6 / value),
            _ => None,
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// What people call it.
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) mtu: u16,
    pub(super) place: Place,
    /// Whether a quick run does it.
    pub(super) quick: bool,
    load: Load,
}

/// Where work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a network namespace.
    Namespace,
    /// There as well, in turn with and without idle flows beside.
    BesideIdle,
    /// In a QEMU machine.
    Qemu,
    /// In a User Mode Linux machine.
    Uml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Bulk { out: bool, streams: usize },
    RoundTrip { tcp: bool },
    Connections,
    Datagrams { out: bool, size: usize },
}

/// What came of a measurement: a value for a row of a table.
pub(super) struct Figure {
    pub(super) kind: Kind,
    pub(super) row: String,
    pub(super) value: f64,
}

impl Work {
    /// All work, in the order in which it is done.
    pub(super) fn all() -> Vec<Self> {
        let [small, _] = MTUS;
        let mut all = Vec::new();
        let mut add = |name: String, load, mtu, place| {
            // One after the other, for what they are compared with is each other.
            for family in Family::ALL {
                let name = format!("{name}{}", family.suffix());
                let mut work = Self { name, family, mtu, place, quick: false, load };
                let slow = place == Place::Qemu && matches!(load, Load::Datagrams { .. });
                work.quick = !work.is_minor()
                    && !slow
                    && (family == Family::V4
                        || (mtu == small || place == Place::Uml)
                            && place != Place::BesideIdle
                            && load != Load::RoundTrip { tcp: false });
                all.push(work);
            }
        };
        for mtu in MTUS {
            for streams in [1, 8] {
                for out in [true, false] {
                    let plural = if streams == 1 { "stream" } else { "streams" };
                    let name = format!("TCP {}, MTU {mtu}, {streams} {plural}", direction(out));
                    add(name, Load::Bulk { out, streams }, mtu, Place::Namespace);
                }
            }
        }
        add("TCP round trip".into(), Load::RoundTrip { tcp: true }, small, Place::Namespace);
        add("UDP round trip".into(), Load::RoundTrip { tcp: false }, small, Place::Namespace);
        add("connections".into(), Load::Connections, small, Place::Namespace);
        for size in [1400, 64] {
            for out in [true, false] {
                let name = format!("UDP {}, {size} bytes", direction(out));
                add(name, Load::Datagrams { out, size }, small, Place::Namespace);
            }
        }
        for out in [true, false] {
            let name = format!("TCP {}, MTU {small}, 2 streams", direction(out));
            add(name, Load::Bulk { out, streams: 2 }, small, Place::Namespace);
        }
        for (prefix, place) in [("beside idle flows: ", Place::BesideIdle), ("QEMU guest: ", Place::Qemu)] {
            for out in [true, false] {
                let name = format!("{prefix}TCP {}, MTU {small}, 1 stream", direction(out));
                add(name, Load::Bulk { out, streams: 1 }, small, place);
            }
            add(format!("{prefix}TCP round trip"), Load::RoundTrip { tcp: true }, small, place);
            add(format!("{prefix}connections"), Load::Connections, small, place);
        }
        for out in [true, false] {
            let direction = direction(out);
            let name = format!("QEMU guest: UDP {direction}, 1400 bytes");
            add(name, Load::Datagrams { out, size: 1400 }, small, Place::Qemu);
            let name = format!("QEMU guest: TCP {direction}, MTU {small}, 2 streams");
            add(name, Load::Bulk { out, streams: 2 }, small, Place::Qemu);
        }
        for mtu in MTUS {
            for out in [true, false] {
                let name = format!("UML guest: TCP {}, MTU {mtu}, 1 stream", direction(out));
                add(name, Load::Bulk { out, streams: 1 }, mtu, Place::Uml);
            }
        }
        all
    }

    /// Whether a quick run can do without it.
    fn is_minor(&self) -> bool {
        matches!(self.load, Load::Bulk { streams: 2.., .. } | Load::Datagrams { size: ..1400, .. })
    }

    /// Whether `contender` can do it, and is asked to: over IPv6 some is of interest only beside the same
    /// over IPv4.
    pub(super) fn suits(&self, contender: Contender) -> bool {
        if let Load::Bulk { streams: 2, .. } = self.load {
            let has_place = contender.place() == self.place && self.family == Family::V4;
            return has_place && contender.has_two_queues();
        }
        if self.family == Family::V6 && (self.is_minor() || self.place == Place::BesideIdle) {
            return contender == Contender::Usernet;
        }
        match (self.place, self.load) {
            (place, load) if contender.has_two_queues() => {
                contender.place() == place && matches!(load, Load::Bulk { streams: 1, .. })
            }
            (Place::BesideIdle, _) => contender.is_on_tap(),
            (Place::Namespace, Load::Datagrams { .. } | Load::RoundTrip { tcp: false }) => {
                contender.place() == Place::Namespace && contender != Contender::Socat
            }
            (place, _) => contender.place() == place,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub(super) fn run(&self, guest: &mut Guest, times: Times) -> anyhow::Result<Vec<Figure>> {
        let (warm_up, time, trial) =
            (times.warm_up.as_millis(), times.measure.as_millis(), times.trial.as_millis());
        let servers = guest.servers(self.family)?;
        let (tcp, udp) = (servers.tcp(), servers.udp());
        let command = match self.load {
            Load::Bulk { out, streams } => {
                let name = if out { "tcp-out" } else { "tcp-in" };
                format!("{name} {tcp} --time {time} --warm-up {warm_up} --streams {streams}")
            }
            Load::RoundTrip { tcp: true } => format!("rr {tcp} --time {time}"),
            Load::RoundTrip { tcp: false } => format!("udp-rr {udp} --time {time}"),
            Load::Connections => format!("crr {tcp} --time {time}"),
            Load::Datagrams { out, size } => {
                let name = if out { "udp-out" } else { "udp-in" };
                format!("{name} {udp} --size {size} --time {time} --trial {trial}")
            }
        };
        let patience = (times.warm_up + times.measure) * 3 + times.trial * 20 + SLACK;
        let before = guest.processor_time();
        let result = guest.load(&command, patience)?;
        let spent = guest.processor_time().zip(before).map(|(after, before)| after.saturating_sub(before));
        Ok(self.figures(&result, spent))
    }

    fn figures(&self, result: &Value, spent: Option<Duration>) -> Vec<Figure> {
        let mut figures = Vec::new();
        let mut add = |kind, row: String, value: Option<f64>| {
            figures.extend(value.map(|value| Figure { kind, row, value }));
        };
        let name = &self.name;
        let number = |key: &str| result.get(key).and_then(Value::as_f64);
        match self.load {
            Load::Bulk { .. } => {
                add(Kind::Bulk, name.clone(), number("gbit_per_s"));
                let gigabytes = number("moved_bytes").map(|bytes| bytes / 1e9);
                let cost = spent.zip(gigabytes).map(|(spent, gigabytes)| spent.as_secs_f64() / gigabytes);
                // Clock ticks are too coarse for what moved next to nothing.
                add(Kind::Processor, name.clone(), cost.filter(|_| gigabytes.is_some_and(|gb| gb > 0.01)));
            }
            Load::RoundTrip { .. } => {
                add(Kind::RoundTrip, format!("{name}, p50"), number("p50_us"));
                add(Kind::RoundTrip, format!("{name}, p99"), number("p99_us"));
            }
            Load::Connections => add(Kind::Connections, name.clone(), number("per_s")),
            Load::Datagrams { .. } => {
                add(Kind::Datagrams, format!("{name}, free of loss"), number("loss_free_per_s"));
                add(Kind::Datagrams, format!("{name}, flood"), number("through_per_s"));
            }
        }
        figures
    }
}

/// The word for a direction: from the guest to the host, or the other way.
pub(super) fn direction(out: bool) -> &'static str {
    if out { "out" } else { "in" }
}

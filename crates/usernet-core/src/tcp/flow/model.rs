//! Any guest, any host, in any order: what a flow never does.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

const IRS: SeqNumber = SeqNumber(u32::MAX - 2000);
const ISS: SeqNumber = SeqNumber(u32::MAX - 1000);

#[derive(Clone, Debug)]
enum Step {
    /// A segment: flags, offset from where the guest would be, of the acknowledgement from all that
    /// was sent, length, window, and a SACK block.
    Segment {
        flags: u16,
        seq: i32,
        ack: i32,
        len: u32,
        window: u16,
        sack: Option<(i32, i32)>,
    },
    /// The host takes so much of what it is offered from now on; so much of the rest is kept.
    Takes {
        per_mille: u32,
        kept: u32,
    },
    Connected,
    HostSends(u32),
    HostEnds,
    Space(u32),
    Failed,
    /// Peeks find so much room on the link; none: any.
    Link(Option<u32>),
    Gone,
    /// So many milliseconds.
    Wait(u64),
    /// To the next deadline.
    Jump,
}

fn step() -> impl Strategy<Value = Step> {
    let near = prop_oneof![6 => Just(0), 2 => -3000..3000, 1 => any::<i32>()];
    let flags = prop_oneof![
        12 => Just(0x10),
        2 => Just(0x11),
        1 => Just(0x04),
        1 => Just(0x02),
        1 => Just(0x12),
        1 => 0..0x40u16,
    ];
    let len = prop_oneof![3 => Just(0), 4 => 1..3000u32, 1 => 0..65_000u32];
    let window = prop_oneof![1 => Just(0), 1 => 1..100u16, 4 => any::<u16>()];
    let sack = proptest::option::of((-5000..5000i32, 1..3000i32));
    let segment =
        (flags, near.clone(), near, len, window, sack).prop_map(|(flags, seq, ack, len, window, sack)| {
            Step::Segment { flags, seq, ack, len, window, sack }
        });
    prop_oneof![
        30 => segment,
        3 => (prop_oneof![Just(1000), 0..1000u32], 0..2000u32)
            .prop_map(|(per_mille, kept)| Step::Takes { per_mille, kept }),
        3 => Just(Step::Connected),
        6 => (1..200_000u32).prop_map(Step::HostSends),
        1 => Just(Step::HostEnds),
        4 => prop_oneof![Just(0), 1..10_000u32, 0..20_000_000u32].prop_map(Step::Space),
        2 => proptest::option::of(0..5000u32).prop_map(Step::Link),
        4 => (0..500u64).prop_map(Step::Wait),
        8 => Just(Step::Jump),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    None,
    Connecting,
    Connected,
    Gone,
}

struct Model {
    flow: TcpFlow,
    now: Instant,
    host: Host,
    /// What the host has taken, from the guest's first byte on, and whether its end was told.
    taken: u32,
    shut: bool,
    per_mille: u32,
    kept_part: u32,
    kept: BTreeSet<u32>,
    /// What the host's queue holds, and what was dropped from it.
    queue: u32,
    discarded: u32,
    eof: bool,
    room: Option<u32>,
    /// The farthest that the guest was ever sent to, has acknowledged, and allows.
    sent: SeqNumber,
    acked: SeqNumber,
    edge: SeqNumber,
    shift: u8,
    closed: bool,
}

impl Model {
    fn new(shift: u8, to_guest: bool) -> Self {
        let now = Instant::from_micros(1_000_000);
        let syn = TcpHeader {
            seq: IRS,
            flags: TcpFlags::SYN,
            window: 5000,
            mss: Some(1000),
            window_scale: Some(shift),
            sack_permitted: true,
            ..TcpHeader::default()
        };
        let flow = if to_guest {
            TcpFlow::to_guest(1, 2, ISS, 1460, now)
        } else {
            TcpFlow::from_guest(&syn, ISS, 1460, now)
        };
        let mut model = Self {
            flow,
            now,
            host: if to_guest { Host::Connected } else { Host::None },
            taken: 0,
            shut: false,
            per_mille: 1000,
            kept_part: 0,
            kept: BTreeSet::new(),
            queue: 0,
            discarded: 0,
            eof: false,
            room: None,
            sent: ISS,
            acked: ISS,
            edge: ISS + 1 + 5000,
            shift,
            closed: false,
        };
        model.drain();
        if to_guest {
            let header = TcpHeader { flags: TcpFlags::SYN | TcpFlags::ACK, ack: ISS + 1, ..syn };
            let _ = model.flow.handle_segment(&header, 0, now);
            model.acked = ISS + 1;
            model.drain();
        }
        model
    }

    fn next(&self) -> SeqNumber {
        IRS + 1 + self.taken
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Segment { flags, seq, ack, len, window, sack } => {
                self.segment(flags, seq, ack, len, window, sack);
            }
            Step::Takes { per_mille, kept } => (self.per_mille, self.kept_part) = (per_mille, kept),
            Step::Connected if self.host == Host::Connecting => {
                self.host = Host::Connected;
                self.flow.handle_host(HostEvent::Connected, self.now);
            }
            Step::HostSends(len) if self.host == Host::Connected && !self.eof => {
                self.queue += len;
                self.flow.handle_host(HostEvent::Readable, self.now);
            }
            Step::HostEnds if self.host == Host::Connected => {
                self.eof = true;
                self.flow.handle_host(HostEvent::Readable, self.now);
            }
            Step::Space(free) if self.host == Host::Connected => {
                self.flow.handle_host(HostEvent::SendSpace { free }, self.now);
            }
            Step::Failed if matches!(self.host, Host::Connecting | Host::Connected) => {
                self.flow.handle_host(HostEvent::Failed(HostError::Reset), self.now);
            }
            Step::Link(room) => {
                self.room = room;
                self.flow.handle_host(HostEvent::LinkSpace, self.now);
            }
            Step::Gone => self.flow.handle_guest_gone(),
            Step::Wait(ms) => {
                let end = self.now + Duration::from_millis(ms);
                while !self.closed && self.flow.poll_timeout().is_some_and(|at| at <= end) {
                    self.jump();
                }
                self.now = end;
            }
            Step::Jump => self.jump(),
            _ => {}
        }
        self.drain();
    }

    fn jump(&mut self) {
        let Some(at) = self.flow.poll_timeout() else { return };
        self.now = self.now.max(at);
        self.flow.handle_timeout(self.now);
        self.drain();
        assert!(self.flow.poll_timeout().is_none_or(|at| at > self.now), "a deadline that does not move");
    }

    fn segment(&mut self, flags: u16, seq: i32, ack: i32, len: u32, window: u16, sack: Option<(i32, i32)>) {
        let at = |from: SeqNumber, by: i32| from + by.cast_unsigned();
        let mut header = TcpHeader {
            seq: at(self.next(), seq),
            ack: at(self.sent, ack),
            flags: TcpFlags(flags),
            window,
            ..TcpHeader::default()
        };
        header.sack[0] = sack.map(|(left, len)| (at(header.ack, left), at(header.ack, left + len)));
        if header.ack <= self.sent && header.ack >= ISS {
            self.edge = self.edge.later(header.ack + (u32::from(window) << self.shift));
            self.acked = self.acked.later(header.ack);
        }
        match self.flow.handle_segment(&header, len as usize, self.now) {
            Ok(Accept::Deliver { payload, at }) => {
                self.check_range(&header, &payload, at, len);
                assert_eq!(at, self.next(), "bytes out of order");
                let offered = u32::try_from(payload.len()).unwrap();
                let took = if self.host == Host::Connected { offered * self.per_mille / 1000 } else { 0 };
                let kept = (offered - took).min(self.kept_part);
                self.taken += took;
                let next = self.next();
                self.kept.extend((0..kept).map(|n| (next + n).0));
                self.flow.handle_host(HostEvent::Wrote { len: took, kept }, self.now);
            }
            Ok(Accept::Keep { payload, at }) => {
                self.check_range(&header, &payload, at, len);
                self.kept.extend((0..u32::try_from(payload.len()).unwrap()).map(|n| (at + n).0));
            }
            Ok(Accept::Nothing) | Err(_) => {}
        }
    }

    /// What is taken of a payload is what lies at its position.
    fn check_range(&self, header: &TcpHeader, payload: &std::ops::Range<usize>, at: SeqNumber, len: u32) {
        let first = header.seq + u32::from(header.flags.contains(TcpFlags::SYN));
        assert_eq!(first + u32::try_from(payload.start).unwrap(), at);
        assert!(payload.start < payload.end && payload.end <= len as usize, "{payload:?} of {len}");
    }

    fn drain(&mut self) {
        for _ in 0..20_000 {
            let Some(output) = self.flow.poll_output(self.now) else { return };
            assert!(!self.closed, "{output:?} after the end");
            self.take(output);
        }
        panic!("no end of outputs");
    }

    fn take(&mut self, output: Output) {
        let host = self.host;
        let connected = || assert_eq!(host, Host::Connected, "{output:?}");
        match output {
            Output::Connect => {
                assert_eq!(self.host, Host::None);
                self.host = Host::Connecting;
            }
            Output::Segment(header) => self.sent(&header, 0),
            Output::Peek { at, max, segment } => {
                connected();
                assert!(at <= self.queue && max > 0 && segment > 0);
                let room = self.room.unwrap_or(max).min(max);
                let len = (self.queue - at).min(room);
                let end = match len {
                    len if len == room && room < max => PeekEnd::LinkFull,
                    0 if self.eof => PeekEnd::Eof,
                    len if len < max && !self.eof => PeekEnd::Empty,
                    _ => PeekEnd::More,
                };
                let header = self.flow.handle_peeked(at, len, end, self.now);
                assert_eq!(header.is_some(), len > 0);
                if let Some(header) = header {
                    assert_eq!(header.seq, ISS + 1 + self.discarded + at, "not the bytes at that position");
                    self.sent(&header, len);
                }
            }
            Output::Discard { len } => {
                connected();
                self.queue = self.queue.checked_sub(len).expect("a discard of what is there");
                self.discarded += len;
                assert!(ISS + 1 + self.discarded <= self.acked, "a discard of what the guest may need");
            }
            Output::WriteKept { at, len } => {
                connected();
                assert_eq!(at, self.next(), "bytes out of order");
                assert!((0..len).all(|n| self.kept.contains(&(at + n).0)), "kept bytes that are not there");
                let took = len * self.per_mille / 1000;
                self.taken += took;
                self.flow.handle_wrote_kept(took, self.now);
            }
            Output::ShutdownHostWrite => {
                connected();
                assert!(!std::mem::replace(&mut self.shut, true));
            }
            Output::WatchSendSpace => connected(),
            Output::CloseHost => {
                connected();
                assert_eq!(self.queue, 0, "a close with bytes unread");
                // It ends the stream to the host.
                self.shut = true;
                self.host = Host::Gone;
            }
            Output::ResetHost => {
                assert!(matches!(self.host, Host::Connecting | Host::Connected));
                self.host = Host::Gone;
            }
            Output::Unreachable(_) => {}
            Output::Closed(_) => {
                assert!(matches!(self.host, Host::None | Host::Gone), "a host end is left behind");
                self.closed = true;
            }
        }
    }

    fn sent(&mut self, header: &TcpHeader, len: u32) {
        let takes =
            u32::from(header.flags.contains(TcpFlags::SYN)) + u32::from(header.flags.contains(TcpFlags::FIN));
        if header.flags.contains(TcpFlags::ACK) && !header.flags.contains(TcpFlags::RST) {
            let most = self.next() + u32::from(self.shut);
            assert!(header.ack <= most, "{:?} acknowledged, {:?} taken", header.ack, most);
        }
        if len > 0 {
            assert!(header.seq + len <= self.edge, "beyond the guest's window");
        }
        self.sent = self.sent.later(header.seq + len + takes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn no_guest_and_no_host_can_break_a_flow(
        shift in 0..=14u8,
        to_guest: bool,
        steps in proptest::collection::vec(step(), 1..100),
    ) {
        let mut model = Model::new(shift, to_guest);
        // Most flows open.
        if !to_guest {
            model.apply(&Step::Connected);
            model.apply(&Step::Space(100_000));
            model.apply(&Step::Segment { flags: 0x10, seq: 0, ack: 0, len: 0, window: 5000, sack: None });
        }
        for step in &steps {
            if model.closed {
                break;
            }
            model.apply(step);
        }
        // Whatever it was, it ends.
        let end = [Step::Failed, Step::Gone][steps.len() % 2].clone();
        for step in std::iter::once(&end).chain(std::iter::repeat_n(&Step::Jump, 100)) {
            if model.closed {
                break;
            }
            model.apply(step);
        }
        prop_assert!(model.closed);
    }
}

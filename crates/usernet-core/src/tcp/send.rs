//! The sending half of a flow: host bytes to the guest.
//!
//! The bytes lie in the host socket's receive queue, from `front` on, and are peeked for the first
//! transmission and for every later one; this half only knows positions. Loss is found by duplicate
//! acknowledgements and SACK (RFC 6675), by a probe of the tail (RFC 8985 §7) and by the timeout
//! (RFC 6298), and answered with a smaller congestion window (RFC 5681).
//!
//! Deviations: no segment carries timestamps (RFC 7323 §3): the link's windows are far too small to
//! wrap within its lifetimes. The window starts at 1 MiB rather than RFC 6928's ten segments: the
//! "path" is one virtual cable and its queue.

use std::time::Duration;

use super::SeqNumber;
use super::ranges::Ranges;
use super::rtt::RttEstimator;
use crate::time::Instant;
use crate::wire::{TcpFlags, TcpHeader};

const INITIAL_CWND: u32 = 1 << 20;
/// Bounds what is in flight, and so what lies undiscarded in the host's queue: each peek walks it.
const MAX_CWND: u32 = 4 << 20;
/// Payload of one super-frame: with 20 bytes of IPv4 and up to 40 of TCP under 65,536.
const MAX_BURST: u32 = 65_480;
/// Acknowledged bytes are discarded from the host's queue in pieces of at least this, or when
/// nothing is in flight.
const DISCARD_AT: u32 = 128 << 10;
/// While requests and answers alternate, each request acknowledges an answer and brings on a write, which
/// tells the peer that all arrived: up to so many bytes, and so many answers, are discarded in one go.
/// Each lies in a kernel buffer of its own, of which a peek walks all, and which takes room that the peer
/// may need to go on.
const LAZY_BYTES: u32 = 1024;
const LAZY_ANSWERS: u8 = 16;
/// RFC 9293 §3.8.3 R2: give a flow up after this many timeouts in a row. A guest that answers with a
/// shut window is never given up (RFC 9293 §3.8.6.1).
const MAX_TIMEOUTS: u8 = 10;
/// The longest pause between two probes of a shut window: well under the minute for which small
/// stacks know a neighbour, since they drop an answer for which they have to ask for it first.
const MAX_PERSIST: Duration = Duration::from_secs(30);
/// SYNs to a guest before it is given up: about a minute.
const MAX_SYNS: u8 = 6;
/// RFC 9293 §3.7.1: the segment size of a guest that names none.
pub(super) const DEFAULT_MSS: u16 = 536;
/// A guest's MSS of 0 must not make us send forever.
pub(super) const MIN_MSS: u16 = 48;

/// The end of the stream to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    /// The host may send more.
    Open,
    /// The host has ended its stream; the FIN follows its last byte, which is at this position.
    At(SeqNumber),
}

/// How far fast recovery (RFC 6675 §5) has got.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    /// Acknowledging this ends the recovery: `snd_max` when it began.
    point: SeqNumber,
    /// Holes below this have been sent again.
    rtx_nxt: SeqNumber,
    /// `snd_max` when the lowest hole was last sent again. A SACK beyond it while the hole is still
    /// open means that the repair was lost as well.
    rtx_mark: SeqNumber,
}

/// Why the retransmission timer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// The tail may be lost.
    Probe,
    /// Something was sent and not acknowledged.
    Retransmit,
    /// The guest's window is shut on data that waits (RFC 9293 §3.8.6.1).
    Persist,
}

/// What an acknowledgement brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    /// Nothing that matters.
    Nothing,
    /// This many payload bytes.
    Bytes(u32),
    /// It acknowledges what was never sent.
    Invalid,
}

#[derive(Debug)]
pub(super) struct Sender {
    pub(super) snd_una: SeqNumber,
    pub(super) snd_nxt: SeqNumber,
    /// Behind the highest position ever sent, SYN and FIN included.
    pub(super) snd_max: SeqNumber,
    /// Behind the highest payload byte ever sent.
    data_max: SeqNumber,
    /// The position of the first byte in the host's queue.
    front: SeqNumber,
    /// The guest's window in bytes.
    pub(super) snd_wnd: u32,
    snd_wl1: SeqNumber,
    snd_wl2: SeqNumber,
    pub(super) snd_shift: u8,
    pub(super) mss: u16,
    fin: Fin,
    fin_first: bool,
    cwnd: u32,
    ssthresh: u32,
    recovery: Option<Recovery>,
    dup_acks: u8,
    sacked: Ranges<8>,
    rtt: RttEstimator,
    timing: Option<(SeqNumber, Instant)>,
    timer: Option<(Instant, Timer)>,
    /// How often the timer has run out without an answer.
    pub(super) timeouts: u8,
    /// Whether the tail was probed since the last progress.
    probed: bool,
    /// Whether the tail is to be sent again now.
    tail_due: bool,
    /// Whether a window probe is to be sent now.
    window_probe_due: bool,
    /// There may be bytes in the host's queue that were never peeked.
    pub(super) readable: bool,
    pub(super) link_full: bool,
    /// Acknowledgements that came with a request since the last discard.
    answers: u8,
}

impl Sender {
    pub(super) fn new(iss: SeqNumber) -> Self {
        Self {
            snd_una: iss,
            snd_nxt: iss,
            snd_max: iss,
            data_max: iss + 1,
            front: iss + 1,
            snd_wnd: 0,
            snd_wl1: SeqNumber(0),
            snd_wl2: iss,
            snd_shift: 0,
            mss: DEFAULT_MSS,
            fin: Fin::Open,
            fin_first: false,
            cwnd: INITIAL_CWND,
            ssthresh: u32::MAX,
            recovery: None,
            dup_acks: 0,
            sacked: Ranges::default(),
            rtt: RttEstimator::default(),
            timing: None,
            timer: None,
            timeouts: 0,
            probed: false,
            tail_due: false,
            window_probe_due: false,
            readable: false,
            link_full: false,
            answers: 0,
        }
    }

    // --- what was sent ---------------------------------------------------------------------

    /// The SYN goes out (again): it takes one position.
    pub(super) fn sent_syn(&mut self, now: Instant) {
        if self.snd_max == self.snd_una {
            self.timing = Some((self.snd_una + 1, now));
        } else {
            self.timing = None;
        }
        self.snd_nxt = self.snd_una + 1;
        self.snd_max = self.snd_nxt;
        self.timer = Some((now + self.rtt.rto(), Timer::Retransmit));
    }

    fn sent_data(&mut self, at: SeqNumber, len: u32, now: Instant) {
        let end = at + len;
        if at == self.snd_max && self.timing.is_none() {
            self.timing = Some((end, now));
        } else if at < self.snd_max {
            // Karn's rule: an acknowledgement of a retransmission says nothing of the round trip.
            self.timing = None;
        }
        self.data_max = self.data_max.later(end);
        self.snd_max = self.snd_max.later(end);
        if at == self.snd_nxt {
            self.snd_nxt = end;
        }
        if self.timer.is_none_or(|(_, kind)| kind == Timer::Persist) {
            self.arm(now);
        }
    }

    fn arm(&mut self, now: Instant) {
        // Not within recovery, nor for a single segment: its acknowledgement may be a delayed one.
        let tail = self.snd_max - self.snd_una > u32::from(self.mss);
        self.timer = Some(if tail && !self.probed && self.recovery.is_none() {
            (now + self.rtt.probe_timeout(), Timer::Probe)
        } else {
            (now + self.rtt.rto(), Timer::Retransmit)
        });
    }

    /// Whether the guest may know of a position of ours.
    pub(super) fn syn_sent(&self) -> bool {
        self.snd_max >= self.front
    }

    fn in_flight(&self) -> bool {
        self.snd_max != self.snd_una
    }

    // --- acknowledgements ------------------------------------------------------------------

    /// RFC 9293 §3.10.7.4, fifth. `len` is the segment's payload.
    pub(super) fn handle_ack(&mut self, seg: &TcpHeader, len: usize, now: Instant) -> Acked {
        if seg.ack > self.snd_max {
            return Acked::Invalid;
        }
        if seg.ack < self.snd_una {
            return Acked::Nothing;
        }
        let old_wnd = self.snd_wnd;
        self.update_window(seg);
        if self.snd_wnd == 0 || old_wnd == 0 {
            self.timeouts = 0;
        }
        for (left, right) in seg.sack.iter().flatten().copied() {
            // RFC 2883: a block below the acknowledgement reports a duplicate, not a hole.
            if left >= seg.ack && left < right && right <= self.data_max {
                self.sacked.insert(left, right);
            }
        }
        if seg.ack > self.snd_una {
            self.answers = if len > 0 { self.answers.saturating_add(1) } else { LAZY_ANSWERS };
            return self.progress(seg.ack, now);
        }
        // RFC 5681 §2: what makes an acknowledgement a duplicate.
        if len == 0 && self.in_flight() && self.snd_wnd == old_wnd {
            self.dup_acks = self.dup_acks.saturating_add(1);
        }
        self.detect_loss(now);
        Acked::Nothing
    }

    fn progress(&mut self, ack: SeqNumber, now: Instant) -> Acked {
        let data_acked = {
            let end = if ack < self.data_max { ack } else { self.data_max };
            end.ahead_of(self.snd_una.later(self.front))
        };
        self.snd_una = ack;
        self.snd_nxt = self.snd_nxt.later(ack);
        self.sacked.remove_below(ack);
        self.dup_acks = 0;
        self.timeouts = 0;
        self.probed = false;
        self.tail_due = false;
        if let Some((seq, sent)) = self.timing
            && ack >= seq
        {
            self.rtt.sample(now - sent);
            self.timing = None;
        }
        self.rtt.reset_back_off();
        match &mut self.recovery {
            Some(recovery) if ack >= recovery.point => {
                self.recovery = None;
                self.cwnd = self.ssthresh;
            }
            Some(recovery) => {
                // A partial acknowledgement: the next hole is lost as well (RFC 6582 §3.2).
                if recovery.rtx_nxt < ack {
                    recovery.rtx_nxt = ack;
                }
            }
            None if self.cwnd < self.ssthresh => self.cwnd = (self.cwnd + data_acked).min(MAX_CWND),
            None => {
                let step = u64::from(self.mss) * u64::from(data_acked) / u64::from(self.cwnd.max(1));
                self.cwnd = (self.cwnd + u32::try_from(step).unwrap_or(0)).min(MAX_CWND);
            }
        }
        if self.in_flight() {
            self.arm(now)
        } else {
            self.timer = None
        }
        self.detect_loss(now);
        Acked::Bytes(data_acked)
    }

    fn update_window(&mut self, seg: &TcpHeader) {
        // An acknowledgement of something new is newer news than any, also in a segment that fills a
        // hole in front of the one that spoke last.
        if seg.ack > self.snd_una
            || self.snd_wl1 < seg.seq
            || (self.snd_wl1 == seg.seq && self.snd_wl2 <= seg.ack)
        {
            // The window of a SYN is never scaled (RFC 7323 §2.2).
            let shift = if seg.flags.contains(TcpFlags::SYN) { 0 } else { self.snd_shift };
            self.snd_wnd = u32::from(seg.window) << shift;
            self.snd_wl1 = seg.seq;
            self.snd_wl2 = seg.ack;
            if self.snd_wnd > 0 && self.timer.is_some_and(|(_, kind)| kind == Timer::Persist) {
                self.timer = None;
                self.rtt.reset_back_off();
            }
        }
    }

    /// The window of a SYN is never scaled (RFC 7323 §2.2).
    pub(super) fn set_window(&mut self, seg: &TcpHeader) {
        self.snd_wnd = seg.window.into();
        self.snd_wl1 = seg.seq;
        self.snd_wl2 = seg.ack;
    }

    fn detect_loss(&mut self, now: Instant) {
        match &mut self.recovery {
            None => {
                let lost = self.dup_acks >= 3 || self.sacked.total() >= 3 * u32::from(self.mss);
                if !lost || self.data_max <= self.snd_una {
                    return;
                }
                let flight = self.snd_max - self.snd_una;
                // RFC 9438 §4.6 gives up three tenths, not half.
                self.ssthresh = (flight - flight / 10 * 3).max(2 * u32::from(self.mss));
                self.cwnd = self.ssthresh;
                self.recovery =
                    Some(Recovery { point: self.snd_max, rtx_nxt: self.snd_una, rtx_mark: self.snd_max });
                self.timing = None;
                self.timer = Some((now + self.rtt.rto(), Timer::Retransmit));
            }
            Some(recovery) => {
                let beyond = self.sacked.end().is_some_and(|end| end > recovery.rtx_mark);
                if beyond && recovery.rtx_nxt > self.snd_una {
                    recovery.rtx_nxt = self.snd_una;
                    recovery.rtx_mark = self.snd_max;
                }
            }
        }
    }

    // --- what to send next -----------------------------------------------------------------

    /// What to peek and send next: a position and the most bytes to take.
    pub(super) fn next_data(&self) -> Option<(SeqNumber, u32)> {
        if self.link_full {
            return None;
        }
        if self.tail_due && self.data_max > self.snd_una {
            let len = self.data_max.ahead_of(self.snd_una).min(self.mss.into());
            return Some((self.data_max - len, len));
        }
        if let Some(hole) = self.next_hole() {
            return Some(hole);
        }
        let window = self.snd_wnd.min(self.cwnd.saturating_add(self.sacked.total()));
        let room = (self.snd_una + window).ahead_of(self.snd_nxt);
        let waiting = if self.snd_nxt < self.data_max {
            self.data_max - self.snd_nxt
        } else if self.readable && self.fin == Fin::Open {
            u32::MAX
        } else {
            0
        };
        let len = room.min(waiting).min(self.burst());
        // RFC 9293 §3.8.6.2.1: no silly small segment while an acknowledgement is on its way.
        let silly = room < waiting && room < u32::from(self.mss) && self.snd_nxt != self.snd_una;
        (len > 0 && !silly).then_some((self.snd_nxt, len))
    }

    /// RFC 6675 §4 NextSeg (1).
    fn next_hole(&self) -> Option<(SeqNumber, u32)> {
        let recovery = self.recovery?;
        let start = recovery.rtx_nxt.later(self.snd_una);
        let known = match self.sacked.end() {
            Some(end) => end,
            // Without SACK one segment a round trip is all that is known to be missing.
            None if start == self.snd_una => {
                let len = self.data_max.ahead_of(start).min(self.mss.into());
                return (len > 0).then_some((start, len));
            }
            None => return None,
        };
        let (left, right) = self.sacked.first_gap(start, known);
        let repaired = recovery.rtx_nxt.ahead_of(self.snd_una);
        let pipe = self.snd_max.ahead_of(known).saturating_add(repaired);
        // The lowest hole goes out whatever the window says: everything else waits for it.
        let room = if left == self.snd_una { u32::MAX } else { self.cwnd.saturating_sub(pipe) };
        let len = right.ahead_of(left).min(self.burst()).min(room);
        (len > 0).then_some((left, len))
    }

    /// The longest run of whole segments that one frame can stand for.
    fn burst(&self) -> u32 {
        let mss = u32::from(self.mss);
        (MAX_BURST / mss).max(1) * mss
    }

    /// The offset of `seq` from the front of the host's queue.
    pub(super) fn offset(&self, seq: SeqNumber) -> u32 {
        seq.ahead_of(self.front)
    }

    /// `len` bytes from `at` on were peeked and go out.
    pub(super) fn peeked(&mut self, at: SeqNumber, len: u32, now: Instant) {
        if len == 0 {
            return;
        }
        // One probe, whatever it brought: a peek stops short at an urgent mark.
        let probe = std::mem::take(&mut self.tail_due);
        if let Some(recovery) = &mut self.recovery
            && !probe
            && at < self.snd_max
        {
            if at == self.snd_una {
                recovery.rtx_mark = self.snd_max;
            }
            recovery.rtx_nxt = recovery.rtx_nxt.later(at + len);
        }
        self.sent_data(at, len, now);
    }

    // --- the end of the stream -------------------------------------------------------------

    /// The host ended its stream behind the last byte peeked.
    pub(super) fn host_eof(&mut self) {
        self.readable = false;
        if self.fin == Fin::Open {
            self.fin = Fin::At(self.data_max);
        }
    }

    /// Whether the FIN is to go out now; its position.
    pub(super) fn fin_due(&self) -> Option<SeqNumber> {
        match self.fin {
            // A FIN may go out into a shut window: it is no data that the guest must store.
            Fin::At(at) if self.snd_nxt == at && self.snd_una <= at => Some(at),
            _ => None,
        }
    }

    pub(super) fn sent_fin(&mut self, now: Instant) {
        self.snd_nxt += 1;
        self.snd_max = self.snd_max.later(self.snd_nxt);
        if self.timer.is_none_or(|(_, kind)| kind == Timer::Persist) {
            self.arm(now);
        }
    }

    /// Whether the host has ended its stream.
    pub(super) fn fin_known(&self) -> bool {
        self.fin != Fin::Open
    }

    /// Whether `end` is behind all that was ever peeked.
    pub(super) fn is_new(&self, end: SeqNumber) -> bool {
        end >= self.data_max
    }

    /// The position of the first byte in the host's queue.
    pub(super) fn front(&self) -> SeqNumber {
        self.front
    }

    /// Remembers which side ended its stream first: the one that did waits for strays.
    pub(super) fn note_fin_order(&mut self, guest_finished: bool) {
        if !self.fin_sent() {
            self.fin_first = !guest_finished;
        }
    }

    /// Whether our FIN went out before the guest's came.
    pub(super) fn fin_first(&self) -> bool {
        self.fin_first
    }

    pub(super) fn fin_sent(&self) -> bool {
        matches!(self.fin, Fin::At(at) if self.snd_max > at)
    }

    pub(super) fn fin_acked(&self) -> bool {
        matches!(self.fin, Fin::At(at) if self.snd_una > at)
    }

    // --- the host's queue ------------------------------------------------------------------

    /// How many acknowledged bytes to drop from the host's queue now.
    pub(super) fn discard_due(&self) -> Option<u32> {
        let len = self.discardable();
        let lazy = self.answers < LAZY_ANSWERS && len < LAZY_BYTES;
        (len > 0 && (len >= DISCARD_AT || !self.in_flight() && !lazy)).then_some(len)
    }

    /// Acknowledged bytes that still lie in the host's queue.
    pub(super) fn discardable(&self) -> u32 {
        let end = if self.snd_una < self.data_max { self.snd_una } else { self.data_max };
        end.ahead_of(self.front)
    }

    pub(super) fn discarded(&mut self, len: u32) {
        self.front += len;
        self.answers = 0;
    }

    // --- time ------------------------------------------------------------------------------

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timer.map(|(at, _)| at)
    }

    /// Arms the persist timer when data waits before a shut window.
    pub(super) fn check_persist(&mut self, now: Instant) {
        let waits = self.readable || self.snd_nxt < self.data_max;
        if self.timer.is_none() && self.snd_wnd == 0 && waits && !self.in_flight() {
            self.timer = Some((now + self.rtt.rto(), Timer::Persist));
        }
    }

    /// Runs the retransmission timer. `false`: the guest has not answered for too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Some((at, kind)) = self.timer else { return true };
        if now < at {
            return true;
        }
        self.timer = None;
        match kind {
            // What lies in our own link's buffer was not lost by the guest.
            _ if self.link_full => self.timer = Some((now + self.rtt.rto(), Timer::Retransmit)),
            Timer::Persist => {
                self.rtt.back_off();
                self.timeouts += 1;
                self.window_probe_due = true;
                self.timer = Some((now + self.rtt.rto().min(MAX_PERSIST), Timer::Persist));
            }
            Timer::Probe => {
                self.probed = true;
                self.tail_due = true;
                self.timer = Some((now + self.rtt.rto(), Timer::Retransmit));
            }
            Timer::Retransmit => {
                self.rtt.back_off();
                self.timeouts += 1;
                // A lost SYN says that the guest was not there yet, not that the link is narrow.
                if self.snd_una < self.front {
                    self.snd_nxt = self.snd_una;
                    self.timer = Some((now + self.rtt.rto(), Timer::Retransmit));
                    return self.timeouts < MAX_SYNS;
                }
                // RFC 5681 §3.1, and RFC 2018 §8: after a timeout SACKed bytes count for nothing.
                let flight = self.snd_max - self.snd_una;
                self.ssthresh = (flight / 2).max(2 * u32::from(self.mss));
                self.cwnd = self.mss.into();
                self.recovery = None;
                self.dup_acks = 0;
                self.sacked.clear();
                self.timing = None;
                self.snd_nxt = self.snd_una;
                self.timer = Some((now + self.rtt.rto(), Timer::Retransmit));
            }
        }
        self.timeouts <= MAX_TIMEOUTS
    }

    /// Puts off what is due: what was sent still lies in our own link's buffer, and cannot have been
    /// answered.
    pub(super) fn hold_timer(&mut self, now: Instant) {
        if let Some((at, _)) = &mut self.timer
            && *at <= now
        {
            *at = now + self.rtt.rto();
        }
    }

    pub(super) fn take_window_probe(&mut self) -> bool {
        std::mem::take(&mut self.window_probe_due)
    }
}

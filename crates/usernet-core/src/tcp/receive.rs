//! The receiving half of a flow: guest bytes to the host.
//!
//! Bytes in order are offered to the host where they lie, and only what the host took is
//! acknowledged. What comes out of order is kept by the driver within [`MAX_KEPT`], and told to the
//! guest by SACK. The acknowledgement of a small message waits a moment for the host's answer, which
//! carries it for nothing. The window follows the room in the host's send queue, so that a write that takes
//! less than was offered is rare.

use std::ops::Range;
use std::time::Duration;

use super::SeqNumber;
use super::ranges::Ranges;
use crate::drops::DropReason;
use crate::time::Instant;
use crate::wire::{TcpFlags, TcpHeader};

/// Bytes kept for one flow: those out of order, and those that the host's queue had no room for.
pub const MAX_KEPT: u32 = 256 << 10;
/// Our window scale: windows come in steps of 256 bytes.
pub(super) const SHIFT: u8 = 8;
/// Runs of bytes out of order that are kept for one flow.
const MAX_ISLANDS: usize = 4;
/// No window rather than one that makes silly small segments (RFC 9293 §3.8.6.2.2).
const MIN_WINDOW: u32 = 4096;
/// No segment of a guest is longer.
const MAX_SEGMENT: u32 = 1 << 16;
/// How long the acknowledgement of a small message waits for the host's answer. RFC 9293 §3.8.6.3 allows
/// half a second, but a guest may hold back its next bytes for it (RFC 896). Any shorter, and the
/// processor's timer is set anew for each message, which costs more than the frame does.
const ACK_DELAY: Duration = Duration::from_millis(4);
/// What is not acknowledged within that time is fewer bytes than this: a guest with more to say is not
/// made to wait.
const SMALL: u32 = 1024;
/// Each acknowledgement that waited in vain has twice as many go at once as the last one had: this many
/// for the first, up to `2^MAX_VAIN` times as many.
const QUICK: u16 = 8;
const MAX_VAIN: u8 = 9;

/// What to do with a segment's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Nothing: it has none that is new.
    Nothing,
    /// Write these bytes to the host, and report with [`crate::host::HostEvent::Wrote`].
    Deliver {
        /// Which bytes of the payload.
        payload: Range<usize>,
        /// The position of the first.
        at: SeqNumber,
    },
    /// Keep these bytes: they came out of order.
    Keep {
        /// Which bytes of the payload.
        payload: Range<usize>,
        /// The position of the first.
        at: SeqNumber,
    },
}

#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) rcv_nxt: SeqNumber,
    /// The right edge of the window that the guest was told. It never moves left.
    rcv_adv: SeqNumber,
    pub(super) shift: u8,
    /// Bytes behind `rcv_nxt` that lie with the driver: offered to the host, not yet reported.
    offered: u32,
    /// Bytes beyond `rcv_nxt` that the driver keeps: up to [`MAX_ISLANDS`] out of order, and those that
    /// wait at `rcv_nxt` for room in the host.
    kept: Ranges<{ MAX_ISLANDS + 1 }>,
    /// How many more bytes may be kept.
    pub(super) keep_room: u32,
    /// The host took less than it was offered; wait for room before writing what is kept.
    blocked: bool,
    /// What the host can take.
    space: u32,
    /// The widest window that the guest has seen.
    widest: u32,
    /// Where the guest's stream ends.
    fin: Option<SeqNumber>,
    pub(super) fin_received: bool,
    pub(super) ack_due: bool,
    /// Until when what is due waits for a segment to go with.
    ack_at: Option<Instant>,
    /// What the guest was last told to have arrived.
    acked: SeqNumber,
    /// How many acknowledgements go at once before one waits again.
    quick: u16,
    /// How many have waited in vain, less those that have not.
    vain: u8,
}

impl Receiver {
    /// `irs` is the position of the guest's SYN.
    pub(super) fn new(irs: SeqNumber) -> Self {
        let rcv_nxt = irs + 1;
        Self {
            rcv_nxt,
            rcv_adv: rcv_nxt,
            shift: 0,
            offered: 0,
            kept: Ranges::default(),
            keep_room: MAX_KEPT,
            blocked: false,
            space: 0,
            widest: 0,
            fin: None,
            fin_received: false,
            ack_due: false,
            ack_at: None,
            acked: rcv_nxt,
            // A message that comes in two parts is answered after the second only.
            quick: 1,
            vain: 0,
        }
    }

    /// Whether any of the segment lies in the window (RFC 9293 §3.10.7.4, first), bytes that are
    /// already with the driver included.
    pub(super) fn acceptable(&self, seg: &TcpHeader, len: u32) -> bool {
        let end = seg.seq + len + u32::from(seg.flags.contains(TcpFlags::FIN));
        let nxt = self.rcv_nxt + self.offered;
        if end == seg.seq {
            // An empty segment may lie at the right edge: a pure ACK after a full window.
            return seg.seq >= self.rcv_nxt && seg.seq <= self.rcv_adv.later(nxt);
        }
        // A FIN takes no room: it may lie right behind a full window.
        seg.seq <= self.rcv_adv.later(nxt) && end > nxt
    }

    /// Whether `seq` is exactly the next position (RFC 5961 §3.2).
    pub(super) fn is_next(&self, seq: SeqNumber) -> bool {
        seq == self.rcv_nxt || seq == self.rcv_nxt + self.offered
    }

    /// Sorts out the payload and FIN of an acceptable segment.
    pub(super) fn handle_payload(&mut self, seg: &TcpHeader, len: u32) -> Result<Accept, DropReason> {
        let seg_end = seg.seq + len;
        if seg.flags.contains(TcpFlags::FIN)
            && self.fin.is_none()
            && seg_end <= self.rcv_adv.later(self.rcv_nxt)
            && self.kept.end().is_none_or(|end| end <= seg_end)
        {
            self.fin = Some(seg_end);
        }
        if len == 0 {
            return Ok(Accept::Nothing);
        }
        // What is new and in order is acknowledged when the host has taken it, anything else now.
        let ack_due = std::mem::replace(&mut self.ack_due, true);
        let nxt = self.rcv_nxt + self.offered;
        let mut limit = self.rcv_adv;
        if let Some(fin) = self.fin
            && fin < limit
        {
            limit = fin;
        }
        let end = if seg_end < limit { seg_end } else { limit };
        let start = seg.seq.later(nxt);
        if start >= end {
            return Err(if seg_end <= nxt { DropReason::Duplicate } else { DropReason::OutsideWindow });
        }
        let (start, end) = self.kept.first_gap(start, end);
        if start >= end {
            return Err(DropReason::Duplicate);
        }
        let from = (start - seg.seq) as usize;
        let payload = from..from + (end - start) as usize;
        // (When kept bytes wait at `rcv_nxt` for room in the host, the gap starts behind them.)
        if start == nxt {
            self.offered += end - start;
            self.ack_due = ack_due || self.kept.total() > 0 || (start, end) != (seg.seq, seg_end);
            return Ok(Accept::Deliver { payload, at: start });
        }
        let room = self.keep_room.min(MAX_KEPT.saturating_sub(self.kept.total()));
        let before = self.kept;
        if end - start > room || !self.kept.insert(start, end) || self.kept.count() > MAX_ISLANDS {
            self.kept = before;
            return Err(DropReason::OutOfOrderFull);
        }
        Ok(Accept::Keep { payload, at: start })
    }

    /// The host took `len` of what was offered, and the driver keeps `kept` bytes behind those.
    pub(super) fn wrote(&mut self, len: u32, kept: u32, now: Instant) {
        let short = len < self.offered;
        self.offered = 0;
        self.advance(len);
        self.ack_due |= short;
        self.acknowledge(now);
        if short {
            self.blocked = true;
            self.space = 0;
            // There is always a place for these: out of order one fewer is kept.
            self.kept.insert(self.rcv_nxt, self.rcv_nxt + kept);
        }
    }

    /// The host took `len` of the kept bytes.
    pub(super) fn wrote_kept(&mut self, len: u32) {
        let due = self.kept_run();
        self.advance(len);
        self.ack_due |= len > 0;
        if len < due {
            self.blocked = true;
            self.space = 0;
        }
    }

    fn advance(&mut self, len: u32) {
        self.rcv_nxt += len;
        self.kept.remove_below(self.rcv_nxt);
        self.space = self.space.saturating_sub(len);
    }

    /// Acknowledges what the host took: now, or with its answer.
    fn acknowledge(&mut self, now: Instant) {
        let news = self.rcv_nxt - self.acked;
        if self.quick > 0 || news >= SMALL {
            self.quick = self.quick.saturating_sub(1);
            self.ack_due |= news > 0;
        } else if news > 0 && self.ack_at.is_none() {
            self.ack_at = Some(now + ACK_DELAY);
        }
    }

    /// When an acknowledgement has waited long enough.
    pub(super) fn ack_at(&self) -> Option<Instant> {
        self.ack_at
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.ack_at.take_if(|at| *at <= now).is_some() {
            self.ack_due = true;
            self.quick = QUICK << self.vain;
            self.vain = (self.vain + 1).min(MAX_VAIN);
        }
    }

    /// A segment goes out that acknowledges all there is.
    pub(super) fn acked(&mut self) {
        if self.ack_at.take().is_some() && !self.ack_due {
            self.vain = self.vain.saturating_sub(1);
        }
        self.acked = self.rcv_nxt;
    }

    /// Kept bytes that now follow in order.
    fn kept_run(&self) -> u32 {
        match self.kept.first() {
            Some((left, right)) if left <= self.rcv_nxt => right.ahead_of(self.rcv_nxt),
            _ => 0,
        }
    }

    /// How many kept bytes to write now.
    pub(super) fn write_kept_due(&self) -> Option<u32> {
        let run = self.kept_run();
        (run > 0 && !self.blocked && self.offered == 0).then_some(run)
    }

    /// Takes note of the room in the host's queue.
    pub(super) fn set_space(&mut self, free: u32) {
        self.space = free;
        if free > 0 {
            self.blocked = false;
        }
        // RFC 9293 §3.8.6.2.2: tell of a window that has grown by much, not of every byte.
        let open = self.rcv_adv.ahead_of(self.rcv_nxt);
        if self.edge().ahead_of(self.rcv_adv) > 0 && open < self.space / 2 {
            self.ack_due = true;
        }
    }

    /// Bytes that the driver keeps.
    pub(super) fn kept(&self) -> u32 {
        self.kept.total()
    }

    /// What the host can take.
    pub(super) fn space(&self) -> u32 {
        self.space
    }

    /// Where the window may end.
    fn edge(&self) -> SeqNumber {
        let room = self.space.saturating_sub(self.kept_run());
        let room = if room < MIN_WINDOW { 0 } else { room.min(u32::from(u16::MAX) << self.shift) };
        self.rcv_adv.later(self.rcv_nxt + (room >> self.shift << self.shift))
    }

    /// Whether the window may be too small for a guest to go on by itself: it waits for room for a full
    /// segment, or for half of the widest window that it has seen (RFC 9293 §3.8.6.2.1).
    pub(super) fn starved(&self) -> bool {
        let enough = (self.widest / 2).clamp(MIN_WINDOW, MAX_SEGMENT);
        let shut = self.rcv_adv.ahead_of(self.rcv_nxt) < enough;
        !self.fin_received && (shut || self.blocked || self.kept_run() > 0)
    }

    /// The window for a segment that goes out now; moves the edge.
    pub(super) fn advertise(&mut self) -> u16 {
        self.rcv_adv = self.edge();
        let open = self.rcv_adv.ahead_of(self.rcv_nxt);
        self.widest = self.widest.max(open);
        u16::try_from(open >> self.shift).unwrap_or(u16::MAX)
    }

    /// The window of a SYN, which is never scaled (RFC 7323 §2.2).
    pub(super) fn advertise_syn(&mut self) -> u16 {
        let room = u16::try_from(self.space).unwrap_or(u16::MAX);
        self.rcv_adv = self.rcv_adv.later(self.rcv_nxt + u32::from(room));
        room
    }

    /// Whether the guest's FIN is next; takes it.
    pub(super) fn take_fin(&mut self) -> bool {
        if self.fin_received || self.offered > 0 || self.fin != Some(self.rcv_nxt) {
            return false;
        }
        self.fin_received = true;
        self.rcv_nxt += 1;
        self.rcv_adv = self.rcv_adv.later(self.rcv_nxt);
        self.kept.clear();
        self.ack_due = true;
        true
    }

    /// SACK blocks for what is kept beyond a hole (RFC 2018 §4).
    pub(super) fn sack(&self) -> [Option<(SeqNumber, SeqNumber)>; 3] {
        let mut blocks = [None; 3];
        let beyond = self.kept.iter().filter(|(left, _)| *left > self.rcv_nxt);
        for (block, range) in blocks.iter_mut().zip(beyond) {
            *block = Some(range);
        }
        blocks
    }
}

//! One flow: the relay's state machine between a guest's segments and a host end.
//!
//! Give it one input ([`TcpFlow::handle_segment`], [`TcpFlow::handle_host`],
//! [`TcpFlow::handle_timeout`]), do what it answers with, then drain [`TcpFlow::poll_output`] until
//! `None` and arm a timer for [`TcpFlow::poll_timeout`]. A segment's payload may be written to the
//! host together with others of the same batch; the flow learns of it by one
//! [`HostEvent::Wrote`] for all of them, before its outputs are drained.

mod about;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::SeqNumber;
use super::receive::{Accept, Receiver, SHIFT};
use super::send::{Acked, DEFAULT_MSS, MIN_MSS, Sender};
use crate::drops::DropReason;
use crate::host::{HostError, HostEvent, PeekEnd};
use crate::time::Instant;
use crate::wire::{TcpFlags, TcpHeader};

/// RFC 5382 REQ-5: an established connection lives for 2 h 4 min without a packet. The guest is asked
/// for a sign of life from 2 h on.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(2 * 3600);
/// A half-closed flow is asked sooner (RFC 5382 REQ-5: at least 4 min): its guest's process is
/// often gone, and then the answer is a RST.
const KEEPALIVE_HALF_CLOSED: Duration = Duration::from_secs(240);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u8 = 8;
/// RFC 5382 REQ-5: a connection that is not yet, or no longer, established.
const HALF_OPEN: Duration = Duration::from_secs(240);
/// Twice the maximum segment lifetime, as Linux counts it (RFC 9293 §3.4.2 says 4 min).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// A window that shut is looked at again after this, in case an edge was missed; then after twice as
/// long each time, up to 64 times, so that a host that does not read costs next to nothing.
const SPACE_CHECK: Duration = Duration::from_millis(10);
const MAX_SPACE_CHECK_SHIFT: u8 = 6;

/// What the driver does for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Output {
    /// Connect the host end; answer with [`HostEvent::Connected`] or [`HostEvent::Failed`].
    Connect,
    /// Send this segment, which has no payload, to the guest.
    Segment(TcpHeader),
    /// Peek up to `max` bytes of the host end's queue from offset `at` on into the guest's link,
    /// in segments of `segment` bytes; answer with [`TcpFlow::handle_peeked`].
    Peek {
        /// Bytes from the front of what has not been discarded.
        at: u32,
        /// Bytes.
        max: u32,
        /// Payload bytes of one wire packet.
        segment: u16,
    },
    /// Drop this many bytes from the front of the host end's queue: the guest has them.
    Discard {
        /// Bytes.
        len: u32,
    },
    /// Write kept bytes to the host end; answer with [`TcpFlow::handle_wrote_kept`].
    WriteKept {
        /// The position of the first.
        at: SeqNumber,
        /// Bytes.
        len: u32,
    },
    /// End the stream to the host.
    ShutdownHostWrite,
    /// Report [`HostEvent::SendSpace`] now, and when the host end becomes writable.
    WatchSendSpace,
    /// Close the host end in order; nothing lies unread in it.
    CloseHost,
    /// Close the host end so that its peer sees a reset.
    ResetHost,
    /// Tell the guest by ICMP that its connect has failed.
    Unreachable(HostError),
    /// The flow has ended and has no host end any more: forget it.
    Closed(CloseReason),
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides closed in order.
    Finished,
    /// The guest reset it, or refused it.
    GuestReset,
    /// The guest did not answer.
    GuestTimedOut,
    /// The guest's link went away.
    GuestGone,
    /// The host end failed.
    Host(HostError),
}

/// Where a flow stands. What each direction still has to send lives in its two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest's SYN came; the host end is being connected.
    Connecting,
    /// The host end is connected; the guest's ACK of our SYN-ACK is awaited.
    SynReceived,
    /// A connection was accepted on the host; the guest's SYN-ACK is awaited.
    SynSent,
    /// Both sides are connected, or half of it is closed already.
    Open,
    /// Both directions have ended, ours first (RFC 9293 §3.6.1); the host end is gone.
    TimeWait,
    /// Nothing more happens.
    Closed,
}

/// One TCP connection of a guest.
#[derive(Debug)]
pub struct TcpFlow {
    state: State,
    guest_port: u16,
    peer_port: u16,
    snd: Sender,
    rcv: Receiver,
    /// The segment size that the guest is told.
    our_mss: u16,
    sack: bool,
    has_host: bool,
    connect_due: bool,
    syn_due: bool,
    shutdown_due: bool,
    keepalive_due: bool,
    keepalive_probes: u8,
    /// What ends the flow, in the order in which it is told.
    reset_guest_due: bool,
    unreachable_due: Option<HostError>,
    reset_host_due: bool,
    closed: Option<CloseReason>,
    last_heard: Instant,
    life: Instant,
    space_check: Option<Instant>,
    space_check_shift: u8,
    bytes_out: u64,
    bytes_in: u64,
}

impl TcpFlow {
    /// A flow that a guest begins with `syn`, towards a host end that is still to be connected.
    pub fn from_guest(syn: &TcpHeader, iss: SeqNumber, mtu_mss: u16, now: Instant) -> Self {
        let mut flow = Self::new(State::Connecting, syn.src_port, syn.dst_port, iss, mtu_mss, now);
        flow.rcv = Receiver::new(syn.seq);
        flow.negotiate(syn);
        flow.connect_due = true;
        flow
    }

    /// A flow to a guest for a connection that was accepted on the host.
    pub fn to_guest(guest_port: u16, peer_port: u16, iss: SeqNumber, mtu_mss: u16, now: Instant) -> Self {
        let mut flow = Self::new(State::SynSent, guest_port, peer_port, iss, mtu_mss, now);
        flow.has_host = true;
        flow.syn_due = true;
        flow
    }

    fn new(
        state: State,
        guest_port: u16,
        peer_port: u16,
        iss: SeqNumber,
        our_mss: u16,
        now: Instant,
    ) -> Self {
        Self {
            state,
            guest_port,
            peer_port,
            snd: Sender::new(iss),
            rcv: Receiver::new(SeqNumber(0)),
            our_mss,
            sack: false,
            has_host: false,
            connect_due: false,
            syn_due: false,
            shutdown_due: false,
            keepalive_due: false,
            keepalive_probes: 0,
            reset_guest_due: false,
            unreachable_due: None,
            reset_host_due: false,
            closed: None,
            last_heard: now,
            life: now + HALF_OPEN,
            space_check: None,
            space_check_shift: 0,
            bytes_out: 0,
            bytes_in: 0,
        }
    }

    fn negotiate(&mut self, syn: &TcpHeader) {
        self.snd.mss = syn.mss.unwrap_or(DEFAULT_MSS).min(self.our_mss).max(MIN_MSS);
        self.sack = syn.sack_permitted;
        // RFC 7323 §2.2: either both scale or none does.
        if let Some(shift) = syn.window_scale {
            self.snd.snd_shift = shift;
            self.rcv.shift = SHIFT;
        }
        self.snd.set_window(syn);
    }

    // --- segments from the guest -------------------------------------------------------------

    /// Takes a segment with `len` payload bytes; says what to do with those.
    ///
    /// # Errors
    /// Why the segment, or its payload, was dropped. The flow goes on.
    pub fn handle_segment(
        &mut self,
        seg: &TcpHeader,
        len: usize,
        now: Instant,
    ) -> Result<Accept, DropReason> {
        let len = u32::try_from(len).map_err(|_| DropReason::TcpHeader)?;
        match self.state {
            State::Connecting => self.segment_connecting(seg),
            State::SynSent => self.segment_syn_sent(seg, now),
            State::SynReceived | State::Open => self.segment_open(seg, len, now),
            State::TimeWait => self.segment_time_wait(seg, now),
            State::Closed => Err(DropReason::NoFlow),
        }
    }

    fn segment_connecting(&mut self, seg: &TcpHeader) -> Result<Accept, DropReason> {
        if seg.flags.contains(TcpFlags::RST) && seg.seq == self.rcv.rcv_nxt {
            self.guest_reset();
            return Ok(Accept::Nothing);
        }
        // A SYN that is sent again waits for the host as the first one does.
        Err(DropReason::Duplicate)
    }

    /// RFC 9293 §3.10.7.3.
    fn segment_syn_sent(&mut self, seg: &TcpHeader, now: Instant) -> Result<Accept, DropReason> {
        let acks = seg.flags.contains(TcpFlags::ACK);
        let acks_syn = acks && self.snd.syn_sent() && seg.ack == self.snd.snd_max;
        if acks && !acks_syn {
            return Err(DropReason::BadAck);
        }
        if seg.flags.contains(TcpFlags::RST) {
            if !acks_syn {
                return Err(DropReason::BadAck);
            }
            self.guest_reset();
            return Ok(Accept::Nothing);
        }
        if !seg.flags.contains(TcpFlags::SYN) {
            return Err(DropReason::BadAck);
        }
        let space = self.rcv.space();
        self.rcv = Receiver::new(seg.seq);
        self.rcv.set_space(space);
        self.negotiate(seg);
        if acks_syn {
            self.snd.handle_ack(seg, 0, now);
            self.open(now);
            self.rcv.ack_due = true;
        } else {
            // Simultaneous open: our SYN goes out again, with an ACK.
            self.state = State::SynReceived;
            self.syn_due = true;
        }
        Ok(Accept::Nothing)
    }

    /// RFC 9293 §3.10.7.4.
    fn segment_open(&mut self, seg: &TcpHeader, len: u32, now: Instant) -> Result<Accept, DropReason> {
        if seg.flags.contains(TcpFlags::SYN) {
            if self.state == State::SynReceived && seg.seq + 1 == self.rcv.rcv_nxt {
                if !seg.flags.contains(TcpFlags::ACK) {
                    // The guest has not seen our SYN-ACK.
                    self.syn_due = true;
                    return Err(DropReason::Duplicate);
                }
            } else {
                // RFC 5961 §4.2.
                self.rcv.ack_due = true;
                return Err(DropReason::Challenged);
            }
        } else if !self.rcv.acceptable(seg, len) {
            if !seg.flags.contains(TcpFlags::RST) {
                self.rcv.ack_due = true;
                // A keepalive probe is such a segment, and a sign of life.
                self.heard(now);
            }
            return Err(DropReason::OutsideWindow);
        }
        // A SYN takes the first position, what follows it begins behind.
        let begins = u32::from(seg.flags.contains(TcpFlags::SYN));
        let seg = &TcpHeader { seq: seg.seq + begins, ..*seg };
        if seg.flags.contains(TcpFlags::RST) {
            if self.rcv.is_next(seg.seq) {
                self.guest_reset();
                return Ok(Accept::Nothing);
            }
            // RFC 5961 §3.2.
            self.rcv.ack_due = true;
            return Err(DropReason::Challenged);
        }
        if !seg.flags.contains(TcpFlags::ACK) {
            return Err(DropReason::BadAck);
        }
        if self.state == State::SynReceived {
            if seg.ack != self.snd.snd_max || self.snd.snd_max == self.snd.snd_una {
                return Err(DropReason::BadAck);
            }
            self.open(now);
        }
        self.heard(now);
        match self.snd.handle_ack(seg, len as usize, now) {
            Acked::Invalid => {
                self.rcv.ack_due = true;
                return Err(DropReason::BadAck);
            }
            Acked::Bytes(bytes) => self.bytes_in += u64::from(bytes),
            Acked::Nothing => {}
        }
        let accept =
            if self.rcv.fin_received { Ok(Accept::Nothing) } else { self.rcv.handle_payload(seg, len) };
        self.take_fin(now);
        self.check_finished(now);
        accept
    }

    fn segment_time_wait(&mut self, seg: &TcpHeader, now: Instant) -> Result<Accept, DropReason> {
        if seg.flags.contains(TcpFlags::RST) {
            // RFC 1337: a RST does not cut the wait short.
            return Err(DropReason::OutsideWindow);
        }
        self.rcv.ack_due = true;
        if seg.flags.contains(TcpFlags::FIN) {
            self.life = now + TIME_WAIT;
        }
        Err(DropReason::Duplicate)
    }

    /// Whether `syn` may begin a new flow in this one's place: it waits only for strays, and the
    /// new sequence numbers lie beyond the old ones (RFC 9293 §3.10.7.4, TIME-WAIT).
    pub fn may_be_reused(&self, syn: &TcpHeader) -> bool {
        self.is_time_wait()
            && syn.flags.contains(TcpFlags::SYN)
            && !syn.flags.contains(TcpFlags::ACK)
            && syn.seq > self.rcv.rcv_nxt
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open;
        self.syn_due = false;
        self.heard(now);
    }

    fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.keepalive_probes = 0;
        self.life = now + self.quiet_limit();
    }

    fn quiet_limit(&self) -> Duration {
        match self.state {
            State::Connecting | State::SynReceived | State::SynSent => HALF_OPEN,
            State::TimeWait | State::Closed => TIME_WAIT,
            State::Open if self.rcv.fin_received || self.snd.fin_sent() => KEEPALIVE_HALF_CLOSED,
            State::Open => KEEPALIVE_AFTER,
        }
    }

    fn take_fin(&mut self, now: Instant) {
        if self.state == State::Open && self.rcv.take_fin() {
            self.shutdown_due = true;
            self.life = now + self.quiet_limit();
        }
    }

    fn guest_reset(&mut self) {
        self.abort(CloseReason::GuestReset);
    }

    /// Ends the flow at once; the host end, connected or not, goes with a reset.
    fn abort(&mut self, reason: CloseReason) {
        let connecting = self.state == State::Connecting && !self.connect_due;
        self.end(reason);
        self.reset_host_due = self.has_host || connecting;
    }

    fn end(&mut self, reason: CloseReason) {
        if self.closed.is_none() {
            self.closed = Some(reason);
        }
        self.state = State::Closed;
        self.connect_due = false;
        self.syn_due = false;
        self.shutdown_due = false;
        self.rcv.acked();
        self.rcv.ack_due = false;
    }

    fn check_finished(&mut self, now: Instant) {
        if self.state != State::Open || !self.rcv.fin_received || !self.snd.fin_sent() {
            return;
        }
        if self.snd.fin_acked() {
            if self.snd.fin_first() {
                self.state = State::TimeWait;
                self.life = now + TIME_WAIT;
            } else {
                self.end(CloseReason::Finished);
            }
        }
    }

    // --- the host end -----------------------------------------------------------------------

    /// Takes what happened at the host end.
    pub fn handle_host(&mut self, event: HostEvent, now: Instant) {
        match event {
            HostEvent::Connected if self.state == State::Connecting => {
                self.has_host = true;
                self.state = State::SynReceived;
                self.syn_due = true;
                self.life = now + HALF_OPEN;
            }
            HostEvent::Connected => {}
            HostEvent::Readable => self.snd.readable |= !self.snd.fin_known(),
            HostEvent::Wrote { len, kept } => {
                self.rcv.wrote(len, kept, now);
                self.bytes_out += u64::from(len);
                self.take_fin(now);
                self.check_finished(now);
            }
            HostEvent::SendSpace { free } => {
                self.rcv.set_space(free);
                if !self.rcv.starved() {
                    self.space_check = None;
                    self.space_check_shift = 0;
                }
            }
            HostEvent::LinkSpace => self.snd.link_full = false,
            HostEvent::Failed(error) => self.host_failed(error),
        }
    }

    fn host_failed(&mut self, error: HostError) {
        if self.state == State::Closed || self.state == State::TimeWait {
            return;
        }
        let connecting = self.state == State::Connecting;
        self.abort(CloseReason::Host(error));
        match error {
            HostError::Refused | HostError::Reset | HostError::Exhausted => self.reset_guest_due = true,
            _ if connecting => self.unreachable_due = Some(error),
            _ => self.reset_guest_due = true,
        }
    }

    /// Takes the outcome of [`Output::Peek`]: `len` bytes from offset `at` on. Returns the header
    /// of the segment, or run of segments, that they make; its payload is to go out.
    pub fn handle_peeked(&mut self, at: u32, len: u32, end: PeekEnd, now: Instant) -> Option<TcpHeader> {
        let seq = self.snd.front() + at;
        match end {
            PeekEnd::More => {}
            PeekEnd::LinkFull => self.snd.link_full = true,
            PeekEnd::Empty | PeekEnd::Eof if self.snd.is_new(seq + len) => {
                self.snd.readable = false;
                if end == PeekEnd::Eof {
                    self.snd.peeked(seq, len, now);
                    self.snd.host_eof();
                    let flags = TcpFlags::ACK | TcpFlags::PSH;
                    return (len > 0).then(|| match self.snd.fin_due() {
                        Some(_) => self.fin(seq, flags, now),
                        None => self.data_header(seq, flags),
                    });
                }
            }
            PeekEnd::Empty | PeekEnd::Eof => {}
        }
        if len == 0 {
            if end != PeekEnd::LinkFull && !self.snd.is_new(seq) {
                // Bytes that were there are gone: the host end no longer keeps its word.
                self.host_failed(HostError::Reset);
            }
            return None;
        }
        self.snd.peeked(seq, len, now);
        let push = if end == PeekEnd::Empty { TcpFlags::PSH } else { TcpFlags::default() };
        Some(self.data_header(seq, TcpFlags::ACK | push))
    }

    /// The host took `len` of the bytes of [`Output::WriteKept`].
    pub fn handle_wrote_kept(&mut self, len: u32, now: Instant) {
        self.rcv.wrote_kept(len);
        self.bytes_out += u64::from(len);
        self.take_fin(now);
        self.check_finished(now);
    }

    /// The guest's link has gone: the host's peer sees a reset.
    pub fn handle_guest_gone(&mut self) {
        self.abort(CloseReason::GuestGone);
        self.reset_guest_due = false;
        self.unreachable_due = None;
    }

    /// The guest's MAC address has become known: a SYN that waited for it goes out now.
    pub fn handle_resolved(&mut self) {
        self.syn_due |= self.state == State::SynSent;
    }

    // --- time -------------------------------------------------------------------------------

    /// The next point in time at which [`TcpFlow::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let life = (self.state != State::Closed).then_some(self.life);
        [life, self.snd.deadline(), self.space_check, self.rcv.ack_at()].into_iter().flatten().min()
    }

    /// The guest's link takes nothing now: its silence means nothing.
    pub fn handle_link_busy(&mut self, now: Instant) {
        self.snd.hold_timer(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Closed {
            return;
        }
        if self.space_check.is_some_and(|at| now >= at) {
            self.space_check = None;
        }
        self.rcv.handle_timeout(now);
        if self.state != State::TimeWait {
            let syn = matches!(self.state, State::SynSent | State::SynReceived);
            let alive = self.snd.handle_timeout(now);
            if syn && self.snd.snd_nxt == self.snd.snd_una && self.snd.snd_max != self.snd.snd_una {
                self.syn_due = true;
            }
            if !alive {
                return self.guest_timed_out();
            }
        }
        if now >= self.life {
            self.life_over(now);
        }
    }

    fn life_over(&mut self, now: Instant) {
        match self.state {
            State::TimeWait => self.end(CloseReason::Finished),
            State::Open if self.keepalive_probes < KEEPALIVE_PROBES => {
                self.keepalive_probes += 1;
                self.keepalive_due = true;
                self.life = now + KEEPALIVE_INTERVAL;
            }
            _ => self.guest_timed_out(),
        }
    }

    fn guest_timed_out(&mut self) {
        self.abort(CloseReason::GuestTimedOut);
        self.reset_guest_due = true;
    }

    // --- outputs ----------------------------------------------------------------------------

    /// The next thing for the driver to do; `None` when there is nothing more now.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        if self.state == State::Closed {
            return self.poll_closing();
        }
        if std::mem::take(&mut self.connect_due) {
            return Some(Output::Connect);
        }
        if std::mem::take(&mut self.syn_due) {
            return Some(Output::Segment(self.syn(now)));
        }
        if self.state == State::TimeWait && self.has_host {
            return Some(self.poll_close_host());
        }
        if self.has_host && self.state != State::TimeWait {
            if let Some(len) = self.rcv.write_kept_due() {
                return Some(Output::WriteKept { at: self.rcv.rcv_nxt, len });
            }
            if std::mem::take(&mut self.shutdown_due) {
                return Some(Output::ShutdownHostWrite);
            }
        }
        if self.state == State::Open {
            if let Some((at, max)) = self.snd.next_data() {
                return Some(Output::Peek { at: self.snd.offset(at), max, segment: self.snd.mss });
            }
            if let Some(at) = self.snd.fin_due() {
                return Some(Output::Segment(self.fin(at, TcpFlags::ACK, now)));
            }
            if let Some(len) = self.snd.discard_due() {
                self.snd.discarded(len);
                return Some(Output::Discard { len });
            }
            if self.snd.take_window_probe() | std::mem::take(&mut self.keepalive_due) {
                // A position that the guest has acknowledged makes it answer with its window.
                let header = self.data_header(self.snd.snd_una - 1, TcpFlags::ACK);
                return Some(Output::Segment(header));
            }
        }
        if matches!(self.state, State::Open | State::TimeWait) && self.rcv.ack_due {
            let mut header = self.data_header(self.snd.snd_max, TcpFlags::ACK);
            self.rcv.ack_due = false;
            if self.sack {
                header.sack = self.rcv.sack();
            }
            return Some(Output::Segment(header));
        }
        if self.state == State::Open {
            self.snd.check_persist(now);
            if self.rcv.starved() && self.space_check.is_none() {
                self.check_space_later(now);
                return Some(Output::WatchSendSpace);
            }
        }
        None
    }

    fn check_space_later(&mut self, now: Instant) {
        self.space_check = Some(now + SPACE_CHECK * (1 << self.space_check_shift));
        self.space_check_shift = (self.space_check_shift + 1).min(MAX_SPACE_CHECK_SHIFT);
    }

    fn poll_closing(&mut self) -> Option<Output> {
        if let Some(error) = self.unreachable_due.take() {
            return Some(Output::Unreachable(error));
        }
        if std::mem::take(&mut self.reset_guest_due) {
            return Some(Output::Segment(self.rst()));
        }
        if std::mem::take(&mut self.reset_host_due) {
            self.has_host = false;
            return Some(Output::ResetHost);
        }
        // The last ACK of a flow that the guest closed last.
        if self.has_host {
            return Some(self.poll_close_host());
        }
        self.closed.take().map(Output::Closed)
    }

    fn poll_close_host(&mut self) -> Output {
        // Unread bytes would turn the close into a reset. In order it ends our stream by itself.
        let len = self.snd.discardable();
        if len > 0 {
            self.snd.discarded(len);
            return Output::Discard { len };
        }
        self.has_host = false;
        Output::CloseHost
    }

    fn syn(&mut self, now: Instant) -> TcpHeader {
        let answers = self.state == State::SynReceived;
        let flags = if answers { TcpFlags::SYN | TcpFlags::ACK } else { TcpFlags::SYN };
        let seq = self.snd.snd_una;
        self.snd.sent_syn(now);
        // The room that the host has by now goes with it.
        self.rcv.ack_due = false;
        TcpHeader {
            src_port: self.peer_port,
            dst_port: self.guest_port,
            seq,
            ack: if answers { self.rcv.rcv_nxt } else { SeqNumber(0) },
            flags,
            window: self.rcv.advertise_syn(),
            mss: Some(self.our_mss),
            window_scale: (!answers || self.rcv.shift > 0).then_some(SHIFT),
            sack_permitted: !answers || self.sack,
            ..TcpHeader::default()
        }
    }

    /// The end of our stream, in a segment that begins at `seq`.
    fn fin(&mut self, seq: SeqNumber, flags: TcpFlags, now: Instant) -> TcpHeader {
        self.snd.note_fin_order(self.rcv.fin_received);
        let header = self.data_header(seq, TcpFlags::FIN | flags);
        self.snd.sent_fin(now);
        self.life = now + self.quiet_limit();
        header
    }

    fn rst(&self) -> TcpHeader {
        // Before our SYN is acknowledged there is no position of ours that the guest knows of
        // (RFC 9293 §3.5.2, group 1).
        let known = self.snd.syn_sent();
        TcpHeader {
            src_port: self.peer_port,
            dst_port: self.guest_port,
            // Where the guest expects it, if all arrived. A timeout has set `snd_nxt` back, and a RST
            // below the window would be ignored (RFC 5961 §3.2).
            seq: if known { self.snd.snd_max } else { SeqNumber(0) },
            ack: self.rcv.rcv_nxt,
            flags: TcpFlags::RST | TcpFlags::ACK,
            ..TcpHeader::default()
        }
    }

    fn data_header(&mut self, seq: SeqNumber, flags: TcpFlags) -> TcpHeader {
        self.rcv.acked();
        // No data segment says what is kept beyond a hole: an ACK that does follows it.
        self.rcv.ack_due &= self.sack && self.rcv.sack().iter().any(Option::is_some);
        TcpHeader {
            src_port: self.peer_port,
            dst_port: self.guest_port,
            seq,
            ack: self.rcv.rcv_nxt,
            flags,
            window: self.rcv.advertise(),
            ..TcpHeader::default()
        }
    }
}

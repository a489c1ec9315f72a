//! Scripts of segments. The guest's sequence numbers begin at 1000, ours at 5000.

use super::*;

const MSS: u16 = 1000;
const IRS: SeqNumber = SeqNumber(1000);
const ISS: SeqNumber = SeqNumber(5000);
const ROOM: u32 = 100_000;

fn us(n: u64) -> Instant {
    Instant::from_micros(1_000_000 + n)
}

fn syn() -> TcpHeader {
    TcpHeader {
        src_port: 40000,
        dst_port: 80,
        seq: IRS,
        flags: TcpFlags::SYN,
        window: 50_000,
        mss: Some(MSS),
        sack_permitted: true,
        window_scale: Some(4),
        ..TcpHeader::default()
    }
}

fn seg(flags: TcpFlags, seq: SeqNumber, ack: SeqNumber) -> TcpHeader {
    TcpHeader { src_port: 40000, dst_port: 80, seq, ack, flags, window: 4000, ..TcpHeader::default() }
}

const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags(0x11);
const RST: TcpFlags = TcpFlags::RST;

/// A flow, its host's queue as a number, and what came out.
struct Script {
    flow: TcpFlow,
    now: Instant,
    /// Bytes in the host's queue, not yet discarded, and whether the stream ends behind them.
    queue: u32,
    eof: bool,
    discarded: u32,
    /// What the host's end takes.
    room: u32,
    ops: Vec<Output>,
    segments: Vec<(TcpHeader, u32)>,
}

impl Script {
    fn new(flow: TcpFlow) -> Self {
        let (ops, segments) = (Vec::new(), Vec::new());
        Self { flow, now: us(0), queue: 0, eof: false, discarded: 0, room: ROOM, ops, segments }
    }

    fn connecting(syn: &TcpHeader) -> Self {
        let mut script = Self::new(TcpFlow::from_guest(syn, ISS, MSS, us(0)));
        assert_eq!(script.drain(), [Output::Connect]);
        script
    }

    fn syn_received(syn: &TcpHeader) -> Self {
        let mut script = Self::connecting(syn);
        script.host(HostEvent::SendSpace { free: ROOM });
        script.host(HostEvent::Connected);
        script.only_segment();
        script
    }

    fn open() -> Self {
        Self::open_with(&syn())
    }

    fn open_with(syn: &TcpHeader) -> Self {
        let mut script = Self::syn_received(syn);
        script.segment(&seg(ACK, IRS + 1, ISS + 1), 0).unwrap();
        assert_eq!(script.flow.state_name(), "ESTABLISHED");
        script.ops.clear();
        script.segments.clear();
        script
    }

    /// Drains all outputs; answers peeks from the queue.
    fn drain(&mut self) -> Vec<Output> {
        let mut ops = Vec::new();
        for _ in 0..10_000 {
            let Some(output) = self.flow.poll_output(self.now) else {
                self.ops.extend(&ops);
                return ops;
            };
            match output {
                Output::Segment(header) => self.segments.push((header, 0)),
                Output::Peek { at, max, .. } => {
                    let len = self.queue.saturating_sub(at).min(max);
                    let end = match len {
                        0 if self.eof => PeekEnd::Eof,
                        len if len < max && !self.eof => PeekEnd::Empty,
                        _ => PeekEnd::More,
                    };
                    let header = self.flow.handle_peeked(at, len, end, self.now);
                    assert_eq!(header.is_some(), len > 0);
                    self.segments.extend(header.map(|header| (header, len)));
                }
                Output::Discard { len } => {
                    self.queue = self.queue.checked_sub(len).expect("a discard of what is not there");
                    self.discarded += len;
                }
                Output::WatchSendSpace => {
                    self.flow.handle_host(HostEvent::SendSpace { free: self.room }, self.now);
                }
                Output::WriteKept { len, .. } => {
                    ops.push(output);
                    self.flow.handle_wrote_kept(len, self.now);
                }
                op => ops.push(op),
            }
        }
        panic!("no end of outputs");
    }

    fn segment(&mut self, header: &TcpHeader, len: usize) -> Result<Accept, DropReason> {
        let accept = self.flow.handle_segment(header, len, self.now);
        if let Ok(Accept::Deliver { payload, .. }) = &accept {
            let len = u32::try_from(payload.len()).unwrap();
            self.flow.handle_host(HostEvent::Wrote { len, kept: 0 }, self.now);
            self.flow.handle_host(HostEvent::SendSpace { free: self.room }, self.now);
        }
        self.drain();
        accept
    }

    fn host(&mut self, event: HostEvent) -> Vec<Output> {
        self.flow.handle_host(event, self.now);
        self.drain()
    }

    /// The host's peer sends bytes.
    fn host_sends(&mut self, len: u32) {
        self.queue += len;
        self.host(HostEvent::Readable);
    }

    fn host_ends(&mut self) {
        self.eof = true;
        self.host(HostEvent::Readable);
    }

    /// Jumps to the flow's next deadline; returns how far that was.
    fn jump(&mut self) -> Duration {
        let at = self.flow.poll_timeout().expect("a deadline");
        let passed = at - self.now;
        self.now = self.now.max(at);
        self.flow.handle_timeout(self.now);
        self.drain();
        passed
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.flow.poll_timeout().is_some_and(|at| at <= end) {
            self.jump();
        }
        self.now = end;
    }

    /// What was sent since the last time: flags, positions relative to the two first ones, length.
    fn sent(&mut self) -> Vec<(TcpFlags, u32, u32, u32)> {
        let relative = |(header, len): (TcpHeader, u32)| {
            let flags = TcpFlags(header.flags.0 & !TcpFlags::PSH.0);
            (flags, header.seq.0.wrapping_sub(ISS.0), header.ack.0.wrapping_sub(IRS.0), len)
        };
        self.segments.drain(..).map(relative).collect()
    }

    fn only_segment(&mut self) -> TcpHeader {
        assert_eq!(self.segments.len(), 1, "{:?}", self.segments);
        self.segments.remove(0).0
    }

    fn closed(&self) -> Option<CloseReason> {
        self.ops.iter().find_map(|op| match op {
            Output::Closed(reason) => Some(*reason),
            _ => None,
        })
    }
}

// --- the handshake ---------------------------------------------------------------------------

#[test]
fn a_syn_is_answered_once_the_host_is_connected() {
    let mut script = Script::connecting(&syn());
    assert_eq!(script.segment(&syn(), 0), Err(DropReason::Duplicate));
    assert_eq!(script.sent(), []);
    script.host(HostEvent::SendSpace { free: ROOM });
    script.host(HostEvent::Connected);
    let syn_ack = script.only_segment();
    assert_eq!((syn_ack.flags, syn_ack.seq, syn_ack.ack), (TcpFlags::SYN | ACK, ISS, IRS + 1));
    assert_eq!((syn_ack.mss, syn_ack.window_scale, syn_ack.sack_permitted), (Some(MSS), Some(8), true));
    assert_eq!(syn_ack.window, 65535);
    // A lost SYN-ACK goes out again, when the guest asks and when the timer says.
    script.segment(&syn(), 0).unwrap_err();
    assert_eq!(script.sent(), [(TcpFlags::SYN | ACK, 0, 1, 0)]);
    assert_eq!(script.jump(), Duration::from_secs(1));
    assert_eq!(script.sent(), [(TcpFlags::SYN | ACK, 0, 1, 0)]);
}

#[test]
fn options_that_the_guest_does_not_name_are_not_used() {
    let plain = TcpHeader { mss: None, window_scale: None, sack_permitted: false, ..syn() };
    let mut script = Script::connecting(&plain);
    script.host(HostEvent::SendSpace { free: 10_000_000 });
    script.host(HostEvent::Connected);
    let syn_ack = script.only_segment();
    assert_eq!((syn_ack.window_scale, syn_ack.sack_permitted), (None, false));
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 0).unwrap();
    script.host_sends(10_000);
    // The window of 4000 is not scaled, and segments are of 536 bytes.
    assert_eq!(script.flow.segment(), 536);
    assert_eq!(script.segments.iter().map(|(_, len)| len).sum::<u32>(), 4000);
    script.sent();
    // Out of order: acknowledged at once, without SACK; the window is what 16 bits can say.
    script.segment(&seg(ACK, IRS + 101, ISS + 1), 100).unwrap();
    let ack = script.only_segment();
    assert_eq!((ack.sack, ack.window), ([None; 3], 65535));
    assert_eq!(script.segment(&seg(ACK, IRS + 1 + 65536, ISS + 1), 10), Err(DropReason::OutsideWindow));
}

#[test]
fn an_mss_of_zero_or_none_does_no_harm() {
    for (mss, our, expected) in
        [(Some(0), MSS, 48), (Some(1), MSS, 48), (Some(9000), MSS, MSS), (Some(500), 0, 48)]
    {
        let flow = TcpFlow::from_guest(&TcpHeader { mss, ..syn() }, ISS, our, us(0));
        assert_eq!(flow.segment(), expected, "{mss:?}");
    }
}

#[test]
fn a_refused_connect_resets_the_guest_and_an_unreachable_one_is_told_by_icmp() {
    for (error, unreachable) in [
        (HostError::Refused, false),
        (HostError::Exhausted, false),
        (HostError::NetUnreachable, true),
        (HostError::HostUnreachable, true),
        (HostError::Prohibited, true),
        (HostError::TimedOut, true),
    ] {
        let mut script = Script::connecting(&syn());
        let ops = script.host(HostEvent::Failed(error));
        assert_eq!(ops.contains(&Output::Unreachable(error)), unreachable);
        assert!(ops.ends_with(&[Output::ResetHost, Output::Closed(CloseReason::Host(error))]));
        let expected: &[_] = if unreachable { &[] } else { &[(RST | ACK, 0, 1, 0)] };
        // The RST's own position means nothing to a guest in SYN-SENT.
        let sent: Vec<_> = script.segments.iter().map(|(h, _)| (h.flags, 0, (h.ack - IRS), 0)).collect();
        assert_eq!(sent, expected);
    }
}

#[test]
fn a_pending_connect_ends_with_its_flow() {
    let mut script = Script::connecting(&syn());
    script.segment(&seg(RST, IRS + 1, ISS), 0).unwrap();
    assert_eq!(script.ops[1..], [Output::ResetHost, Output::Closed(CloseReason::GuestReset)]);

    let mut script = Script::connecting(&syn());
    script.flow.handle_guest_gone();
    assert_eq!(script.drain(), [Output::ResetHost, Output::Closed(CloseReason::GuestGone)]);

    let mut script = Script::connecting(&syn());
    assert_eq!(script.jump(), HALF_OPEN);
    assert_eq!(script.ops[1..], [Output::ResetHost, Output::Closed(CloseReason::GuestTimedOut)]);
}

#[test]
fn a_syn_ack_that_is_never_acknowledged_is_given_up_after_a_minute() {
    let mut script = Script::syn_received(&syn());
    // However often the guest asks again.
    for _ in 0..20 {
        script.segment(&syn(), 0).unwrap_err();
    }
    assert_eq!(script.closed(), None);
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.now - start < Duration::from_secs(130));
    assert!(script.ops.contains(&Output::ResetHost));
}

#[test]
fn a_syn_to_a_guest_backs_off_and_is_given_up_after_a_minute() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.drain();
    let mut times = Vec::new();
    while script.closed().is_none() {
        assert!(script.segments.len() <= 6);
        times.push(script.jump().as_secs());
    }
    assert_eq!(times, [1, 2, 4, 8, 16, 32]);
    assert_eq!(script.segments.len(), 7);
    assert_eq!(script.segments[6].0.flags, RST | ACK);
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::GuestTimedOut)]);
}

#[test]
fn a_forwarded_connection_opens_with_the_guests_syn_ack() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.host(HostEvent::SendSpace { free: ROOM });
    script.host_sends(100);
    let syn_out = script.only_segment();
    assert_eq!((syn_out.flags, syn_out.src_port, syn_out.dst_port), (TcpFlags::SYN, 50000, 22));
    assert!(syn_out.window_scale.is_some() && syn_out.sack_permitted);
    // An ACK of something else gets nothing (it is a stray), the right one opens.
    let syn_ack = TcpHeader { flags: TcpFlags::SYN | ACK, ack: ISS + 7, ..syn() };
    assert_eq!(script.segment(&syn_ack, 0), Err(DropReason::BadAck));
    script.segment(&TcpHeader { ack: ISS + 1, ..syn_ack }, 0).unwrap();
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
    assert_eq!(script.sent(), [(ACK, 1, 1, 100)]);
}

#[test]
fn a_guest_that_refuses_resets_the_hosts_peer() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.drain();
    assert_eq!(script.segment(&seg(RST | ACK, SeqNumber(0), ISS), 0), Err(DropReason::BadAck));
    script.segment(&seg(RST | ACK, SeqNumber(0), ISS + 1), 0).unwrap();
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::GuestReset)]);
}

#[test]
fn both_sides_may_begin_at_once() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.host(HostEvent::SendSpace { free: ROOM });
    script.sent();
    script.segment(&TcpHeader { window: 3000, ..syn() }, 0).unwrap();
    assert_eq!(script.sent(), [(TcpFlags::SYN | ACK, 0, 1, 0)]);
    // The guest's SYN-ACK, with bytes behind the SYN: its window is not scaled.
    let syn_ack = TcpHeader { flags: TcpFlags::SYN | ACK, ack: ISS + 1, window: 3000, ..syn() };
    let accept = script.segment(&syn_ack, 10).unwrap();
    assert_eq!(accept, Accept::Deliver { payload: 0..10, at: IRS + 1 });
    assert_eq!(script.sent(), [(ACK, 1, 11, 0)]);
    script.host_sends(10_000);
    assert_eq!(script.segments.iter().map(|(_, len)| len).sum::<u32>(), 3000);
}

// --- the guest's stream ------------------------------------------------------------------------

#[test]
fn only_what_the_host_took_is_acknowledged() {
    let mut script = Script::open();
    let header = seg(ACK, IRS + 1, ISS + 1);
    assert_eq!(
        script.flow.handle_segment(&header, 1000, script.now),
        Ok(Accept::Deliver { payload: 0..1000, at: IRS + 1 })
    );
    // A second segment of the same batch.
    let next = seg(ACK, IRS + 1001, ISS + 1);
    assert_eq!(
        script.flow.handle_segment(&next, 1000, script.now),
        Ok(Accept::Deliver { payload: 0..1000, at: IRS + 1001 })
    );
    script.room = 0;
    script.host(HostEvent::Wrote { len: 1500, kept: 200 });
    assert_eq!(script.sent(), [(ACK, 1, 1501, 0)]);
    // Then the room comes: what was kept goes first, then what the guest sends again.
    script.room = ROOM;
    assert_eq!(
        script.host(HostEvent::SendSpace { free: ROOM }),
        [Output::WriteKept { at: IRS + 1501, len: 200 }]
    );
    assert_eq!(script.sent(), [(ACK, 1, 1701, 0)]);
    assert_eq!(script.segment(&next, 1000), Ok(Accept::Deliver { payload: 700..1000, at: IRS + 1701 }));
    assert_eq!(script.flow.bytes_out(), 2000);
}

#[test]
fn bytes_out_of_order_are_kept_and_told_by_sack() {
    let mut script = Script::open();
    assert_eq!(
        script.segment(&seg(ACK, IRS + 2001, ISS + 1), 1000),
        Ok(Accept::Keep { payload: 0..1000, at: IRS + 2001 })
    );
    let ack = script.only_segment();
    assert_eq!(ack.ack, IRS + 1);
    assert_eq!(ack.sack, [Some((IRS + 2001, IRS + 3001)), None, None]);
    // Also when host bytes have just gone out, which carry no SACK.
    script.flow.handle_segment(&seg(ACK, IRS + 4001, ISS + 1), 1000, script.now).unwrap();
    script.host_sends(500);
    assert_eq!(script.segments.len(), 2);
    assert_eq!(script.segments[0].1, 500);
    assert_eq!(script.segments[1].0.sack[1], Some((IRS + 4001, IRS + 5001)));
    script.segments.clear();
    // The hole is filled: what was kept behind it is written.
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 2000).unwrap();
    assert_eq!(script.ops, [Output::WriteKept { at: IRS + 2001, len: 1000 }]);
    assert_eq!(script.segments.pop().unwrap().0.ack, IRS + 3001);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut script = Script::open();
    let mut kept = 0;
    script.host(HostEvent::SendSpace { free: 10 << 20 });
    for n in 0..400 {
        match script.segment(&seg(ACK, IRS + 2 + 1000 * n, ISS + 1), 1000) {
            Ok(Accept::Keep { payload, .. }) => kept += payload.len(),
            other => assert_eq!(other, Err(DropReason::OutOfOrderFull)),
        }
    }
    assert!(kept <= MAX_KEPT_LEN && kept > MAX_KEPT_LEN - 1000, "{kept}");
}

const MAX_KEPT_LEN: usize = super::super::MAX_KEPT as usize;

#[test]
fn a_window_that_was_shut_is_announced_again() {
    let mut script = Script::open();
    script.flow.handle_segment(&seg(ACK, IRS + 1, ISS + 1), 2000, script.now).unwrap();
    script.flow.handle_host(HostEvent::Wrote { len: 2000, kept: 0 }, script.now);
    script.flow.handle_host(HostEvent::SendSpace { free: 0 }, script.now);
    let mut window = u32::MAX;
    let mut at = 2001;
    // The guest fills what it was promised.
    while window > 0 {
        while let Some(output) = script.flow.poll_output(script.now) {
            match output {
                Output::Segment(header) => window = u32::from(header.window) << 8,
                Output::WatchSendSpace => {
                    script.flow.handle_host(HostEvent::SendSpace { free: 0 }, script.now);
                }
                other => panic!("{other:?}"),
            }
        }
        if window > 0 {
            script.flow.handle_segment(&seg(ACK, IRS + at, ISS + 1), window as usize, script.now).unwrap();
            script.flow.handle_host(HostEvent::Wrote { len: window, kept: 0 }, script.now);
            at += window;
        }
    }
    script.host(HostEvent::SendSpace { free: ROOM });
    let update = script.segments.pop().unwrap().0;
    assert!(u32::from(update.window) << 8 > 90_000);
}

#[test]
fn room_is_looked_for_soon_though_no_edge_came() {
    let mut script = Script::open();
    script.flow.handle_segment(&seg(ACK, IRS + 1, ISS + 1), 99_000, script.now).unwrap();
    script.flow.handle_host(HostEvent::Wrote { len: 99_000, kept: 0 }, script.now);
    let mut watched = 0;
    let start = script.now;
    for _ in 0..3 {
        while let Some(output) = script.flow.poll_output(script.now) {
            if output == Output::WatchSendSpace {
                watched += 1;
                script.flow.handle_host(HostEvent::SendSpace { free: 0 }, script.now);
            }
        }
        script.now = script.flow.poll_timeout().unwrap();
        script.flow.handle_timeout(script.now);
    }
    assert_eq!(watched, 3);
    assert!(script.now - start <= Duration::from_millis(100));
}

#[test]
fn urgent_data_is_data() {
    let mut script = Script::open();
    let header = seg(TcpFlags::URG | ACK, IRS + 1, ISS + 1);
    assert_eq!(script.segment(&header, 10), Ok(Accept::Deliver { payload: 0..10, at: IRS + 1 }));
}

// --- the host's stream -------------------------------------------------------------------------

#[test]
fn the_guests_window_bounds_what_is_sent() {
    // 4000 << 4 = 64,000 bytes.
    let mut script = Script::open();
    script.host_sends(100_000);
    let sent = script.sent();
    assert_eq!(sent.iter().map(|(_, _, _, len)| len).sum::<u32>(), 64_000);
    let mut ack = seg(ACK, IRS + 1, ISS + 1 + 64_000);
    ack.window = 0;
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.discarded, 64_000);
    // Probes that back off, without a byte beyond the window.
    let mut waits = Vec::new();
    for _ in 0..4 {
        waits.push(script.jump().as_millis());
        assert_eq!(script.sent(), [(ACK, 64_000, 1, 0)]);
    }
    assert_eq!(waits, [200, 400, 800, 1600]);
    script.segment(&seg(ACK, IRS + 1, ISS + 64_001), 0).unwrap();
    assert_eq!(script.sent().iter().map(|(_, _, _, len)| len).sum::<u32>(), 36_000);
}

#[test]
fn a_shut_window_is_probed_for_as_long_as_the_guest_answers() {
    let mut script = Script::open();
    script.host_sends(100_000);
    let shut = TcpHeader { window: 0, ..seg(ACK, IRS + 1, ISS + 64_001) };
    script.segment(&shut, 0).unwrap();
    for _ in 0..100 {
        script.jump();
        script.segment(&shut, 0).unwrap();
    }
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
    // No more answers.
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.now - start < Duration::from_secs(900));
}

#[test]
fn a_fin_before_a_shut_window_waits_for_as_long_as_the_guest_answers() {
    let mut script = Script::open();
    script.host_sends(1000);
    script.host_ends();
    assert_eq!(script.sent(), [(ACK, 1, 1, 1000), (FIN, 1001, 1, 0)]);
    let shut = TcpHeader { window: 0, ..seg(ACK, IRS + 1, ISS + 1001) };
    script.segment(&shut, 0).unwrap();
    for _ in 0..30 {
        script.jump();
        script.segment(&shut, 0).unwrap();
    }
    assert_eq!(script.closed(), None);
    script.segment(&seg(ACK, IRS + 1, ISS + 1002), 0).unwrap();
    assert_eq!(script.flow.state_name(), "FIN-WAIT-2");
}

#[test]
fn a_single_segment_that_is_lost_goes_again_after_the_timeout() {
    let mut script = Script::open();
    script.host_sends(500);
    assert_eq!(script.sent(), [(ACK, 1, 1, 500)]);
    assert_eq!(script.jump(), Duration::from_millis(200));
    assert_eq!(script.sent(), [(ACK, 1, 1, 500)]);
    assert_eq!(script.jump(), Duration::from_millis(400));
    script.segment(&seg(ACK, IRS + 1, ISS + 501), 0).unwrap();
    assert_eq!((script.discarded, script.flow.bytes_in()), (500, 500));
}

#[test]
fn a_lost_tail_is_probed_before_the_timeout() {
    let mut script = Script::open();
    script.host_sends(5500);
    script.sent();
    assert_eq!(script.jump(), Duration::from_millis(10));
    assert_eq!(script.sent(), [(ACK, 4501, 1, 1000)]);
}

#[test]
fn three_duplicate_acks_repair_one_segment() {
    let mut script = Script::open();
    script.host_sends(10_000);
    script.sent();
    script.segment(&seg(ACK, IRS + 1, ISS + 2001), 0).unwrap();
    for _ in 0..2 {
        script.segment(&seg(ACK, IRS + 1, ISS + 2001), 0).unwrap();
    }
    assert_eq!(script.sent(), []);
    script.segment(&seg(ACK, IRS + 1, ISS + 2001), 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 2001, 1, 1000)]);
    // A partial acknowledgement: the next hole at once.
    script.segment(&seg(ACK, IRS + 1, ISS + 5001), 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 5001, 1, 1000)]);
    script.segment(&seg(ACK, IRS + 1, ISS + 10_001), 0).unwrap();
    assert_eq!(script.sent(), []);
}

#[test]
fn sack_repairs_all_holes_at_once_and_each_once() {
    let mut script = Script::open();
    script.host_sends(20_000);
    script.sent();
    let mut ack = seg(ACK, IRS + 1, ISS + 1);
    ack.sack =
        [Some((ISS + 1001, ISS + 3001)), Some((ISS + 4001, ISS + 9001)), Some((ISS + 11_001, ISS + 20_001))];
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 1, 1, 1000), (ACK, 3001, 1, 1000), (ACK, 9001, 1, 2000)]);
    script.segment(&ack, 0).unwrap();
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.sent(), []);
    script.segment(&TcpHeader { ack: ISS + 20_001, sack: [None; 3], ..ack }, 0).unwrap();
    assert_eq!(script.discarded, 20_000);
}

#[test]
fn a_repair_that_is_lost_is_found_by_what_came_after_it() {
    let mut script = Script::open();
    script.host_sends(20_000);
    let mut ack = seg(ACK, IRS + 1, ISS + 1);
    ack.sack[0] = Some((ISS + 1001, ISS + 20_001));
    script.segment(&ack, 0).unwrap();
    script.sent();
    // New data goes out behind the repair, and is acknowledged; the hole is not.
    script.host_sends(3000);
    assert_eq!(script.sent(), [(ACK, 20_001, 1, 3000)]);
    ack.sack[0] = Some((ISS + 1001, ISS + 23_001));
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 1, 1, 1000)]);
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut script = Script::open();
    script.host_sends(1000);
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.now - start < Duration::from_secs(900));
    assert_eq!(script.segments.last().unwrap().0.flags, RST | ACK);
}

#[test]
fn host_bytes_that_vanish_reset_the_flow() {
    let mut script = Script::open();
    script.host_sends(500);
    script.queue = 0;
    script.jump();
    assert_eq!(script.closed(), Some(CloseReason::Host(HostError::Reset)));
}

#[test]
fn a_full_link_stops_sending_and_the_timeout() {
    let mut script = Script::open();
    script.flow.handle_host(HostEvent::Readable, script.now);
    let Some(Output::Peek { at: 0, .. }) = script.flow.poll_output(script.now) else { panic!("no peek") };
    assert!(script.flow.handle_peeked(0, 2000, PeekEnd::LinkFull, script.now).is_some());
    script.queue = 5000;
    for _ in 0..20 {
        script.jump();
        assert_eq!(script.segments.len(), 0, "into a full link");
        if script.now - us(0) > Duration::from_secs(100) {
            break;
        }
    }
    script.host(HostEvent::LinkSpace);
    assert_eq!(script.sent(), [(ACK, 2001, 1, 3000)]);
}

// --- ends ----------------------------------------------------------------------------------

#[test]
fn the_guest_ends_first() {
    let mut script = Script::open();
    script.segment(&seg(FIN, IRS + 1, ISS + 1), 10).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSE-WAIT");
    assert_eq!(script.ops, [Output::ShutdownHostWrite]);
    assert_eq!(script.sent().last(), Some(&(ACK, 1, 12, 0)));
    // The other half still works.
    script.host_sends(100);
    assert_eq!(script.sent(), [(ACK, 1, 12, 100)]);
    script.host_ends();
    assert_eq!(script.sent(), [(FIN, 101, 12, 0)]);
    assert_eq!(script.flow.state_name(), "LAST-ACK");
    script.segment(&seg(ACK, IRS + 12, ISS + 102), 0).unwrap();
    assert_eq!(script.ops[1..], [Output::CloseHost, Output::Closed(CloseReason::Finished)]);
    assert_eq!(script.queue, 0, "a close with unread bytes is a reset");
}

#[test]
fn the_host_ends_first_and_its_flow_waits_for_strays() {
    let mut script = Script::open();
    script.host_sends(100);
    script.host_ends();
    assert_eq!(script.sent(), [(ACK, 1, 1, 100), (FIN, 101, 1, 0)]);
    script.segment(&seg(ACK, IRS + 1, ISS + 102), 50).unwrap();
    assert_eq!(script.flow.state_name(), "FIN-WAIT-2");
    script.segment(&seg(FIN, IRS + 51, ISS + 102), 0).unwrap();
    assert_eq!(script.flow.state_name(), "TIME-WAIT");
    assert_eq!(script.ops, [Output::CloseHost]);
    assert_eq!(script.sent().last(), Some(&(ACK, 102, 52, 0)));
    // The last ACK was lost.
    script.now += Duration::from_secs(30);
    script.segment(&seg(FIN, IRS + 51, ISS + 102), 0).unwrap_err();
    assert_eq!(script.sent(), [(ACK, 102, 52, 0)]);
    // RFC 1337.
    assert_eq!(script.segment(&seg(RST, IRS + 52, ISS), 0), Err(DropReason::OutsideWindow));
    // A SYN begins anew only beyond the old stream.
    assert!(!script.flow.may_be_reused(&TcpHeader { seq: IRS + 51, ..syn() }));
    assert!(script.flow.may_be_reused(&TcpHeader { seq: IRS + 53, ..syn() }));
    assert_eq!(script.jump(), TIME_WAIT);
    assert_eq!(script.closed(), Some(CloseReason::Finished));
}

#[test]
fn both_end_at_once() {
    let mut script = Script::open();
    script.host_ends();
    script.segment(&seg(FIN, IRS + 1, ISS + 1), 0).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSING");
    assert_eq!(script.sent(), [(FIN, 1, 1, 0), (ACK, 2, 2, 0)]);
    script.segment(&seg(ACK, IRS + 2, ISS + 2), 0).unwrap();
    assert_eq!(script.flow.state_name(), "TIME-WAIT");
    assert_eq!(script.ops, [Output::ShutdownHostWrite, Output::CloseHost]);
}

#[test]
fn a_fin_that_is_lost_goes_again() {
    let mut script = Script::open();
    script.host_ends();
    script.sent();
    script.jump();
    assert_eq!(script.sent(), [(FIN, 1, 1, 0)]);
}

#[test]
fn resets_pass_both_ways() {
    let mut script = Script::open();
    script.host_sends(3000);
    script.sent();
    script.host(HostEvent::Failed(HostError::Reset));
    // Where the guest expects the next byte, had all of them arrived.
    assert_eq!(script.sent(), [(RST | ACK, 3001, 1, 0)]);
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::Host(HostError::Reset))]);

    let mut script = Script::open();
    script.host_sends(3000);
    script.jump();
    script.jump();
    script.sent();
    // Also after a timeout, when sending has begun again further back.
    script.host(HostEvent::Failed(HostError::Reset));
    assert_eq!(script.sent(), [(RST | ACK, 3001, 1, 0)]);

    let mut script = Script::open();
    script.segment(&seg(RST, IRS + 1, ISS), 0).unwrap();
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::GuestReset)]);
    assert_eq!(script.sent(), []);
}

#[test]
fn resets_and_syns_that_are_not_in_place_are_challenged() {
    // RFC 5961 §3.2 and §4.2.
    let mut script = Script::open();
    assert_eq!(script.segment(&seg(RST, IRS + 2, ISS), 0), Err(DropReason::Challenged));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.segment(&seg(RST, IRS - 5, ISS), 0), Err(DropReason::OutsideWindow));
    assert_eq!(script.sent(), []);
    assert_eq!(script.segment(&TcpHeader { seq: IRS + 90, ..syn() }, 0), Err(DropReason::Challenged));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
}

#[test]
fn an_ack_of_what_was_never_sent_is_answered_and_ignored() {
    let mut script = Script::open();
    assert_eq!(script.segment(&seg(ACK, IRS + 1, ISS + 2), 10), Err(DropReason::BadAck));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.segment(&seg(TcpFlags::default(), IRS + 1, ISS + 1), 10), Err(DropReason::BadAck));
}

#[test]
fn a_fin_out_of_order_waits_for_its_bytes() {
    let mut script = Script::open();
    script.segment(&seg(FIN, IRS + 101, ISS + 1), 0).unwrap();
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 100).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSE-WAIT");
    assert_eq!(script.sent().last(), Some(&(ACK, 1, 102, 0)));
}

#[test]
fn a_fin_among_bytes_that_came_before_it_is_no_end() {
    let mut script = Script::open();
    script.segment(&seg(ACK, IRS + 101, ISS + 1), 100).unwrap();
    script.segment(&seg(FIN, IRS + 151, ISS + 1), 0).unwrap();
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 100).unwrap();
    assert_eq!(script.ops, [Output::WriteKept { at: IRS + 101, len: 100 }]);
    script.segment(&seg(FIN, IRS + 201, ISS + 1), 0).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSE-WAIT");
}

// --- time ------------------------------------------------------------------------------------

#[test]
fn an_idle_flow_is_asked_and_then_given_up() {
    let mut script = Script::open();
    assert_eq!(script.jump(), KEEPALIVE_AFTER);
    assert_eq!(script.sent(), [(ACK, 0, 1, 0)]);
    // An answer keeps it.
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 0).unwrap();
    assert_eq!(script.jump(), KEEPALIVE_AFTER);
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.now - start, KEEPALIVE_INTERVAL * u32::from(KEEPALIVE_PROBES));
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.ops.contains(&Output::ResetHost));
}

#[test]
fn a_half_closed_flow_is_asked_sooner() {
    let mut script = Script::open();
    script.segment(&seg(FIN, IRS + 1, ISS + 1), 0).unwrap();
    script.sent();
    assert_eq!(script.jump(), KEEPALIVE_HALF_CLOSED);
    assert_eq!(script.sent(), [(ACK, 0, 2, 0)]);

    let mut script = Script::open();
    script.host_ends();
    script.segment(&seg(ACK, IRS + 1, ISS + 2), 0).unwrap();
    script.sent();
    assert_eq!(script.jump(), KEEPALIVE_HALF_CLOSED);
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
}

#[test]
fn a_keepalive_of_the_guests_is_answered() {
    let mut script = Script::open();
    script.now = us(5_000_000);
    assert_eq!(script.segment(&seg(ACK, IRS, ISS + 1), 0), Err(DropReason::OutsideWindow));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.flow.last_heard(), us(5_000_000));
}

#[test]
fn everything_works_across_the_wrap_of_sequence_numbers() {
    let first = TcpHeader { seq: SeqNumber(u32::MAX - 500), ..syn() };
    let iss = SeqNumber(u32::MAX - 1000);
    let mut script = Script::new(TcpFlow::from_guest(&first, iss, MSS, us(0)));
    script.drain();
    script.host(HostEvent::SendSpace { free: ROOM });
    script.host(HostEvent::Connected);
    script.segment(&seg(ACK, first.seq + 1, iss + 1), 0).unwrap();
    script.host_sends(30_000);
    script.segment(&seg(ACK, first.seq + 1, iss + 30_001), 5000).unwrap();
    assert_eq!((script.discarded, script.flow.bytes_in(), script.flow.bytes_out()), (30_000, 30_000, 5000));
}

#[test]
fn an_idle_flow_is_silent() {
    let mut script = Script::open();
    script.pass(Duration::from_secs(3600));
    assert_eq!(script.sent(), []);
}

#[test]
fn a_probe_that_an_urgent_mark_cuts_short_is_one_probe() {
    let mut script = Script::open();
    script.flow.handle_host(HostEvent::Readable, script.now);
    let mut peeks = 0;
    // The kernel ends a peek at the mark, however much there is behind it.
    let (mark, end) = (2500, 3000);
    for due in [false, true] {
        if due {
            script.now = script.flow.poll_timeout().unwrap();
            script.flow.handle_timeout(script.now);
        }
        while let Some(output) = script.flow.poll_output(script.now) {
            let Output::Peek { at, max, .. } = output else { continue };
            let len = max.min(if at < mark { mark - at } else { end - at });
            script.flow.handle_peeked(
                at,
                len,
                if len == 0 { PeekEnd::Empty } else { PeekEnd::More },
                script.now,
            );
            peeks += 1;
            assert!(peeks < 10, "peeks without end");
        }
    }
    assert!(peeks > 3, "the tail was probed");
}

#[test]
fn what_the_host_refuses_is_written_when_it_has_room_and_not_before() {
    let mut script = Script::open();
    let accept = script.flow.handle_segment(&seg(ACK, IRS + 1, ISS + 1), 1000, script.now).unwrap();
    assert!(matches!(accept, Accept::Deliver { .. }));
    script.flow.handle_host(HostEvent::Wrote { len: 0, kept: 1000 }, script.now);
    let outputs: Vec<_> = std::iter::from_fn(|| script.flow.poll_output(script.now)).take(10).collect();
    assert!(outputs.contains(&Output::WatchSendSpace));
    assert!(!outputs.iter().any(|output| matches!(output, Output::WriteKept { .. })), "{outputs:?}");

    script.flow.handle_host(HostEvent::SendSpace { free: ROOM }, script.now);
    assert_eq!(script.flow.poll_output(script.now), Some(Output::WriteKept { at: IRS + 1, len: 1000 }));
    // A write that falls short again waits again.
    script.flow.handle_wrote_kept(400, script.now);
    let outputs: Vec<_> = std::iter::from_fn(|| script.flow.poll_output(script.now)).take(10).collect();
    assert!(!outputs.iter().any(|output| matches!(output, Output::WriteKept { .. })), "{outputs:?}");
}

// --- acknowledgements and discards that wait ----------------------------------------------------

/// An open flow whose guest has sent a request of 10 bytes and has its answer of 5.
fn acquainted() -> Script {
    let mut script = Script::open();
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 10).unwrap();
    assert_eq!(script.sent(), [(ACK, 1, 11, 0)], "the first is acknowledged at once");
    script.host_sends(5);
    assert_eq!(script.sent(), [(ACK, 1, 11, 5)]);
    script.segment(&seg(ACK, IRS + 11, ISS + 6), 0).unwrap();
    assert_eq!((script.discarded, script.queue), (5, 0));
    script
}

/// The next such exchange, the first being number 1: the request acknowledges the answer before.
fn exchange(script: &mut Script, number: u32) {
    let (request, answer) = (1 + 10 * number, 1 + 5 * number);
    script.segment(&seg(ACK, IRS + request, ISS + answer), 10).unwrap();
    assert_eq!(script.sent(), [], "an acknowledgement with nothing to go with");
    script.host_sends(5);
    assert_eq!(script.sent(), [(ACK, answer, request + 10, 5)]);
}

#[test]
fn an_answer_carries_the_acknowledgement_of_its_request() {
    let mut script = acquainted();
    (1..100).for_each(|number| exchange(&mut script, number));
    let next = script.flow.poll_timeout().expect("a retransmission timeout");
    assert!(next - script.now >= Duration::from_millis(100), "{next:?}");
}

#[test]
fn a_request_without_an_answer_is_acknowledged_soon_and_the_next_at_once() {
    let mut script = acquainted();
    script.segment(&seg(ACK, IRS + 11, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), []);
    assert!(script.jump() <= Duration::from_millis(5));
    assert_eq!(script.sent(), [(ACK, 6, 21, 0)]);
    script.segment(&seg(ACK, IRS + 21, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 31, 0)]);
}

#[test]
fn a_guest_that_waits_for_each_acknowledgement_waits_a_little_in_all() {
    let mut script = Script::open();
    let start = script.now;
    for number in 0..10_000 {
        script.segment(&seg(ACK, IRS + 1 + number * 10, ISS + 1), 10).unwrap();
        while script.segments.is_empty() {
            script.jump();
        }
        assert_eq!(script.sent(), [(ACK, 1, 11 + number * 10, 0)]);
    }
    assert!(script.now - start < Duration::from_millis(50), "{:?}", script.now - start);
}

#[test]
fn only_small_messages_in_order_wait_for_their_acknowledgement() {
    let mut script = acquainted();
    script.segment(&seg(ACK, IRS + 11, ISS + 6), 1460).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 1471, 0)]);
    script.segment(&seg(ACK, IRS + 1471, ISS + 6), 600).unwrap();
    assert_eq!(script.sent(), []);
    script.segment(&seg(ACK, IRS + 2071, ISS + 6), 600).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 2671, 0)]);
    script.segment(&seg(ACK, IRS + 2671, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), []);
    script.segment(&seg(ACK, IRS + 2671, ISS + 6), 10).unwrap_err();
    assert_eq!(script.sent(), [(ACK, 6, 2681, 0)]);
    script.segment(&seg(ACK, IRS + 2691, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 2681, 0)]);
}

#[test]
fn answers_are_discarded_together() {
    let mut script = acquainted();
    (1..=16).for_each(|number| exchange(&mut script, number));
    assert_eq!(script.discarded, 5);
    (17..100).for_each(|number| exchange(&mut script, number));
    assert!(script.discarded >= 400, "{}", script.discarded);
    // Nothing follows: the host's peer may wait to hear that all was read.
    script.segment(&seg(ACK, IRS + 1001, ISS + 501), 0).unwrap();
    assert_eq!((script.discarded, script.queue), (500, 0));
}

#[test]
fn large_answers_are_discarded_at_once() {
    let mut script = acquainted();
    script.host_sends(1500);
    script.segment(&seg(ACK, IRS + 11, ISS + 1506), 10).unwrap();
    assert_eq!(script.queue, 0);
}

#[test]
fn a_close_leaves_nothing_of_what_waits_to_be_discarded() {
    let mut script = acquainted();
    (1..4).for_each(|number| exchange(&mut script, number));
    script.sent();
    script.host_ends();
    assert_eq!(script.sent(), [(FIN, 21, 41, 0)]);
    assert_eq!(script.queue, 15);
    script.segment(&seg(FIN, IRS + 41, ISS + 22), 0).unwrap();
    assert_eq!(script.ops, [Output::CloseHost]);
    assert_eq!(script.queue, 0, "a close with unread bytes is a reset");
}

#[test]
fn the_end_of_the_stream_goes_with_its_last_bytes() {
    let mut script = Script::open();
    let now = script.now;
    script.flow.handle_host(HostEvent::Readable, now);
    assert!(matches!(script.flow.poll_output(now), Some(Output::Peek { at: 0, .. })));
    let header = script.flow.handle_peeked(0, 100, PeekEnd::Eof, now).unwrap();
    assert_eq!((header.flags, header.seq), (TcpFlags(FIN.0 | TcpFlags::PSH.0), ISS + 1));
    (script.queue, script.eof) = (100, true);
    assert_eq!(script.drain(), []);
    // It was lost.
    script.jump();
    assert_eq!(script.sent(), [(ACK, 1, 1, 100), (FIN, 101, 1, 0)]);
    script.segment(&seg(FIN, IRS + 1, ISS + 102), 0).unwrap();
    assert_eq!((script.flow.state_name(), script.queue), ("TIME-WAIT", 0));
}

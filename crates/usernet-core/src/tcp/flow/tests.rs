//! Scripts of segments. The guest's sequence numbers begin at 1000, ours at 5000.

mod ends;
mod handshake;
mod inward;
mod outward;
mod time;
mod waits;

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

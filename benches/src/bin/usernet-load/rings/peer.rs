//! As much TCP as it takes to keep a link busy that loses nothing: no congestion control, no reassembly.
//!
//! What is missing is sent again from where the other end says, after three acknowledgements that say the
//! same or when it has said nothing for a while. What comes out of order is dropped.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use usernet_benches::Family;
use usernet_core::tcp::SeqNumber;
use usernet_core::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpHeader,
    MacAddr, PROTOCOL_TCP, TCP_HEADER_LEN, TcpFlags, TcpHeader,
};

use super::card::Pair;

const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const GUEST_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
/// What IP can count.
const MAX_PACKET: usize = 65_535;
/// The window is 4 MiB, about what Linux ends up with.
const SCALE: u8 = 6;
const WINDOW: u16 = u16::MAX;
const ISS: SeqNumber = SeqNumber(1000);
/// When what was sent is taken for lost.
const RETRY: Duration = Duration::from_millis(200);
/// When the other end is taken for gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// One end of a connection, and the queues that it goes through.
pub(super) struct Peer<'m> {
    pair: Pair<'m>,
    tcp: Tcp,
    /// What is sent first; zeroes follow.
    request: Vec<u8>,
    /// Payload bytes of a full frame.
    frame: usize,
    heard: Instant,
}

impl<'m> Peer<'m> {
    /// Connects from this port.
    ///
    /// # Errors
    /// There is no answer, or a refusal.
    pub(super) fn connect(
        mut pair: Pair<'m>,
        server: SocketAddr,
        port: u16,
        mtu: u16,
        request: Vec<u8>,
    ) -> Result<Self> {
        let family = Family::of(server.ip());
        let headers = TCP_HEADER_LEN
            + match family {
                Family::V4 => IPV4_HEADER_LEN,
                Family::V6 => IPV6_HEADER_LEN,
            };
        let tcp = Tcp {
            ip: IpHeader::new(family.guest(), server.ip(), PROTOCOL_TCP),
            ports: (port, server.port()),
            mss: mtu - u16::try_from(headers)?,
            scale: 0,
            acknowledged: 0,
            sent: 0,
            allowed: 0,
            rcv_nxt: SeqNumber(0),
            received: 0,
            answer: Vec::new(),
            repeated: 0,
            state: State::Connecting,
        };
        let syn = TcpHeader {
            seq: ISS,
            flags: TcpFlags::SYN,
            mss: Some(tcp.mss),
            window_scale: Some(SCALE),
            ..tcp.header()
        };
        pair.send(&tcp.frame(&syn, 0), &[], 0)?;
        let mut peer = Self { pair, tcp, request, frame: 0, heard: Instant::now() };
        while peer.tcp.state == State::Connecting {
            peer.turn(|_| Ok(false))?;
        }
        let mss = usize::from(peer.tcp.mss);
        peer.frame = (MAX_PACKET - headers) / mss * mss;
        Ok(peer)
    }

    /// Sends until `len` bytes have been answered; returns them.
    pub(super) fn send(&mut self, len: usize) -> Result<&[u8]> {
        while self.tcp.answer.len() < len {
            self.turn(Self::fill)?;
        }
        Ok(&self.tcp.answer)
    }

    /// Receives until `time` is over; returns how many bytes that were, and how long it took.
    pub(super) fn receive(&mut self, time: Duration) -> Result<(u64, Duration)> {
        let (began, before) = (Instant::now(), self.tcp.received);
        while began.elapsed() < time {
            self.turn(Self::ask)?;
        }
        Ok((self.tcp.received - before, began.elapsed()))
    }

    /// All bytes that were acknowledged by the other end, and that came from it.
    pub(super) fn moved(&self) -> u64 {
        self.tcp.acknowledged + self.tcp.received
    }

    /// Ends the connection, whatever is under way.
    pub(super) fn abort(mut self) -> Result<()> {
        let reset = TcpHeader { flags: TcpFlags::RST | TcpFlags::ACK, ..self.tcp.header() };
        while !self.pair.send(&self.tcp.frame(&reset, 0), &[], 0)? {
            self.pair.wait(RETRY)?;
        }
        self.pair.publish();
        self.pair.drain()
    }

    /// Takes in what has come and acknowledges it, has `send` do its part, and waits where neither had
    /// anything to do.
    fn turn(&mut self, send: fn(&mut Self) -> Result<bool>) -> Result<()> {
        let (before, tcp) = (self.tcp.received, &mut self.tcp);
        let heard = self.pair.receive(|frame| tcp.hear(frame))? > 0;
        ensure!(self.tcp.state != State::Reset, "the connection was reset");
        if heard {
            self.heard = Instant::now();
        }
        if self.tcp.repeated >= 3 {
            self.tcp.send_again();
        }
        if self.tcp.received != before {
            self.emit(&[], 0)?;
        }
        let sent = send(self)?;
        self.pair.publish();
        if !heard && !sent && !self.pair.wait(RETRY)? {
            ensure!(self.heard.elapsed() < PATIENCE, "nothing has been heard for 5 s");
            self.tcp.send_again();
        }
        Ok(())
    }

    /// Sends the request and nothing else.
    fn ask(&mut self) -> Result<bool> {
        Ok(self.tcp.sent < self.request.len() as u64 && self.fill()?)
    }

    /// Sends what the window has room for, as far as there are slots for it.
    fn fill(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            let sent = usize::try_from(self.tcp.sent)?;
            let start = self.request.get(sent..).unwrap_or_default().to_vec();
            let window = usize::try_from(self.tcp.allowed.saturating_sub(self.tcp.sent))?;
            let len = if start.is_empty() { self.frame.min(window) } else { start.len() };
            // A piece only where nothing else would open the window.
            let waits = start.is_empty() && len < self.frame && self.tcp.sent > self.tcp.acknowledged;
            if len == 0 || waits || !self.emit(&start, len)? {
                return Ok(any);
            }
            self.tcp.sent += len as u64;
            any = true;
            if !start.is_empty() {
                return Ok(true);
            }
        }
    }

    fn emit(&mut self, start: &[u8], len: usize) -> Result<bool> {
        self.pair.send(&self.tcp.frame(&self.tcp.header(), len), start, len)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Connected,
    Reset,
}

/// Where a connection stands. Bytes are counted from the first one of data.
struct Tcp {
    ip: IpHeader,
    ports: (u16, u16),
    mss: u16,
    /// The shift of the other end's window.
    scale: u8,
    acknowledged: u64,
    sent: u64,
    /// The end of the other end's window.
    allowed: u64,
    rcv_nxt: SeqNumber,
    received: u64,
    /// What came first.
    answer: Vec<u8>,
    /// Acknowledgements in a row that say the same.
    repeated: u32,
    state: State,
}

impl Tcp {
    fn header(&self) -> TcpHeader {
        TcpHeader {
            src_port: self.ports.0,
            dst_port: self.ports.1,
            seq: position(self.sent),
            ack: self.rcv_nxt,
            flags: TcpFlags::ACK,
            window: WINDOW,
            ..TcpHeader::default()
        }
    }

    fn frame(&self, header: &TcpHeader, len: usize) -> Headers {
        Headers::tcp(GATEWAY_MAC, GUEST_MAC, &self.ip, header, len, self.mss)
    }

    /// From the first byte that was not acknowledged.
    fn send_again(&mut self) {
        (self.sent, self.repeated) = (self.acknowledged, 0);
    }

    /// Takes in a frame, of which this is the start. What is not of this connection is of no interest.
    fn hear(&mut self, frame: &[u8]) -> Option<()> {
        let (ethernet, packet) = EthernetHeader::parse(frame).ok()?;
        let (ip, header_len, len) = match ethernet.ethertype {
            ETHERTYPE_IPV4 => IpHeader::parse_v4(packet, usize::MAX).ok()?,
            ETHERTYPE_IPV6 => IpHeader::parse_v6(packet, usize::MAX).ok()?,
            _ => return None,
        };
        let segment = packet.get(header_len..)?;
        let (header, header_len) = TcpHeader::parse(segment).ok().filter(|_| ip.protocol == PROTOCOL_TCP)?;
        if (header.dst_port, header.src_port) != self.ports {
            return None;
        }
        let (len, payload) = (len.checked_sub(header_len)?, segment.get(header_len..)?);
        if header.flags.contains(TcpFlags::RST) {
            self.state = State::Reset;
        } else if header.flags.contains(TcpFlags::SYN) {
            self.rcv_nxt = header.seq + 1;
            self.mss = header.mss.map_or(self.mss, |mss| mss.min(self.mss));
            // RFC 7323 §2.2: the window of a SYN is never scaled.
            self.allowed = header.window.into();
            self.scale = header.window_scale.unwrap_or(0);
            self.state = State::Connected;
        } else {
            self.hear_acknowledgement(&header, len);
            self.hear_data(&header, len, payload);
        }
        Some(())
    }

    fn hear_acknowledgement(&mut self, header: &TcpHeader, len: usize) {
        let more = u64::from(header.ack - position(self.acknowledged));
        // What was sent may have been taken back meanwhile: the other end has it all the same.
        if more > u64::from(u32::MAX / 2) {
            return;
        }
        let allowed = self.acknowledged + more + (u64::from(header.window) << self.scale);
        let same = more == 0 && len == 0 && allowed == self.allowed && self.sent > self.acknowledged;
        self.repeated = if same { self.repeated + 1 } else { 0 };
        self.acknowledged += more;
        self.sent = self.sent.max(self.acknowledged);
        self.allowed = self.allowed.max(allowed);
    }

    fn hear_data(&mut self, header: &TcpHeader, len: usize, payload: &[u8]) {
        if header.seq == self.rcv_nxt {
            self.rcv_nxt += u32::try_from(len).unwrap_or(0);
            self.received += len as u64;
            // Whoever reads the answer wants its first few bytes.
            if self.answer.len() < ANSWER {
                self.answer.extend(payload.iter().take(len));
            }
        }
    }
}

/// How much of what comes is kept, in bytes.
const ANSWER: usize = 64;

/// The sequence number of a byte of data.
fn position(byte: u64) -> SeqNumber {
    let [a, b, c, d, ..] = byte.to_le_bytes();
    ISS + 1 + u32::from_le_bytes([a, b, c, d])
}

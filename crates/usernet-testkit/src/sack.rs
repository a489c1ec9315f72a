//! A guest that receives one stream and knows SACK, as Linux does; smoltcp does not.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use usernet_core::tcp::SeqNumber;
use usernet_core::time::Instant;
use usernet_core::wire::{MacAddr, TcpFlags, TcpHeader};

use crate::bytes::{Digest, Hasher};
use crate::frames::{Segment, tcp_frame};
use crate::sim::{Guest, GuestConfig};

const RETRY: Duration = Duration::from_secs(1);
const SHIFT: u8 = 7;
const MSS: u16 = 1460;

/// A guest that connects, receives until the end of the peer's stream, and closes.
pub struct SackGuest {
    mac: MacAddr,
    addr: Ipv4Addr,
    to: SocketAddrV4,
    /// Bytes that it has room for beyond what came in order.
    pub window: u32,
    iss: SeqNumber,
    irs: Option<SeqNumber>,
    /// Bytes in order so far, the SYN not counted.
    received: Hasher,
    beyond: BTreeMap<u64, Vec<u8>>,
    /// Where the segment that came last, out of order, begins.
    latest: u64,
    fin_at: Option<u64>,
    /// Whether our FIN was acknowledged.
    pub closed: bool,
    retry: Instant,
    out: Vec<Vec<u8>>,
    /// Segments that brought nothing new.
    pub duplicates: u64,
    /// Segments with payload.
    pub segments: u64,
}

impl SackGuest {
    /// A guest that connects to `to` with this window.
    pub fn new(config: GuestConfig, to: SocketAddrV4, window: u32) -> Self {
        Self {
            mac: config.mac,
            addr: config.addr.expect("an address"),
            to,
            window,
            iss: SeqNumber(config.seed as u32),
            irs: None,
            received: Hasher::default(),
            beyond: BTreeMap::new(),
            latest: 0,
            fin_at: None,
            closed: false,
            retry: Instant::ZERO,
            out: Vec::new(),
            duplicates: 0,
            segments: 0,
        }
    }

    /// Bytes received in order.
    pub fn received(&self) -> u64 {
        self.received.len
    }

    /// Their digest.
    pub fn digest(&self) -> Digest {
        self.received.digest()
    }

    fn eof(&self) -> bool {
        self.fin_at == Some(self.received.len)
    }

    fn header(&self, flags: TcpFlags) -> TcpHeader {
        TcpHeader {
            src_port: 40000,
            dst_port: self.to.port(),
            seq: self.iss + 1,
            flags,
            window: (self.window >> SHIFT).min(65535) as u16,
            ..TcpHeader::default()
        }
    }

    fn send(&mut self, header: &TcpHeader) {
        let gateway = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
        self.out.push(tcp_frame(gateway, self.mac, self.addr, *self.to.ip(), header, &[]));
    }

    fn acknowledge(&mut self) {
        let Some(irs) = self.irs else { return };
        let fin = self.eof();
        let flags = if fin { TcpFlags::FIN | TcpFlags::ACK } else { TcpFlags::ACK };
        let mut header = self.header(flags);
        header.ack = irs + (self.received.len as u32).wrapping_add(1 + u32::from(fin));
        // RFC 2018 §4: the block with the latest segment first.
        let mut blocks: Vec<(u64, u64)> = Vec::new();
        for (at, bytes) in &self.beyond {
            let end = at + bytes.len() as u64;
            match blocks.last_mut() {
                Some(last) if last.1 >= *at => last.1 = last.1.max(end),
                _ => blocks.push((*at, end)),
            }
        }
        blocks.sort_by_key(|(left, right)| !(*left..*right).contains(&self.latest));
        for (slot, (left, right)) in header.sack.iter_mut().zip(blocks) {
            *slot = Some((irs + 1 + left as u32, irs + 1 + right as u32));
        }
        self.send(&header);
    }

    fn take(&mut self, at: u64, payload: Vec<u8>) {
        self.segments += 1;
        let end = at + payload.len() as u64;
        assert!(end <= self.received.len + u64::from(self.window), "beyond the window");
        let old = self.beyond.get(&at).is_some_and(|known| known.len() >= payload.len());
        if end <= self.received.len || old {
            self.duplicates += 1;
            return;
        }
        self.latest = at;
        self.beyond.insert(at, payload);
        while let Some((at, _)) = self.beyond.first_key_value().filter(|(at, _)| **at <= self.received.len) {
            let at = *at;
            let bytes = self.beyond.remove(&at).unwrap();
            let skip = (self.received.len - at) as usize;
            self.received.update(bytes.get(skip..).unwrap_or_default());
        }
    }
}

impl Guest for SackGuest {
    fn receive(&mut self, frame: Vec<u8>, now: Instant) {
        let Some(segment) = Segment::parse(&frame) else { return };
        let header = segment.header;
        assert!(!header.flags.contains(TcpFlags::RST), "a reset");
        if header.flags.contains(TcpFlags::SYN) {
            assert!(header.sack_permitted && header.window_scale.is_some());
            self.irs = Some(header.seq);
            self.acknowledge();
            self.retry = now + RETRY;
            return;
        }
        let Some(irs) = self.irs else { return };
        self.closed |= self.eof() && header.ack == self.iss + 2;
        // The distance from what came in order, which is below 2³¹ either way.
        let next = irs + 1 + self.received.len as u32;
        let ahead = i64::from((header.seq - next).cast_signed());
        let at = (self.received.len as i64 + ahead) as u64;
        if header.flags.contains(TcpFlags::FIN) {
            self.fin_at = Some(at + segment.payload.len() as u64);
        }
        if !segment.payload.is_empty() {
            self.take(at, segment.payload);
        }
        if !self.closed {
            self.acknowledge();
        }
    }

    fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if now >= self.retry && !self.closed {
            self.retry = now + RETRY;
            if self.irs.is_some() {
                self.acknowledge();
            } else {
                let syn = TcpHeader {
                    seq: self.iss,
                    mss: Some(MSS),
                    window_scale: Some(SHIFT),
                    sack_permitted: true,
                    window: self.window.min(65535) as u16,
                    ..self.header(TcpFlags::SYN)
                };
                self.send(&syn);
            }
        }
        std::mem::take(&mut self.out)
    }

    fn next(&mut self, _: Instant) -> Option<Instant> {
        (!self.closed).then_some(self.retry)
    }
}

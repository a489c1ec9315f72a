//! What a driver with offloads leaves to the device: checksums, and the cutting of super-frames.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, checksum,
};
use usernet_core::offload::{Checksum, Offload, SegmentKind, Segmentation};

use crate::Unfinished;

const ETHERNET: usize = 14;
/// Bytes of an IP packet at most.
const MAX_PACKET: usize = 65_535;

/// Where the parts of a TCP or UDP packet are.
struct Layout {
    src: IpAddress,
    dst: IpAddress,
    protocol: IpProtocol,
    transport: usize,
    payload: usize,
}

impl Layout {
    fn of(frame: &[u8]) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let (src, dst, protocol, transport) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(&frame[ETHERNET..]).ok()?;
                let transport = ETHERNET + usize::from(ip.header_len());
                (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), transport)
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(&frame[ETHERNET..]).ok()?;
                (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), ETHERNET + 40)
            }
            _ => return None,
        };
        let payload = transport
            + match protocol {
                IpProtocol::Tcp => {
                    usize::from(TcpPacket::new_checked(&frame[transport..]).ok()?.header_len())
                }
                IpProtocol::Udp => 8,
                _ => return None,
            };
        Some(Self { src, dst, protocol, transport, payload })
    }
}

/// Leaves a checksum to the device: in its place is the sum of the pseudo header.
pub(super) fn without_checksum(mut bytes: Vec<u8>) -> Unfinished {
    let Some(Layout { src, dst, protocol, transport, .. }) = Layout::of(&bytes) else { return bytes.into() };
    let offset = if protocol == IpProtocol::Tcp { 16 } else { 6 };
    let len = (bytes.len() - transport) as u32;
    let sum = match (src, dst) {
        (IpAddress::Ipv4(src), IpAddress::Ipv4(dst)) => checksum::pseudo_header_v4(&src, &dst, protocol, len),
        (IpAddress::Ipv6(src), IpAddress::Ipv6(dst)) => checksum::pseudo_header_v6(&src, &dst, protocol, len),
        _ => return bytes.into(),
    };
    let field = transport + offset;
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    let checksum = Checksum::Partial { start: transport as u16, offset: offset as u16 };
    Unfinished { bytes, offload: Offload { checksum, ..Offload::default() } }
}

/// A TCP segment, or several that follow each other.
struct Joined {
    bytes: Vec<u8>,
    /// Payload bytes of each packet but the last; 0: nothing can follow.
    size: usize,
    packets: usize,
}

impl Joined {
    fn new(bytes: Vec<u8>) -> Self {
        let tcp = Layout::of(&bytes).filter(|layout| layout.protocol == IpProtocol::Tcp);
        let size = tcp.map_or(0, |layout| bytes.len() - layout.payload);
        Self { bytes, size, packets: 1 }
    }

    /// Takes the next segment, if it is that.
    fn join(&mut self, frame: &[u8]) -> bool {
        let (Some(own), Some(other)) = (Layout::of(&self.bytes), Layout::of(frame)) else { return false };
        let len = frame.len() - other.payload;
        let whole = (self.bytes.len() - own.payload).is_multiple_of(self.size.max(1));
        let fits = whole && (1..=self.size).contains(&len) && self.bytes.len() - ETHERNET + len <= MAX_PACKET;
        if !fits || (own.src, own.dst, own.payload) != (other.src, other.dst, other.payload) {
            return false;
        }
        let tcp = TcpPacket::new_unchecked(&self.bytes[own.transport..]);
        let next = TcpPacket::new_unchecked(&frame[other.transport..]);
        let payload = tcp.payload().len();
        let same = (tcp.src_port(), tcp.dst_port(), tcp.ack_number(), tcp.window_len(), tcp.options())
            == (next.src_port(), next.dst_port(), next.ack_number(), next.window_len(), next.options());
        let flags = tcp.syn() || tcp.fin() || tcp.rst() || next.syn() || next.fin() || next.rst();
        if !same || flags || tcp.seq_number() + payload != next.seq_number() {
            return false;
        }
        let push = tcp.psh() || next.psh();
        TcpPacket::new_unchecked(&mut self.bytes[own.transport..]).set_psh(push);
        self.bytes.extend_from_slice(&frame[other.payload..]);
        self.packets += 1;
        true
    }

    fn finish(mut self) -> Unfinished {
        let Some(layout) = Layout::of(&self.bytes).filter(|_| self.packets > 1) else {
            return without_checksum(self.bytes);
        };
        let len = self.bytes.len() - ETHERNET;
        let kind = if matches!(layout.src, IpAddress::Ipv4(_)) {
            let mut ip = Ipv4Packet::new_unchecked(&mut self.bytes[ETHERNET..]);
            ip.set_total_len(len as u16);
            ip.fill_checksum();
            SegmentKind::Tcp4
        } else {
            Ipv6Packet::new_unchecked(&mut self.bytes[ETHERNET..]).set_payload_len((len - 40) as u16);
            SegmentKind::Tcp6
        };
        let mut frame = without_checksum(self.bytes);
        let (size, header_len) = (self.size as u16, layout.payload as u16);
        frame.offload.segmentation = Some(Segmentation { kind, size, header_len });
        frame
    }
}

/// Joins TCP segments that follow each other into super-frames.
pub(super) fn joined(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Unfinished> {
    let mut out: Vec<Joined> = Vec::new();
    for frame in frames {
        if !out.last_mut().is_some_and(|last| last.join(&frame)) {
            out.push(Joined::new(frame));
        }
    }
    out.into_iter().map(Joined::finish).collect()
}

//! Frames by hand, and the work that a link does on the frames that it is given.

use std::net::Ipv4Addr;

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket, checksum};
use usernet_core::frame::FrameBytes;
use usernet_core::offload::{Checksum, Offload};
use usernet_core::wire::{
    ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, EthernetHeader, Headers, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpHeader,
    MacAddr, PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader, fragments,
};

/// A TCP segment out of a frame.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The source address.
    pub src: Ipv4Addr,
    /// The destination address.
    pub dst: Ipv4Addr,
    /// The TCP header.
    pub header: TcpHeader,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Segment {
    /// The segment in a frame; `None` when there is none.
    ///
    /// # Panics
    /// When a checksum is wrong.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, rest) = EthernetHeader::parse(frame).ok()?;
        if ethernet.ethertype != ETHERTYPE_IPV4 {
            return None;
        }
        let (ip, header_len, len) = IpHeader::parse_v4(rest, rest.len()).ok()?;
        if ip.protocol != PROTOCOL_TCP {
            return None;
        }
        let packet = Ipv4Packet::new_checked(rest).ok()?;
        assert!(packet.verify_checksum(), "IP checksum");
        let transport = &rest[header_len..header_len + len];
        let (src, dst) = (packet.src_addr(), packet.dst_addr());
        assert!(
            TcpPacket::new_checked(transport).ok()?.verify_checksum(&src.into(), &dst.into()),
            "TCP checksum"
        );
        let (header, header_len) = TcpHeader::parse(transport).ok()?;
        Some(Self { src, dst, header, payload: transport[header_len..].to_vec() })
    }
}

/// A frame and what it leaves undone.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The frame.
    pub bytes: Vec<u8>,
    /// What is left.
    pub offload: Offload,
}

impl From<Vec<u8>> for Unfinished {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, offload: Offload::default() }
    }
}

impl FrameBytes for Unfinished {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn offload(&self) -> Offload {
        self.offload
    }

    fn copy_to(&self, at: usize, to: &mut [u8]) -> usize {
        self.bytes.copy_to(at, to)
    }
}

/// A frame with a TCP segment, its checksums complete.
pub fn tcp_frame(
    to: MacAddr,
    from: MacAddr,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    tcp: &TcpHeader,
    payload: &[u8],
) -> Vec<u8> {
    let ip = ip_header(src, dst, PROTOCOL_TCP);
    let headers = Headers::tcp(to, from, &ip, tcp, payload.len(), u16::MAX);
    finish(&headers, payload)
}

/// A frame with a UDP datagram, its checksums complete.
pub fn udp_frame(
    to: MacAddr,
    from: MacAddr,
    src: (Ipv4Addr, u16),
    dst: (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let ip = ip_header(src.0, dst.0, PROTOCOL_UDP);
    finish(&Headers::udp(to, from, &ip, (src.1, dst.1), payload.len(), u16::MAX), payload)
}

/// A super-frame of UDP, for datagrams of `segment` bytes.
pub fn udp_super_frame(
    to: MacAddr,
    from: MacAddr,
    src: (Ipv4Addr, u16),
    dst: (Ipv4Addr, u16),
    payload: &[u8],
    segment: u16,
) -> Unfinished {
    let ip = ip_header(src.0, dst.0, PROTOCOL_UDP);
    let headers = Headers::udp(to, from, &ip, (src.1, dst.1), payload.len(), segment);
    Unfinished { bytes: [&headers, payload].concat(), offload: headers.offload }
}

fn ip_header(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8) -> IpHeader {
    IpHeader::new(src.into(), dst.into(), protocol)
}

/// The one frame that `headers` and `payload` make, its checksum completed.
pub fn finish(headers: &Headers, payload: &[u8]) -> Vec<u8> {
    let mut frame = headers.to_vec();
    frame.extend_from_slice(payload);
    complete_checksum(&mut frame, headers.offload);
    frame
}

pub(crate) fn complete_checksum(frame: &mut [u8], offload: Offload) {
    if let Checksum::Partial { start, offset } = offload.checksum {
        let (start, field) = (usize::from(start), usize::from(start + offset));
        let sum = !checksum::data(&frame[start..]);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The wire packets that headers and payload stand for, in fragments where they are to go so.
pub fn packets(headers: &Headers, payload: &[u8]) -> Vec<Vec<u8>> {
    fragmented(segments(headers, payload), headers.offload)
}

pub(crate) fn fragmented(packets: Vec<Vec<u8>>, offload: Offload) -> Vec<Vec<u8>> {
    let Some(mut how) = offload.fragmentation else { return packets };
    let mut frames = Vec::new();
    for packet in packets {
        frames.extend(fragments(&packet, how).map(|(headers, data)| [&headers, data].concat()));
        how.ident = how.ident.wrapping_add(1);
    }
    frames
}

/// The wire packets that a super-frame stands for.
fn segments(headers: &Headers, payload: &[u8]) -> Vec<Vec<u8>> {
    let Some(segmentation) = headers.offload.segmentation else { return vec![finish(headers, payload)] };
    assert_eq!(usize::from(segmentation.header_len), headers.len());
    let size = usize::from(segmentation.size);
    let last = payload.len().div_ceil(size) - 1;
    payload.chunks(size).enumerate().map(|(i, chunk)| cut(headers, chunk, i * size, i == last)).collect()
}

fn cut(headers: &[u8], payload: &[u8], at: usize, last: bool) -> Vec<u8> {
    let mut frame = headers.to_vec();
    frame.extend_from_slice(payload);
    let len = frame.len() - ETHERNET_HEADER_LEN;
    let bytes = &mut frame[ETHERNET_HEADER_LEN..];
    let (src, dst, protocol, header_len): (IpAddress, IpAddress, _, _) = if bytes[0] >> 4 == 4 {
        let mut ip = Ipv4Packet::new_unchecked(bytes);
        ip.set_total_len(len as u16);
        ip.fill_checksum();
        (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), IPV4_HEADER_LEN)
    } else {
        let mut ip = Ipv6Packet::new_unchecked(bytes);
        ip.set_payload_len((len - IPV6_HEADER_LEN) as u16);
        (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), IPV6_HEADER_LEN)
    };
    let transport = &mut frame[ETHERNET_HEADER_LEN + header_len..];
    if protocol == IpProtocol::Udp {
        let mut udp = UdpPacket::new_unchecked(transport);
        udp.set_len((len - header_len) as u16);
        udp.fill_checksum(&src, &dst);
        return frame;
    }
    let mut tcp = TcpPacket::new_unchecked(transport);
    let seq = tcp.seq_number();
    tcp.set_seq_number(seq + at);
    if !last {
        tcp.set_psh(false);
        tcp.set_fin(false);
    }
    tcp.fill_checksum(&src, &dst);
    frame
}

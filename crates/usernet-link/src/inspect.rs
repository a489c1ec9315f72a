//! For tests: reads frames with a parser that the crate itself does not use.
#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// What a wire packet says.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    pub(crate) ident: Option<u16>,
    pub(crate) seq: u32,
    pub(crate) ports: (u16, u16),
    pub(crate) fin: bool,
    pub(crate) psh: bool,
    pub(crate) cwr: bool,
    pub(crate) payload: Vec<u8>,
}

/// Reads a finished frame, whose lengths and checksums must all be right.
pub(crate) fn packet(frame: &[u8]) -> Packet {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let mut packet = Packet::default();
    let addresses = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum(), "IPv4 header checksum");
            packet.ident = Some(ip.identification());
            Ok((ip.source(), ip.destination()))
        }
        NetSlice::Ipv6(ip) => Err((ip.header().source(), ip.header().destination())),
        NetSlice::Arp(_) => panic!("no IP packet"),
    };
    let checksums = match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            packet.seq = tcp.sequence_number();
            packet.ports = (tcp.source_port(), tcp.destination_port());
            (packet.fin, packet.psh, packet.cwr) = (tcp.fin(), tcp.psh(), tcp.cwr());
            packet.payload = tcp.payload().to_vec();
            let right = match addresses {
                Ok((from, to)) => tcp.calc_checksum_ipv4(from, to).unwrap(),
                Err((from, to)) => tcp.calc_checksum_ipv6(from, to).unwrap(),
            };
            (tcp.checksum(), right)
        }
        TransportSlice::Udp(udp) => {
            packet.ports = (udp.source_port(), udp.destination_port());
            packet.payload = udp.payload().to_vec();
            let header = udp.to_header();
            let right = match addresses {
                Ok((from, to)) => header.calc_checksum_ipv4_raw(from, to, udp.payload()).unwrap(),
                Err((from, to)) => header.calc_checksum_ipv6_raw(from, to, udp.payload()).unwrap(),
            };
            (udp.checksum(), right)
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    assert_eq!(checksums.0, checksums.1, "transport checksum");
    packet
}

/// `len` bytes in which no two stretches are alike.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    (0..len.div_ceil(4))
        .flat_map(|word| (word as u32).wrapping_mul(0x9e37_79b1).to_be_bytes())
        .take(len)
        .collect()
}

/// Whatever a template can be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Template {
    pub(crate) ipv6: bool,
    pub(crate) udp: bool,
    pub(crate) vlan: bool,
    pub(crate) seq: u32,
}

impl Template {
    /// The headers with FIN, PSH and CWR set, 12 bytes of TCP options, and no sensible lengths or
    /// checksums.
    pub(crate) fn header(self) -> Vec<u8> {
        use etherparse::*;
        let ip = if self.ipv6 {
            let header = Ipv6Header {
                source: [0xfd; 16],
                destination: [0xfe; 16],
                hop_limit: 64,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        } else {
            let mut header = Ipv4Header::new(0, 64, IpNumber::TCP, [10, 0, 2, 2], [10, 0, 2, 15]).unwrap();
            header.identification = 0xfffe;
            IpHeaders::Ipv4(header, Default::default())
        };
        let ethernet = PacketBuilder::ethernet2([0x52, 0x55, 10, 0, 2, 2], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let ip = if self.vlan {
            ethernet.single_vlan(VlanId::try_new(7).unwrap()).ip(ip)
        } else {
            ethernet.ip(ip)
        };
        let mut header = Vec::new();
        if self.udp {
            ip.udp(4000, 5000).write(&mut header, &[]).unwrap();
        } else {
            let timestamps =
                [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(1, 2)];
            let tcp = ip.tcp(4000, 5000, self.seq, 6000).ack(99).fin().psh().cwr();
            tcp.options(&timestamps).unwrap().write(&mut header, &[]).unwrap();
        }
        header
    }
}

/// Reads wire packets as one flow: all that a cut promises, and the payload put together.
pub(crate) fn reassemble(template: Template, segment: usize, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, frame) in frames.iter().enumerate() {
        let packet = packet(frame);
        let (first, last) = (index == 0, index + 1 == frames.len());
        assert_eq!(packet.ports, (4000, 5000));
        assert_eq!(packet.ident, (!template.ipv6).then_some(0xfffe_u16.wrapping_add(index as u16)));
        if !template.udp {
            assert_eq!(packet.seq, template.seq.wrapping_add(payload.len() as u32));
            assert_eq!((packet.fin, packet.psh, packet.cwr), (last, last, first));
        }
        assert!(packet.payload.len() == segment || last);
        payload.extend(packet.payload);
    }
    payload
}

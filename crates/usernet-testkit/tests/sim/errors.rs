//! How a guest's datagrams and echo requests travel on, and what it is told of those that do not arrive.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::checksum;
use usernet_core::datagrams::{Datagrams, Origin};
use usernet_core::dhcp6;
use usernet_core::drops::DropReason;
use usernet_core::network::{Config, Delivery, Network, Output, Verdict};
use usernet_core::port::PortId;
use usernet_core::table::{Endpoint, FlowId};
use usernet_core::time::Instant;
use usernet_core::wire::{
    ETHERNET_HEADER_LEN, Headers, ICMP_ECHO, ICMP_HEADER_LEN, ICMPV6_ECHO, IPV4_HEADER_LEN, IPV6_HEADER_LEN,
    IcmpError, IpHeader, Offender, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP,
};
use usernet_testkit::{GuestConfig, finish};

use super::GATEWAY_MAC;

const PORT: PortId = PortId(1);
const NOW: Instant = Instant::from_micros(1);
/// A guest and a peer of each kind of IP, the gateway, and a router.
const ADDRESSES: [[&str; 4]; 2] = [
    ["10.0.2.15", "192.0.2.1", "10.0.2.2", "198.51.100.7"],
    ["fd00::15", "2001:db8::1", "fd00::2", "2001:db8:7::7"],
];

fn network() -> Network {
    let mut network = Network::new(Config { net6: Some(dhcp6::Config::default()), ..Config::default() });
    network.add_port(PORT);
    network.lease(PORT, GuestConfig::default().mac, None, NOW).unwrap();
    told(&mut network);
    network
}

fn ip(addr: &str) -> IpAddr {
    addr.parse().unwrap()
}

/// A datagram of the guest's, from port 5000 to port 9.
fn datagram(ip: &IpHeader, payload: &[u8]) -> Vec<u8> {
    let mac = GuestConfig::default().mac;
    finish(&Headers::udp(GATEWAY_MAC, mac, ip, (5000, 9), payload.len(), u16::MAX), payload)
}

/// An echo request of the guest's, with the identifier 0x1234.
fn echo(ip: &IpHeader, payload: &[u8]) -> Vec<u8> {
    let kind = if ip.dst.is_ipv4() { ICMP_ECHO } else { ICMPV6_ECHO };
    let mut header = [kind, 0, 0, 0, 0x12, 0x34, 0, 5];
    let sum = !checksum::combine(&[checksum::data(&header), checksum::data(payload)]);
    header[2..4].copy_from_slice(&sum.to_be_bytes());
    let mac = GuestConfig::default().mac;
    finish(&Headers::icmp(GATEWAY_MAC, mac, ip, &header, payload.len()), payload)
}

fn take(network: &mut Network, frame: &[u8]) -> (FlowId, Delivery) {
    match network.handle_frame(PORT, frame, NOW) {
        Verdict::Udp { flow, delivery, .. } | Verdict::Ping { flow, delivery, .. } => (flow, delivery),
        other => panic!("{other:?}"),
    }
}

/// An ICMP error: who it is from, hops that it has left, its type, code and information, and its quote.
type Told = (String, u8, (u8, u8, u32), Vec<u8>);

fn told(network: &mut Network) -> Vec<Told> {
    let outputs = std::iter::from_fn(|| network.poll_output(NOW));
    let frames = outputs.filter_map(|output| match output {
        Output::Frame { port, frame, .. } => {
            assert_eq!(port, PORT);
            Some(frame)
        }
        _ => None,
    });
    frames
        .filter_map(|frame| {
            let packet = &frame[ETHERNET_HEADER_LEN..];
            let (ip, at, len) = IpHeader::parse_v4(packet, packet.len())
                .or_else(|_| IpHeader::parse_v6(packet, packet.len()))
                .ok()?;
            assert_eq!((ip.tos, at + len), (if ip.dst.is_ipv4() { 0xc0 } else { 0 }, packet.len()));
            let icmp = &packet[at..];
            let info = u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]);
            (icmp[0] < 128).then(|| {
                (ip.src.to_string(), ip.ttl, (icmp[0], icmp[1], info), icmp[ICMP_HEADER_LEN..].to_vec())
            })
        })
        .collect()
}

#[test]
fn a_packet_travels_on_as_its_header_says() {
    for [guest, peer, ..] in ADDRESSES {
        let mut network = network();
        let header = IpHeader::new(ip(guest), ip(peer), PROTOCOL_UDP);
        let may_be_cut = header.dst.is_ipv4();
        let marked = IpHeader { ttl: 2, tos: 0xb9, dont_fragment: !may_be_cut, ..header };
        let protocol = if header.dst.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        for frame in [datagram(&marked, b"hello"), echo(&IpHeader { protocol, ..marked }, b"hello")] {
            let (_, delivery) = take(&mut network, &frame);
            assert_eq!(delivery, Delivery { ttl: 1, tos: 0xb9, dont_fragment: !may_be_cut }, "{peer}");
        }
        let (flow, delivery) = take(&mut network, &datagram(&header, b"hello"));
        assert_eq!(delivery, Delivery { ttl: 63, tos: 0, dont_fragment: true });
        // What comes back brings its mark along.
        let origin = Origin { from: SocketAddr::new(ip(peer), 9), to: None, tos: 0x2b };
        let (_, headers) = network.udp_from_host(flow, &origin, Datagrams::one(5), NOW).unwrap();
        let frame = finish(&headers, b"hello");
        let packet = &frame[ETHERNET_HEADER_LEN..];
        let (ip, ..) = IpHeader::parse_v4(packet, packet.len())
            .or_else(|_| IpHeader::parse_v6(packet, packet.len()))
            .unwrap();
        assert_eq!(ip.tos, 0x2b);
    }
}

#[test]
fn an_error_quotes_the_packet_that_the_guest_sent() {
    for ([guest, peer, _, router], error, words) in [
        (ADDRESSES[0], IcmpError::V4 { kind: 3, code: 4, info: 1400 }, (3, 4, 1400)),
        (ADDRESSES[0], IcmpError::V4 { kind: 11, code: 0, info: 0 }, (11, 0, 0)),
        (ADDRESSES[0], IcmpError::V4 { kind: 12, code: 0, info: 9 }, (12, 0, 9 << 24)),
        (ADDRESSES[1], IcmpError::V6 { kind: 2, code: 0, info: 1280 }, (2, 0, 1280)),
        (ADDRESSES[1], IcmpError::V6 { kind: 1, code: 6, info: 0 }, (1, 6, 0)),
    ] {
        let mut network = network();
        let header = IpHeader::new(ip(guest), ip(peer), PROTOCOL_UDP);
        let sent = datagram(&header, b"hello");
        let (flow, _) = take(&mut network, &sent);
        let to = SocketAddr::new(ip(peer), 9);
        let offender = Some(Offender { addr: ip(router), ttl: Some(62) });
        network.udp_error(flow, to, error, offender, b"hello");
        let expected = (router.to_owned(), 61, words, sent[ETHERNET_HEADER_LEN..].to_vec());
        assert_eq!(told(&mut network), [expected]);
        // Nobody on the way: it is the destination's word.
        network.udp_error(flow, to, IcmpError::PortUnreachable, None, b"");
        assert_eq!(told(&mut network)[0].0, peer);

        // Of an echo request the host's kernel has changed the identifier.
        let protocol = if header.dst.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        let sent = echo(&IpHeader { protocol, ..header }, b"hello");
        let (flow, _) = take(&mut network, &sent);
        let at = sent.len() - ICMP_HEADER_LEN - 5;
        let mut message = sent[at..].to_vec();
        message[4..6].copy_from_slice(&[0xab, 0xcd]);
        message[2..4].fill(0);
        let sum = !checksum::data(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        network.ping_error(flow, to.ip(), &message, error, offender);
        let expected = (router.to_owned(), 61, words, sent[ETHERNET_HEADER_LEN..].to_vec());
        assert_eq!(told(&mut network), [expected]);
        network.ping_error(flow, to.ip(), &message[..7], error, offender);
        assert_eq!(told(&mut network), []);
    }
}

#[test]
fn a_guest_of_the_other_family_is_told_in_its_own_words() {
    for ([guest, _, gateway, _], [_, peer, ..], error, words) in [
        (ADDRESSES[1], ADDRESSES[0], IcmpError::V4 { kind: 3, code: 4, info: 1400 }, Some((2, 0, 1420))),
        (ADDRESSES[1], ADDRESSES[0], IcmpError::V4 { kind: 3, code: 14, info: 0 }, None),
        (ADDRESSES[0], ADDRESSES[1], IcmpError::V6 { kind: 2, code: 0, info: 1280 }, Some((3, 4, 1260))),
        (ADDRESSES[0], ADDRESSES[1], IcmpError::V6 { kind: 1, code: 4, info: 0 }, Some((3, 3, 0))),
        (ADDRESSES[0], ADDRESSES[1], IcmpError::V6 { kind: 4, code: 2, info: 40 }, None),
    ] {
        let mut network = network();
        let from = SocketAddr::new(ip(peer), 9);
        let server = Endpoint { addr: ip(guest), port: 5000 };
        let origin = Origin { from, to: None, tos: 0 };
        network.udp_from_forward(1, server, &origin, Datagrams::one(1), NOW).unwrap();
        let header = IpHeader::new(ip(guest), ip(gateway), PROTOCOL_UDP);
        let answer = datagram(&header, b"hello");
        let (flow, _) = take(&mut network, &answer);
        network.udp_error(flow, from, error, Some(Offender { addr: ip(peer), ttl: None }), b"hello");
        let expected =
            words.map(|words| (gateway.to_owned(), 64, words, answer[ETHERNET_HEADER_LEN..].to_vec()));
        assert_eq!(told(&mut network), Vec::from_iter(expected), "{error:?}");
    }
}

#[test]
fn what_strangers_claim_is_not_told_and_no_error_is_long() {
    for ([guest, peer, _, router], most) in
        ADDRESSES.into_iter().zip([576 - IPV4_HEADER_LEN, 1280 - IPV6_HEADER_LEN])
    {
        let mut network = network();
        let header = IpHeader::new(ip(guest), ip(peer), PROTOCOL_UDP);
        let (flow, _) = take(&mut network, &datagram(&header, &[7; 1400]));
        let error = IcmpError::HostUnreachable;
        network.udp_error(flow, SocketAddr::new(ip(router), 9), error, None, b"hello");
        assert_eq!(told(&mut network), []);
        assert_eq!(network.drops().of(DropReason::UdpFiltered), 1);
        network.udp_error(flow, SocketAddr::new(ip(peer), 9), error, None, &[7; 1400]);
        assert_eq!(told(&mut network)[0].3.len() + ICMP_HEADER_LEN, most);
    }
}

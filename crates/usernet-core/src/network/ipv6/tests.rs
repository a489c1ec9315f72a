//! What guests are told over IPv6, and what they must not bring about.

use std::net::{Ipv6Addr, SocketAddr};

use super::super::Output;
use super::super::{Config, Target, TcpOp};
use super::*;
use crate::dhcp6;
use crate::host::{HostError, HostEvent};
use crate::offload::SegmentKind;
use crate::table::Endpoint;
use crate::wire::{
    ETHERTYPE_IPV6, EthernetHeader, Headers, ICMPV6_ECHO, TcpFlags, TcpHeader, group_mac, link_local,
    solicited_node,
};

const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xb]);
const P1: PortId = PortId(1);
const P2: PortId = PortId(2);
const OUTSIDE: &str = "2001:db8::1";
const ROUTER: &str = "fe80::5055:aff:fe00:202";

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn v6(addr: &str) -> Ipv6Addr {
    addr.parse().unwrap()
}

fn network(guests: u32) -> Network {
    let mut network = Network::new(Config { net6: Some(dhcp6::Config::default()), ..Config::default() });
    for port in 1..=guests {
        network.add_port(PortId(port));
    }
    network
}

fn drain(network: &mut Network, now: Instant) -> Vec<Output> {
    std::iter::from_fn(|| network.poll_output(now)).collect()
}

/// A frame from `mac` with `rest` behind its IPv6 header, to where its destination belongs.
fn packet(mac: MacAddr, src: &str, dst: &str, protocol: u8, ttl: u8, rest: &[u8]) -> Vec<u8> {
    let to = if v6(dst).is_multicast() { group_mac(v6(dst)) } else { MacAddr([0x52, 0x55, 10, 0, 2, 2]) };
    let header = EthernetHeader { dst: to, src: mac, ethertype: ETHERTYPE_IPV6 };
    let ip = IpHeader { ttl, ..IpHeader::new(v6(src).into(), v6(dst).into(), protocol) };
    let mut bytes = [0; 40];
    ip.emit_v6(&mut bytes, rest.len());
    [&header.to_bytes()[..], &bytes, rest].concat()
}

fn to_guest(mut frame: Vec<u8>, mac: MacAddr) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac.0);
    frame
}

fn udp(src: &str, dst: &str) -> Vec<u8> {
    packet(A, src, dst, PROTOCOL_UDP, 64, &[0x10, 0, 0, 9, 0, 9, 0, 0, 1])
}

fn neighbor(kind: u8, target: &str, option: Option<(u8, MacAddr)>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(v6(target).octets());
    if let Some((kind, mac)) = option {
        message.extend([kind, 1]);
        message.extend(mac.0);
    }
    message
}

fn solicit(mac: MacAddr, src: &str, target: &str) -> Vec<u8> {
    let option = (src != "::").then_some((1, mac));
    let group = solicited_node(v6(target)).to_string();
    packet(mac, src, &group, PROTOCOL_ICMPV6, 255, &neighbor(135, target, option))
}

fn advert(mac: MacAddr, src: &str, target: &str) -> Vec<u8> {
    packet(mac, src, "ff02::1", PROTOCOL_ICMPV6, 255, &neighbor(136, target, Some((2, mac))))
}

fn router_advert(mac: MacAddr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8];
    message.extend([0; 8]);
    let src = link_local(mac).to_string();
    packet(mac, &src, "ff02::1", PROTOCOL_ICMPV6, 255, &message)
}

/// The ICMPv6 messages among the outputs: to which port and address, from which, and the message.
fn told(outputs: Vec<Output>) -> Vec<(PortId, String, String, Vec<u8>)> {
    let frames = outputs.into_iter().filter_map(|output| match output {
        Output::Frame { port, frame, .. } => Some((port, frame)),
        _ => None,
    });
    frames
        .filter_map(|(port, frame)| {
            let (ip, len, _) = IpHeader::parse_v6(&frame[14..], frame.len() - 14).ok()?;
            let message = frame[14 + len..].to_vec();
            (ip.protocol == PROTOCOL_ICMPV6).then(|| (port, ip.dst.to_string(), ip.src.to_string(), message))
        })
        .collect()
}

/// All but router advertisements.
fn answers(network: &mut Network, frame: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    let _ = network.handle_frame(P1, frame, at(1));
    let told = told(drain(network, at(1)));
    told.into_iter().filter(|(.., m)| m[0] != 134).map(|(_, dst, src, message)| (dst, src, message)).collect()
}

fn dropped(network: &mut Network, port: PortId, frame: &[u8]) -> Option<DropReason> {
    match network.handle_frame(port, frame, at(1)) {
        Verdict::Dropped(reason) => Some(reason),
        _ => None,
    }
}

#[test]
fn the_networks_own_addresses_are_answered_for_and_defended() {
    let mut network = network(2);
    for target in ["fd00::2", "fd00::3", ROUTER] {
        for (src, dst) in [("fd00::15", "fd00::15"), ("::", "ff02::1")] {
            let answers = answers(&mut network, &solicit(A, src, target));
            assert_eq!(answers.len(), 1);
            assert_eq!((answers[0].0.as_str(), answers[0].1.as_str(), answers[0].2[0]), (dst, target, 136));
            assert_eq!(answers[0].2[8..24], v6(target).octets());
        }
    }
    // Another's is left to that other to answer for.
    let verdict = network.handle_frame(P1, &solicit(A, "::", "fd00::99")[..], at(1));
    assert!(matches!(verdict, Verdict::Flood(_)));
}

#[test]
fn a_guest_may_claim_nobody_elses_address() {
    let mut network = network(2);
    let _ = network.handle_frame(P1, &advert(A, "fd00::15", "fd00::15")[..], at(1));
    let own = link_local(B).to_string();
    for forged in [
        advert(B, &own, "fd00::2"),
        advert(B, &own, "fd00::3"),
        advert(B, &own, ROUTER),
        advert(B, &own, "fd00::15"),
        advert(B, &own, "2001:db8::1"),
        advert(B, ROUTER, "fd00::16"),
        solicit(B, "fd00::15", "fd00::17"),
        solicit(B, "fd00::2", "fd00::17"),
        solicit(B, "2001:db8::2", "fd00::17"),
    ] {
        assert_eq!(dropped(&mut network, P2, &forged), Some(DropReason::SourceAddress));
        let relayed = dropped(&mut network, P2, &to_guest(forged, A));
        assert!(relayed.is_none_or(|reason| reason == DropReason::SourceAddress));
    }
    for forged in [advert(B, &own, "fd00::15"), advert(B, &own, "fd00::2"), udp("fd00::15", "fd00::99")] {
        assert_eq!(dropped(&mut network, P2, &to_guest(forged, A)), Some(DropReason::SourceAddress));
    }
    assert_eq!(
        network.shared.with(|registry| registry.switch.neighbour(v6("fd00::15").into())).unwrap().port,
        P1
    );
    // In its own name it may speak.
    assert_eq!(dropped(&mut network, P2, &to_guest(udp("fd00::16", "fd00::15"), A)), None);
    assert_eq!(dropped(&mut network, P2, &advert(B, &own, "fd00::16")), None);
}

#[test]
fn no_guest_becomes_a_router() {
    let mut network = network(2);
    let _ = network.handle_frame(P1, &advert(A, "fd00::15", "fd00::15")[..], at(1));
    let rogue = Some(DropReason::RogueRouter);
    assert_eq!(dropped(&mut network, P2, &router_advert(B)), rogue);
    assert_eq!(dropped(&mut network, P2, &to_guest(router_advert(B), A)), rogue);
    // Behind extension headers and in fragments (RFC 7113).
    let src = link_local(B).to_string();
    let hidden = [&[PROTOCOL_ICMPV6, 0, 1, 4, 0, 0, 0, 0, 134][..], &[0; 15]].concat();
    assert_eq!(dropped(&mut network, P2, &packet(B, &src, "ff02::1", 60, 255, &hidden)), rogue);
    let fragment = |protocol, first: u8| {
        let rest = [&[protocol, 0, 0, 1, 1, 2, 3, 4, first][..], &[0; 15]].concat();
        to_guest(packet(B, "fd00::16", "fd00::15", 44, 255, &rest), A)
    };
    assert_eq!(dropped(&mut network, P2, &fragment(PROTOCOL_ICMPV6, 134)), Some(DropReason::Fragment));
    assert_eq!(dropped(&mut network, P2, &fragment(60, PROTOCOL_ICMPV6)), Some(DropReason::Fragment));
    assert_eq!(dropped(&mut network, P2, &fragment(PROTOCOL_ICMPV6, ICMPV6_ECHO)), None);
    assert_eq!(dropped(&mut network, P2, &fragment(PROTOCOL_UDP, 0)), None);
}

#[test]
fn the_router_is_advertised_at_first_and_when_asked_and_from_time_to_time() {
    let adverts = |outputs| {
        let told = told(outputs).into_iter().filter(|(.., message)| message[0] == 134);
        told.map(|(port, dst, ..)| (port, dst)).collect::<Vec<_>>()
    };
    let mut network = network(2);
    assert_eq!(network.poll_timeout(), None, "who speaks no IPv6 is told nothing");
    let _ = network.handle_frame(P1, &solicit(A, "::", "fd00::15")[..], at(1000));
    assert_eq!(adverts(drain(&mut network, at(1000))), [(P1, "ff02::1".into())]);
    // One who is asked for alone is answered alone.
    let own = link_local(A).to_string();
    let asks = packet(A, &own, "ff02::2", PROTOCOL_ICMPV6, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let _ = network.handle_frame(P1, &asks[..], at(1001));
    assert_eq!(adverts(drain(&mut network, at(1001))), [(P1, own)]);
    // All are told no more often than every three seconds, however often one asks.
    let asks = packet(A, "::", "ff02::2", PROTOCOL_ICMPV6, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let mut times = Vec::new();
    for ms in (2000..10_000).step_by(10) {
        let _ = network.handle_frame(P1, &asks[..], at(ms));
        network.handle_timeout(at(ms));
        times.extend(adverts(drain(&mut network, at(ms))).iter().map(|_| ms));
    }
    assert!(times.len() == 2 && times[0] >= 4000 && times[1] >= times[0] + 3000, "{times:?}");
    // Then every few minutes.
    let mut intervals = Vec::new();
    let mut last = times[1];
    while intervals.len() < 21 {
        let next = network.poll_timeout().unwrap();
        network.handle_timeout(next);
        let told = adverts(drain(&mut network, next));
        // The wheel wakes up to move its entries, too.
        if told.is_empty() {
            continue;
        }
        assert_eq!(told, [(P1, "ff02::1".into())]);
        let now = next.as_micros() / 1000;
        intervals.push((now - last) / 1000);
        last = now;
    }
    // The first answers what was asked last.
    intervals.remove(0);
    assert!(intervals.iter().all(|interval| (199..=601).contains(interval)), "{intervals:?}");
    assert!(intervals.iter().any(|interval| *interval != intervals[0]), "at random");
    network.remove_port(P1);
    assert_eq!(network.poll_timeout(), None);
}

#[test]
fn a_lease_of_dhcpv6_makes_its_guest_known() {
    let mut network = network(1);
    let mut message = vec![1, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 0x52, 0x54, 0, 0, 0, 0xa, 0, 14, 0, 0];
    message.extend([0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let own = link_local(A).to_string();
    let len = u8::try_from(8 + message.len()).unwrap();
    let udp = [&[2, 34, 2, 35, 0, len, 0, 0][..], &message].concat();
    let verdict = network.handle_frame(P1, &packet(A, &own, "ff02::1:2", 17, 1, &udp)[..], at(1));
    assert!(matches!(verdict, Verdict::Done), "{verdict:?}");
    let outputs = drain(&mut network, at(1));
    assert!(outputs.iter().any(|output| matches!(output, Output::LeasesChanged)));
    let lease = network.leases6(at(2)).into_iter().next().unwrap();
    assert_eq!((lease.address, lease.port, lease.mac), (v6("fd00::15"), P1, A.0));
    let frames: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Frame { frame, .. } if frame[20] == PROTOCOL_UDP => Some(frame),
            _ => None,
        })
        .collect();
    let (ip, ..) = IpHeader::parse_v6(&frames[0][14..], frames[0].len() - 14).unwrap();
    assert_eq!((ip.src.to_string(), ip.dst.to_string()), (ROUTER.into(), own));
    assert_eq!(frames[0][54..58], [2, 35, 2, 34]);
    // Connections find it without asking.
    let guest = Endpoint { addr: v6("fd00::15").into(), port: 22 };
    let flow = network.accept_tcp(guest, "[2001:db8::9]:9".parse().unwrap(), at(3)).unwrap();
    assert_eq!(network.port_of(flow), Some(P1));
    network.remove_port(P1);
    assert_eq!(network.leases6(at(4)).len(), 0);
}

#[test]
fn every_packet_that_is_dropped_has_its_reason() {
    let extension = [17, 0, 0xc3, 4, 0, 0, 0, 0];
    for (reason, frame) in [
        (DropReason::IpHeader, udp("fd00::15", OUTSIDE)[..50].to_vec()),
        (DropReason::ExtensionHeader, packet(A, "fd00::15", OUTSIDE, 60, 64, &extension)),
        (DropReason::SourceAddress, udp("2001:db8::2", OUTSIDE)),
        (DropReason::SourceAddress, udp("::", OUTSIDE)),
        (DropReason::SourceAddress, udp("fd00::2", OUTSIDE)),
        (DropReason::SourceAddress, udp(ROUTER, OUTSIDE)),
        (DropReason::SourceAddress, udp("fe80::1", OUTSIDE)),
        (DropReason::ForbiddenDestination, udp("fd00::15", "::1")),
        (DropReason::ForbiddenDestination, udp("fd00::15", "::ffff:127.0.0.1")),
        (DropReason::NoSuchGuest, udp("fd00::15", "fd00::99")),
        (DropReason::NoSuchGuest, udp("fd00::15", "fe80::99")),
        (DropReason::Policy, udp("fd00::15", "fd00::3")),
        (DropReason::Policy, udp("fd00::15", ROUTER)),
        (DropReason::Multicast, udp("fd00::15", "ff02::fb")),
        (DropReason::Fragment, packet(A, "fd00::15", OUTSIDE, 44, 64, &[17, 0, 0, 1, 0, 0, 0, 0])),
        (DropReason::TtlExpired, packet(A, "fd00::15", OUTSIDE, 17, 1, &[0x10, 0, 0, 9, 0, 8, 0, 0])),
        (DropReason::Protocol, packet(A, "fd00::15", OUTSIDE, 132, 64, &[0; 12])),
        (DropReason::Protocol, packet(A, "fd00::15", OUTSIDE, 59, 64, &[])),
        (DropReason::Protocol, packet(A, "fd00::15", OUTSIDE, 1, 64, &[8, 0, 0, 0, 0, 0, 0, 0])),
        (DropReason::Icmp, packet(A, "fd00::15", OUTSIDE, 58, 64, &[129, 0, 0, 0, 0, 0, 0, 0])),
        (DropReason::Ndp, packet(A, "fd00::15", "ff02::1", 58, 254, &neighbor(136, "fd00::15", None))),
        (DropReason::RogueRouter, router_advert(A)),
        (DropReason::Dhcp, packet(A, "fe80::1", "ff02::1:2", 17, 1, &[2, 34, 2, 35, 0, 9, 0, 0, 1])),
    ] {
        let mut network = network(1);
        assert_eq!(dropped(&mut network, P1, &frame), Some(reason), "{frame:02x?}");
        let counted: Vec<_> = network.ports().next().unwrap().1.drops.iter().collect();
        assert_eq!(counted, [(reason, 1)]);
    }
    // Multicast listeners, and questions for nobody, are no news.
    let mut network = network(1);
    let report = packet(A, "fe80::1", "ff02::16", PROTOCOL_ICMPV6, 1, &[143, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(dropped(&mut network, P1, &report), None);
    assert_eq!(dropped(&mut network, P1, &solicit(A, "fd00::15", "fd00::99")), None);
}

#[test]
fn what_cannot_be_carried_is_answered_with_its_reason() {
    let options = |kind| [17, 0, kind, 4, 0, 0, 0, 0];
    for (frame, expected) in [
        (packet(A, "fd00::15", OUTSIDE, 17, 1, &[0x10, 0, 0, 9, 0, 8, 0, 0]), Some(([3, 0], 0, "fd00::2"))),
        (udp("fd00::15", "fd00::99"), Some(([1, 3], 0, "fd00::2"))),
        (udp("fd00::15", "fd00::3"), Some(([1, 4], 0, "fd00::3"))),
        (udp("fe80::1", OUTSIDE), Some(([1, 2], 0, "fd00::2"))),
        (packet(A, "fd00::15", OUTSIDE, 132, 64, &[0; 12]), Some(([4, 1], 6, "fd00::2"))),
        (packet(A, "fd00::15", OUTSIDE, 0, 64, &options(0xc3)), Some(([4, 2], 42, "fd00::2"))),
        (packet(A, "fd00::15", "ff02::fb", 0, 64, &options(0x83)), Some(([4, 2], 42, "fd00::2"))),
        (packet(A, "fd00::15", "ff02::fb", 0, 64, &options(0xc3)), None),
        (packet(A, "fd00::15", OUTSIDE, 43, 64, &[17, 0, 0, 1, 0, 0, 0, 0]), Some(([4, 0], 42, "fd00::2"))),
        (packet(A, "fd00::15", OUTSIDE, 59, 64, &[]), None),
        (packet(A, "::", OUTSIDE, 0, 64, &options(0xc3)), None),
        // An error about an error.
        (packet(A, "fd00::15", OUTSIDE, 58, 1, &[1, 0, 0, 0, 0, 0, 0, 0]), None),
    ] {
        let mut network = network(1);
        let answers = answers(&mut network, &frame);
        let found = answers.first().map(|(_, src, message)| {
            let pointer = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            assert_eq!(message[8..], frame[14..], "the packet is quoted");
            ([message[0], message[1]], pointer, src.as_str())
        });
        assert_eq!(found, expected, "{frame:02x?}");
    }
}

#[test]
fn a_connect_that_has_no_route_is_told_so_at_once() {
    for (error, code) in
        [(HostError::NetUnreachable, 0), (HostError::HostUnreachable, 3), (HostError::Prohibited, 1)]
    {
        let mut network = network(1);
        let syn = TcpHeader { src_port: 4000, dst_port: 80, flags: TcpFlags::SYN, ..TcpHeader::default() };
        let mut bytes = [0; 20];
        syn.emit(&mut bytes);
        let frame = packet(A, "fd00::15", OUTSIDE, PROTOCOL_TCP, 64, &bytes);
        let _ = network.handle_frame(P1, &frame[..], at(1));
        let flow = drain(&mut network, at(1)).into_iter().find_map(|output| match output {
            Output::Tcp { flow, op: TcpOp::Connect { target: Target::Host(to), .. } } => {
                assert_eq!(to, SocketAddr::new(v6(OUTSIDE).into(), 80));
                Some(flow)
            }
            _ => None,
        });
        network.tcp_event(flow.unwrap(), HostEvent::Failed(error), at(1));
        let told = told(drain(&mut network, at(1)));
        let (_, dst, src, message) = &told[0];
        assert_eq!((dst.as_str(), src.as_str(), &message[..2]), ("fd00::15", "fd00::2", &[1, code][..]));
        // Addresses, ports and sequence number of the SYN.
        assert_eq!(message[8 + 8..8 + 48], frame[14 + 8..14 + 48]);
        assert_eq!(network.tcp_flows().len(), 0);
    }
}

#[test]
fn super_frames_are_of_their_own_kind() {
    let (src, dst) = (v6(OUTSIDE).into(), v6("fd00::15").into());
    let ip = IpHeader::new(src, dst, PROTOCOL_TCP);
    let headers = Headers::tcp(A, B, &ip, &TcpHeader::default(), 9000, 1440);
    let segmentation = headers.offload.segmentation.unwrap();
    assert_eq!((segmentation.kind, segmentation.header_len, headers.len()), (SegmentKind::Tcp6, 74, 74));
}

//! Whatever is dropped is counted, for its reason and for its guest.

use std::net::Ipv4Addr;

use usernet_core::drops::DropReason;
use usernet_core::network::{Config, Limits};
use usernet_core::port::PortId;
use usernet_core::tcp::SeqNumber;
use usernet_core::wire::{MacAddr, TcpFlags, TcpHeader};
use usernet_testkit::{Faults, GuestConfig, Peer, Sim, SmolGuest, tcp_frame, udp_frame};

use super::{GATEWAY, GATEWAY_MAC, PORT, config};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const ADDR: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 77);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn guest() -> (Sim<SmolGuest>, PortId) {
    let limits = Limits { tcp: 2, connecting: 1, dns: 0, ..Limits::default() };
    let mut sim = Sim::new(1, Config { limits, ..config(1) });
    sim.host.peers.insert(PORT, Peer::default());
    let port = sim.add(SmolGuest::new(GuestConfig::default()), Faults::default(), Faults::default());
    (sim, port)
}

fn udp(dst: Ipv4Addr, port: u16) -> Vec<u8> {
    udp_frame(GATEWAY_MAC, MAC, (ADDR, 1000), (dst, port), b"hello")
}

fn tcp(flags: TcpFlags) -> Vec<u8> {
    let header = TcpHeader { src_port: 9, dst_port: PORT, seq: SeqNumber(7), flags, ..TcpHeader::default() };
    tcp_frame(GATEWAY_MAC, MAC, ADDR, OUTSIDE, &header, &[])
}

/// The frame with some of its bytes changed.
fn with(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in changes {
        frame[*at] = *byte;
    }
    frame
}

#[test]
fn every_frame_that_is_dropped_is_counted_for_its_reason() {
    let echo = |dst| with(udp(dst, 9), &[(23, 1), (34, 8), (35, 0)]);
    let frames = [
        (DropReason::EthernetHeader, vec![0; 13]),
        (DropReason::EtherType, with(udp(OUTSIDE, 9), &[(12, 0x86), (13, 0xdd)])),
        (DropReason::SourceMac, with(udp(OUTSIDE, 9), &[(6, 0xff)])),
        (
            DropReason::SourceMac,
            with(udp(OUTSIDE, 9), &[(6, 0x52), (7, 0x55), (8, 10), (9, 0), (10, 2), (11, 2)]),
        ),
        (DropReason::UnknownMac, with(udp(OUTSIDE, 9), &[(0, 2)])),
        (DropReason::Arp, with(udp(OUTSIDE, 9), &[(13, 6)])),
        (DropReason::IpHeader, with(udp(OUTSIDE, 9), &[(14, 0x44)])),
        (DropReason::IpHeader, with(udp(OUTSIDE, 9), &[(16, 0xff)])),
        (DropReason::IpHeader, udp(OUTSIDE, 9)[..30].to_vec()),
        (DropReason::Protocol, with(udp(OUTSIDE, 9), &[(23, 132)])),
        (DropReason::SourceAddress, with(udp(OUTSIDE, 9), &[(26, 11)])),
        (DropReason::SourceAddress, with(udp(OUTSIDE, 9), &[(29, 2)])),
        (DropReason::ForbiddenDestination, udp(Ipv4Addr::new(127, 0, 0, 1), 9)),
        (DropReason::ForbiddenDestination, udp(Ipv4Addr::new(0, 0, 0, 0), 9)),
        (DropReason::NoSuchGuest, udp(Ipv4Addr::new(10, 0, 2, 99), 9)),
        (DropReason::Multicast, udp(Ipv4Addr::new(224, 0, 0, 251), 5353)),
        (DropReason::Multicast, udp(Ipv4Addr::new(10, 0, 2, 255), 9)),
        (DropReason::Fragment, with(udp(OUTSIDE, 9), &[(20, 0x20)])),
        (DropReason::TcpHeader, with(tcp(TcpFlags::SYN), &[(46, 0x40)])),
        (DropReason::NoFlow, tcp(TcpFlags::ACK)),
        (DropReason::NoFlow, tcp(TcpFlags::RST)),
        (DropReason::UdpHeader, with(udp(OUTSIDE, 9), &[(39, 7)])),
        (DropReason::UdpHeader, with(udp(OUTSIDE, 9), &[(38, 0xff)])),
        (DropReason::Icmp, with(echo(OUTSIDE), &[(34, 13)])),
        (DropReason::Dhcp, udp(GATEWAY, 67)),
        (DropReason::DnsLimit, udp(Ipv4Addr::new(10, 0, 2, 3), 53)),
        (DropReason::Policy, udp(Ipv4Addr::new(10, 0, 2, 3), 54)),
        (DropReason::TtlExpired, with(udp(OUTSIDE, 9), &[(22, 1)])),
    ];
    for (reason, frame) in frames {
        let (mut sim, port) = guest();
        sim.inject(port, frame);
        let counted: Vec<_> = sim.net.ports().next().unwrap().1.drops.iter().collect();
        assert_eq!(counted, [(reason, 1)]);
        assert_eq!(sim.net.drops().of(reason), 1);
        sim.finish();
    }
}

#[test]
fn segments_that_a_flow_drops_are_counted() {
    let (mut sim, port) = guest();
    sim.inject(port, tcp(TcpFlags::SYN));
    sim.inject(port, tcp(TcpFlags::SYN));
    let other = with(tcp(TcpFlags::SYN), &[(35, 10)]);
    sim.inject(port, other);
    let drops = sim.net.drops();
    assert_eq!((drops.of(DropReason::Duplicate), drops.of(DropReason::PendingLimit)), (1, 1));
    sim.finish();
}

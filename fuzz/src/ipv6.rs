//! IPv6: extension headers and neighbour discovery of guests, and the DHCPv6 server.

use std::time::Duration;

use arbitrary::Unstructured;
use usernet_core::network::{Config, MulticastService, Network, Output, Verdict};
use usernet_core::port::PortId;
use usernet_core::time::Instant;
use usernet_core::wire::{
    ETHERNET_HEADER_LEN, ETHERTYPE_IPV6, EthernetHeader, IPV6_HEADER_LEN, IpHeader, Ipv6Error, MacAddr, Ndp,
    PROTOCOL_ICMPV6, PROTOCOL_IPV6_FRAGMENT,
};
use usernet_core::{dhcp6, drops::DropReason};
use usernet_testkit::packets;

const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const GROUP: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

fn mac(guest: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, guest])
}

/// Packets of two guests, each behind a byte that says who sends it to which kind of MAC address and
/// whether time passes, and one that says how long it is (255: all that is left).
pub fn ipv6(data: &[u8]) {
    let config = Config { net6: Some(dhcp6::Config::default()), nat64: true, ..Config::default() };
    let config = Config { multicast: MulticastService::ALL.to_vec(), ..config };
    let mut net = Network::new(config.clone());
    let mut restricted = Network::new(Config { restrict: true, ..config });
    let mut now = Instant::from_micros(1_000_000);
    for port in 0..2 {
        net.add_port(PortId(port));
        restricted.add_port(PortId(port));
    }
    let mut data = Unstructured::new(data);
    while !data.is_empty() {
        let Ok([control, len]) = data.arbitrary::<[u8; 2]>() else { return };
        let len = if len == 255 { data.len() } else { usize::from(len).min(data.len()) };
        let Ok(packet) = data.bytes(len) else { return };
        read(packet);
        let guest = control & 1;
        let dst = [GATEWAY, GATEWAY, GROUP, mac(1 - guest)][usize::from(control >> 1 & 3)];
        let header = EthernetHeader { dst, src: mac(guest), ethertype: ETHERTYPE_IPV6 };
        let frame = [&header.to_bytes()[..], packet].concat();
        let port = PortId(guest.into());
        check_restricted(&mut restricted, port, &frame, now);
        if control & 8 != 0 {
            restricted.handle_timeout(now);
        }
        let mut frame = frame;
        let mut verdict = net.handle_frame(port, &frame[..], now);
        // Once at most: there is no fragment in what fragments make.
        if let Verdict::Reassembled(whole) = verdict {
            frame = whole;
            verdict = net.handle_frame(port, &frame[..], now);
        }
        match verdict {
            Verdict::Ping { payload, .. }
            | Verdict::Udp { payload, .. }
            | Verdict::Dns { payload, .. }
            | Verdict::Tcp { payload, .. } => {
                let _ = &frame[payload];
            }
            Verdict::Reply { headers, payload } => {
                packets(&headers, &frame[payload]).iter().for_each(|frame| check_frame(frame));
            }
            Verdict::Relay(to) => {
                assert!(to != port);
                check_relayed(packet);
            }
            Verdict::Flood(_) => check_relayed(packet),
            Verdict::Reassembled(_) => panic!("a fragment in a packet of fragments"),
            Verdict::HandOver(_) => panic!("there is one worker"),
            Verdict::Keep { .. } | Verdict::Done | Verdict::Dropped(_) => {}
        }
        if control & 8 != 0 {
            now += Duration::from_secs(u64::from(control >> 4) * 60);
            net.handle_timeout(now);
        }
        while let Some(output) = net.poll_output(now) {
            match output {
                Output::Frame { frame, .. } => check_frame(&frame),
                Output::Headers { headers, .. } => check_frame(&headers),
                Output::Multicast { to, .. } => assert!(to.ip().is_multicast()),
                _ => {}
            }
        }
    }
    for port in 0..2 {
        net.remove_port(PortId(port));
    }
    assert_eq!((net.leases6(now).len(), net.udp_flows().len(), net.ping_flows().len()), (0, 0, 0));
}

/// Nothing that a guest of a restricted network sends leaves it.
fn check_restricted(net: &mut Network, port: PortId, frame: &[u8], now: Instant) {
    match net.handle_frame(port, frame, now) {
        Verdict::Udp { .. } | Verdict::Dns { .. } | Verdict::Tcp { .. } | Verdict::Ping { .. } => {
            panic!("it leaves")
        }
        Verdict::Reassembled(whole) => check_restricted(net, port, &whole, now),
        _ => {}
    }
    while let Some(output) = net.poll_output(now) {
        assert!(!matches!(output, Output::Tcp { .. } | Output::Multicast { .. }), "{output:?}");
    }
}

/// What is read is written as it was read, but for extension headers and flow label.
fn read(packet: &[u8]) {
    let (ip, len, transport_len) = match IpHeader::parse_v6(packet, packet.len()) {
        Ok(parsed) => parsed,
        Err(Ipv6Error::Problem { pointer, .. }) => {
            assert!((pointer as usize) < packet.len(), "a problem beyond the packet");
            return;
        }
        Err(Ipv6Error::Dropped(_)) => return,
    };
    assert!(len >= IPV6_HEADER_LEN && len + transport_len <= packet.len());
    assert_eq!(ip.fragment, ip.protocol == PROTOCOL_IPV6_FRAGMENT);
    let mut bytes = [0; IPV6_HEADER_LEN];
    ip.emit_v6(&mut bytes, 0);
    if !matches!(ip.protocol, 0 | 43 | 44 | 51 | 60) {
        // Without its fragment header, nobody may cut it.
        let plain = IpHeader { dont_fragment: true, ..ip };
        assert_eq!(IpHeader::parse_v6(&bytes, IPV6_HEADER_LEN), Ok((plain, IPV6_HEADER_LEN, 0)));
    }
    let _ = Ndp::parse(&ip, &packet[len..len + transport_len]);
}

/// What the network sends is whole, and no guest's advertisement reaches another.
fn check_frame(frame: &[u8]) {
    let (ethernet, rest) = EthernetHeader::parse(frame).expect("an Ethernet header");
    assert_eq!(ethernet.src, GATEWAY);
    if ethernet.ethertype == ETHERTYPE_IPV6 {
        let (_, len, transport_len) = IpHeader::parse_v6(rest, rest.len()).expect("an IPv6 header");
        assert_eq!(len + transport_len, frame.len() - ETHERNET_HEADER_LEN);
        assert!(rest.len() <= 1500, "longer than the MTU");
    }
}

fn check_relayed(packet: &[u8]) {
    let (ip, len, transport_len) =
        IpHeader::parse_v6(packet, packet.len()).expect("what is relayed can be read");
    let ours = ["fd00::2", "fd00::3", "fe80::5055:aff:fe00:202"].map(|ours| ours.parse().unwrap());
    assert!(!ours.contains(&ip.src), "a forged source");
    if ip.protocol == PROTOCOL_ICMPV6 {
        let ndp = Ndp::parse(&ip, &packet[len..len + transport_len]);
        assert!(!matches!(ndp, Ok(Some(Ndp::Router)) | Err(_)), "a rogue router");
    }
}

/// DHCPv6 messages of two ports, each behind a byte that says which port, how long it is and how much
/// time passes.
pub fn dhcp6(data: &[u8]) {
    let mut server = dhcp6::Server::new(dhcp6::Config::default(), GATEWAY);
    let mut now = Instant::ZERO;
    let mut data = Unstructured::new(data);
    while !data.is_empty() {
        let Ok(control) = data.arbitrary::<u8>() else { return };
        let len = if control & 0x40 == 0 { data.len() } else { 100.min(data.len()) };
        let Ok(message) = data.bytes(len) else { return };
        now += Duration::from_secs(u64::from(control & 0x3e) * 3600);
        let port = PortId(u32::from(control & 1));
        match server.handle(port, mac(control & 1), message, now) {
            Ok(reply) => {
                assert!(reply.payload.len() <= 1280 - 48, "a reply that is longer than a packet");
                assert_eq!(reply.payload[1..4], message[1..4]);
                // A reply is a message itself, though none that a server heeds.
                assert!(server.handle(port, GATEWAY, &reply.payload, now).is_err());
            }
            Err(reason) => assert!(matches!(reason, DropReason::Dhcp | DropReason::DhcpIgnored)),
        }
        if control & 0x80 != 0 {
            server.port_gone(port);
        }
        assert!(server.leases(now).count() <= 64, "more leases than the ports may hold");
    }
}

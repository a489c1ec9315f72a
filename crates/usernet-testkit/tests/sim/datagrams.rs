//! UDP and ping.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use usernet_core::drops::DropReason;
use usernet_core::network::UdpVia;
use usernet_core::offload::{SegmentKind, Segmentation};
use usernet_core::table::Endpoint;
use usernet_testkit::{Faults, GuestConfig, Peer, Sim, SmolGuest, Unfinished, udp_super_frame};

use super::{GATEWAY, GATEWAY_MAC, one_guest};

const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

fn guest() -> (Sim<SmolGuest>, usernet_core::port::PortId) {
    one_guest(1, Faults::default(), Faults::default(), Peer::default())
}

fn v4(addr: &str) -> SocketAddrV4 {
    addr.parse().unwrap()
}

#[test]
fn datagrams_go_out_and_their_answers_come_back() {
    let (mut sim, port) = guest();
    let socket = sim.guest(port).udp(4000);
    // One mapping for all peers (RFC 4787 REQ-1).
    let peers = ["192.0.2.1:7", "192.0.2.2:7", "192.0.2.2:8", "10.0.2.2:9"].map(v4);
    let mut received = Vec::new();
    for peer in peers {
        sim.guest(port).udp_send(socket, peer, peer.to_string().as_bytes());
        sim.pass(Duration::from_secs(3));
        received.extend(sim.guest(port).udp_received(socket));
    }
    assert_eq!(received.len(), 4);
    for (peer, (from, payload)) in peers.iter().zip(&received) {
        assert_eq!(payload, peer.to_string().as_bytes());
        // What came back from loopback comes from the gateway.
        assert_eq!((from.addr.to_string(), from.port), (peer.ip().to_string(), peer.port()));
    }
    assert_eq!(sim.net.udp_flows().len(), 1);
    assert!(sim.datagrams.iter().all(|(via, ..)| *via == UdpVia::Own { guest_port: 4000 }));
    assert_eq!(sim.datagrams[3].1, "127.0.0.1:9".parse().unwrap());
    // It is forgotten two minutes after the last.
    sim.pass(Duration::from_secs(110));
    assert_eq!(sim.closed.len(), 0);
    sim.pass(Duration::from_secs(15));
    assert_eq!((sim.closed.len(), sim.net.udp_flows().len()), (1, 0));
    sim.finish();
}

#[test]
fn only_addresses_that_the_guest_has_sent_to_are_heard() {
    let (mut sim, port) = guest();
    sim.echoes = false;
    let socket = sim.guest(port).udp(4000);
    sim.guest(port).udp_send(socket, v4("192.0.2.1:7"), b"hello");
    sim.pass(Duration::from_secs(3));
    let flow = sim.net.udp_flows().iter().next().unwrap().0;
    let from = |addr: &str| addr.parse::<SocketAddr>().unwrap();
    assert_eq!(sim.datagram_to_flow(flow, from("192.0.2.9:7"), b"x"), Err(DropReason::UdpFiltered));
    // Another port of the same address is heard (REQ-8: address-dependent).
    assert_eq!(sim.datagram_to_flow(flow, from("192.0.2.1:99"), b"y"), Ok(()));
    sim.pass(Duration::from_secs(1));
    let received = sim.guest(port).udp_received(socket);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].1, b"y");
    assert_eq!(sim.net.drops().of(DropReason::UdpFiltered), 1);
    sim.finish();
}

#[test]
fn a_flow_to_dns_servers_ends_after_ten_seconds() {
    let (mut sim, port) = guest();
    let socket = sim.guest(port).udp(4000);
    sim.guest(port).udp_send(socket, v4("192.0.2.1:53"), b"query");
    sim.pass(Duration::from_secs(2));
    assert_eq!(sim.net.udp_flows().len(), 1);
    sim.pass(Duration::from_secs(10));
    assert_eq!(sim.net.udp_flows().len(), 0);
    sim.finish();
}

#[test]
fn a_query_to_the_dns_address_is_answered_from_there() {
    let (mut sim, port) = guest();
    let socket = sim.guest(port).udp(4000);
    sim.guest(port).udp_send(socket, v4("10.0.2.3:53"), b"query");
    sim.pass(Duration::from_secs(3));
    let received = sim.guest(port).udp_received(socket);
    assert_eq!(received.len(), 1);
    assert_eq!((received[0].0.to_string(), &received[0].1[..]), ("10.0.2.3:53".to_string(), &b"query"[..]));
    assert_eq!((sim.queries, sim.net.udp_flows().len()), (1, 0));
    sim.finish();
}

#[test]
fn a_forwarded_port_serves_each_peer_and_answers_by_its_own_socket() {
    let (mut sim, port) = guest();
    sim.echoes = false;
    let socket = sim.guest(port).udp(68);
    let target = Endpoint { addr: GUEST, port: 68 };
    let peers =
        ["192.0.2.5:1000", "192.0.2.5:1001", "127.0.0.1:1002"].map(|a| a.parse::<SocketAddr>().unwrap());
    // The guest is not known yet: it is asked for.
    assert_eq!(sim.datagram_to_forward(1, target, peers[0], b"first"), Err(DropReason::Unresolved));
    sim.pass(Duration::from_secs(1));
    for peer in peers {
        sim.datagram_to_forward(1, target, peer, b"hello").unwrap();
    }
    sim.pass(Duration::from_secs(1));
    let received = sim.guest(port).udp_received(socket);
    assert_eq!(received.len(), 3);
    assert_eq!(received[2].0.to_string(), "10.0.2.2:1002");
    for (from, _) in &received {
        let smoltcp::wire::IpAddress::Ipv4(addr) = from.addr else { panic!("{from}") };
        sim.guest(port).udp_send(socket, SocketAddrV4::new(addr, from.port), b"answer");
    }
    sim.pass(Duration::from_secs(3));
    let sent: Vec<_> = sim.datagrams.iter().map(|(via, to, _)| (*via, *to)).collect();
    let via = UdpVia::Forward { forward: 1, local: None };
    assert_eq!(sent, peers.map(|peer| (via, peer)));
    sim.net.remove_udp_forward(1);
    assert_eq!(sim.net.udp_flows().len(), 0);
    sim.finish();
}

#[test]
fn pings_are_answered_by_the_gateway_and_from_outside() {
    let (mut sim, port) = guest();
    let socket = sim.guest(port).ping(77);
    for (seq, to) in (0..).zip([GATEWAY, Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(192, 0, 2, 1)]) {
        sim.guest(port).ping_send(socket, to, 77, seq, b"abcdefg");
        sim.pass(Duration::from_secs(2));
        let replies = sim.guest(port).ping_received(socket);
        assert_eq!(replies, [(to.into(), seq, b"abcdefg".to_vec())]);
    }
    assert_eq!(sim.net.ping_flows().len(), 1);
    sim.pass(Duration::from_secs(70));
    assert_eq!((sim.net.ping_flows().len(), sim.closed.len()), (0, 1));
    sim.finish();
}

fn super_frame(payload: &[u8], segment: u16) -> Unfinished {
    let mac = GuestConfig::default().mac;
    let IpAddr::V4(guest) = GUEST else { unreachable!() };
    udp_super_frame(GATEWAY_MAC, mac, (guest, 4000), (Ipv4Addr::new(192, 0, 2, 1), 7), payload, segment)
}

#[test]
fn a_super_frame_leaves_as_its_datagrams() {
    let (mut sim, port) = guest();
    let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
    sim.unfinished(port, &super_frame(&payload, 1000));
    let sent: Vec<_> = sim.datagrams.iter().map(|(_, to, payload)| (to.to_string(), &payload[..])).collect();
    let to = || "192.0.2.1:7".to_string();
    assert_eq!(sent, [(to(), &payload[..1000]), (to(), &payload[1000..2000]), (to(), &payload[2000..])]);
    // As many as one may stand for.
    sim.unfinished(port, &super_frame(&[7; 12_800], 100));
    assert_eq!(sim.datagrams.len(), 3 + 128);
    assert_eq!(sim.net.udp_flows().iter().next().unwrap().1.flow.bytes_out, 2500 + 12_800);
    assert_eq!(sim.net.drops().iter().count(), 0);
    sim.finish();
}

#[test]
fn a_super_frame_that_contradicts_itself_is_dropped_and_counted() {
    let (mut sim, port) = guest();
    let good = super_frame(&[7; 2500], 1000);
    let with = |change: fn(&mut Segmentation)| {
        let mut frame = good.clone();
        change(frame.offload.segmentation.as_mut().unwrap());
        frame
    };
    let mut short = good.clone();
    // The UDP header counts one datagram only.
    short.bytes[38..40].copy_from_slice(&1008_u16.to_be_bytes());
    let bad = [
        with(|it| it.size = 0),
        with(|it| it.size = 2500),
        with(|it| it.size = 60_000),
        with(|it| it.size = 19),
        with(|it| it.header_len = 34),
        with(|it| it.header_len = u16::MAX),
        with(|it| it.kind = SegmentKind::Tcp4),
        short,
    ];
    for (count, frame) in (1..).zip(&bad) {
        sim.unfinished(port, frame);
        assert_eq!(sim.net.drops().of(DropReason::UdpSegmentation), count, "{:?}", frame.offload);
    }
    // Nor is a query to the DNS address several.
    let IpAddr::V4(guest) = GUEST else { unreachable!() };
    let mac = GuestConfig::default().mac;
    let dns = (Ipv4Addr::new(10, 0, 2, 3), 53);
    sim.unfinished(port, &udp_super_frame(GATEWAY_MAC, mac, (guest, 4000), dns, &[0; 100], 50));
    assert_eq!(sim.net.drops().of(DropReason::UdpSegmentation), 9);
    assert_eq!((sim.datagrams.len(), sim.queries, sim.net.udp_flows().len()), (0, 0, 0));
    sim.finish();
}

#[test]
fn joined_datagrams_arrive_one_by_one_at_a_guest_that_takes_no_super_frames() {
    let (mut sim, port) = guest();
    sim.echoes = false;
    let socket = sim.guest(port).udp(4000);
    sim.guest(port).udp_send(socket, v4("192.0.2.1:7"), b"hello");
    sim.pass(Duration::from_secs(3));
    let flow = sim.net.udp_flows().iter().next().unwrap().0;
    let from = |addr: &str| addr.parse::<SocketAddr>().unwrap();
    let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
    assert_eq!(sim.datagrams_to_flow(flow, from("192.0.2.1:7"), &payload, 1000), Ok(()));
    sim.pass(Duration::from_secs(1));
    let received: Vec<_> =
        sim.guest(port).udp_received(socket).into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(received, [&payload[..1000], &payload[1000..2000], &payload[2000..]]);

    // Each of them counts where they are not for the guest.
    let filtered = sim.datagrams_to_flow(flow, from("192.0.2.9:7"), &payload, 1000);
    assert_eq!(filtered, Err(DropReason::UdpFiltered));
    assert_eq!(sim.net.drops().of(DropReason::UdpFiltered), 3);
    sim.finish();
}

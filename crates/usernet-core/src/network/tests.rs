//! What a guest, or a stranger, must not bring about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::*;
use crate::datagrams::Datagrams;
use crate::datagrams::Origin;
use crate::table::Endpoint;
use crate::wire::{Arp, Headers, ICMP_ECHO};

const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xb]);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn network(guests: u32) -> Network {
    let mut network = Network::new(Config::default());
    for port in 1..=guests {
        network.add_port(PortId(port));
    }
    network
}

/// Where a datagram from `peer` is from.
fn origin(from: SocketAddr) -> Origin {
    Origin { from, to: None, tos: 0 }
}

fn drain(network: &mut Network, now: Instant) -> Vec<Output> {
    std::iter::from_fn(|| network.poll_output(now)).collect()
}

fn ssh(addr: Ipv4Addr) -> Endpoint {
    Endpoint { addr: addr.into(), port: 22 }
}

fn announce(mac: MacAddr, sender: Ipv4Addr) -> Vec<u8> {
    Arp { request: false, sender_mac: mac, sender, target: FIRST }.frame(MacAddr::BROADCAST)
}

/// A DHCP message of one kind.
fn dhcp(mac: MacAddr, kind: u8, wanted: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&mac.0);
    message.extend([99, 130, 83, 99, 53, 1, kind, 50, 4]);
    message.extend(wanted.octets());
    message.push(255);
    let ip = IpHeader::new(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into(), PROTOCOL_UDP);
    let mut frame = Headers::udp(MacAddr::BROADCAST, mac, &ip, (68, 67), message.len(), u16::MAX).to_vec();
    frame.extend(message);
    frame
}

#[test]
fn an_ipv6_peer_of_a_forward_appears_as_the_gateway() {
    let mut network = network(1);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    let peer: SocketAddr = "[2001:db8::1]:4000".parse().unwrap();
    let flow = network.accept_tcp(ssh(FIRST), peer, at(1)).unwrap();
    let seen = network.tcp_flows().get(flow).unwrap().key.peer.unwrap();
    assert_eq!((seen.addr, seen.port), (IpAddr::from([10, 0, 2, 2]), 4000));
    assert!(drain(&mut network, at(1)).iter().any(|output| matches!(output, Output::Headers { .. })));
    let (port, _) =
        network.udp_from_forward(1, ssh(FIRST), &origin(peer), Datagrams::one(10), at(1)).unwrap();
    assert_eq!(port, PortId(1));
}

#[test]
fn a_stranger_who_gives_a_guests_address_as_his_appears_as_the_gateway() {
    let mut network = network(1);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    for address in [network.config.dns, Ipv4Addr::new(10, 0, 2, 77)] {
        let flow = network.accept_tcp(ssh(FIRST), SocketAddr::from((address, 4000)), at(1)).unwrap();
        let seen = network.tcp_flows().get(flow).unwrap().key.peer.unwrap();
        assert_eq!(seen.addr, IpAddr::from(network.config.gateway));
    }
}

#[test]
fn pings_hear_from_those_only_whom_the_guest_has_pinged() {
    let mut network = network(1);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    let [pinged, other] = [1, 9].map(|last| IpAddr::from([192, 0, 2, last]));
    let ip = IpHeader::new(FIRST.into(), pinged, PROTOCOL_ICMP);
    let request = [8, 0, 0, 0, 0, 7, 0, 1];
    let frame = Headers::icmp(network.mac, A, &ip, &request, 0);
    let Verdict::Ping { flow, .. } = network.handle_frame(PortId(1), &frame[..], at(1)) else {
        panic!("no flow")
    };
    let reply = [0, 0, 0, 0, 0, 7, 0, 1];
    let mut heard =
        |from| network.ping_from_host(flow, &origin(SocketAddr::new(from, 0)), None, reply, 0, at(2)).is_ok();
    assert_eq!([heard(pinged), heard(other)], [true, false]);
    drain(&mut network, at(2));
    for (to, told) in [(pinged, 1), (other, 0)] {
        network.ping_error(flow, to, &request, IcmpError::TimeExceeded, None);
        assert_eq!(drain(&mut network, at(3)).len(), told, "{to}");
    }
    assert_eq!(network.drops().of(DropReason::PingFiltered), 2);
}

#[test]
fn a_guest_speaks_to_others_in_its_own_name_only() {
    let mut network = network(2);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    // Those of the network, of another guest, and of the outside, which speaks by the gateway alone.
    for forged in [network.config.gateway, network.config.dns, FIRST, Ipv4Addr::new(192, 0, 2, 1)] {
        let verdict = network.handle_frame(PortId(2), &announce(B, forged)[..], at(0));
        assert!(matches!(verdict, Verdict::Dropped(DropReason::SourceAddress)), "{forged}: {verdict:?}");
    }
    let own = Ipv4Addr::new(10, 0, 2, 99);
    assert!(matches!(network.handle_frame(PortId(2), &announce(B, own)[..], at(0)), Verdict::Flood(_)));
    let mut advertisement = [[0x33, 0x33, 0, 0, 0, 1], B.0].concat();
    advertisement.extend([0x86, 0xdd]);
    advertisement.extend([0; 60]);
    let verdict = network.handle_frame(PortId(2), &advertisement[..], at(0));
    assert!(matches!(verdict, Verdict::Dropped(DropReason::EtherType)));
}

#[test]
fn a_lease_does_not_take_the_address_of_a_guest_without_one() {
    let mut network = network(2);
    let held = Ipv4Addr::new(10, 0, 2, 50);
    let _ = network.handle_frame(PortId(1), &announce(A, held)[..], at(0));
    let _ = network.handle_frame(PortId(2), &dhcp(B, 3, held)[..], at(1));
    drain(&mut network, at(1));
    assert_eq!(network.leases(at(1)).len(), 0, "the request is refused");
    let flow = network.accept_tcp(ssh(held), "192.0.2.9:1".parse().unwrap(), at(2)).unwrap();
    assert_eq!(network.port_of(flow), Some(PortId(1)));

    let _ = network.handle_frame(PortId(1), &dhcp(A, 3, held)[..], at(3));
    assert_eq!(network.leases(at(3)).len(), 1, "its own guest may lease it");
    network.remove_port(PortId(1));
    let _ = network.handle_frame(PortId(2), &dhcp(B, 3, held)[..], at(4));
    assert_eq!(network.leases(at(4)).len(), 1, "and others once that has gone");
}

#[test]
fn one_warning_is_enough_for_two_guests_with_one_mac() {
    let mut network = network(2);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    drain(&mut network, at(0));
    let mut warnings = 0;
    for ms in 0..100 {
        let _ = network.handle_frame(PortId(2), &dhcp(A, 3, Ipv4Addr::new(10, 0, 2, 60))[..], at(ms));
        let outputs = drain(&mut network, at(ms));
        warnings += outputs.iter().filter(|output| matches!(output, Output::MacConflict { .. })).count();
    }
    assert_eq!(warnings, 1);
}

#[test]
fn strangers_at_a_forward_do_not_push_out_what_the_guest_has_opened() {
    let mut network = network(1);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    let ip = IpHeader::new(FIRST.into(), Ipv4Addr::new(192, 0, 2, 1).into(), PROTOCOL_UDP);
    let frame = Headers::udp(network.mac, A, &ip, (5000, 9), 0, u16::MAX);
    let Verdict::Udp { flow, .. } = network.handle_frame(PortId(1), &frame[..], at(1)) else {
        panic!("no flow")
    };
    for stranger in 0..3000 {
        let peer = SocketAddr::new(IpAddr::from((0xcb00_7100_u32 + stranger).to_be_bytes()), 9);
        network.udp_from_forward(1, ssh(FIRST), &origin(peer), Datagrams::one(1), at(2)).unwrap();
        drain(&mut network, at(2));
    }
    assert!(network.udp_flows().get(flow).is_some());
    assert_eq!(network.udp_flows().len(), 1 + network.config.limits.udp);
}

#[test]
fn dns_connections_are_bounded() {
    let mut network = network(1);
    let ip = IpHeader::new(FIRST.into(), network.config.dns.into(), PROTOCOL_TCP);
    let mut verdicts = (0..20).map(|n| {
        let syn = crate::wire::TcpHeader {
            src_port: 2000 + n,
            dst_port: 53,
            flags: crate::wire::TcpFlags::SYN,
            ..Default::default()
        };
        let frame = Headers::tcp(network.mac, A, &ip, &syn, 0, 1460);
        network.handle_frame(PortId(1), &frame[..], at(1))
    });
    let refused =
        verdicts.by_ref().filter(|verdict| matches!(verdict, Verdict::Dropped(DropReason::DnsLimit)));
    assert_eq!(refused.count(), 12);
}

/// A frame of a TCP segment from the guest at [`FIRST`].
fn segment(network: &Network, src_port: u16, flags: crate::wire::TcpFlags) -> Vec<u8> {
    let ip = IpHeader::new(FIRST.into(), Ipv4Addr::new(192, 0, 2, 1).into(), PROTOCOL_TCP);
    let header = crate::wire::TcpHeader { src_port, dst_port: 80, flags, ..Default::default() };
    Headers::tcp(network.mac, A, &ip, &header, 0, 1460).to_vec()
}

/// Two workers' parts of a network with a guest that has a queue at each.
fn split() -> (Network, Network) {
    let parts: [Network; 2] = Network::split(&Config::default(), 2).try_into().ok().unwrap();
    let [mut first, mut second] = parts;
    first.add_queue(PortId(1), 2);
    second.add_queue(PortId(1), 2);
    (first, second)
}

#[test]
fn strays_go_to_the_worker_that_has_their_flow() {
    use crate::wire::TcpFlags;
    let (mut first, mut second) = split();
    let syn = segment(&first, 5000, TcpFlags::SYN);
    assert!(matches!(second.handle_frame(PortId(1), &syn[..], at(0)), Verdict::Done));
    let ack = segment(&first, 5000, TcpFlags::ACK);
    let verdict = first.handle_frame(PortId(1), &ack[..], at(1));
    assert!(matches!(verdict, Verdict::HandOver(WorkerId(1))), "{verdict:?}");
    assert!(drain(&mut first, at(1)).is_empty(), "no RST: the flow lives");

    second.remove_port(PortId(1));
    drain(&mut second, at(2));
    let verdict = first.handle_frame(PortId(1), &ack[..], at(3));
    assert!(matches!(verdict, Verdict::Dropped(DropReason::NoFlow)), "nobody has it: {verdict:?}");
}

#[test]
fn workers_know_of_each_others_guests() {
    let [mut first, mut second]: [Network; 2] =
        Network::split(&Config::default(), 2).try_into().ok().unwrap();
    first.add_port(PortId(1));
    second.add_port(PortId(2));
    let (address, _) = first.lease(PortId(1), A, None, at(0)).unwrap();
    assert_ne!(second.lease(PortId(2), B, None, at(0)).unwrap().0, address, "one pool");
    let address = address.unwrap();
    assert_eq!(second.leases(at(0)).len(), 2);
    assert_eq!(second.elsewhere(address.into()), Some(WorkerId(0)));
    assert_eq!(first.elsewhere(address.into()), None);

    let mut frame = announce(B, Ipv4Addr::new(10, 0, 2, 16));
    let verdict = second.handle_frame(PortId(2), &frame[..], at(1));
    assert!(matches!(&verdict, Verdict::Flood(others) if others[..] == [PortId(1)]), "{verdict:?}");
    frame[..6].copy_from_slice(&A.0);
    assert!(matches!(second.handle_frame(PortId(2), &frame[..], at(1)), Verdict::Relay(PortId(1))));

    first.remove_port(PortId(1));
    assert_eq!(second.leases(at(2)).len(), 1);
    assert_eq!(second.elsewhere(address.into()), None);
    let verdict = second.handle_frame(PortId(2), &frame[..], at(2));
    assert!(matches!(verdict, Verdict::Dropped(DropReason::UnknownMac)), "{verdict:?}");
}

#[test]
fn a_lease_without_dhcp_is_of_each_kind_of_ip_that_is_on() {
    const FIRST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);
    let net6 = Some(crate::dhcp6::Config::default());
    for (ipv4, net6) in [(true, None), (true, net6.clone()), (false, net6)] {
        let expected = (ipv4.then_some(FIRST), net6.is_some().then_some(FIRST6));
        let mut network = Network::new(Config { ipv4, net6, ..Config::default() });
        network.add_port(PortId(1));
        assert_eq!(network.lease(PortId(1), A, None, at(0)), Ok(expected));
        assert_eq!(network.leases(at(0)).len(), usize::from(expected.0.is_some()));
        assert_eq!(network.leases6(at(0)).len(), usize::from(expected.1.is_some()));
        drain(&mut network, at(0));

        let Some(guest) = expected.1 else { continue };
        let peer: SocketAddr = "[2001:db8::9]:4000".parse().unwrap();
        network.accept_tcp(Endpoint { addr: guest.into(), port: 22 }, peer, at(1)).unwrap();
        let told = drain(&mut network, at(1));
        let at_once =
            |output: &Output| matches!(output, Output::Headers { headers, .. } if headers.starts_with(&A.0));
        assert!(told.iter().any(at_once), "the guest need not be looked for: {told:?}");
    }
}

#[test]
fn a_connection_that_waits_for_a_guest_moves_to_the_worker_that_finds_it() {
    let [mut first, mut second]: [Network; 2] =
        Network::split(&Config::default(), 2).try_into().ok().unwrap();
    second.add_port(PortId(2));
    let peer: SocketAddr = "192.0.2.9:4000".parse().unwrap();
    let waiting = first.accept_tcp(ssh(FIRST), peer, at(0)).unwrap();
    drain(&mut first, at(0));
    second.lease(PortId(2), A, None, at(1)).unwrap();
    let told = drain(&mut second, at(1));
    assert!(told.iter().any(|output| matches!(output, Output::Found(addr) if *addr == FIRST)), "{told:?}");
    first.found(FIRST.into());
    let moved = drain(&mut first, at(1));
    assert!(
        moved.iter().any(|output| matches!(output, Output::Rehome { flow, to: WorkerId(1), guest, peer }
            if *flow == waiting && *guest == ssh(FIRST) && peer.port == 4000)),
        "{moved:?}"
    );
    assert!(first.tcp_flows().get(waiting).is_some(), "its number is not given to another before it is over");
    first.rehomed(waiting);
    assert!(first.tcp_flows().is_empty());
    assert_eq!(first.poll_timeout(), None);
}

#[test]
fn what_lies_behind_a_vlan_tag_is_not_handed_to_others() {
    let mut network = network(2);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    let forged = announce(B, network.config.gateway);
    for tag in [&[0x81, 0, 0, 0][..], &[0x88, 0xa8, 0, 1], &[0x81, 0, 0, 0, 0x81, 0, 0, 0], &[0x91, 0, 0, 0]]
    {
        for to in [MacAddr::BROADCAST, A] {
            let frame = [&to.0[..], &B.0, tag, &forged[12..]].concat();
            let verdict = network.handle_frame(PortId(2), &frame[..], at(0));
            assert!(matches!(verdict, Verdict::Dropped(DropReason::EtherType)), "{tag:x?}: {verdict:?}");
        }
    }
}

#[test]
fn a_lease_takes_no_mac_from_another_guest_and_its_macs_are_bounded() {
    let mut network = network(2);
    network.lease(PortId(1), A, None, at(0)).unwrap();
    let _ = network.handle_frame(PortId(1), &announce(A, FIRST)[..], at(0));
    // The Ethernet source is the other guest's, the client's hardware address its own.
    let mut request = dhcp(B, 3, Ipv4Addr::new(10, 0, 2, 16));
    request[6..12].copy_from_slice(&A.0);
    let _ = network.handle_frame(PortId(2), &request[..], at(1));
    assert_eq!(network.leases(at(1)).len(), 2);
    let mut frame = announce(B, Ipv4Addr::new(10, 0, 2, 16));
    frame[..6].copy_from_slice(&A.0);
    assert!(matches!(network.handle_frame(PortId(2), &frame[..], at(2)), Verdict::Relay(PortId(1))));

    let macs: Vec<MacAddr> =
        (0..1000_u16).map(|n| MacAddr([2, 0, 0, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]])).collect();
    for mac in &macs {
        request[6..12].copy_from_slice(&mac.0);
        let _ = network.handle_frame(PortId(2), &request[..], at(3));
    }
    let known =
        macs.iter().filter(|mac| network.shared.with(|registry| registry.switch.port_of(**mac)).is_some());
    assert!(known.count() <= network.config.limits.macs);
}

#[test]
fn only_who_waits_for_an_address_is_told_of_it() {
    let [mut first, mut second]: [Network; 2] =
        Network::split(&Config::default(), 2).try_into().ok().unwrap();
    first.add_port(PortId(1));
    let found = |network: &mut Network, now| {
        drain(network, now).iter().filter(|output| matches!(output, Output::Found(_))).count()
    };
    // Addresses that nobody has asked for are no news to other workers.
    for last in 30..250 {
        let _ = first.handle_frame(PortId(1), &announce(A, Ipv4Addr::new(10, 0, 2, last))[..], at(0));
    }
    assert_eq!(found(&mut first, at(0)), 0);

    let wanted = Ipv4Addr::new(10, 0, 2, 20);
    let peer = SocketAddr::from(([127, 0, 0, 1], 4000));
    second.accept_tcp(ssh(wanted), peer, at(0)).unwrap();
    let asked = |network: &mut Network, now| {
        drain(network, now).iter().filter(|output| matches!(output, Output::Frame { .. })).count()
    };
    assert_eq!(asked(&mut second, at(0)), 1);
    // Datagrams for it ask no more often than once a second.
    for ms in 1..999 {
        assert!(second.udp_from_forward(1, ssh(wanted), &origin(peer), Datagrams::one(1), at(ms)).is_err());
    }
    assert_eq!(asked(&mut second, at(999)), 0);

    let epoch = second.shared.epoch();
    let _ = first.handle_frame(PortId(1), &dhcp(A, 3, wanted)[..], at(1));
    assert_eq!(found(&mut first, at(1)), 1);
    assert_ne!(second.shared.epoch(), epoch);
    let epoch = second.shared.epoch();
    for ms in 2..100 {
        let _ = first.handle_frame(PortId(1), &dhcp(A, 3, wanted)[..], at(ms));
        assert_eq!(found(&mut first, at(ms)), 0);
    }
    assert_eq!(second.shared.epoch(), epoch);
}

#[test]
fn a_frame_of_a_guest_that_went_opens_nothing() {
    let mut network = network(1);
    network.remove_port(PortId(1));
    let syn = segment(&network, 5000, crate::wire::TcpFlags::SYN);
    let verdict = network.handle_frame(PortId(1), &syn[..], at(0));
    assert!(matches!(verdict, Verdict::Dropped(DropReason::NoFlow)), "{verdict:?}");
    assert!(network.tcp_flows().is_empty());
}

#[test]
fn the_queues_of_a_guest_share_its_bounds() {
    let (mut first, mut second) = split();
    let half = first.config.limits.connecting / 2;
    for (worker, network) in [&mut first, &mut second].into_iter().enumerate() {
        for n in 0..half + 10 {
            let src_port = u16::try_from(worker * 10_000 + n + 1).unwrap();
            let syn = segment(network, src_port, crate::wire::TcpFlags::SYN);
            let _ = network.handle_frame(PortId(1), &syn[..], at(0));
        }
        assert_eq!(network.tcp_flows().len(), half);
        assert_eq!(network.drops().of(DropReason::PendingLimit), 10);
    }
}

#[test]
fn each_datagram_of_a_batch_is_a_drop() {
    let mut network = network(1);
    let peer: SocketAddr = "192.0.2.9:4000".parse().unwrap();
    let batch = Datagrams { len: 250, segment: 100 };
    assert!(network.udp_from_forward(1, ssh(FIRST), &origin(peer), batch, at(0)).is_err());
    assert_eq!(network.drops().of(DropReason::Unresolved), 3);
}

#[test]
fn an_echo_that_is_no_reply_is_a_drop() {
    let mut network = network(1);
    let ip = IpHeader::new(FIRST.into(), [192, 0, 2, 9].into(), PROTOCOL_ICMP);
    let request = [ICMP_ECHO, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let frame = Headers::icmp(network.mac, A, &ip, &request, 0);
    let verdict = network.handle_frame(PortId(1), &frame[..], at(0));
    let Verdict::Ping { flow, header, .. } = verdict else { panic!("{verdict:?}") };
    let from = origin("192.0.2.9:0".parse().unwrap());
    assert!(network.ping_from_host(flow, &from, None, header, 0, at(0)).is_err());
    assert_eq!(network.drops().of(DropReason::Icmp), 1);
}

#[test]
fn a_question_to_a_group_goes_to_other_guests_and_to_the_hosts_network() {
    let mdns = Ipv4Addr::new(224, 0, 0, 251);
    let mut network = Network::new(Config { multicast: MulticastService::ALL.to_vec(), ..Config::default() });
    network.add_port(PortId(1));
    network.add_port(PortId(2));
    let limit = network.config.limits.udp;
    for source in 1..=u16::try_from(limit).unwrap() + 10 {
        let ip = IpHeader { ttl: 255, ..IpHeader::new(FIRST.into(), mdns.into(), PROTOCOL_UDP) };
        let group = MacAddr([1, 0, 0x5e, 0, 0, 251]);
        let mut frame = Headers::udp(group, A, &ip, (source, 5353), 12, u16::MAX).to_vec();
        frame.extend([0; 12]);
        let verdict = network.handle_frame(PortId(1), &frame[..], at(0));
        assert!(matches!(&verdict, Verdict::Flood(others) if *others == [PortId(2)]), "{verdict:?}");
        let asked = drain(&mut network, at(0)).into_iter().find_map(|output| match output {
            Output::Multicast { to, delivery, payload, .. } => Some((to, delivery.ttl, payload)),
            _ => None,
        });
        assert_eq!(asked, Some((SocketAddr::from((mdns, 5353)), 255, vec![0; 12])));
    }
    assert_eq!((network.udp_flows().len(), network.drops().of(DropReason::FlowLimit)), (limit, 10));
}

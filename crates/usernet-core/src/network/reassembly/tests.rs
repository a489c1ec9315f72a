//! What is put together, and the classes of mistakes that others have made with it.
#![expect(clippy::cast_possible_truncation, reason = "lengths that the tests chose")]

use super::super::{Config, Output};
use super::*;
use crate::dhcp6;
use crate::offload::Fragmentation;
use crate::wire::{ICMPV6_ECHO, fragments, group_mac};
use smoltcp::wire::Ipv4Packet;

const A: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0xa]);
const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
const PORT: PortId = PortId(1);
/// Addresses of the guest and of somebody outside, over IPv4 and over IPv6.
const ENDS: [(&str, &str); 2] = [("10.0.2.15", "192.0.2.1"), ("fd00::15", "2001:db8::1")];
const FAMILIES: [bool; 2] = [false, true];

fn at(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

fn network() -> Network {
    let mut network = Network::new(Config { net6: Some(dhcp6::Config::default()), ..Config::default() });
    for port in [PORT, PortId(2)] {
        network.add_port(port);
    }
    network
}

/// A fragment by hand, and what is to be different about it.
#[derive(Clone)]
struct Piece {
    ends: (&'static str, &'static str),
    protocol: u8,
    ident: u32,
    at: usize,
    more: bool,
    tos: u8,
    data: Vec<u8>,
}

impl Piece {
    /// A fragment of a UDP datagram with `at` as its place.
    fn new(v6: bool, at: usize, more: bool, data: &[u8]) -> Self {
        let ends = ENDS[usize::from(v6)];
        Self { ends, protocol: PROTOCOL_UDP, ident: 7, at, more, tos: 0, data: data.to_vec() }
    }

    fn frame(&self) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) = (self.ends.0.parse().unwrap(), self.ends.1.parse().unwrap());
        let mut ip = IpHeader { tos: self.tos, ..IpHeader::new(src, dst, self.protocol) };
        let ethertype = if dst.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let to = match dst {
            IpAddr::V6(dst) if dst.is_multicast() => group_mac(dst),
            IpAddr::V4(dst) if dst.is_broadcast() => MacAddr::BROADCAST,
            _ => GATEWAY,
        };
        let mut frame = EthernetHeader { dst: to, src: A, ethertype }.to_bytes().to_vec();
        let field = u16::try_from(self.at).unwrap();
        if dst.is_ipv4() {
            let mut header = [0; IPV4_HEADER_LEN];
            ip.emit_v4(&mut header, self.data.len());
            header[4..6].copy_from_slice(&(self.ident as u16).to_be_bytes());
            header[6..8].copy_from_slice(&((field / 8) | (u16::from(self.more) << 13)).to_be_bytes());
            frame.extend(header);
        } else {
            let mut header = [0; IPV6_HEADER_LEN];
            ip.protocol = PROTOCOL_IPV6_FRAGMENT;
            ip.emit_v6(&mut header, FRAGMENT_HEADER_LEN + self.data.len());
            frame.extend(header);
            let [hi, lo] = (field | u16::from(self.more)).to_be_bytes();
            frame.extend([self.protocol, 0, hi, lo]);
            frame.extend(self.ident.to_be_bytes());
        }
        frame.extend(&self.data);
        frame
    }
}

/// A UDP datagram of `len` bytes with its header.
fn datagram(len: usize) -> Vec<u8> {
    let mut bytes = vec![15, 160, 0, 9, 0, 0, 0, 0];
    bytes[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    bytes.extend((8..len).map(|n| (n * n / 7) as u8));
    bytes
}

/// Its fragments of `size` bytes.
fn cut(v6: bool, data: &[u8], size: usize) -> Vec<Piece> {
    let part = |(n, part)| {
        let at: usize = n * size;
        Piece::new(v6, at, at + size < data.len(), part)
    };
    data.chunks(size).enumerate().map(part).collect()
}

fn take(network: &mut Network, frame: &[u8]) -> Verdict {
    network.handle_frame(PORT, frame, at(1000))
}

fn dropped(verdict: Verdict) -> Option<DropReason> {
    match verdict {
        Verdict::Dropped(reason) => Some(reason),
        Verdict::Done => None,
        other => panic!("{other:?}"),
    }
}

/// The types, codes and second words of the ICMP messages to the guest.
fn told(network: &mut Network) -> Vec<(u8, u8, u32)> {
    let mut messages = Vec::new();
    while let Some(output) = network.poll_output(at(1000)) {
        let Output::Frame { frame, .. } = output else { continue };
        let icmp = if frame[12] == 8 { &frame[34..] } else { &frame[54..] };
        let is_icmp = if frame[12] == 8 { frame[23] == PROTOCOL_ICMP } else { frame[20] == PROTOCOL_ICMPV6 };
        // Routers are advertised meanwhile.
        if is_icmp && icmp[0] != 134 {
            messages.push((icmp[0], icmp[1], u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]])));
        }
    }
    messages
}

/// Hands the pieces in, of which the last is to complete the packet; returns its data.
fn put_together(network: &mut Network, pieces: &[Piece]) -> Vec<u8> {
    let (last, others) = pieces.split_last().unwrap();
    for piece in others {
        assert_eq!(dropped(take(network, &piece.frame())), None);
    }
    let Verdict::Reassembled(frame) = take(network, &last.frame()) else { panic!("it is complete") };
    let headers_len = if frame[12] == 8 { 34 } else { 62 };
    assert!(matches!(take(network, &frame), Verdict::Udp { .. } | Verdict::Ping { .. } | Verdict::Done));
    frame[headers_len..].to_vec()
}

#[test]
fn fragments_in_any_order_make_the_packet() {
    let data = datagram(8 * 4 + 5);
    for v6 in FAMILIES {
        let pieces = cut(v6, &data, 8);
        assert_eq!(pieces.len(), 5);
        for order in 0..120 {
            let (mut left, mut order) = (pieces.clone(), order);
            let mut shuffled = Vec::new();
            while !left.is_empty() {
                shuffled.push(left.remove(order % left.len()));
                order /= left.len() + 1;
            }
            let mut network = network();
            assert_eq!(put_together(&mut network, &shuffled), data);
            assert_eq!((network.incomplete(PORT), network.drops().iter().count()), (0, 0));
        }
    }
}

#[test]
fn the_packet_has_plain_headers_of_its_first_fragment() {
    for v6 in FAMILIES {
        let mut network = network();
        let data = datagram(100);
        let mut pieces = cut(v6, &data, 64);
        // Congestion on the way of one is congestion (RFC 3168 §5.3).
        (pieces[0].tos, pieces[1].tos) = (0xb9, 0xbb);
        let _ = take(&mut network, &pieces[1].frame());
        let Verdict::Reassembled(frame) = take(&mut network, &pieces[0].frame()) else { panic!() };
        let (ethernet, rest) = EthernetHeader::parse(&frame).unwrap();
        assert_eq!((ethernet.src, ethernet.dst), (A, GATEWAY));
        let (ip, header_len, len) = if v6 {
            IpHeader::parse_v6(rest, rest.len()).unwrap()
        } else {
            assert!(Ipv4Packet::new_checked(rest).unwrap().verify_checksum());
            IpHeader::parse_v4(rest, rest.len()).unwrap()
        };
        assert!(!ip.dont_fragment, "it may be cut again");
        let (src, dst) = ENDS[usize::from(v6)];
        assert_eq!((ip.src.to_string(), ip.dst.to_string()), (src.to_string(), dst.to_string()));
        assert_eq!((ip.protocol, ip.ttl, ip.tos, ip.fragment), (PROTOCOL_UDP, 64, 0xbb, false));
        assert_eq!((header_len, len), (if v6 { 48 } else { 20 }, 100));
    }
}

#[test]
fn what_is_cut_for_a_guest_can_be_put_together_again() {
    for v6 in FAMILIES {
        for (len, mtu) in
            [(1500, 1280), (9000, 1500), (65_515, 1500), (65_515, 576), (3000, 1303), (1400, 1500)]
        {
            let data = datagram(len);
            let mut whole = Piece::new(v6, 0, false, &data).frame();
            if v6 {
                // Without the fragment header.
                whole.drain(54..62);
                whole[20] = PROTOCOL_UDP;
                whole[18..20].copy_from_slice(&(len as u16).to_be_bytes());
            }
            let how = Fragmentation { mtu, ident: 0xabcd_1234 };
            let frames: Vec<Vec<u8>> =
                fragments(&whole, how).map(|(headers, part)| [&headers, part].concat()).collect();
            assert!(frames.iter().all(|frame| frame.len() <= 14 + usize::from(mtu)));
            if len <= 1400 {
                assert_eq!(frames, [whole]);
                continue;
            }
            // No fragment is wasted, and each but the last is as long as it may be.
            let most = usize::from(mtu) + 14 - 7;
            assert!(frames.iter().rev().skip(1).all(|frame| frame.len() >= most));
            let mut network = network();
            let mut verdicts: Vec<Verdict> =
                frames.iter().rev().map(|frame| take(&mut network, frame)).collect();
            let Some(Verdict::Reassembled(frame)) = verdicts.pop() else { panic!("{len} bytes by {mtu}") };
            assert_eq!(frame[frame.len() - len..], data);
            assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Done)));
            if !v6 {
                assert!(frames.iter().all(|frame| {
                    let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                    ip.verify_checksum() && ip.ident() == 0x1234 && !ip.dont_frag()
                }));
            }
        }
    }
}

#[test]
fn packets_are_told_apart_by_addresses_protocol_and_identification() {
    for v6 in FAMILIES {
        let mut network = network();
        let base = Piece::new(v6, 0, true, &datagram(64)[..32]);
        let others = [
            base.clone(),
            Piece { ident: 8, ..base.clone() },
            Piece {
                ends: (ENDS[usize::from(v6)].0, if v6 { "2001:db8::2" } else { "192.0.2.2" }),
                ..base.clone()
            },
            Piece {
                ends: (if v6 { "fd00::16" } else { "10.0.2.16" }, ENDS[usize::from(v6)].1),
                ..base.clone()
            },
        ];
        for other in &others {
            assert_eq!(dropped(take(&mut network, &other.frame())), None);
        }
        assert_eq!(network.incomplete(PORT), 4);
        // Another guest's are its own.
        let verdict = network.handle_frame(PortId(2), &base.frame()[..], at(1000));
        assert_eq!((dropped(verdict), network.incomplete(PORT)), (None, 4));
        // A packet of IPv6 is one whatever its later fragments call it (RFC 8200 §4.5).
        let last = Piece { at: 32, more: false, protocol: PROTOCOL_TCP, ..base };
        let verdict = take(&mut network, &last.frame());
        assert_eq!(matches!(verdict, Verdict::Reassembled(_)), v6, "{verdict:?}");
    }
}

#[test]
fn overlaps_and_contradictions_refuse_the_packet_and_all_that_follows() {
    let data = datagram(64);
    let other = [0xff; 64];
    // Pieces as (start, end, more); the last is what is refused.
    let cases: &[&[(usize, usize, bool)]] = &[
        &[(0, 16, true), (8, 24, true)],
        &[(8, 24, true), (0, 16, true)],
        &[(0, 16, true), (24, 40, true), (8, 32, true)],
        &[(0, 8, true), (16, 24, true), (0, 24, true)],
        // Beyond the end that is known, at it, an end before what has come, and two ends.
        &[(0, 16, true), (32, 40, false), (40, 48, true)],
        &[(32, 40, false), (24, 40, true)],
        &[(24, 40, true), (16, 24, false)],
        &[(32, 40, false), (40, 48, false)],
        &[(32, 45, false), (32, 40, false)],
    ];
    for v6 in FAMILIES {
        for case in cases {
            let mut network = network();
            let (last, first) = case.split_last().unwrap();
            for (start, end, more) in first {
                let piece = Piece::new(v6, *start, *more, &data[*start..*end]);
                assert_eq!(dropped(take(&mut network, &piece.frame())), None, "{case:?}");
            }
            let (start, end, more) = *last;
            let piece = Piece::new(v6, start, more, &data[start..end]);
            let overlap = Some(DropReason::FragmentOverlap);
            assert_eq!(dropped(take(&mut network, &piece.frame())), overlap, "{case:?}");
            for piece in cut(v6, &data, 16) {
                assert_eq!(dropped(take(&mut network, &piece.frame())), overlap, "{case:?}");
            }
            // Nothing is said of it, now or later (RFC 8200 §4.5).
            network.handle_timeout(at(100_000));
            assert_eq!((told(&mut network), network.incomplete(PORT)), (vec![], 0));
            assert_eq!(network.drops().of(DropReason::FragmentTimeout), 0);
        }
        // The same place with other bytes.
        let mut network = network();
        let _ = take(&mut network, &Piece::new(v6, 0, true, &data[..16]).frame());
        let verdict = take(&mut network, &Piece::new(v6, 0, true, &other[..16]).frame());
        assert_eq!(dropped(verdict), Some(DropReason::FragmentOverlap));
    }
}

#[test]
fn what_comes_twice_changes_nothing() {
    let data = datagram(61);
    for v6 in FAMILIES {
        let mut network = network();
        let pieces = cut(v6, &data, 16);
        for piece in &pieces[1..] {
            assert_eq!(dropped(take(&mut network, &piece.frame())), None);
            let again = take(&mut network, &piece.frame());
            assert_eq!(dropped(again), Some(DropReason::Duplicate));
        }
        assert_eq!(put_together(&mut network, &pieces[..1]), data);
    }
}

#[test]
fn a_fragment_that_is_none_costs_only_itself() {
    let data = vec![9; 1480];
    let end = |v6: bool| if v6 { 65_520 } else { 65_512 };
    for v6 in FAMILIES {
        // The payload length of IPv6 lies at 4, the fragment header behind 40 bytes.
        let bad = [
            (Piece::new(v6, 0, true, &data[..1479]), Some((4, 0, 4))),
            (Piece::new(v6, 8, true, &data[..1473]), Some((4, 0, 4))),
            (Piece::new(v6, end(v6), false, &data[..8]), Some((4, 0, 42))),
            (Piece::new(v6, 65_528, true, &data), Some((4, 0, 42))),
            (Piece::new(v6, 8, true, &[]), None),
            (Piece::new(v6, 0, true, &[]), None),
            (Piece::new(v6, 64, false, &[]), None),
            // The transport's header is not all there (RFC 7112).
            (Piece { protocol: PROTOCOL_TCP, ..Piece::new(v6, 0, true, &data[..16]) }, Some((4, 3, 0))),
        ];
        for (piece, problem) in &bad {
            let mut network = network();
            assert_eq!(dropped(take(&mut network, &piece.frame())), Some(DropReason::Fragment));
            let expected: Vec<_> = problem.iter().copied().filter(|_| v6).collect();
            assert_eq!((told(&mut network), network.incomplete(PORT)), (expected, 0));
        }
        // Its packet does not suffer.
        let mut network = network();
        let pieces = cut(v6, &datagram(64), 16);
        let _ = take(&mut network, &pieces[0].frame());
        let _ = take(&mut network, &bad[0].0.frame());
        assert_eq!(put_together(&mut network, &pieces[1..]), datagram(64));
    }
}

#[test]
fn the_longest_packet_is_put_together_and_nothing_longer() {
    for (v6, longest) in [(false, 65_515), (true, 65_527)] {
        let mut network = network();
        let data = datagram(longest);
        assert_eq!(put_together(&mut network, &cut(v6, &data, 1472)), data);
        let mut pieces = cut(v6, &data, 1472);
        let last = pieces.last_mut().unwrap();
        last.data.push(0);
        let verdicts: Vec<_> =
            pieces.iter().map(|piece| dropped(take(&mut network, &piece.frame()))).collect();
        assert_eq!(verdicts.iter().flatten().collect::<Vec<_>>(), [&DropReason::Fragment]);
    }
}

#[test]
fn headers_in_front_of_the_data_may_differ_and_lie() {
    // Options in one fragment and not in the other: the data are where its own header says.
    let data = datagram(48);
    let pieces = cut(false, &data, 32);
    let mut second = pieces[1].frame();
    second[14] = 0x47;
    second[17] += 8;
    second.splice(34..34, [1; 8]);
    let mut net = network();
    assert_eq!(dropped(take(&mut net, &pieces[0].frame())), None);
    let Verdict::Reassembled(frame) = take(&mut net, &second) else { panic!() };
    assert_eq!(frame[34..], data);
    // A total length beyond the frame, and a header length beyond the total.
    for (at, value) in [(17, 0xff), (14, 0x4f)] {
        let mut lies = pieces[0].frame();
        lies[at] = value;
        lies.truncate(60);
        assert_eq!(dropped(take(&mut net, &lies)), Some(DropReason::IpHeader));
    }
    // Padding behind a short one is none of its data.
    let mut padded = pieces[1].frame();
    padded.extend([0xee; 20]);
    let _ = take(&mut net, &pieces[0].frame());
    let Verdict::Reassembled(frame) = take(&mut net, &padded) else { panic!() };
    assert_eq!(frame[34..], data);

    // Options of IPv6, in front of the fragment header and behind it.
    let extended = [&[PROTOCOL_UDP, 0, 1, 4, 0, 0, 0, 0], &data[..]].concat();
    let mut pieces = cut(true, &extended, 32);
    pieces.iter_mut().for_each(|piece| piece.protocol = 60);
    let mut first = pieces[0].frame();
    first[20] = 60;
    first[19] += 8;
    first.splice(54..54, [44, 0, 1, 4, 0, 0, 0, 0]);
    assert_eq!(dropped(take(&mut net, &first)), None);
    let Verdict::Reassembled(frame) = take(&mut net, &pieces[1].frame()) else { panic!() };
    assert_eq!(frame[62..], extended);
    let Verdict::Udp { payload, .. } = take(&mut net, &frame) else { panic!() };
    assert_eq!(frame[payload], data[8..]);
}

#[test]
fn a_fragment_in_a_fragment_and_neighbour_discovery_in_one_are_refused() {
    let mut network = network();
    let nested = [&[PROTOCOL_UDP, 0, 0, 1, 0, 0, 0, 5], &datagram(64)[..]].concat();
    for (protocol, data) in
        [(PROTOCOL_IPV6_FRAGMENT, nested.clone()), (60, [&[44, 0, 1, 4, 0, 0, 0, 0], &nested[..]].concat())]
    {
        let piece = Piece { protocol, ..Piece::new(true, 0, true, &data) };
        assert_eq!(dropped(take(&mut network, &piece.frame())), Some(DropReason::Fragment));
    }
    // RFC 6980: a solicitation, padded to two fragments, with the hop limit that it needs.
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    message.extend([1, 1, 0x52, 0x54, 0, 0, 0, 0xa]);
    let ends = ("fd00::15", "fd00::2");
    let pieces =
        cut(true, &message, 16).into_iter().map(|piece| Piece { ends, protocol: PROTOCOL_ICMPV6, ..piece });
    let mut last = Verdict::Done;
    for piece in pieces {
        let mut frame = piece.frame();
        frame[21] = 255;
        last = take(&mut network, &frame);
    }
    let Verdict::Reassembled(frame) = last else { panic!("{last:?}") };
    assert_eq!(dropped(take(&mut network, &frame)), Some(DropReason::Ndp));
}

#[test]
fn what_goes_to_a_group_stays_in_fragments() {
    for ends in [("10.0.2.15", "255.255.255.255"), ("fd00::15", "ff02::1")] {
        let mut network = network();
        // The port of a DHCP server is not looked for in a part of a datagram.
        let mut data = datagram(64);
        data[2..4].copy_from_slice(&[0, 67]);
        let piece = Piece { ends, ..Piece::new(false, 0, true, &data) };
        let verdict = take(&mut network, &piece.frame());
        assert!(matches!(&verdict, Verdict::Flood(to) if *to == [PortId(2)]), "{verdict:?}");
        assert_eq!(network.incomplete(PORT), 0);
    }
}

#[test]
fn a_packet_that_is_not_complete_in_a_minute_is_given_up_and_its_sender_told() {
    for v6 in FAMILIES {
        let mut network = network();
        let pieces = cut(v6, &datagram(64), 16);
        for (ident, piece) in [(1, &pieces[0]), (2, &pieces[1])] {
            let piece = Piece { ident, ..piece.clone() };
            assert_eq!(dropped(take(&mut network, &piece.frame())), None);
        }
        network.handle_timeout(at(60_900));
        assert_eq!((network.incomplete(PORT), told(&mut network)), (2, vec![]));
        // Those that came later wait longer.
        let late = Piece { ident: 3, ..pieces[0].clone() };
        let _ = network.handle_frame(PORT, &late.frame()[..], at(60_900));
        network.handle_timeout(at(61_003));
        assert_eq!(network.incomplete(PORT), 1);
        // RFC 792, RFC 4443 §3.3: only if its start has come.
        assert_eq!(told(&mut network), [(if v6 { 3 } else { 11 }, 1, 0)]);
        assert_eq!(network.drops().of(DropReason::FragmentTimeout), 2);
        // What comes late begins anew.
        let _ = network.handle_frame(PORT, &pieces[2].frame()[..], at(61_010));
        assert_eq!(network.incomplete(PORT), 2);
        network.remove_port(PORT);
        network.remove_port(PortId(2));
        assert_eq!((network.incomplete(PORT), network.poll_timeout()), (0, None));
    }
}

#[test]
fn no_error_is_sent_about_an_icmpv6_error() {
    for (kind, expected) in [(1, 0), (ICMPV6_ECHO, 1)] {
        let mut network = network();
        let mut data = vec![0; 64];
        data[0] = kind;
        let piece =
            Piece { protocol: PROTOCOL_ICMPV6, ident: kind.into(), ..Piece::new(true, 0, true, &data) };
        assert_eq!(dropped(take(&mut network, &piece.frame())), None);
        network.handle_timeout(at(100_000));
        assert_eq!(told(&mut network).len(), expected);
    }
}

#[test]
fn the_oldest_goes_first_and_the_bound_is_each_guests_own() {
    let mut network = network();
    let pieces = cut(false, &datagram(64), 32);
    let theirs = Piece { ident: 1, ..pieces[0].clone() };
    let _ = network.handle_frame(PortId(2), &theirs.frame()[..], at(1000));
    for ident in 0..100_000 {
        let piece = Piece { ident, ..pieces[0].clone() };
        assert_eq!(dropped(take(&mut network, &piece.frame())), None);
        assert!(network.incomplete(PORT) <= 16);
    }
    assert_eq!(network.drops().of(DropReason::FragmentLimit), 100_000 - 16);
    // The newest can be completed still, and so can another guest's.
    let last = Piece { ident: 99_999, ..pieces[1].clone() };
    assert!(matches!(take(&mut network, &last.frame()), Verdict::Reassembled(_)));
    let last = Piece { ident: 1, ..pieces[1].clone() };
    let verdict = network.handle_frame(PortId(2), &last.frame()[..], at(1000));
    assert!(matches!(verdict, Verdict::Reassembled(_)));
    // One that was refused makes room without a word: it has been counted.
    let before = network.drops().of(DropReason::FragmentLimit);
    let _ = take(&mut network, &Piece { ident: 5, ..pieces[0].clone() }.frame());
    let overlap = Piece { ident: 5, at: 8, ..pieces[0].clone() };
    assert_eq!(dropped(take(&mut network, &overlap.frame())), Some(DropReason::FragmentOverlap));
    for ident in 100..116 {
        let _ = take(&mut network, &Piece { ident, ..pieces[0].clone() }.frame());
    }
    assert_eq!(network.drops().of(DropReason::FragmentLimit), before + 15);
}

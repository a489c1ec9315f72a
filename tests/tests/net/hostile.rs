//! A guest that sends whatever it likes.

use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpProtocol, Ipv4Packet, Ipv4Repr,
};
use usernet_tests::stream_guest::{StreamGuest, Wire};
use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, GATEWAY, LAN, NAMESERVER, Noise, World, eventually, noise_digest, peers};

const ATTACK: Duration = Duration::from_secs(10);
const BULK: u64 = 64 << 20;
/// The length of an Ethernet header. What is shorter is no frame at all, and ends the link.
const SHORTEST: usize = 14;
const HOSTILE: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x66, 0x66, 0x66]);

#[test]
fn a_hostile_guest_harms_nobody_and_is_counted() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let http = SocketAddrV4::new(GATEWAY, peers::http());
    let mut victim = StreamGuest::plug_in(&daemon.socket(), [0x52, 0x54, 0, 0, 0, 1]);
    victim.lease();

    let socket = daemon.socket();
    let attack = thread::spawn(move || attack(&socket));
    let expected = noise_digest(1, BULK);
    let mut transfers = 0;
    while !attack.is_finished() || transfers == 0 {
        assert_eq!(victim.fetch_digest(http, &format!("/1/{BULK}")), expected);
        transfers += 1;
    }
    let (sent, _wire) = attack.join().unwrap().unwrap();
    println!("{transfers} transfers beside {sent} hostile frames");

    let ports = daemon.list("ports");
    let drops: Vec<_> = ports.iter().map(|port| port["drops"].as_u64().unwrap()).collect();
    assert_eq!(ports.len(), 2, "{ports:?}");
    assert!(drops[1] > sent / 10, "the hostile guest's frames are counted as its own: {ports:?}");
    // What it broadcasts does not always find room on its neighbour's busy link, no more than that.
    assert!(drops[0] < drops[1] / 10, "and not as its neighbour's: {ports:?}");
    assert!(!daemon.list("drops").is_empty());
}

#[test]
fn what_is_no_frame_ends_its_own_link_only() {
    let world = World::new();
    let daemon = Daemon::start(&world, &[]);
    let http = SocketAddrV4::new(GATEWAY, peers::http());
    let mut neighbour = StreamGuest::plug_in(&daemon.socket(), [0x52, 0x54, 0, 0, 0, 1]);
    neighbour.lease();
    for nonsense in [[255; 8], [0; 8], [0, 0, 0, 13, 1, 2, 3, 4]] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(&nonsense).unwrap();
        assert_eq!(io::copy(&mut stream, &mut io::sink()).unwrap_or(0), 0, "{nonsense:?} ends the link");
        eventually("the port is gone", || (daemon.list("ports").len() == 1).then_some(()));
    }
    assert_eq!(neighbour.fetch_digest(http, "/1/1000000"), noise_digest(1, 1_000_000));
}

/// Sends frames for [`ATTACK`]. Returns how many, and the link, still plugged in.
fn attack(socket: &Path) -> io::Result<(u64, Wire)> {
    let mut noise = Noise::new(6);
    let mut wire = Wire::plug_in(socket)?;
    let deadline = Instant::now() + ATTACK;
    let mut sent = 0;
    while Instant::now() < deadline {
        // Answers are read now and then, and never looked at.
        if sent % 64 == 0 || wire.is_full() {
            while wire.receive()?.is_some() {}
        }
        if wire.is_full() {
            wire.wait(deadline);
        } else {
            wire.send(&frame(&mut noise))?;
            sent += 1;
        }
    }
    Ok((sent, wire))
}

/// A frame: random bytes, or something that makes sense, mutated or not.
fn frame(noise: &mut Noise) -> Vec<u8> {
    let mut frame = match noise.below(4) {
        0 => return random(noise),
        1 => arp(noise),
        _ => ipv4(noise),
    };
    for _ in 0..noise.below(6) {
        let at = noise.below(frame.len());
        frame[at] ^= u8::try_from(noise.below(256)).unwrap();
    }
    match noise.below(8) {
        0 => frame.truncate(SHORTEST.max(noise.below(frame.len()))),
        1 => frame.extend(random(noise)),
        _ => {}
    }
    if noise.below(2) == 0 && frame.len() > 14 {
        // With the right checksum it gets further.
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        if packet.check_len().is_ok() {
            packet.fill_checksum();
        }
    }
    frame
}

fn random(noise: &mut Noise) -> Vec<u8> {
    let limit = if noise.below(100) == 0 { 65_535 } else { 1600 };
    let mut bytes = vec![0; SHORTEST + noise.below(limit)];
    noise.read_exact(&mut bytes).unwrap();
    bytes
}

fn arp(noise: &mut Noise) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: if noise.below(2) == 0 { ArpOperation::Request } else { ArpOperation::Reply },
        source_hardware_addr: HOSTILE,
        source_protocol_addr: [10, 0, 2, u8::try_from(noise.below(256)).unwrap()].into(),
        target_hardware_addr: EthernetAddress::BROADCAST,
        target_protocol_addr: GATEWAY,
    };
    let mut frame = ethernet(EthernetProtocol::Arp, arp.buffer_len());
    arp.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

/// A packet with a right IP header, and a transport header that is right about as often as not.
fn ipv4(noise: &mut Noise) -> Vec<u8> {
    let (protocol, header): (_, &[u8]) = match noise.below(5) {
        // Ports, sequence numbers, five words of header, SYN, a window, no checksum, an MSS.
        0 => (
            IpProtocol::Tcp,
            &[192, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 255, 255, 0, 0, 0, 0, 2, 4, 0, 0],
        ),
        // The same as an ACK with data, for a flow that is not there.
        1 => (IpProtocol::Tcp, &[192, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0, 42]),
        // DNS: one question, cut off in the name.
        2 => (
            IpProtocol::Udp,
            &[192, 2, 0, 53, 0, 24, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63, 97, 97, 97],
        ),
        // DHCP: a request from an Ethernet card, cut off before its addresses.
        3 => (IpProtocol::Udp, &[0, 68, 0, 67, 0, 20, 0, 0, 1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 128, 0]),
        // Echo.
        _ => (IpProtocol::Icmp, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]),
    };
    let addresses = [
        GATEWAY,
        NAMESERVER,
        LAN,
        [10, 0, 2, 15].into(),
        [255; 4].into(),
        [127, 0, 0, 1].into(),
        [224, 0, 0, 1].into(),
    ];
    let ip = Ipv4Repr {
        src_addr: [10, 0, 2, 15 + u8::try_from(noise.below(4)).unwrap()].into(),
        dst_addr: addresses[noise.below(addresses.len())],
        next_header: protocol,
        payload_len: header.len(),
        hop_limit: 64,
    };
    let mut frame = ethernet(EthernetProtocol::Ipv4, ip.buffer_len() + header.len());
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
    ip.emit(&mut packet, &smoltcp::phy::ChecksumCapabilities::default());
    if noise.below(4) == 0 {
        packet.set_more_frags(noise.below(2) == 0);
        packet.set_frag_offset(u16::try_from(8 * noise.below(8191)).unwrap());
        packet.set_dont_frag(false);
        packet.fill_checksum();
    }
    packet.payload_mut().copy_from_slice(header);
    frame
}

fn ethernet(protocol: EthernetProtocol, payload: usize) -> Vec<u8> {
    let header = EthernetRepr {
        src_addr: HOSTILE,
        dst_addr: EthernetAddress([0x52, 0x55, 10, 0, 2, 2]),
        ethertype: protocol,
    };
    let mut frame = vec![0; header.buffer_len() + payload];
    header.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame
}

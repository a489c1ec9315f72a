//! Parsers that meet bytes of guests, of the network or of a person.

use std::str::FromStr;
use std::time::Duration;

use arbitrary::Unstructured;
use usernet::ForwardRule;
use usernet_core::dhcp::{Config, Server};
use usernet_core::port::PortId;
use usernet_core::time::Instant;
use usernet_core::wire::{Arp, ETHERNET_HEADER_LEN, EthernetHeader, IpHeader, TcpHeader};
use usernet_dns::{Query, Transport};
use usernet_link::stream::Deframer;

/// A byte stream in QEMU's framing. However it is cut, the same frames come out.
pub fn stream_deframer(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = deframe(stream, usize::MAX);
    let pieces = deframe(stream, usize::from(*cut) + 1);
    assert_eq!(whole.1, pieces.1, "another end");
    // A stream that is refused takes along what came with the reason.
    assert!(pieces.0.starts_with(&whole.0) && (whole.1 || whole.0 == pieces.0), "other frames");
}

/// The frames, and whether the stream was refused.
fn deframe(stream: &[u8], cut: usize) -> (Vec<Vec<u8>>, bool) {
    let mut deframer = Deframer::new();
    let mut frames = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let room = deframer.room();
        assert!(!room.is_empty(), "no room");
        let len = room.len().min(rest.len()).min(cut);
        room[..len].copy_from_slice(&rest[..len]);
        rest = &rest[len..];
        let Ok(count) = deframer.advance(len) else { return (frames, true) };
        frames.extend((0..count).map(|n| deframer.frame(n).to_vec()));
        assert!(deframer.frame(count).is_empty());
    }
    (frames, false)
}

/// DHCP messages of two ports, each behind a byte that says which port, how long it is and how much
/// time passes.
pub fn dhcp(data: &[u8]) {
    let mut server = Server::new(Config::default());
    let mut now = Instant::ZERO;
    let mut data = Unstructured::new(data);
    while !data.is_empty() {
        let Ok(control) = data.arbitrary::<u8>() else { return };
        let len = if control & 0x40 == 0 { data.len() } else { 300.min(data.len()) };
        let Ok(message) = data.bytes(len) else { return };
        now += Duration::from_secs(u64::from(control & 0x3e) * 3600);
        let port = PortId(u32::from(control & 1));
        if let Ok(Some(reply)) = server.handle(port, message, now) {
            assert!(reply.payload.len() <= 1472, "a reply that is longer than a packet");
            // A reply is a message itself, though none that a server heeds.
            assert!(server.handle(port, &reply.payload, now).is_err());
        }
        if control & 0x80 != 0 {
            server.port_gone(port);
        }
        assert!(server.leases(now).count() <= 64, "more leases than the ports may hold");
    }
}

/// A DNS query, and what an upstream answered to it. The first byte says how long the query is.
pub fn dns(data: &[u8]) {
    let Some((len, rest)) = data.split_first() else { return };
    let _ = Query::parse(rest);
    let (query, reply) = rest.split_at(usize::from(*len).min(rest.len()));
    let Ok(query) = Query::parse(query) else { return };
    for transport in [Transport::Udp, Transport::Tcp] {
        let _ = query.answer_from(reply, transport);
    }
}

/// A forward rule. One that is taken is written as one that is taken, and is the same.
pub fn hostfwd(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(rule) = ForwardRule::from_str(text) else { return };
    assert_eq!(ForwardRule::from_str(&rule.to_string()).as_ref(), Ok(&rule));
}

/// Ethernet, ARP, IP and TCP headers: what is read is written as it was read.
pub fn headers(data: &[u8]) {
    let Ok((ethernet, rest)) = EthernetHeader::parse(data) else { return };
    assert_eq!(ethernet.to_bytes(), data[..ETHERNET_HEADER_LEN]);
    if let Ok(arp) = Arp::parse(rest) {
        let frame = arp.frame(ethernet.src);
        assert_eq!(Arp::parse(&frame[ETHERNET_HEADER_LEN..]), Ok(arp));
    }
    if let Ok((ip, header_len, len)) = IpHeader::parse_v4(rest, rest.len()) {
        assert!(header_len + len <= rest.len());
        let mut bytes = [0; 20];
        ip.emit_v4(&mut bytes, 0);
        let again =
            IpHeader::parse_v4(&bytes, 20).map(|(again, ..)| IpHeader { fragment: ip.fragment, ..again });
        assert_eq!(again, Ok(ip));
        read_tcp(&rest[header_len..header_len + len]);
    }
    read_tcp(rest);
}

fn read_tcp(bytes: &[u8]) {
    let Ok((header, len)) = TcpHeader::parse(bytes) else { return };
    assert!(len <= bytes.len());
    // Options that do not belong together may not fit again.
    if header.len() > 60 {
        return;
    }
    let mut again = [0; 60];
    header.emit(&mut again[..header.len()]);
    assert_eq!(TcpHeader::parse(&again[..header.len()]), Ok((header, header.len())));
}

//! Micro benches: `cargo bench --package usernet-benches`. Times are for one iteration; where an
//! iteration handles bytes or items, their rate stands beside it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use usernet_benches::Family;
use usernet_benches::relay::Relay;
use usernet_core::offload::Checksum;
use usernet_core::port::PortId;
use usernet_core::table::{Endpoint, FlowKey, FlowKind, FlowTable};
use usernet_core::time::Instant;
use usernet_core::wheel::TimerWheel;
use usernet_core::wire::{Headers, IpHeader, MacAddr, PROTOCOL_TCP, TcpFlags, TcpHeader};
use usernet_link::segment::finish_checksum;

fn main() {
    divan::main();
}

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

fn ip_header() -> IpHeader {
    let [src, dst] = [[10, 0, 2, 15], [10, 0, 2, 2]].map(|octets| IpAddr::V4(octets.into()));
    IpHeader::new(src, dst, PROTOCOL_TCP)
}

fn tcp_header() -> TcpHeader {
    TcpHeader { src_port: 40_000, dst_port: 80, flags: TcpFlags::ACK, window: 500, ..TcpHeader::default() }
}

/// Reads a TCP header without options.
#[divan::bench]
fn parse_tcp_header(bencher: Bencher<'_, '_>) {
    let mut bytes = [0; 20];
    tcp_header().emit(&mut bytes);
    bencher.bench(|| TcpHeader::parse(black_box(&bytes)));
}

/// Writes Ethernet, IPv4 and TCP headers in front of 64,000 bytes.
#[divan::bench]
fn emit_headers(bencher: Bencher<'_, '_>) {
    let (ip, tcp) = (ip_header(), tcp_header());
    bencher.bench(|| Headers::tcp(MAC, MAC, black_box(&ip), black_box(&tcp), 64_000, 1460));
}

/// Finishes the checksum of a segment with this much payload.
#[divan::bench(args = [1460, 65_000])]
fn checksum(bencher: Bencher<'_, '_>, payload: usize) {
    let headers = Headers::tcp(MAC, MAC, &ip_header(), &tcp_header(), payload, u16::MAX);
    let mut frame = headers.to_vec();
    frame.resize(frame.len() + payload, 0x5a);
    let partial = headers.offload.checksum;
    assert!(matches!(partial, Checksum::Partial { .. }));
    bencher.counter(BytesCount::new(payload)).bench_local(|| finish_checksum(black_box(&mut frame), partial));
}

/// Finds a flow by its key among this many.
#[divan::bench(args = [10, 100_000])]
fn find_flow(bencher: Bencher<'_, '_>, flows: u32) {
    let key = |number: u32| FlowKey {
        port: PortId(1),
        guest: Endpoint { addr: Ipv4Addr::from(0x0a00_0000 | number >> 12).into(), port: 80 },
        peer: Some(Endpoint {
            addr: Ipv4Addr::new(192, 0, 2, 1).into(),
            port: u16::try_from(number & 0xfff).unwrap_or(0),
        }),
    };
    let mut table = FlowTable::new(FlowKind::Tcp, [7; 16], None);
    for number in 0..flows {
        table.insert(key(number), MAC, [0u8; 256]);
    }
    let mut number = 0;
    bencher.bench_local(|| {
        // A stride that no cache foresees.
        number = (number + 7919) % flows;
        table.find(&key(number))
    });
}

/// Arms and expires timers, with this many armed beside them.
#[divan::bench(args = [0, 100_000])]
fn timers(bencher: Bencher<'_, '_>, others: u64) {
    const TIMERS: u64 = 1000;
    let mut wheel = TimerWheel::default();
    let mut now = Instant::from_micros(1);
    for number in 0..others {
        wheel.insert(now + Duration::from_secs(3600 + number % 3600), number);
    }
    bencher.counter(ItemsCount::new(TIMERS)).bench_local(|| {
        for number in 0..TIMERS {
            wheel.insert(now + Duration::from_micros(number * 200), number);
        }
        now += Duration::from_millis(201);
        let mut expired = 0;
        while wheel.expire(now).is_some() {
            expired += 1;
        }
        assert_eq!(expired, TIMERS);
    });
}

/// The core's work for a guest's segment with this much payload: in, and the acknowledgement out.
#[divan::bench(args = [1460, 65_000])]
fn relay_guest_to_host(bencher: Bencher<'_, '_>, payload: usize) {
    let mut relay = Relay::new(Family::V4, 1500, payload);
    bencher.counter(BytesCount::new(payload)).bench_local(|| relay.guest_sends());
}

/// The core's work for this many bytes to a guest: the peeks, the headers, and the acknowledgement in.
#[divan::bench(args = [1460, 65_536])]
fn relay_host_to_guest(bencher: Bencher<'_, '_>, len: u32) {
    let mut relay = Relay::new(Family::V4, 1500, 0);
    bencher.counter(BytesCount::new(len)).bench_local(|| relay.host_sends(len));
}

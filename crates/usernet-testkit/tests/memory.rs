//! What a hundred thousand flows cost.
#![allow(unsafe_code, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that counts bytes")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use usernet_core::host::HostEvent;
use usernet_core::network::{Config, Limits, Network, Output, TcpEntry, TcpOp};
use usernet_core::port::PortId;
use usernet_core::table::Entry;
use usernet_core::time::Instant;
use usernet_core::wire::{MacAddr, TcpFlags, TcpHeader};
use usernet_testkit::{Segment, finish, tcp_frame};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is; the count is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FLOWS: usize = 100_000;
const PORT: PortId = PortId(0);
const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);

fn send(net: &mut Network, peer: Ipv4Addr, tcp: &TcpHeader, now: Instant) {
    let frame = tcp_frame(GATEWAY, GUEST, Ipv4Addr::new(10, 0, 2, 15), peer, tcp, &[]);
    let _ = net.handle_frame(PORT, &frame[..], now);
}

/// Opens flow `n`, as a guest and a host would.
fn open(net: &mut Network, n: usize, now: Instant) {
    let peer = Ipv4Addr::new(192, 0, 2, u8::try_from(n / 50_000).unwrap());
    let src_port = u16::try_from(1000 + n % 50_000).unwrap();
    let mut tcp = TcpHeader {
        src_port,
        dst_port: 80,
        flags: TcpFlags::SYN,
        window: 65_535,
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        ..TcpHeader::default()
    };
    send(net, peer, &tcp, now);
    while let Some(output) = net.poll_output(now) {
        match output {
            Output::Tcp { flow, op: TcpOp::Connect { .. } } => {
                net.tcp_event(flow, HostEvent::SendSpace { free: 1 << 20 }, now);
                net.tcp_event(flow, HostEvent::Connected, now);
            }
            Output::Headers { headers, .. } => {
                let segment = Segment::parse(&finish(&headers, &[])).unwrap();
                if segment.header.flags.contains(TcpFlags::SYN) {
                    tcp.seq = segment.header.ack;
                    tcp.ack = segment.header.seq + 1;
                    tcp.flags = TcpFlags::ACK;
                    send(net, peer, &tcp, now);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_hundred_thousand_flows_fit_in_a_hundred_megabytes() {
    let size = size_of::<Entry<TcpEntry>>();
    assert!(size <= 512, "a flow takes {size} bytes");

    let limits = Limits { tcp: FLOWS, ..Limits::default() };
    let mut net = Network::new(Config { limits, ..Config::default() });
    net.add_port(PORT);
    let before = LIVE.load(Relaxed);
    for n in 0..FLOWS {
        open(&mut net, n, Instant::from_micros(10 * n as u64));
    }
    let used = LIVE.load(Relaxed) - before;
    assert_eq!(net.tcp_flows().len(), FLOWS);
    assert!(net.tcp_flows().iter().all(|(_, e)| e.flow.tcp.state_name() == "ESTABLISHED"));
    println!("{} bytes a flow, {size} of them its own", used / FLOWS);
    assert!(used < 100_000_000, "{used} bytes");

    // An hour of nothing costs nothing more.
    let now = Instant::from_micros(3_600_000_000);
    while net.poll_timeout().is_some_and(|at| at <= now) {
        net.handle_timeout(now);
        assert!(net.poll_output(now).is_none());
    }
    assert!(LIVE.load(Relaxed) - before < 100_000_000);

    net.remove_port(PORT);
    let mut resets = 0;
    while let Some(output) = net.poll_output(now) {
        resets += usize::from(matches!(output, Output::Tcp { op: TcpOp::Reset, .. }));
    }
    assert_eq!((resets, net.tcp_flows().len(), net.poll_timeout()), (FLOWS, 0, None));
}

//! Fragments of two guests in any order, and packets that are cut for them.

use std::collections::HashMap;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use usernet_core::dhcp6;
use usernet_core::network::{Config, Limits, Network, Verdict};
use usernet_core::offload::Fragmentation;
use usernet_core::port::PortId;
use usernet_core::time::Instant;
use usernet_core::wire::{
    ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, IpHeader, MacAddr, PROTOCOL_UDP,
    fragments,
};

const GATEWAY: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
/// Packets in the making that a guest may have.
const LIMIT: usize = 3;
/// Identifications of packets that were cut here; those of fragments by hand are lower.
const CUT: u32 = 0x100;

/// What the pieces of a packet had at each place, and where the last ended.
#[derive(Default)]
struct Said {
    bytes: HashMap<usize, Vec<u8>>,
    ends: Vec<usize>,
}

struct World {
    net: Network,
    now: Instant,
    ports: [PortId; 2],
    said: HashMap<(usize, bool, u32), Said>,
    /// A frame was changed: what it says is not known any more.
    wild: bool,
    cut: u32,
}

/// Steps, each of five bytes: what kind and what of it, and two numbers (little-endian).
pub fn reassembly(data: &[u8]) {
    let limits = Limits { incomplete: LIMIT, ..Limits::default() };
    let config = Config { limits, net6: Some(dhcp6::Config::default()), ..Config::default() };
    let mut world = World {
        net: Network::new(config),
        now: Instant::from_micros(1_000_000),
        ports: [PortId(0), PortId(1)],
        said: HashMap::new(),
        wild: false,
        cut: CUT,
    };
    for port in world.ports {
        world.net.add_port(port);
    }
    let mut data = Unstructured::new(data);
    while !data.is_empty() && world.step(&mut data).is_ok() {
        while world.net.poll_output(world.now).is_some() {}
    }
    // What is not complete does not stay.
    world.now += Duration::from_secs(61);
    world.net.handle_timeout(world.now);
    for port in world.ports {
        assert_eq!(world.net.incomplete(port), 0, "given up in time");
        world.net.remove_port(port);
    }
    // UDP flows are closed with their ports, so there is nothing to wait for.
    assert_eq!(world.net.poll_timeout(), None, "a timer is left behind");
}

impl World {
    fn step(&mut self, data: &mut Unstructured<'_>) -> Result<()> {
        let (control, a, b) = data.arbitrary::<(u8, u16, u16)>()?;
        let (v6, which, more, ident) =
            (control & 8 != 0, usize::from(control >> 4 & 1), control & 32 != 0, u32::from(control >> 6));
        let (at, len) = (usize::from(a & 0x1fff) * 8, usize::from(b & 0x7ff));
        match control & 7 {
            0..4 => {
                let frame = self.piece((which, v6, ident), at, more, len, a >> 13);
                self.take(which, &frame, Some((which, v6, ident)));
            }
            4 => {
                let mut frame = self.piece((which, v6, ident), at, more, len, 0);
                let (at, byte) = data.arbitrary::<(u8, u8)>()?;
                if let Some(old) = frame.get_mut(usize::from(at)) {
                    *old = byte;
                }
                self.wild = true;
                self.take(which, &frame, None);
            }
            5 => {
                self.now += Duration::from_secs(u64::from(a % 70));
                self.net.handle_timeout(self.now);
            }
            6 => self.cut(which, v6, a.into(), b)?,
            _ if more => {
                self.net.remove_port(self.ports[which]);
                assert_eq!(self.net.incomplete(self.ports[which]), 0);
                self.ports[which] = PortId(self.ports[which].0 + 2);
                self.net.add_port(self.ports[which]);
                self.said.retain(|(port, ..), _| *port != which);
            }
            _ => {}
        }
        Ok(())
    }

    fn ip(which: usize, v6: bool, protocol: u8) -> IpHeader {
        let (src, dst) = [
            ("10.0.2.15", "192.0.2.1"),
            ("10.0.2.16", "192.0.2.1"),
            ("fd00::15", "2001:db8::1"),
            ("fd00::16", "2001:db8::1"),
        ][which + 2 * usize::from(v6)];
        let (src, dst) = (src.parse().expect("an address"), dst.parse().expect("an address"));
        IpHeader::new(src, dst, protocol)
    }

    fn ethernet(which: usize, v6: bool) -> Vec<u8> {
        let src = MacAddr([2, 0, 0, 0, 0, which as u8]);
        EthernetHeader { dst: GATEWAY, src, ethertype: if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 } }
            .to_bytes()
            .to_vec()
    }

    /// A fragment by hand. `other` makes its bytes differ from what others of the packet say.
    fn piece(&mut self, key: (usize, bool, u32), at: usize, more: bool, len: usize, other: u16) -> Vec<u8> {
        let (which, v6, ident) = key;
        let data: Vec<u8> =
            (at..at + len).map(|n| (n * 31 + n / 256 + ident as usize + usize::from(other)) as u8).collect();
        let said = self.said.entry(key).or_default();
        for (n, byte) in data.iter().enumerate() {
            let bytes = said.bytes.entry(at + n).or_default();
            if !bytes.contains(byte) {
                bytes.push(*byte);
            }
        }
        if !more {
            said.ends.push(at + len);
        }
        let mut frame = Self::ethernet(which, v6);
        let field = at as u16;
        if v6 {
            let mut header = [0; 40];
            Self::ip(which, v6, 44).emit_v6(&mut header, 8 + len);
            frame.extend(header);
            let [hi, lo] = (field | u16::from(more)).to_be_bytes();
            frame.extend([PROTOCOL_UDP, 0, hi, lo, 0, 0, 0, ident as u8]);
        } else {
            let mut header = [0; 20];
            Self::ip(which, v6, PROTOCOL_UDP).emit_v4(&mut header, len);
            header[4..6].copy_from_slice(&(ident as u16).to_be_bytes());
            header[6..8].copy_from_slice(&((field / 8) | (u16::from(more) << 13)).to_be_bytes());
            frame.extend(header);
        }
        frame.extend(data);
        frame
    }

    /// Hands a frame in, and what comes of it. Returns whether it completed a packet.
    fn take(&mut self, which: usize, frame: &[u8], key: Option<(usize, bool, u32)>) -> Option<Vec<u8>> {
        let verdict = self.net.handle_frame(self.ports[which], frame, self.now);
        assert!(self.net.incomplete(self.ports[which]) <= LIMIT);
        let Verdict::Reassembled(whole) = verdict else { return None };
        let v6 = whole[12] != 8;
        let data = &whole[if v6 { 62 } else { 34 }..];
        if let (Some(key), false) = (key, self.wild) {
            let said = self.said.remove(&key).expect("pieces of it");
            assert!(said.ends.contains(&data.len()), "an end that no fragment had");
            for (at, byte) in data.iter().enumerate() {
                assert!(
                    said.bytes.get(&at).is_some_and(|said| said.contains(byte)),
                    "a byte that nobody sent"
                );
            }
        }
        // It is a frame like any other, and no fragment.
        match self.net.handle_frame(self.ports[which], &whole[..], self.now) {
            Verdict::Udp { payload, .. } => {
                let _ = &whole[payload];
            }
            Verdict::Reassembled(_) => panic!("a fragment was made"),
            _ => {}
        }
        Some(whole)
    }

    /// What is cut for a guest is what a guest's own is made of.
    fn cut(&mut self, which: usize, v6: bool, len: usize, mtu: u16) -> Result<()> {
        let len = len.clamp(8, if v6 { 65_527 } else { 65_515 });
        let mtu = mtu.clamp(if v6 { 1280 } else { 576 }, 65_520);
        let mut frame = Self::ethernet(which, v6);
        let start = frame.len();
        frame.resize(start + if v6 { 40 } else { 20 }, 0);
        let ip = Self::ip(which, v6, PROTOCOL_UDP);
        if v6 {
            ip.emit_v6(&mut frame[start..], len)
        } else {
            ip.emit_v4(&mut frame[start..], len)
        };
        let headers_len = frame.len();
        frame.extend((0..len).map(|n| (n * 7) as u8));
        self.cut += 1;
        let how = Fragmentation { mtu, ident: self.cut };
        let pieces: Vec<Vec<u8>> =
            fragments(&frame, how).map(|(headers, data)| [&headers, data].concat()).collect();
        assert!(pieces.iter().all(|piece| piece.len() - ETHERNET_HEADER_LEN <= usize::from(mtu)));
        if frame.len() - ETHERNET_HEADER_LEN <= usize::from(mtu) {
            assert_eq!(pieces, [frame]);
            return Ok(());
        }
        let (last, others) = pieces.split_last().expect("more than one");
        for piece in others {
            assert!(self.take(which, piece, None).is_none());
        }
        // Nothing else is sent meanwhile, so that it is not crowded out.
        let whole = self.take(which, last, None).expect("it is complete");
        assert!(whole.ends_with(&frame[headers_len..]), "the data are what they were");
        Ok(())
    }
}

#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use proptest::prelude::*;
use usernet_core::offload::SegmentKind;

use super::*;
use crate::inspect::{self, Template};

fn template() -> impl Strategy<Value = Template> {
    (any::<[bool; 3]>(), any::<u32>()).prop_map(|([ipv6, udp, vlan], seq)| Template { ipv6, udp, vlan, seq })
}

proptest! {
    #[test]
    fn a_cut_is_what_a_parser_expects(template in template(), segment in 1_usize..9000, len in 0_usize..65_000) {
        let segment = segment.max(len / 200);
        let header = template.header();
        let payload = inspect::payload(len);
        let cutter = Cutter::new(&header, segment, len).unwrap();
        let frames: Vec<_> = (0..cutter.packets())
            .map(|index| {
                let payload = &payload[cutter.payload(index)];
                let mut frame = vec![0xaa; header.len()];
                cutter.write_header(index, payload, &mut frame);
                frame.extend(payload);
                frame
            })
            .collect();
        prop_assert_eq!(frames.len(), len.div_ceil(segment).max(1));
        prop_assert_eq!(inspect::reassemble(template, segment, &frames), payload);
    }

    #[test]
    fn no_header_makes_it_panic(mut header in proptest::collection::vec(any::<u8>(), 0..160), template in template(),
                                keep in 0_usize..140, segment in 0_usize..70_000, len in 0_usize..70_000) {
        // Half of it plausible: otherwise nothing gets past the ethertype.
        for (to, from) in header.iter_mut().zip(template.header()).take(keep) {
            *to = from;
        }
        if let Some(cutter) = Cutter::new(&header, segment, len) {
            let range = cutter.payload(cutter.packets() - 1);
            prop_assert_eq!(range.end, len);
            cutter.write_header(cutter.packets() - 1, &vec![0; range.len()], &mut header.clone());
        }
    }

    #[test]
    fn a_partial_checksum_is_finished(template in template(), len in 0_usize..65_000) {
        // The frame with its right checksum, then its checksum field with the pseudo-header's sum.
        let payload = inspect::payload(len);
        let mut frame = template.header();
        let header_len = frame.len();
        let cutter_header = frame.clone();
        let cutter = Cutter::new(&cutter_header, 65_000, len).unwrap();
        cutter.write_header(0, &payload, &mut frame);
        frame.extend(&payload);
        let start = if template.udp { header_len - 8 } else { header_len - 32 };
        let offset = if template.udp { 6 } else { 16 };
        let pseudo = checksum::combine(&[cutter.pseudo_sum, length(frame.len() - start)]);
        let finished = frame.clone();
        frame[start + offset..start + offset + 2].copy_from_slice(&pseudo.to_be_bytes());

        let partial = Checksum::Partial { start: start as u16, offset: offset as u16 };
        prop_assert!(finish_checksum(&mut frame, partial));
        prop_assert!(frame == finished);
        inspect::packet(&frame);
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let template = Template { ipv6: false, udp: false, vlan: false, seq: 1 };
    let header = template.header();
    let refused = |header: &[u8], segment| assert!(Cutter::new(header, segment, 1000).is_none());
    let with = |at: usize, value: u8| {
        let mut header = header.clone();
        header[at] = value;
        header
    };
    assert!(Cutter::new(&header, 100, 1000).is_some());
    refused(&header, 0);
    refused(&header[..header.len() - 4], 100);
    refused(&[&header[..], &[0; 4]].concat(), 100);
    refused(&with(13, 6), 100); // ARP
    refused(&with(14, 0x65), 100); // version 6 behind the ethertype of 4
    refused(&with(14, 0x44), 100); // an IP header of 16 bytes
    refused(&with(20, 0x20), 100); // more fragments
    refused(&with(23, 1), 100); // ICMP
    refused(&with(46, 0x40), 100); // a TCP header of 16 bytes
    assert!(Cutter::new(&header, 65_535, 65_535 - 52).is_some());
    assert!(Cutter::new(&header, 65_535, 65_535 - 51).is_none());
}

#[test]
fn a_checksum_outside_of_the_frame_changes_nothing() {
    let mut frame = [7; 60];
    for (start, offset) in [(61, 0), (58, 1), (0, 59), (65_535, 65_535)] {
        assert!(!finish_checksum(&mut frame, Checksum::Partial { start, offset }));
    }
    assert!(finish_checksum(&mut frame, Checksum::Complete));
    assert_eq!(frame, [7; 60]);
}

#[test]
fn a_sum_that_comes_to_zero_is_written_as_ones() {
    let mut frame = [0xff; 60];
    assert!(finish_checksum(&mut frame, Checksum::Partial { start: 40, offset: 0 }));
    assert_eq!(frame[40..42], [0xff, 0xff]);
}

/// Only what is asked for is cut, and how much there is, is known before.
#[test]
fn a_super_frame_is_cut_bit_by_bit() {
    let template = Template { ipv6: false, udp: false, vlan: false, seq: 1 };
    let (header, payload) = (template.header(), inspect::payload(1001));
    let how = Segmentation { kind: SegmentKind::Tcp4, size: 100, header_len: header.len() as u16 };
    let offload = Offload { segmentation: Some(how), ..Offload::default() };
    let parts = [&header[..], &payload[..700], &payload[700..]].map(IoSlice::new);
    let mut packets = finished(&parts, offload);
    assert_eq!(packets.len(), 11);
    let mut frames = vec![packets.next().unwrap()];
    assert_eq!(packets.len(), 10);
    frames.extend(packets);
    assert_eq!(inspect::reassemble(template, 100, &frames), payload);

    assert_eq!(finished(&parts, Offload::default()).collect::<Vec<_>>(), [[&header[..], &payload].concat()]);
    let none = Offload { segmentation: Some(Segmentation { size: 0, ..how }), ..Offload::default() };
    assert_eq!(finished(&parts, none).len(), 0);
}

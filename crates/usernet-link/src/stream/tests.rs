#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};

use proptest::prelude::*;
use usernet_core::offload::{Checksum, SegmentKind};

use super::*;
use crate::inspect::{self, Template};

/// Frames behind their lengths.
fn framed<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    frames.into_iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat()).collect()
}

/// What a deframer makes of `bytes` when they come in pieces of these lengths, over and over.
fn deframe(bytes: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
    let (mut deframer, mut frames, mut rest) = (Deframer::new(), Vec::new(), bytes);
    for piece in pieces.iter().cycle() {
        let room = deframer.room();
        let len = rest.len().min(*piece).min(room.len());
        assert!(len > 0 || rest.is_empty(), "there is always room");
        room[..len].copy_from_slice(&rest[..len]);
        rest = &rest[len..];
        let count = deframer.advance(len).unwrap();
        frames.extend((0..count).map(|index| deframer.frame(index).to_vec()));
        if rest.is_empty() {
            break;
        }
    }
    frames
}

fn frame(len: usize) -> Vec<u8> {
    inspect::payload(len)
}

proptest! {
    #[test]
    fn frames_come_out_however_the_bytes_came_in(
        lens in proptest::collection::vec(prop_oneof![MIN_FRAME..2000, 60_000..=MAX_FRAME], 1..20),
        pieces in proptest::collection::vec(prop_oneof![1_usize..100, 1_usize..300_000], 1..20),
    ) {
        let frames: Vec<_> = lens.into_iter().map(frame).collect();
        prop_assert!(deframe(&framed(&frames), &pieces) == frames);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 1..2000)) {
        let mut deframer = Deframer::new();
        deframer.room()[..bytes.len()].copy_from_slice(&bytes);
        let _ = deframer.advance(bytes.len());
    }
}

#[test]
fn every_split_of_a_short_sequence() {
    let frames = [frame(14), frame(15), frame(60)];
    let bytes = framed(&frames);
    for split in 1..bytes.len() {
        assert_eq!(deframe(&bytes, &[split, bytes.len()]), frames);
    }
    assert_eq!(deframe(&bytes, &[1]), frames);
}

#[test]
fn an_impossible_length_is_malformed_at_once() {
    for len in [0, 13, MAX_FRAME as u32 + 1, u32::MAX] {
        let mut deframer = Deframer::new();
        let capacity = deframer.room().len();
        deframer.room()[..4].copy_from_slice(&len.to_be_bytes());
        assert_eq!(deframer.advance(3).unwrap(), 0);
        deframer.room();
        let error = deframer.advance(1).unwrap_err();
        assert!(matches!(error, LinkError::Malformed(_)));
        assert!(error.to_string().contains(&format!("{len} bytes, where 14 to 69632")), "{error}");
        assert_eq!(deframer.buffer.len(), capacity, "nothing was allocated for it");
    }
}

/// A link and its guest's end of the socket.
fn pair() -> (Link, UnixStream) {
    let (ours, guest) = UnixStream::pair().unwrap();
    (StreamLink::new(ours.into()).unwrap(), guest)
}

/// Reads frames from the guest's end.
fn read_frames(mut guest: impl Read, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|_| {
            let mut len = [0; 4];
            guest.read_exact(&mut len).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(len) as usize];
            guest.read_exact(&mut frame).unwrap();
            frame
        })
        .collect()
}

#[test]
fn frames_from_the_guest() {
    let (mut link, mut guest) = pair();
    assert!(link.rx.receive().unwrap().is_none());
    let frames = [frame(60), frame(1514)];
    guest.write_all(&framed(&frames)).unwrap();
    guest.write_all(&[0, 0]).unwrap();
    assert_eq!(link.rx.receive().unwrap(), Some(2));
    assert_eq!((link.rx.frame_len(0), link.rx.frame_len(1), link.rx.frame_len(2)), (60, 1514, 0));
    assert_eq!(link.rx.offload(1), Offload::default());
    let mut bytes = [0; 20];
    assert_eq!(link.rx.copy_to(1, 1500, &mut bytes), 14);
    assert_eq!(bytes[..14], frames[1][1500..]);
    assert_eq!(link.rx.copy_to(1, 1515, &mut bytes), 0);
    let mut slices = Vec::new();
    link.rx.slices(1, 54..1514, &mut slices);
    link.rx.slices(1, 54..1515, &mut slices);
    assert_eq!(slices.len(), 1);
    assert_eq!(*slices[0], frames[1][54..]);
    guest.write_all(&[0, 14]).unwrap();
    assert_eq!(link.rx.receive().unwrap(), Some(0), "bytes, but no frame yet");
    guest.write_all(&[7; 14]).unwrap();
    drop(guest);
    assert_eq!(link.rx.receive().unwrap(), Some(1), "what came before the end is seen");
    assert!(matches!(link.rx.receive(), Err(LinkError::Closed)));
    assert!(link.tx.send(&[IoSlice::new(&frame(60))], Offload::default()).unwrap());
    assert!(matches!(link.tx.flush(), Err(LinkError::Closed)));
}

#[test]
fn frames_to_the_guest_are_padded() {
    let (mut link, guest) = pair();
    let sent = frame(1000);
    let parts = [IoSlice::new(&sent[..14]), IoSlice::new(&[]), IoSlice::new(&sent[14..])];
    assert!(link.tx.send(&parts[..1], Offload::default()).unwrap());
    assert!(link.tx.send(&parts, Offload::default()).unwrap());
    assert!(link.tx.flush().unwrap());
    let frames = read_frames(&guest, 2);
    assert_eq!(frames[0], [&sent[..14], &[0; 46]].concat());
    assert_eq!(frames[1], sent);
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    let (mut link, guest) = pair();
    let long = frame(MAX_FRAME + 1);
    assert!(link.tx.send(&[IoSlice::new(&long)], Offload::default()).unwrap());
    assert!(link.tx.send(&[IoSlice::new(&long[..13])], Offload::default()).unwrap());
    let beyond = Offload { checksum: Checksum::Partial { start: 59, offset: 0 }, ..Offload::default() };
    assert!(link.tx.send(&[IoSlice::new(&long[..60])], beyond).unwrap());
    assert_eq!(link.tx.dropped(), 3);
    assert!(link.tx.send(&[IoSlice::new(&long[..60])], Offload::default()).unwrap());
    assert!(link.tx.flush().unwrap());
    assert_eq!(read_frames(&guest, 1), [&long[..60]]);
}

#[test]
fn a_guest_that_does_not_read_holds_back_and_loses_nothing() {
    let (mut link, mut guest) = pair();
    guest.set_nonblocking(true).unwrap();
    let mut expected = Vec::new();
    let mut received = Vec::new();
    let mut bytes = vec![0; 30_000];
    let mut refused = 0;
    for number in 0.. {
        let mut frame = frame(60 + number % 3000);
        frame[0] = number as u8;
        while !link.tx.send(&[IoSlice::new(&frame)], Offload::default()).unwrap() {
            refused += 1;
            let waiting = expected.len() - received.len();
            assert!(waiting < 2 * 1024 * 1024, "what waits is bounded");
            // No room, and the socket takes no more: only now the guest reads a little.
            if !link.tx.flush().unwrap() {
                let len = guest.read(&mut bytes).unwrap();
                received.extend_from_slice(&bytes[..len]);
            }
        }
        expected.extend(framed([&frame]));
        if refused > 100 {
            break;
        }
    }
    while !link.tx.flush().unwrap() {
        let len = guest.read(&mut bytes).unwrap();
        received.extend_from_slice(&bytes[..len]);
    }
    drop(link);
    guest.set_nonblocking(false).unwrap();
    guest.read_to_end(&mut received).unwrap();
    assert!(received == expected, "every byte, in order");
}

fn offload(template: Template, segment: usize) -> Offload {
    let header_len = template.header().len() as u16;
    let (kind, back, offset) = match (template.udp, template.ipv6) {
        (true, _) => (SegmentKind::Udp, 8, 6),
        (false, false) => (SegmentKind::Tcp4, 32, 16),
        (false, true) => (SegmentKind::Tcp6, 32, 16),
    };
    Offload {
        checksum: Checksum::Partial { start: header_len - back, offset },
        segmentation: Some(Segmentation { kind, size: segment as u16, header_len }),
        fragmentation: None,
    }
}

const TCP4: Template = Template { ipv6: false, udp: false, vlan: false, seq: u32::MAX - 10_000 };

#[test]
fn payload_read_into_place_goes_out_as_wire_packets() {
    let (mut link, guest) = pair();
    for (template, segment, max, len) in [
        (TCP4, 1448, 65_536, 65_536),
        (TCP4, 1448, 65_536, 1449),
        (TCP4, 48, 20_000, 20_000),
        (TCP4, 1, 300, 300),
        (Template { ipv6: true, ..TCP4 }, 1428, 65_536, 50_000),
        (Template { udp: true, ..TCP4 }, 1472, 30_000, 30_000),
        (Template { vlan: true, ..TCP4 }, 9000, 65_536, 65_536),
    ] {
        let (header, payload) = (template.header(), inspect::payload(len));
        let mut room = Vec::new();
        assert_eq!(link.tx.reserve(header.len(), segment, max, &mut room), max);
        let mut rest = &payload[..];
        for slice in &mut room {
            let len = (&mut slice[..]).write(rest).unwrap();
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
        link.tx.commit(&header, len, offload(template, segment)).unwrap();
        assert!(link.tx.flush().unwrap());
        let frames = read_frames(&guest, len.div_ceil(segment));
        assert!(frames.iter().all(|frame| frame.len() >= 60));
        assert!(inspect::reassemble(template, segment, &frames) == payload);
    }
    assert_eq!(link.tx.dropped(), 0);
}

#[test]
fn one_packet_keeps_the_header_that_it_was_given() {
    let (mut link, guest) = pair();
    let payload = inspect::payload(700);
    // A finished packet, with and without its checksum.
    let template = TCP4.header();
    let cutter = Cutter::new(&template, 1448, payload.len()).unwrap();
    let mut header = template.clone();
    cutter.write_header(0, &payload, &mut header);
    let finished = [&header[..], &payload].concat();
    let smoltcp_sum = {
        use smoltcp::wire::checksum::{combine, data};
        combine(&[data(&header[26..34]), 6, (32 + 700) as u16])
    };
    let mut partial = header.clone();
    partial[50..52].copy_from_slice(&smoltcp_sum.to_be_bytes());

    for (header, checksum) in
        [(&header, Checksum::Complete), (&partial, Checksum::Partial { start: 34, offset: 16 })]
    {
        let mut room = Vec::new();
        link.tx.reserve(header.len(), 1448, 65_536, &mut room);
        assert_eq!((&mut room[0][..]).write(&payload).unwrap(), 700);
        link.tx.commit(header, 700, Offload { checksum, ..Offload::default() }).unwrap();
    }
    assert!(link.tx.flush().unwrap());
    assert_eq!(read_frames(&guest, 2), [&finished[..], &finished]);
}

#[test]
fn room_that_was_not_used_leaves_no_trace() {
    let (mut link, guest) = pair();
    assert_eq!(link.tx.reserve(54, 1448, 1000, &mut Vec::new()), 1000);
    assert!(link.tx.send(&[IoSlice::new(&frame(100))], Offload::default()).unwrap());
    assert_eq!(link.tx.reserve(54, 1448, 1000, &mut Vec::new()), 1000);
    assert!(link.tx.flush().unwrap());
    assert_eq!(read_frames(&guest, 1), [frame(100)]);
}

#[test]
fn there_is_no_room_before_the_guest_reads_and_there_is_after() {
    let (mut link, mut guest) = pair();
    let header = TCP4.header();
    let mut taken = 0;
    loop {
        let room = link.tx.reserve(header.len(), 1448, 65_536, &mut Vec::new());
        if room == 0 {
            if !link.tx.flush().unwrap() {
                break;
            }
            continue;
        }
        assert_eq!(room, 65_536, "all or nothing");
        taken += room;
        assert!(taken < 2 * 1024 * 1024, "what waits is bounded");
        link.tx.commit(&header, room, offload(TCP4, 1448)).unwrap();
    }
    guest.set_nonblocking(true).unwrap();
    while !link.tx.flush().unwrap() {
        while guest.read(&mut [0; 65_536]).is_ok() {}
    }
    assert_eq!(link.tx.reserve(header.len(), 1448, 65_536, &mut Vec::new()), 65_536);
}

#[test]
fn a_super_frame_of_another_guest_is_cut() {
    let (mut link, guest) = pair();
    for (template, segment) in [
        (TCP4, 1448),
        (Template { ipv6: true, ..TCP4 }, 1428),
        (Template { udp: true, ..TCP4 }, 1472),
        (Template { vlan: true, ..TCP4 }, 600),
    ] {
        let payload = inspect::payload(60_000);
        let frame = [&template.header()[..], &payload].concat();
        // Parts whose ends fall into the headers and into segments.
        let parts: Vec<_> = frame.chunks(4093).map(IoSlice::new).collect();
        let parts = [&[IoSlice::new(&frame[..20]), IoSlice::new(&frame[20..4093])], &parts[1..]].concat();
        assert!(link.tx.send(&parts, offload(template, segment)).unwrap());
        assert!(link.tx.flush().unwrap());
        let frames = read_frames(&guest, 60_000_usize.div_ceil(segment));
        assert!(inspect::reassemble(template, segment, &frames) == payload);
    }
}

#[test]
fn a_super_frame_that_cannot_be_cut_holds_nothing_up() {
    let (mut link, _guest) = pair();
    let frame = [&TCP4.header()[..], &[0; 60_000]].concat();
    // 60,000 packets of one byte never fit.
    assert!(link.tx.send(&[IoSlice::new(&frame)], offload(TCP4, 1)).unwrap());
    // The header length is not true.
    let mut lies = offload(TCP4, 1448);
    for header_len in [0, 54, 67, 200, u16::MAX] {
        lies.segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448, header_len });
        assert!(link.tx.send(&[IoSlice::new(&frame)], lies).unwrap());
    }
    assert_eq!(link.tx.dropped(), 6);
}

#[test]
fn only_a_stream_socket_will_do() {
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let error = StreamLink::new(datagram.into()).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn tcp_sends_without_delay() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let guest = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let mut link = StreamLink::new(ours.into()).unwrap();
    assert!(sockopt::tcp_nodelay(link.tx.as_fd()).unwrap());
    assert!(link.rx.receive().unwrap().is_none(), "it does not block");
    assert!(link.tx.send(&[IoSlice::new(&frame(60))], Offload::default()).unwrap());
    assert!(link.tx.flush().unwrap());
    assert_eq!(read_frames(guest, 1), [frame(60)]);
}

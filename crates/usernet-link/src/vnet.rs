//! The 12-byte header in front of each frame of a TAP device or a virtio-net queue (`struct
//! virtio_net_hdr_v1`, virtio 1.2 §5.1.6), little-endian:
//!
//! ```text
//! 0      1         2        4         6           8            10           12
//! | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers | frame ...
//! ```

use usernet_core::frame::FrameBytes;
use usernet_core::offload::{Checksum, Offload, SegmentKind, Segmentation};

/// The header's length in bytes.
pub const HEADER_LEN: usize = 12;

/// The most packets that a super-frame may stand for. Each of them is work for whoever gets it, and no driver
/// cuts smaller than 64 KiB at the least MSS that Linux knows (48 bytes, 12 of them for timestamps).
const MAX_PACKETS: usize = 0xffff_usize.div_ceil(48 - 12);

const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Added to a TCP type: the super-frame has CWR set. Segmentation minds the flag itself.
const GSO_ECN: u8 = 0x80;

/// Reads the header of `frame`, which lies behind it.
///
/// `None` when the two contradict each other; such a frame is dropped. `hdr_len` is a hint that
/// need not be true (§5.1.6.2.1): how long the headers are is read from the frame. A super-frame of
/// a single packet comes out as a plain one, one of more packets than a driver has reason to make is
/// dropped, too, and a checksum that the device has checked already (`DATA_VALID`) is a complete one.
pub fn decode<F: FrameBytes + ?Sized>(header: &[u8; HEADER_LEN], frame: &F) -> Option<Offload> {
    let &[flags, gso_type, _, _, size_0, size_1, start_0, start_1, offset_0, offset_1, _, _] = header;
    let size = u16::from_le_bytes([size_0, size_1]);
    let start = u16::from_le_bytes([start_0, start_1]);
    let offset = u16::from_le_bytes([offset_0, offset_1]);

    let checksum = if flags & NEEDS_CSUM == 0 {
        Checksum::Complete
    } else if usize::from(start) + usize::from(offset) + 2 <= frame.len() {
        Checksum::Partial { start, offset }
    } else {
        return None;
    };
    let kind = match gso_type & !GSO_ECN {
        GSO_NONE => return Some(Offload { checksum, ..Offload::default() }),
        GSO_TCPV4 => SegmentKind::Tcp4,
        GSO_TCPV6 => SegmentKind::Tcp6,
        GSO_UDP_L4 => SegmentKind::Udp,
        _ => return None,
    };
    // §5.1.6.2.1: a driver that leaves segmentation undone leaves the checksum undone, too.
    if checksum == Checksum::Complete || size == 0 {
        return None;
    }
    let transport_len = if kind == SegmentKind::Udp {
        8
    } else {
        let mut data_offset = [0];
        frame.copy_to(usize::from(start) + 12, &mut data_offset);
        match data_offset[0] >> 4 {
            0..5 => return None,
            words => u16::from(words) * 4,
        }
    };
    let header_len = start.checked_add(transport_len)?;
    let payload = frame.len().checked_sub(header_len.into())?;
    if payload.div_ceil(size.into()) > MAX_PACKETS {
        return None;
    }
    let segmentation = (payload > usize::from(size)).then_some(Segmentation { kind, size, header_len });
    Some(Offload { checksum, segmentation, fragmentation: None })
}

/// Writes the header of a frame that leaves `offload` undone.
#[must_use]
pub fn encode(offload: Offload) -> [u8; HEADER_LEN] {
    let (flags, start, offset) = match offload.checksum {
        Checksum::Complete => (0, 0, 0),
        Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
    };
    let (gso_type, header_len, size) = match offload.segmentation {
        None => (GSO_NONE, 0, 0),
        Some(Segmentation { kind, size, header_len }) => {
            let gso_type = match kind {
                SegmentKind::Tcp4 => GSO_TCPV4,
                SegmentKind::Tcp6 => GSO_TCPV6,
                SegmentKind::Udp => GSO_UDP_L4,
            };
            (gso_type, header_len, size)
        }
    };
    let mut header = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let fields = header.iter_mut().skip(2);
    let values = [header_len, size, start, offset].into_iter().flat_map(u16::to_le_bytes);
    fields.zip(values).for_each(|(field, value)| *field = value);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP_START: u16 = 34;

    /// A TCP over IPv4 frame as far as this module looks: the data offset says 32 bytes.
    fn tcp_frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![0; 34 + 32 + payload];
        frame[34 + 12] = 8 << 4;
        frame
    }

    fn super_frame(size: u16) -> Offload {
        Offload {
            checksum: Checksum::Partial { start: TCP_START, offset: 16 },
            segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size, header_len: 66 }),
            fragmentation: None,
        }
    }

    fn with(at: usize, value: u8) -> [u8; HEADER_LEN] {
        let mut header = encode(super_frame(1448));
        header[at] = value;
        header
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let frame = tcp_frame(60_000);
        let checksum = Checksum::Partial { start: TCP_START, offset: 16 };
        for offload in [
            Offload::default(),
            Offload { checksum, ..Offload::default() },
            super_frame(1448),
            Offload {
                checksum: Checksum::Partial { start: TCP_START, offset: 6 },
                segmentation: Some(Segmentation { kind: SegmentKind::Udp, size: 1400, header_len: 42 }),
                fragmentation: None,
            },
        ] {
            assert_eq!(decode(&encode(offload), &frame[..]), Some(offload));
        }
    }

    #[test]
    fn header_length_is_read_from_the_frame() {
        let frame = tcp_frame(60_000);
        assert_eq!(decode(&with(2, 255), &frame[..]), Some(super_frame(1448)));
    }

    #[test]
    fn one_packet_is_no_super_frame() {
        let plain = Offload { segmentation: None, ..super_frame(1448) };
        assert_eq!(decode(&encode(super_frame(1448)), &tcp_frame(1448)[..]), Some(plain));
        assert_eq!(decode(&encode(super_frame(1448)), &tcp_frame(1449)[..]), Some(super_frame(1448)));
    }

    #[test]
    fn more_packets_than_a_driver_makes_are_refused() {
        let (most, more) = (tcp_frame(MAX_PACKETS * 2), tcp_frame(MAX_PACKETS * 2 + 1));
        assert_eq!(decode(&encode(super_frame(2)), &most[..]), Some(super_frame(2)));
        assert_eq!(decode(&encode(super_frame(2)), &more[..]), None);
        assert_eq!(decode(&encode(super_frame(1)), &tcp_frame(65_000)[..]), None);
        assert_eq!(decode(&encode(super_frame(48 - 12)), &tcp_frame(65_000)[..]), Some(super_frame(36)));
    }

    #[test]
    fn contradictions_are_refused() {
        let frame = tcp_frame(2000);
        let refused = |header: [u8; HEADER_LEN]| assert_eq!(decode(&header, &frame[..]), None);
        refused(encode(super_frame(0)));
        refused(with(0, 0)); // a super-frame with a complete checksum
        refused(with(1, 3)); // UDP fragmentation
        refused(with(7, 0xff)); // the sum starts beyond the frame
        refused(with(9, 0xff)); // the field lies beyond the frame
        let mut short_header = frame.clone();
        short_header[34 + 12] = 4 << 4;
        assert_eq!(decode(&encode(super_frame(1448)), &short_header[..]), None);
        assert_eq!(decode(&encode(super_frame(1448)), &frame[..65]), None);
        assert_eq!(decode(&encode(super_frame(1448)), &frame[..40]), None);
        assert_eq!(decode(&encode(super_frame(1448)), &[][..]), None);
    }
}

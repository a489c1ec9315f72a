//! TCP headers (RFC 9293 §3.1, RFC 7323, RFC 2018).
//!
//! smoltcp reads and writes the fields and the options. The value is ours because its own, `Repr`,
//! refuses a header that comes without its payload and loses ECE, CWR and URG.

use std::ops::{BitOr, BitOrAssign};

use smoltcp::wire::{TcpOption, TcpPacket, TcpSeqNumber};

use crate::drops::DropReason;
use crate::tcp::SeqNumber;

/// The bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;

/// The control bits of a segment, in the order of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u16);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl BitOrAssign for TcpFlags {
    fn bitor_assign(&mut self, rhs: Self) {
        self.0 |= rhs.0;
    }
}

/// A TCP header with the options that the relay understands; all others are skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpHeader {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Position of the first payload byte (of the SYN, when it is set).
    pub seq: SeqNumber,
    /// The next byte that the sender expects; significant with [`TcpFlags::ACK`].
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: TcpFlags,
    /// The window field, not yet scaled.
    pub window: u16,
    /// Maximum segment size in bytes (SYN only).
    pub mss: Option<u16>,
    /// Window scale, a shift of at most 14 (SYN only, RFC 7323 §2.3).
    pub window_scale: Option<u8>,
    /// SACK permitted (SYN only).
    pub sack_permitted: bool,
    /// SACK blocks, first byte and the byte behind the last, newest first.
    pub sack: [Option<(SeqNumber, SeqNumber)>; 3],
}

impl TcpHeader {
    /// Reads the header at the start of `bytes`; returns it and its length with options.
    ///
    /// # Errors
    /// [`DropReason::TcpHeader`] when the bytes end before the header does or its offset is under 20.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), DropReason> {
        if bytes.len() < TCP_HEADER_LEN {
            return Err(DropReason::TcpHeader);
        }
        let packet = TcpPacket::new_unchecked(bytes);
        let header_len = usize::from(packet.header_len());
        if header_len < TCP_HEADER_LEN || header_len > bytes.len() {
            return Err(DropReason::TcpHeader);
        }
        let bit = |set: bool, flag: TcpFlags| if set { flag.0 } else { 0 };
        let mut header = Self {
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            seq: from_wire(packet.seq_number()),
            ack: from_wire(packet.ack_number()),
            flags: TcpFlags(
                bit(packet.fin(), TcpFlags::FIN)
                    | bit(packet.syn(), TcpFlags::SYN)
                    | bit(packet.rst(), TcpFlags::RST)
                    | bit(packet.psh(), TcpFlags::PSH)
                    | bit(packet.ack(), TcpFlags::ACK)
                    | bit(packet.urg(), TcpFlags::URG)
                    | bit(packet.ece(), TcpFlags::ECE)
                    | bit(packet.cwr(), TcpFlags::CWR),
            ),
            window: packet.window_len(),
            ..Self::default()
        };
        let mut options = bytes.get(TCP_HEADER_LEN..header_len).unwrap_or_default();
        while let Ok((rest, option)) = TcpOption::parse(options) {
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => header.mss = Some(mss),
                // RFC 7323 §2.3: a shift over 14 is read as 14.
                TcpOption::WindowScale(shift) => header.window_scale = Some(shift.min(14)),
                TcpOption::SackPermitted => header.sack_permitted = true,
                TcpOption::SackRange(blocks) => {
                    header.sack =
                        blocks.map(|block| block.map(|(left, right)| (SeqNumber(left), SeqNumber(right))));
                }
                _ => {}
            }
            if rest.len() >= options.len() {
                break;
            }
            options = rest;
        }
        Ok((header, header_len))
    }

    /// The bytes that [`TcpHeader::emit`] writes: a multiple of 4 from 20 to 60.
    pub fn len(&self) -> usize {
        let blocks = self.sack.iter().flatten().count();
        let options = if self.mss.is_some() { 4 } else { 0 }
            + if self.window_scale.is_some() { 3 } else { 0 }
            + if self.sack_permitted { 2 } else { 0 }
            + if blocks > 0 { 2 + 8 * blocks } else { 0 };
        TCP_HEADER_LEN + options.next_multiple_of(4)
    }

    /// Whether [`TcpHeader::emit`] writes nothing: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header to the start of `bytes`, its checksum zero.
    ///
    /// # Panics
    /// When `bytes` is shorter than [`TcpHeader::len`].
    pub fn emit(&self, bytes: &mut [u8]) {
        let len = self.len();
        let mut packet = TcpPacket::new_unchecked(&mut bytes[..]);
        packet.set_src_port(self.src_port);
        packet.set_dst_port(self.dst_port);
        packet.set_seq_number(to_wire(self.seq));
        packet.set_ack_number(to_wire(self.ack));
        packet.clear_flags();
        packet.set_header_len(u8::try_from(len).expect("a TCP header is at most 60 bytes"));
        packet.set_fin(self.flags.contains(TcpFlags::FIN));
        packet.set_syn(self.flags.contains(TcpFlags::SYN));
        packet.set_rst(self.flags.contains(TcpFlags::RST));
        packet.set_psh(self.flags.contains(TcpFlags::PSH));
        packet.set_ack(self.flags.contains(TcpFlags::ACK));
        packet.set_urg(self.flags.contains(TcpFlags::URG));
        packet.set_ece(self.flags.contains(TcpFlags::ECE));
        packet.set_cwr(self.flags.contains(TcpFlags::CWR));
        packet.set_window_len(self.window);
        packet.set_checksum(0);
        packet.set_urgent_at(0);
        let mut options = packet.options_mut();
        if let Some(mss) = self.mss {
            options = TcpOption::MaxSegmentSize(mss).emit(options);
        }
        if let Some(shift) = self.window_scale {
            options = TcpOption::WindowScale(shift).emit(options);
        }
        if self.sack_permitted {
            options = TcpOption::SackPermitted.emit(options);
        }
        if self.sack.iter().any(Option::is_some) {
            let blocks = self.sack.map(|block| block.map(|(left, right)| (left.0, right.0)));
            options = TcpOption::SackRange(blocks).emit(options);
        }
        options.fill(0);
    }
}

fn from_wire(seq: TcpSeqNumber) -> SeqNumber {
    SeqNumber(seq.0.cast_unsigned())
}

fn to_wire(seq: SeqNumber) -> TcpSeqNumber {
    TcpSeqNumber(seq.0.cast_signed())
}

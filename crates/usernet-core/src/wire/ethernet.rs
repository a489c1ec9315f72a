//! Ethernet headers (IEEE 802.3).

use std::fmt;

use crate::drops::DropReason;

/// The bytes of an Ethernet header.
pub const ETHERNET_HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// A MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group, broadcast included.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An Ethernet header: destination, source, EtherType, 14 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader {
    /// The destination.
    pub dst: MacAddr,
    /// The source.
    pub src: MacAddr,
    /// What follows.
    pub ethertype: u16,
}

impl EthernetHeader {
    /// Reads the header at the start of a frame; returns it and what follows.
    ///
    /// # Errors
    /// [`DropReason::EthernetHeader`] when the frame ends before the header does.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), DropReason> {
        let (header, rest) =
            frame.split_first_chunk::<ETHERNET_HEADER_LEN>().ok_or(DropReason::EthernetHeader)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, hi, lo] = *header;
        let dst = MacAddr([a, b, c, d, e, f]);
        let src = MacAddr([g, h, i, j, k, l]);
        Ok((Self { dst, src, ethertype: u16::from_be_bytes([hi, lo]) }, rest))
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; ETHERNET_HEADER_LEN] {
        let [a, b, c, d, e, f] = self.dst.0;
        let [g, h, i, j, k, l] = self.src.0;
        let [hi, lo] = self.ethertype.to_be_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, hi, lo]
    }
}

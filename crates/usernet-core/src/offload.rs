//! What a frame leaves undone for a device to finish, and what a link can take.
//!
//! The same facts as `struct virtio_net_hdr` (virtio 1.2 §5.1.6), as values. A frame carries them
//! from the link it came by, through the switch, to the link it leaves by.

/// How far the transport checksum of a frame has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The frame carries its final checksum.
    #[default]
    Complete,
    /// The checksum field holds the pseudo-header's sum only. The one's complement sum of the
    /// bytes from `start` to the end of the frame, folded and inverted, goes to `start + offset`.
    Partial {
        /// Where the sum starts, in bytes from the start of the frame.
        start: u16,
        /// Where the checksum field lies, in bytes from `start`.
        offset: u16,
    },
}

/// Which protocol a super-frame is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6,
    /// UDP over IPv4 or IPv6 (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// A frame that stands for several wire packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// The transport protocol.
    pub kind: SegmentKind,
    /// Transport payload bytes in each wire packet but the last. Never 0.
    pub size: u16,
    /// Bytes of Ethernet, IP and transport headers in front of the payload.
    pub header_len: u16,
}

/// Wire packets that are to go as IP fragments where they are longer than their receiver's MTU. No device
/// does that: the driver finishes the packets and cuts them ([`crate::wire::fragments`]) before a link sees
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmentation {
    /// The MTU in bytes, from the IP header on.
    pub mtu: u16,
    /// The identification of the first packet; the others count on. IPv4 has room for the low 16 bits.
    pub ident: u32,
}

/// What a frame leaves undone. The default is a plain frame, finished in every way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum.
    pub checksum: Checksum,
    /// Whether the frame is to be cut into wire packets.
    pub segmentation: Option<Segmentation>,
    /// Whether those are too long to go whole. Only what the network itself sends ever is.
    pub fragmentation: Option<Fragmentation>,
}

/// What a link can take in the frames that it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Frames with [`Checksum::Partial`].
    pub checksum: bool,
    /// Super-frames of TCP over IPv4.
    pub tcp4: bool,
    /// Super-frames of TCP over IPv6.
    pub tcp6: bool,
    /// Super-frames of UDP.
    pub udp: bool,
}

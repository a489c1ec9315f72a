//! Features of a network device and of virtio, as bits (virtio 1.2 §5.1.3, §6).

/// Checksums that the guest leaves to us.
pub const CSUM: u64 = 1 << 0;
/// Checksums that we may leave to the guest.
pub const GUEST_CSUM: u64 = 1 << 1;
/// The device tells its MTU.
pub const MTU: u64 = 1 << 3;
/// TCP super-frames that the guest takes, over IPv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The same over IPv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// Of those, also with CWR set.
pub const GUEST_ECN: u64 = 1 << 9;
/// TCP super-frames that we take, over IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// The same over IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// Of those, also with CWR set.
pub const HOST_ECN: u64 = 1 << 13;
/// A frame to the guest may be spread over several chains of buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The device tells whether its cable is plugged in.
pub const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// There may be several pairs of queues.
pub const MQ: u64 = 1 << 22;
/// A descriptor may stand for a table of them.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Each side says at which index it wants to be told.
pub const EVENT_IDX: u64 = 1 << 29;
/// Virtio 1.0 or later, without which the fields of a ring have the guest's byte order.
pub const VERSION_1: u64 = 1 << 32;
/// One queue may be reset.
pub const RING_RESET: u64 = 1 << 40;
/// UDP super-frames that the guest takes, over IPv4.
pub const GUEST_USO4: u64 = 1 << 54;
/// The same over IPv6.
pub const GUEST_USO6: u64 = 1 << 55;
/// UDP super-frames that we take.
pub const HOST_USO: u64 = 1 << 56;

/// Those that decide how fast a guest can be, by name, as far as they are among `features`.
pub fn names(features: u64) -> String {
    let named = [
        (CSUM, "csum"),
        (HOST_TSO4, "tso4"),
        (HOST_TSO6, "tso6"),
        (HOST_USO, "uso"),
        (GUEST_CSUM, "guest_csum"),
        (GUEST_TSO4, "guest_tso4"),
        (GUEST_TSO6, "guest_tso6"),
        (GUEST_USO4, "guest_uso4"),
        (GUEST_USO6, "guest_uso6"),
        (MRG_RXBUF, "mrg_rxbuf"),
        (EVENT_IDX, "event_idx"),
        (MQ, "mq"),
    ];
    let agreed = named.into_iter().filter(|(bit, _)| features & bit != 0);
    agreed.map(|(_, name)| name).collect::<Vec<_>>().join(" ")
}

/// Those that a [`super::Device`] has by itself.
pub const DEVICE: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | INDIRECT_DESC
    | EVENT_IDX
    | VERSION_1
    | RING_RESET
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO;

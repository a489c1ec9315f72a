//! The words in which the core and the driver speak about the host end of a flow.

use std::fmt;

use crate::wire::IcmpError;

/// What the driver tells a TCP flow about its host end. Lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The connect that [`crate::tcp::Output::Connect`] asked for has succeeded.
    Connected,
    /// There is something to peek: bytes or the end of the stream (an `EPOLLIN` edge).
    Readable,
    /// The host took `len` of the bytes that were offered to it, in order, and the driver keeps the
    /// next `kept` of them for later; any others are gone and must come from the guest again.
    Wrote {
        /// Bytes taken.
        len: u32,
        /// Bytes kept.
        kept: u32,
    },
    /// The host end can take about `free` more bytes. Reported behind a write that took all, and when
    /// an event or [`crate::tcp::Output::WatchSendSpace`] asks for it; not behind a write that fell
    /// short, whatever the host says then.
    SendSpace {
        /// Bytes.
        free: u32,
    },
    /// The guest's link has room again after a peek that ended in [`PeekEnd::LinkFull`].
    LinkSpace,
    /// The host end is broken, or could not be made.
    Failed(HostError),
}

/// Why a peek returned no more than it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekEnd {
    /// There may be more: peek again.
    More,
    /// The host end has nothing more now; [`HostEvent::Readable`] tells when it has.
    Empty,
    /// The host closed its sending side behind these bytes.
    Eof,
    /// The guest's link has no room; [`HostEvent::LinkSpace`] tells when it has.
    LinkFull,
}

/// Why a host end cannot serve its flow. Each says something different to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostError {
    /// The peer refused the connection (`ECONNREFUSED`).
    Refused,
    /// The peer reset the connection (`ECONNRESET`, `EPIPE`).
    Reset,
    /// No route to the network (`ENETUNREACH`).
    NetUnreachable,
    /// No route to the host (`EHOSTUNREACH`, `EHOSTDOWN`).
    HostUnreachable,
    /// The host's policy forbids it (`EACCES`, `EPERM`; ICMP administratively prohibited).
    Prohibited,
    /// The peer did not answer (`ETIMEDOUT`).
    TimedOut,
    /// Longer than what the way there takes (`EMSGSIZE`).
    TooLong,
    /// The host has no descriptors, ports or memory left (`EMFILE`, `ENFILE`, `EADDRNOTAVAIL`,
    /// `EAGAIN`, `ENOBUFS`, `ENOMEM`).
    Exhausted,
    /// Another error number.
    Other(i32),
}

/// What a guest is told of it where there is no connection to reset.
impl From<HostError> for IcmpError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Refused => Self::PortUnreachable,
            HostError::NetUnreachable => Self::NetUnreachable,
            HostError::Prohibited => Self::Prohibited,
            _ => Self::HostUnreachable,
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::Reset => f.write_str("connection reset"),
            Self::NetUnreachable => f.write_str("network unreachable"),
            Self::HostUnreachable => f.write_str("host unreachable"),
            Self::Prohibited => f.write_str("administratively prohibited"),
            Self::TooLong => f.write_str("message too long"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Exhausted => f.write_str("host out of descriptors, ports or memory"),
            Self::Other(errno) => write!(f, "error number {errno}"),
        }
    }
}

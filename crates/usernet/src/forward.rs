//! Forwarded ports, in the grammar of QEMU's `hostfwd`.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// The protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A host port to forward to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRule {
    /// The protocol.
    pub protocol: ForwardProtocol,
    /// The host address to listen on.
    pub host_addr: IpAddr,
    /// The host port; 0: any free one.
    pub host_port: u16,
    /// The guest; `None`: the first address that DHCP gives out.
    pub guest_addr: Option<Ipv4Addr>,
    /// The guest's port. Never 0.
    pub guest_port: u16,
}

/// Why a rule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseForwardError(pub String);

impl FromStr for ForwardRule {
    type Err = ParseForwardError;

    fn from_str(_rule: &str) -> Result<Self, Self::Err> {
        Err(ParseForwardError(String::new()))
    }
}

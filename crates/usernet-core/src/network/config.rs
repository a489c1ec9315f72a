//! What a network is, and what its guests may make it hold.

use std::net::{IpAddr, Ipv4Addr};

use crate::dhcp;
use crate::wire::MacAddr;

/// The configuration of the core.
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
    /// The MTU of guests' interfaces in bytes.
    pub mtu: u16,
    /// Whether guests reach the host's loopback at the gateway's address, and the host's own
    /// addresses at all.
    pub host_loopback: bool,
    /// The host's own addresses; they matter only without `host_loopback`.
    pub host_addrs: Vec<IpAddr>,
    /// The DHCP server.
    pub dhcp: dhcp::Config,
    /// Bounds.
    pub limits: Limits,
    /// Keys hashes and initial sequence numbers. Random in a real network, fixed in a replay.
    pub seed: [u8; 16],
}

impl Default for Config {
    fn default() -> Self {
        let dhcp = dhcp::Config::default();
        Self {
            net: dhcp.net,
            prefix_len: dhcp.prefix_len,
            gateway: dhcp.gateway,
            dns: dhcp.dns,
            mtu: dhcp.mtu,
            host_loopback: true,
            host_addrs: Vec::new(),
            dhcp,
            limits: Limits::default(),
            seed: [0; 16],
        }
    }
}

/// How much each guest may make the network hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// TCP flows. When they are all in use, the oldest that only waits for strays goes first; if
    /// there is none, a new one is refused.
    pub tcp: usize,
    /// TCP flows whose host end is still being connected. A SYN beyond this is dropped.
    pub connecting: usize,
    /// UDP flows that the guest has opened, and as many of peers of forwarded ports. Of either kind the
    /// least recently used goes first.
    pub udp: usize,
    /// Peers that a UDP flow hears from (RFC 4787 REQ-8). The least recently addressed goes first.
    pub udp_peers: usize,
    /// Ping flows. The least recently used goes first.
    pub ping: usize,
    /// Bytes kept for TCP flows: out of order, or without room in the host. More are dropped, and
    /// come again.
    pub kept: u32,
    /// DNS queries that are not answered yet. One beyond this is dropped.
    pub dns: usize,
    /// DNS connections. One beyond this is refused.
    pub dns_streams: usize,
    /// MAC addresses that the switch knows of a guest. No more are learnt.
    pub macs: usize,
    /// IP addresses that the network knows of a guest. No more are learnt.
    pub addresses: usize,
    /// Forwarded connections, of all guests together, that wait for a guest to be found.
    pub unresolved: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp: 32_768,
            connecting: 1024,
            udp: 2048,
            udp_peers: 64,
            ping: 64,
            kept: 16 << 20,
            dns: 64,
            dns_streams: 8,
            macs: 64,
            addresses: 32,
            unresolved: 256,
        }
    }
}

/// The MAC address of the network's own addresses: `52:55` and the gateway's address, as QEMU has it.
pub(super) fn gateway_mac(gateway: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = gateway.octets();
    MacAddr([0x52, 0x55, a, b, c, d])
}

/// What lies behind a destination address. Every destination is one of these before anything is
/// connected or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The gateway: the host's loopback.
    Gateway,
    /// The DNS server.
    Dns,
    /// Another address of the network; never sent outside.
    Inside,
    /// Multicast or broadcast.
    Group,
    /// 0.0.0.0/8, 127.0.0.0/8, `::` and `::1`, which a host takes for itself, 240.0.0.0/4, and their
    /// mapped forms.
    Forbidden,
    /// An address of the host's own, while those are closed to guests.
    Closed,
    /// The world.
    Outside,
}

impl Config {
    /// Whether `addr` lies in the network.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        let IpAddr::V4(addr) = addr else { return false };
        addr.to_bits() & self.mask() == self.net.to_bits() & self.mask()
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0)
    }

    /// Whether `addr` is one of the network's own.
    pub(super) fn is_ours(&self, addr: IpAddr) -> bool {
        addr == self.gateway || addr == self.dns
    }

    pub(super) fn place(&self, addr: IpAddr) -> Place {
        let addr = addr.to_canonical();
        if addr == self.gateway {
            return if self.host_loopback { Place::Gateway } else { Place::Closed };
        }
        if addr == self.dns {
            return Place::Dns;
        }
        match addr {
            IpAddr::V4(v4) => {
                let broadcast = self.net.to_bits() | !self.mask();
                if v4.is_broadcast() || v4.is_multicast() || v4.to_bits() == broadcast {
                    return Place::Group;
                }
                // Class E (240.0.0.0/4) is no place to send to either.
                if v4.octets()[0] == 0 || v4.is_loopback() || v4.octets()[0] >= 240 {
                    return Place::Forbidden;
                }
            }
            IpAddr::V6(v6) => {
                if v6.is_multicast() {
                    return Place::Group;
                }
                if v6.is_loopback() || v6.is_unspecified() {
                    return Place::Forbidden;
                }
            }
        }
        if self.contains(addr) {
            Place::Inside
        } else if !self.host_loopback && self.host_addrs.contains(&addr) {
            Place::Closed
        } else {
            Place::Outside
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_destination_has_a_place() {
        let mut config = Config { host_addrs: vec!["192.0.2.2".parse().unwrap()], ..Config::default() };
        let place = |config: &Config, addr: &str| config.place(addr.parse().unwrap());
        for (addr, expected) in [
            ("10.0.2.2", Place::Gateway),
            ("10.0.2.3", Place::Dns),
            ("10.0.2.77", Place::Inside),
            ("10.0.2.0", Place::Inside),
            ("10.0.2.255", Place::Group),
            ("255.255.255.255", Place::Group),
            ("224.0.0.251", Place::Group),
            ("0.0.0.0", Place::Forbidden),
            ("0.1.2.3", Place::Forbidden),
            ("127.0.0.1", Place::Forbidden),
            ("127.8.9.1", Place::Forbidden),
            ("::ffff:127.0.0.1", Place::Forbidden),
            ("::ffff:0.0.0.0", Place::Forbidden),
            ("::1", Place::Forbidden),
            ("::", Place::Forbidden),
            ("240.0.0.1", Place::Forbidden),
            ("ff02::1", Place::Group),
            ("192.0.2.2", Place::Outside),
            ("1.1.1.1", Place::Outside),
        ] {
            assert_eq!(place(&config, addr), expected, "{addr}");
        }
        config.host_loopback = false;
        assert_eq!(place(&config, "10.0.2.2"), Place::Closed);
        assert_eq!(place(&config, "192.0.2.2"), Place::Closed);
        assert_eq!(place(&config, "::ffff:192.0.2.2"), Place::Closed);
        assert_eq!(place(&config, "1.1.1.1"), Place::Outside);
    }
}

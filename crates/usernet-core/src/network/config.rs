//! What a network is, and what its guests may make it hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::MulticastService;
use crate::wire::{MacAddr, link_local};
use crate::{dhcp, dhcp6, nat64};

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
    /// Whether guests have IPv4.
    pub ipv4: bool,
    /// The IPv6 network; none: guests have no IPv6.
    pub net6: Option<dhcp6::Config>,
    /// Whether IPv6 guests reach IPv4 hosts behind [`nat64::PREFIX`].
    pub nat64: bool,
    /// The MTU of guests' interfaces in bytes.
    pub mtu: u16,
    /// Whether guests reach the host's loopback at the gateway's address, and the host's own
    /// addresses at all.
    pub host_loopback: bool,
    /// The host's own addresses, with the bits of each that count: all of a network may be the host's. They
    /// matter only without `host_loopback`.
    pub host_addrs: Vec<(IpAddr, u8)>,
    /// Whether guests reach the link-local range of the host's network (169.254.0.0/16), and where else
    /// clouds tell a machine about itself.
    pub host_link_local: bool,
    /// Whether nothing passes but what the network answers itself, without DNS, and what came in by a
    /// forward; QEMU's `restrict=on`.
    pub restrict: bool,
    /// What guests may ask the host's network for by multicast.
    pub multicast: Vec<MulticastService>,
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
            ipv4: true,
            net6: None,
            nat64: false,
            mtu: dhcp.mtu,
            host_loopback: true,
            host_addrs: Vec::new(),
            host_link_local: false,
            restrict: false,
            multicast: Vec::new(),
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
    /// Packets whose fragments have not all come, each of 64 KiB at most. The oldest goes first.
    pub incomplete: usize,
    /// DNS queries that are not answered yet. One beyond this is dropped.
    pub dns: usize,
    /// DNS connections. One beyond this is refused.
    pub dns_streams: usize,
    /// MAC addresses that the switch knows of a guest. No more are learnt.
    pub macs: usize,
    /// IP addresses that the network knows of a guest, those that were leased to it aside. For one more, the
    /// one goes that the guest has turned to longest ago: it is learnt again when the guest uses it, or
    /// answers who asks for it.
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
            // 1 MiB. A guest sends the fragments of a packet in a row, so more are mostly what was lost.
            incomplete: 16,
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
    /// 0.0.0.0/8, 127.0.0.0/8, `::` and `::1`, which a host takes for itself, 240.0.0.0/4, whatever IPv6
    /// address holds one of these, and all that are IPv4-mapped or IPv4-compatible.
    Forbidden,
    /// Closed to guests: the host's own addresses, its link-local range, or with `restrict` all that a
    /// guest could begin to speak to.
    Closed,
    /// The world.
    Outside,
}

impl Config {
    /// The same with parts that agree: a network with `restrict` translates nothing and asks nobody, and its
    /// DHCP servers know of it.
    pub(super) fn settled(mut self) -> Self {
        if self.restrict {
            self.nat64 = false;
            self.multicast.clear();
            self.dhcp.restricted = true;
            if let Some(net6) = &mut self.net6 {
                net6.restricted = true;
            }
        }
        self
    }

    /// Whether `addr` lies in the network.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => addr.to_bits() & self.mask() == self.net.to_bits() & self.mask(),
            IpAddr::V6(addr) => self.net6.as_ref().is_some_and(|net| net.contains(addr)),
        }
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0)
    }

    /// Whether `addr` is one of the network's own.
    pub(super) fn is_ours(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => addr == self.gateway || addr == self.dns,
            IpAddr::V6(addr) => self
                .net6
                .as_ref()
                .is_some_and(|net| addr == net.gateway || addr == net.dns || addr == self.link_local()),
        }
    }

    /// The gateway's link-local address.
    pub(super) fn link_local(&self) -> Ipv6Addr {
        link_local(gateway_mac(self.gateway))
    }

    /// The gateway of `guest`'s kind of IP.
    pub(super) fn gateway_of(&self, guest: IpAddr) -> IpAddr {
        match (guest, &self.net6) {
            (IpAddr::V4(_), _) => self.gateway.into(),
            (IpAddr::V6(_), Some(net)) => net.gateway.into(),
            (IpAddr::V6(_), None) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The DNS server of `guest`'s kind of IP.
    pub(super) fn dns_of(&self, guest: IpAddr) -> IpAddr {
        match (guest, &self.net6) {
            (IpAddr::V4(_), _) => self.dns.into(),
            (IpAddr::V6(_), Some(net)) => net.dns.into(),
            (IpAddr::V6(_), None) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The IPv4 address that an IPv6 guest means by `addr`, if it means one.
    pub(super) fn translated(&self, addr: IpAddr) -> Option<Ipv4Addr> {
        match addr {
            IpAddr::V6(addr) if self.nat64 => nat64::extract(addr),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn place(&self, addr: IpAddr) -> Place {
        match addr {
            IpAddr::V4(addr) => self.place_v4(addr),
            IpAddr::V6(addr) => self.place_v6(addr),
        }
    }

    fn place_v4(&self, addr: Ipv4Addr) -> Place {
        if addr == self.gateway {
            return self.host_place();
        }
        if self.ipv4 && self.contains(addr.into()) {
            let broadcast = self.net.to_bits() | !self.mask();
            return match addr {
                _ if addr == self.dns => self.dns_place(),
                _ if addr.to_bits() == broadcast => Place::Group,
                _ => Place::Inside,
            };
        }
        if addr.is_broadcast() || addr.is_multicast() {
            return Place::Group;
        }
        // Class E (240.0.0.0/4) is no place to send to either.
        if addr.octets()[0] == 0 || addr.is_loopback() || addr.octets()[0] >= 240 {
            return Place::Forbidden;
        }
        self.outside(addr.into())
    }

    fn place_v6(&self, addr: Ipv6Addr) -> Place {
        if addr.is_multicast() {
            return Place::Group;
        }
        if let Some(net) = &self.net6 {
            if addr == net.gateway {
                return self.host_place();
            }
            if addr == net.dns {
                return self.dns_place();
            }
            // Only the router itself is at home there.
            if addr == self.link_local() {
                return Place::Closed;
            }
        }
        if self.contains(addr.into()) || addr.is_unicast_link_local() {
            return Place::Inside;
        }
        if let Some(v4) = self.translated(addr.into()) {
            return match self.place_v4(v4) {
                place @ (Place::Gateway | Place::Outside) => place,
                _ => Place::Closed,
            };
        }
        match embedded_v4(addr) {
            Some((v4, prefix)) => match (self.place_v4(v4), prefix) {
                (Place::Closed, _) => Place::Closed,
                (Place::Outside, Embedding::Translated) => self.outside(addr.into()),
                _ => Place::Forbidden,
            },
            None => self.outside(addr.into()),
        }
    }

    /// What the gateway's address is good for.
    fn host_place(&self) -> Place {
        if self.host_loopback && !self.restrict { Place::Gateway } else { Place::Closed }
    }

    fn dns_place(&self) -> Place {
        if self.restrict { Place::Closed } else { Place::Dns }
    }

    fn outside(&self, addr: IpAddr) -> Place {
        let closed = self.restrict
            || !self.host_link_local && is_metadata(addr)
            || !self.host_loopback && self.host_addrs.iter().any(|net| is_within(addr, *net));
        if closed { Place::Closed } else { Place::Outside }
    }

    /// Whether a host of the host's network that a guest asked by multicast may answer from `addr`.
    pub(super) fn may_answer(&self, addr: IpAddr) -> bool {
        let on_link = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        (if on_link { self.outside(addr) } else { self.place(addr) }) == Place::Outside
    }
}

/// Whether `addr` begins with the first `len` bits of `net`.
fn is_within(addr: IpAddr, (net, len): (IpAddr, u8)) -> bool {
    match (addr, net) {
        (IpAddr::V4(addr), IpAddr::V4(net)) => {
            (addr.to_bits() ^ net.to_bits()).leading_zeros() >= u32::from(len)
        }
        (IpAddr::V6(addr), IpAddr::V6(net)) => {
            (addr.to_bits() ^ net.to_bits()).leading_zeros() >= u32::from(len)
        }
        _ => false,
    }
}

/// Where clouds answer a machine with its keys, beside 169.254.169.254: Alibaba Cloud and Azure; over IPv6
/// Amazon EC2, Google Cloud and Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// Whether `addr` is in the host's link-local range or one of [`METADATA_V4`] and [`METADATA_V6`]. Of IPv6,
/// fe80::/10 is a guest's own link and never gets here.
fn is_metadata(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local() || METADATA_V4.contains(&addr),
        IpAddr::V6(addr) => METADATA_V6.contains(&addr),
    }
}

/// How an IPv6 address holds an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Embedding {
    /// `::ffff:0:0/96` and `::/96`, `::` and `::1` among them: no packet has these.
    Mapped,
    /// `64:ff9b::/96` (RFC 6052), `2002::/16` (RFC 3056): what a translator or a relay of the host's
    /// network takes.
    Translated,
}

fn embedded_v4(addr: Ipv6Addr) -> Option<(Ipv4Addr, Embedding)> {
    if let Some(v4) = addr.to_ipv4() {
        return Some((v4, Embedding::Mapped));
    }
    match addr.octets() {
        // `::ffff:0:0:0/96` (RFC 7915): no packet has it outside of a translator's own network.
        [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, a, b, c, d] => {
            Some((Ipv4Addr::new(a, b, c, d), Embedding::Mapped))
        }
        [0x20, 0x02, a, b, c, d, ..] => Some((Ipv4Addr::new(a, b, c, d), Embedding::Translated)),
        _ => Some((nat64::extract(addr)?, Embedding::Translated)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_destination_has_a_place() {
        let mut config = Config {
            host_addrs: vec![("192.0.2.2".parse().unwrap(), 32), ("198.51.100.0".parse().unwrap(), 25)],
            ..Config::default()
        };
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
            ("::ffff:0:127.0.0.1", Place::Forbidden),
            ("2002:7f00:1::", Place::Forbidden),
            ("2002:a00:202::", Place::Forbidden),
            ("2002:101:101::1", Place::Outside),
            ("ff02::1", Place::Group),
            ("192.0.2.2", Place::Outside),
            ("1.1.1.1", Place::Outside),
        ] {
            assert_eq!(place(&config, addr), expected, "{addr}");
        }
        for metadata in ["169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16"] {
            for form in ["", "::ffff:", "::ffff:0:", "64:ff9b::"] {
                assert_eq!(place(&config, &format!("{form}{metadata}")), Place::Closed, "{form}{metadata}");
            }
        }
        assert_eq!(place(&config, "2002:a9fe:a9fe::1"), Place::Closed);
        config.host_link_local = true;
        for (addr, expected) in [
            ("169.254.169.254", Place::Outside),
            ("64:ff9b::169.254.169.254", Place::Outside),
            ("::ffff:169.254.169.254", Place::Forbidden),
            ("100.100.100.200", Place::Outside),
        ] {
            assert_eq!(place(&config, addr), expected, "{addr}");
        }
        config.host_loopback = false;
        assert_eq!(place(&config, "10.0.2.2"), Place::Closed);
        assert_eq!(place(&config, "192.0.2.2"), Place::Closed);
        assert_eq!(place(&config, "::ffff:192.0.2.2"), Place::Closed);
        for (addr, expected) in [
            ("192.0.2.3", Place::Outside),
            ("198.51.99.255", Place::Outside),
            ("198.51.100.0", Place::Closed),
            ("198.51.100.127", Place::Closed),
            ("198.51.100.128", Place::Outside),
        ] {
            assert_eq!(place(&config, addr), expected, "{addr}");
        }
        assert_eq!(place(&config, "1.1.1.1"), Place::Outside);
    }

    #[test]
    fn every_ipv6_destination_has_a_place() {
        let mut config = Config {
            net6: Some(dhcp6::Config::default()),
            host_addrs: vec![
                ("2001:db8::7".parse().unwrap(), 128),
                ("2001:db8:1::".parse().unwrap(), 48),
                ("192.0.2.2".parse().unwrap(), 32),
            ],
            ..Config::default()
        };
        let place = |config: &Config, addr: &str| config.place(addr.parse().unwrap());
        for (addr, expected) in [
            ("fd00::2", Place::Gateway),
            ("fd00::3", Place::Dns),
            ("fd00::15", Place::Inside),
            ("fd00::ffff:0:0:1", Place::Inside),
            ("fe80::1", Place::Inside),
            ("febf::1", Place::Inside),
            ("fe80::5055:aff:fe00:202", Place::Closed),
            ("ff02::fb", Place::Group),
            ("ff0e::1", Place::Group),
            ("::", Place::Forbidden),
            ("::1", Place::Forbidden),
            ("::7f00:1", Place::Forbidden),
            ("::ffff:1.1.1.1", Place::Forbidden),
            ("::ffff:10.0.2.2", Place::Forbidden),
            ("64:ff9b::7f00:1", Place::Forbidden),
            ("64:ff9b::a00:20f", Place::Forbidden),
            ("64:ff9b::101:101", Place::Outside),
            ("fd01::2", Place::Outside),
            ("2001:db8::7", Place::Outside),
            ("2606:4700:4700::1111", Place::Outside),
            ("fd00:ec2::254", Place::Closed),
            ("fd20:ce::254", Place::Closed),
            ("fd00:c1::a9fe:a9fe", Place::Closed),
            ("fd00:ec2::253", Place::Outside),
        ] {
            assert_eq!(place(&config, addr), expected, "{addr}");
        }
        config.host_loopback = false;
        for closed in [
            "fd00::2",
            "2001:db8::7",
            "2001:db8:1::",
            "2001:db8:1:ffff::1",
            "::ffff:192.0.2.2",
            "64:ff9b::c000:202",
        ] {
            assert_eq!(place(&config, closed), Place::Closed, "{closed}");
        }
        for open in ["2606:4700:4700::1111", "2001:db8:2::", "2001:db8::8"] {
            assert_eq!(place(&config, open), Place::Outside, "{open}");
        }
        config.net6 = None;
        assert_eq!(place(&config, "fd00::2"), Place::Outside);
    }

    #[test]
    fn a_restricted_network_is_closed_but_for_guests_to_each_other() {
        let config = Config { net6: Some(dhcp6::Config::default()), restrict: true, ..Config::default() };
        for (addrs, expected) in [
            (
                &["10.0.2.2", "10.0.2.3", "192.0.2.1", "169.254.169.254", "fd00::2", "fd00::3"][..],
                Place::Closed,
            ),
            (&["2001:db8::1", "64:ff9b::101:101", "2002:101:101::1", "::ffff:1.1.1.1"], Place::Closed),
            (&["10.0.2.15", "fd00::15", "fe80::1"], Place::Inside),
            (&["255.255.255.255", "ff02::1"], Place::Group),
            (&["127.0.0.1", "::1", "0.0.0.0"], Place::Forbidden),
        ] {
            for addr in addrs {
                assert_eq!(config.place(addr.parse().unwrap()), expected, "{addr}");
            }
        }
    }

    #[test]
    fn behind_the_prefix_ipv4_has_the_places_of_ipv4() {
        let mut config = Config {
            net6: Some(dhcp6::Config::default()),
            nat64: true,
            host_addrs: vec![("192.0.2.2".parse().unwrap(), 32)],
            ..Config::default()
        };
        let place = |config: &Config, v4: &str| config.place(format!("64:ff9b::{v4}").parse().unwrap());
        for (v4, expected) in [
            ("1.1.1.1", Place::Outside),
            ("192.168.1.1", Place::Outside),
            ("10.0.3.1", Place::Outside),
            ("192.0.2.2", Place::Outside),
            ("169.254.169.254", Place::Closed),
            // The host's IPv4 loopback, as for IPv4 guests.
            ("10.0.2.2", Place::Gateway),
            ("10.0.2.3", Place::Closed),
            ("10.0.2.15", Place::Closed),
            ("10.0.2.255", Place::Closed),
            ("127.0.0.1", Place::Closed),
            ("0.0.0.0", Place::Closed),
            ("224.0.0.251", Place::Closed),
            ("240.0.0.1", Place::Closed),
            ("255.255.255.255", Place::Closed),
        ] {
            assert_eq!(place(&config, v4), expected, "{v4}");
        }
        // No guest is there: it may be a network of the host's.
        config.ipv4 = false;
        assert_eq!(["10.0.2.15", "10.0.2.3"].map(|v4| place(&config, v4)), [Place::Outside; 2]);
        config.host_loopback = false;
        assert_eq!(["10.0.2.2", "192.0.2.2"].map(|v4| place(&config, v4)), [Place::Closed; 2]);
        assert_eq!(place(&config, "1.1.1.1"), Place::Outside);
    }
}

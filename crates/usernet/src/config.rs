//! How a network is set up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::thread;

use usernet_core::nat64;

use crate::{ForwardRule, IPV6_MIN_MTU, MulticastService, Net6, Outbound};

/// The configuration of a network. The default is QEMU's: 10.0.2.0/24, gateway .2, DNS .3, DHCP from
/// .15 on; and fd00::/64 beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The network's address.
    pub net: Ipv4Addr,
    /// The length of its prefix in bits: 8 to 29.
    pub prefix_len: u8,
    /// The gateway: the host, as guests see it.
    pub gateway: Ipv4Addr,
    /// The DNS server, as guests see it.
    pub dns: Ipv4Addr,
    /// Whether guests have IPv4.
    pub ipv4: bool,
    /// The IPv6 network; none: guests have no IPv6. It needs an MTU of [`IPV6_MIN_MTU`].
    pub net6: Option<Net6>,
    /// Whether IPv6 guests reach IPv4 hosts: NAT64 (RFC 6146) behind the well-known prefix 64:ff9b::/96, and
    /// DNS64 (RFC 6147), which gives names without IPv6 addresses such addresses. It needs `net6`.
    pub nat64: bool,
    /// Where DNS queries go; empty: where the host's `/etc/resolv.conf` says, followed as it changes.
    pub dns_upstreams: Vec<SocketAddr>,
    /// The first address that DHCP gives out.
    pub dhcp_start: Ipv4Addr,
    /// The host name that DHCP gives to guests.
    pub hostname: Option<String>,
    /// The domain name that DHCP gives to guests.
    pub domain: Option<String>,
    /// The domains that DHCP tells guests to search. Their names take 255 bytes at most on the wire:
    /// what one DHCP option holds.
    pub dns_search: Vec<String>,
    /// The MTU of guests' interfaces in bytes, told by DHCP and router advertisements: 576 to 65,520, and
    /// 1,280 or more while `net6` is there, as it is by default.
    pub mtu: u16,
    /// Whether guests may reach the host's own loopback through the gateway's address, and the
    /// host's own addresses at all, what its table of local routes has included.
    pub host_loopback: bool,
    /// Whether guests may reach the link-local range of the host's network, 169.254.0.0/16, and where else
    /// clouds tell a machine its secrets (100.100.100.200, 168.63.129.16, fd00:ec2::254, fd20:ce::254 and
    /// fd00:c1::a9fe:a9fe). IPv6's own range, fe80::/10, is a guest's own link and never leads to the
    /// host's.
    pub host_link_local: bool,
    /// Whether guests are kept to themselves, QEMU's `restrict=on`: nothing passes but ARP, neighbour
    /// discovery, DHCP, ping to the gateway and the DNS server, what came in by a forward, and frames
    /// between guests. DHCP and router advertisements name no router and no DNS server. As a guest has no
    /// way to anybody else, every peer of a forward appears as the gateway. What is for the way out only is
    /// refused beside it: `outbound`, `nat64`, `host_link_local`, `dns_upstreams`, `multicast`.
    pub restrict: bool,
    /// What guests may ask the host's network for by multicast. Whatever else
    /// they send to a group goes to other guests and no farther.
    pub multicast: Vec<MulticastService>,
    /// By which of the host's addresses and interfaces guests' flows leave.
    pub outbound: Outbound,
    /// Host ports that are forwarded to guests from the start.
    pub forwards: Vec<ForwardRule>,
    /// A file to write every frame to, as pcapng.
    pub pcap: Option<PathBuf>,
    /// Threads that move guests' frames, 64 at most; none: as many as there are processors, but not more
    /// than 8. A guest is served by one of them, or by one for each of its queues.
    pub workers: Option<NonZeroU16>,
}

impl Default for Config {
    fn default() -> Self {
        Self::for_net(Ipv4Addr::new(10, 0, 2, 0), 24)
    }
}

/// Why a configuration makes no network: the part that does not fit and what would, on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// The default configuration on another network, with the gateway, the DNS server and the
    /// first DHCP address where QEMU puts them: .2, .3 and .15 of a /24, .2.2, .2.3 and .2.15 of a
    /// wider network, and in one of fewer than 32 addresses, where QEMU's .15 is no guest's, DHCP
    /// from .4 on. Bits of `net` beyond the prefix are cleared.
    ///
    /// ```
    /// let config = usernet::Config::for_net([192, 168, 7, 0].into(), 24);
    /// assert_eq!(config.gateway.to_string(), "192.168.7.2");
    /// assert_eq!(config.dhcp_start.to_string(), "192.168.7.15");
    /// ```
    pub fn for_net(net: Ipv4Addr, prefix_len: u8) -> Self {
        let host_mask = host_mask(prefix_len);
        let net = net.to_bits() & !host_mask;
        let at = |host: u32| Ipv4Addr::from(net | (host & host_mask));
        Self {
            net: at(0),
            prefix_len,
            gateway: at(0x0202),
            dns: at(0x0203),
            ipv4: true,
            net6: Some(Net6::default()),
            nat64: false,
            dns_upstreams: Vec::new(),
            dhcp_start: at(if host_mask < 0x1f { 0x0204 } else { 0x020f }),
            hostname: None,
            domain: None,
            dns_search: Vec::new(),
            mtu: 1500,
            host_loopback: true,
            host_link_local: false,
            restrict: false,
            multicast: Vec::new(),
            outbound: Outbound::default(),
            forwards: Vec::new(),
            pcap: None,
            workers: None,
        }
    }

    /// How many workers there are: [`Config::workers`], or what stands for it.
    pub fn worker_count(&self) -> NonZeroU16 {
        // More are not likely to be used.
        const MOST: NonZeroU16 = NonZeroU16::new(8).expect("it is not 0");
        let processors = || thread::available_parallelism().ok()?.try_into().ok();
        self.workers.unwrap_or_else(|| processors().unwrap_or(NonZeroU16::MIN).min(MOST))
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// One line that names the part that does not fit, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_net()?;
        self.validate_addresses()?;
        self.validate_names()?;
        check((576..=65_520).contains(&self.mtu), || {
            format!("an MTU of {} bytes is out of range: choose one from 576 to 65520", self.mtu)
        })?;
        check(self.workers.is_none_or(|workers| workers.get() <= 64), || {
            "more than 64 workers serve nobody: choose 1 to 64, about as many as there are processors".into()
        })?;
        if let Some(net6) = &self.net6 {
            net6.validate(self.mtu)?;
        }
        check(self.ipv4 || self.net6.is_some(), || {
            "a network without IPv4 and IPv6 carries nothing: leave one of them on".to_owned()
        })?;
        self.validate_restricted()?;
        check(!self.nat64 || self.net6.is_some(), || {
            format!(
                "NAT64 is for guests with IPv6, and these have none: leave IPv6 on, with an MTU of \
                 {IPV6_MIN_MTU} or more"
            )
        })?;
        let translated = self.net6.as_ref().is_some_and(|net| net.contains(nat64::PREFIX));
        check(!self.nat64 || !translated, || {
            "IPv4 addresses lie behind 64:ff9b::/96 (NAT64): choose another IPv6 network, such as fd00::/64"
                .into()
        })?;
        self.validate_outbound()?;
        for upstream in &self.dns_upstreams {
            check(upstream.port() != 0 && !upstream.ip().is_unspecified(), || {
                format!("{upstream} is no DNS server to ask: give an address and a port, such as 9.9.9.9:53")
            })?;
        }
        self.forwards.iter().try_for_each(|rule| self.validate_forward(rule))
    }

    /// Checks that nothing is asked for that a restricted network has no use for.
    fn validate_restricted(&self) -> Result<(), ConfigError> {
        let outward = [
            ("a multicast service", !self.multicast.is_empty()),
            ("an outbound address", self.outbound.addresses().next().is_some()),
            ("an outbound interface", self.outbound.interface.is_some()),
            ("the host's link-local range", self.host_link_local),
            ("NAT64", self.nat64),
            ("a DNS upstream", !self.dns_upstreams.is_empty()),
        ];
        outward.into_iter().try_for_each(|(what, given)| {
            check(!self.restrict || !given, || {
                format!("a restricted network has no use for {what}: leave one of the two out")
            })
        })
    }

    /// Checks that packets can leave by the outbound addresses, and that guests have such packets.
    fn validate_outbound(&self) -> Result<(), ConfigError> {
        self.outbound.validate()?;
        self.outbound.addresses().try_for_each(|address| {
            let (fits, have, way_out) = match address {
                IpAddr::V4(_) => (self.ipv4 || self.nat64, "IPv6", ", or turn NAT64 on"),
                IpAddr::V6(_) if self.mtu < IPV6_MIN_MTU => {
                    (self.net6.is_some(), "IPv4", ", or choose an MTU of 1280 or more")
                }
                IpAddr::V6(_) => (self.net6.is_some(), "IPv4", ""),
            };
            check(fits, || {
                format!(
                    "the outbound address {address} is of no use to guests that have {have} only: leave one of \
                     the two out{way_out}"
                )
            })
        })
    }

    fn validate_net(&self) -> Result<(), ConfigError> {
        let (net, prefix_len) = (self.net, self.prefix_len);
        check((8..=29).contains(&prefix_len), || {
            format!(
                "a prefix of {prefix_len} bits is out of range: choose one from 8 to 29, such as {}/24",
                Self::for_net(net, 24).net
            )
        })?;
        let masked = Self::for_net(net, prefix_len).net;
        check(net == masked, || {
            format!("{net}/{prefix_len} is an address inside of a network: write {masked}/{prefix_len}")
        })?;
        let unusable = net.octets()[0] == 0 || net.is_loopback() || net.octets()[0] >= 224;
        check(!unusable, || {
            format!("guests cannot live on {net}/{prefix_len}: choose a private network, such as 10.0.2.0/24")
        })
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        let own =
            [("gateway", self.gateway), ("DNS server", self.dns), ("first DHCP address", self.dhcp_start)];
        let defaults = Self::for_net(self.net, self.prefix_len);
        let defaults = [defaults.gateway, defaults.dns, defaults.dhcp_start];
        for (index, ((what, address), default)) in own.into_iter().zip(defaults).enumerate() {
            check(self.has_host(address), || {
                let (net, prefix_len) = (self.net, self.prefix_len);
                format!(
                    "the {what} {address} is no host's address in {net}/{prefix_len}: choose one, such as {default}"
                )
            })?;
            if let Some((other, _)) = own.into_iter().take(index).find(|(_, taken)| *taken == address) {
                return Err(ConfigError(format!(
                    "{address} is both the {other} and the {what}: give each an address of its own"
                )));
            }
        }
        Ok(())
    }

    fn validate_names(&self) -> Result<(), ConfigError> {
        let names = [("host name", &self.hostname), ("domain", &self.domain)];
        let names = names.into_iter().filter_map(|(what, name)| Some((what, name.as_ref()?)));
        for (what, name) in names.chain(self.dns_search.iter().map(|name| ("search domain", name))) {
            check(is_domain_name(name), || {
                format!(
                    "the {what} {name:?} is no name: use labels of up to 63 letters, digits and hyphens, \
                     joined by dots, 253 in all"
                )
            })?;
        }
        // RFC 1035 §3.1: a length before each label and a zero at the end.
        let search_len: usize = self.dns_search.iter().map(|name| name.trim_end_matches('.').len() + 2).sum();
        check(search_len <= 255, || {
            format!("the search domains take {search_len} bytes and DHCP has room for 255: name fewer")
        })
    }

    /// Checks that a forward fits the network.
    pub(crate) fn validate_forward(&self, rule: &ForwardRule) -> Result<(), ConfigError> {
        check(rule.guest_port != 0, || format!("{rule} has no guest port: choose one from 1 to 65535"))?;
        let Some(guest) = rule.guest_addr else { return Ok(()) };
        let fits = match guest {
            IpAddr::V4(guest) => {
                self.ipv4 && self.has_host(guest) && guest != self.gateway && guest != self.dns
            }
            IpAddr::V6(guest) => self.net6.as_ref().is_some_and(|net| net.has_guest(guest)),
        };
        check(fits, || {
            let (nets, way_out) = self.forwards_to(guest.is_ipv4());
            format!("{rule} forwards to {guest}, which no guest on {nets} can have: choose {way_out}")
        })
    }

    /// The network that guests of one kind of IP are on, and what a forward to them may name.
    fn forwards_to(&self, ipv4: bool) -> (String, String) {
        let Self { net, prefix_len, dhcp_start, mtu, .. } = self;
        match &self.net6 {
            _ if ipv4 && self.ipv4 => {
                (format!("{net}/{prefix_len}"), format!("another, such as {dhcp_start}"))
            }
            _ if ipv4 => (
                "a network without IPv4".into(),
                format!("an IPv6 address, such as {}", self.default_guest()),
            ),
            Some(Net6 { prefix, prefix_len, dhcp_start, .. }) => {
                (format!("{prefix}/{prefix_len}"), format!("another, such as {dhcp_start}"))
            }
            None if *mtu < IPV6_MIN_MTU => (
                format!("a network without IPv6, for which an MTU of {mtu} bytes is too small,"),
                format!("an IPv4 address, or an MTU of {IPV6_MIN_MTU} or more"),
            ),
            None => ("a network without IPv6".into(), "an IPv4 address".into()),
        }
    }

    /// The guest that a forward without one goes to: the one with the first leased address.
    pub(crate) fn default_guest(&self) -> IpAddr {
        match &self.net6 {
            Some(net6) if !self.ipv4 => net6.dhcp_start.into(),
            _ => self.dhcp_start.into(),
        }
    }

    /// Whether a packet for an address stays on the guests' network.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 && self.has_host(address),
            IpAddr::V6(address) => self.net6.as_ref().is_some_and(|net| net.contains(address)),
        }
    }

    /// Whether an address is on the network and neither its own nor its broadcast address.
    fn has_host(&self, address: Ipv4Addr) -> bool {
        let host_mask = host_mask(self.prefix_len);
        let host = address.to_bits() & host_mask;
        address.to_bits() & !host_mask == self.net.to_bits() && host != 0 && host != host_mask
    }
}

fn host_mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0)
}

pub(crate) fn check(fits: bool, otherwise: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if fits { Ok(()) } else { Err(ConfigError(otherwise())) }
}

/// RFC 1123 §2.1, and the underscore that service names have. A dot at the end is allowed.
fn is_domain_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_qemus() {
        let config = Config::default();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(
            [config.net, config.gateway, config.dns, config.dhcp_start].map(|address| address.to_string()),
            ["10.0.2.0", "10.0.2.2", "10.0.2.3", "10.0.2.15"]
        );
    }

    #[test]
    fn every_size_of_network_has_fitting_addresses() {
        for prefix_len in 8..=29 {
            assert_eq!(
                Config::for_net([10, 77, 3, 9].into(), prefix_len).validate(),
                Ok(()),
                "/{prefix_len}"
            );
        }
        let addresses = |config: Config| (config.gateway.to_string(), config.dhcp_start.to_string());
        let small = addresses(Config::for_net([192, 168, 9, 8].into(), 29));
        assert_eq!(small, ("192.168.9.10".into(), "192.168.9.12".into()));
        // What QEMU 7.2 makes of net=172.16.0.0/12.
        let wide = addresses(Config::for_net([172, 16, 0, 0].into(), 12));
        assert_eq!(wide, ("172.16.2.2".into(), "172.16.2.15".into()));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |words: &str, change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            let why = config.validate().expect_err(words).to_string();
            assert!(why.contains(words), "{why}");
            assert!(!why.contains('\n'), "{why}");
        };
        refused("8 to 29", |c| c.prefix_len = 7);
        refused("8 to 29", |c| c.prefix_len = 30);
        refused("8 to 29", |c| c.prefix_len = 255);
        refused("write 10.0.2.0/24", |c| c.net = [10, 0, 2, 1].into());
        refused("choose a private network", |c| *c = Config::for_net([127, 0, 0, 0].into(), 24));
        refused("choose a private network", |c| *c = Config::for_net([224, 0, 0, 0].into(), 24));
        refused("choose a private network", |c| *c = Config::for_net([0, 0, 0, 0].into(), 8));
        refused("the gateway 10.0.3.2", |c| c.gateway = [10, 0, 3, 2].into());
        refused("such as 10.0.2.2", |c| c.gateway = [10, 0, 2, 0].into());
        refused("the DNS server 10.0.2.255", |c| c.dns = [10, 0, 2, 255].into());
        refused("the first DHCP address 9.9.9.9", |c| c.dhcp_start = [9, 9, 9, 9].into());
        refused("both the gateway and the DNS server", |c| c.dns = c.gateway);
        refused("both the gateway and the first DHCP address", |c| c.dhcp_start = c.gateway);
        refused("both the DNS server and the first DHCP address", |c| c.dhcp_start = c.dns);
        refused("576 to 65520", |c| c.mtu = 575);
        refused("576 to 65520", |c| c.mtu = 65_521);
        refused("host name \"my host\"", |c| c.hostname = Some("my host".into()));
        refused("domain \"\"", |c| c.domain = Some(String::new()));
        refused("search domain \"a..b\"", |c| c.dns_search = vec!["good.example".into(), "a..b".into()]);
        refused("search domain \"-a\"", |c| c.dns_search = vec!["-a".into()]);
        refused("is no name", |c| c.dns_search = vec!["a".repeat(64)]);
        refused("is no name", |c| c.dns_search = vec![["a".repeat(50).as_str(); 6].join(".")]);
        refused("room for 255", |c| c.dns_search = (0..30).map(|n| format!("n{n}.example")).collect());
        refused("leave one of the two out", |c| {
            (c.restrict, c.multicast) = (true, vec![MulticastService::Mdns]);
        });
        refused("no use for a DNS upstream", |c| {
            (c.restrict, c.dns_upstreams) = (true, vec!["9.9.9.9:53".parse().unwrap()]);
        });
        refused("no use for an outbound address", |c| {
            (c.restrict, c.outbound.v4) = (true, Some([192, 0, 2, 7].into()));
        });
        refused("no use for NAT64", |c| (c.restrict, c.nat64) = (true, true));
        refused("192.0.2.7 is of no use to guests that have IPv6 only", |c| {
            (c.ipv4, c.outbound.v4) = (false, Some([192, 0, 2, 7].into()));
        });
        refused("2001:db8::7 is of no use to guests that have IPv4 only", |c| {
            (c.net6, c.outbound.v6) = (None, Some("2001:db8::7".parse().unwrap()));
        });
        refused("9.9.9.9:0", |c| c.dns_upstreams = vec!["9.9.9.9:0".parse().unwrap()]);
        refused("0.0.0.0:53", |c| c.dns_upstreams = vec!["0.0.0.0:53".parse().unwrap()]);
        refused("10.0.2.2", |c| c.forwards = vec!["tcp::1-10.0.2.2:1".parse().unwrap()]);
        refused("10.9.9.9", |c| c.forwards = vec!["tcp::1-10.9.9.9:1".parse().unwrap()]);
        refused("such as 10.0.2.15", |c| c.forwards = vec!["tcp::1-10.9.9.9:1".parse().unwrap()]);
        refused("without IPv4 can have: choose an IPv6 address, such as fd00::15", |c| {
            (c.ipv4, c.forwards) = (false, vec!["tcp::1-10.0.2.15:1".parse().unwrap()]);
        });
        refused("fd00::/64 can have: choose another, such as fd00::15", |c| {
            c.forwards = vec!["tcp::1-[fd01::15]:1".parse().unwrap()];
        });
        refused("without IPv6 can have: choose an IPv4 address", |c| {
            (c.net6, c.forwards) = (None, vec!["tcp::1-[fd00::15]:1".parse().unwrap()]);
        });
        refused("NAT64 is for guests with IPv6", |c| (c.net6, c.nat64) = (None, true));
        refused("(NAT64): choose another IPv6 network", |c| {
            (c.net6, c.nat64) = (Some(Net6::for_prefix("64:ff9b::".parse().unwrap(), 64)), true);
        });
        refused("an MTU of 1000 bytes is too small", |c| {
            (c.net6, c.mtu, c.forwards) = (None, 1000, vec!["tcp::1-[fd00::15]:1".parse().unwrap()]);
        });
    }

    #[test]
    fn what_fits_passes() {
        let config = Config {
            hostname: Some("build-7".into()),
            domain: Some("lab.example.".into()),
            dns_search: vec!["lab.example".into(), "_tcp.example".into()],
            mtu: 65_520,
            forwards: vec!["tcp::1-10.0.2.99:1".parse().unwrap(), "udp::1-:1".parse().unwrap()],
            dns_upstreams: vec!["[::1]:5353".parse().unwrap()],
            ..Config::for_net([10, 0, 2, 0].into(), 24)
        };
        assert_eq!(config.validate(), Ok(()));
        let outbound = Outbound { v4: Some([192, 0, 2, 7].into()), ..Outbound::default() };
        let config = Config { ipv4: false, nat64: true, outbound, ..Config::default() };
        assert_eq!(config.validate(), Ok(()));
    }
}

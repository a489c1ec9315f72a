//! The IPv6 side of a network.

use std::net::Ipv6Addr;

use crate::config::check;
use crate::{ConfigError, IPV6_MIN_MTU};

/// An IPv6 network. The default is fd00::/64, gateway ::2, DNS ::3, DHCPv6 from ::15 on; guests make
/// addresses of their own in it, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net6 {
    /// The prefix.
    pub prefix: Ipv6Addr,
    /// Its length in bits: 8 to 112. Guests make their own addresses in one of 64 bits only.
    pub prefix_len: u8,
    /// The gateway: the host, as guests see it.
    pub gateway: Ipv6Addr,
    /// The DNS server, as guests see it.
    pub dns: Ipv6Addr,
    /// The first address that DHCPv6 gives out.
    pub dhcp_start: Ipv6Addr,
}

impl Default for Net6 {
    fn default() -> Self {
        Self::for_prefix(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64)
    }
}

impl Net6 {
    /// The network of a prefix, with the gateway, the DNS server and the first DHCPv6 address at ::2, ::3
    /// and ::15. Bits beyond the prefix are cleared.
    pub fn for_prefix(prefix: Ipv6Addr, prefix_len: u8) -> Self {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix_len.into())).unwrap_or(0);
        let at = |host: u128| Ipv6Addr::from(prefix.to_bits() & mask | host);
        Self { prefix: at(0), prefix_len, gateway: at(2), dns: at(3), dhcp_start: at(0x15) }
    }

    /// Whether an address is on the network.
    pub(crate) fn contains(&self, address: Ipv6Addr) -> bool {
        Self::for_prefix(address, self.prefix_len).prefix == self.prefix
    }

    /// Whether an address is on the network and not its own.
    pub(crate) fn has_guest(&self, address: Ipv6Addr) -> bool {
        self.contains(address) && ![self.prefix, self.gateway, self.dns].contains(&address)
    }

    pub(crate) fn validate(&self, mtu: u16) -> Result<(), ConfigError> {
        let Self { prefix, prefix_len, gateway, dns, dhcp_start } = self;
        check((8..=112).contains(prefix_len), || {
            format!(
                "an IPv6 prefix of {prefix_len} bits is out of range: choose one from 8 to 112, such as fd00::/64"
            )
        })?;
        let defaults = Self::for_prefix(*prefix, *prefix_len);
        check(*prefix == defaults.prefix, || {
            format!(
                "{prefix}/{prefix_len} is an address inside of a network: write {}/{prefix_len}",
                defaults.prefix
            )
        })?;
        let usable = !prefix.is_multicast() && !prefix.is_unicast_link_local() && prefix.to_ipv4().is_none();
        check(usable, || {
            format!(
                "guests cannot live on {prefix}/{prefix_len}: choose a private network, such as fd00::/64"
            )
        })?;
        let own = [
            ("IPv6 gateway", gateway, defaults.gateway),
            ("IPv6 DNS server", dns, defaults.dns),
            ("first DHCPv6 address", dhcp_start, defaults.dhcp_start),
        ];
        for (index, (what, address, default)) in own.into_iter().enumerate() {
            let inside = self.contains(*address) && address != prefix;
            check(inside, || {
                format!(
                    "the {what} {address} is no host's address in {prefix}/{prefix_len}: choose one, such as {default}"
                )
            })?;
            if let Some((other, ..)) = own.into_iter().take(index).find(|(_, taken, _)| *taken == address) {
                return Err(ConfigError(format!(
                    "{address} is both the {other} and the {what}: give each an address of its own"
                )));
            }
        }
        check(mtu >= IPV6_MIN_MTU, || {
            format!(
                "an MTU of {mtu} bytes is too small for IPv6: choose {IPV6_MIN_MTU} or more, or IPv4 only"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_fits_and_what_does_not_is_named() {
        let net = Net6::default();
        assert_eq!(net.validate(1500), Ok(()));
        assert_eq!([net.gateway, net.dns].map(|address| address.to_string()), ["fd00::2", "fd00::3"]);
        assert_eq!(Net6::for_prefix("fec0::".parse().unwrap(), 64).validate(1280), Ok(()));
        let refused = |words: &str, mtu, change: fn(&mut Net6)| {
            let mut net = Net6::default();
            change(&mut net);
            let why = net.validate(mtu).expect_err(words).to_string();
            assert!(why.contains(words) && !why.contains('\n'), "{why}");
        };
        refused("8 to 112", 1500, |net| net.prefix_len = 113);
        refused("such as fd00::/64", 1500, |net| *net = Net6::for_prefix(net.prefix, 0));
        refused("write fd00::/64", 1500, |net| net.prefix = "fd00::1".parse().unwrap());
        refused("a private network", 1500, |net| *net = Net6::for_prefix("fe80::".parse().unwrap(), 64));
        refused("a private network", 1500, |net| *net = Net6::for_prefix("ff02::".parse().unwrap(), 64));
        refused("a private network", 1500, |net| *net = Net6::for_prefix("::".parse().unwrap(), 64));
        refused("such as fd00::2", 1500, |net| net.gateway = "fd01::2".parse().unwrap());
        refused("both the IPv6 gateway and the IPv6 DNS server", 1500, |net| net.dns = net.gateway);
        refused("1280 or more", 1279, |_| {});
    }
}

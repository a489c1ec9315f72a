//! How guests see hosts, and what a host is that a guest names: all that knows of both kinds of IP at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Delivery, Network};
use crate::nat64;
use crate::table::Endpoint;
use crate::wire::{IPV6_HEADER_LEN, IPV6_MIN_MTU, IpHeader};

impl Network {
    /// The host's address for a destination that a guest named.
    pub(super) fn host_addr(&self, dst: IpAddr) -> IpAddr {
        let dst = self.config.translated(dst).map_or(dst, IpAddr::V4);
        match dst {
            _ if dst != self.config.gateway_of(dst) => dst,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// How `guest` sees a host's address: loopback is the gateway of its own kind of IP, and so is what
    /// it could not name: link-local addresses of the host's links, those that are of its own network (a
    /// stranger who gives one as his, or a LAN of the host's with the same), and those of the other kind. With NAT64
    /// an IPv6 guest can name all that an IPv4 guest sees. With `restrict` no guest can name any: one that is
    /// told of no router has a way to its own network only.
    pub(super) fn guest_view(&self, addr: IpAddr, guest: IpAddr) -> IpAddr {
        let addr = addr.to_canonical();
        if let (IpAddr::V4(addr), IpAddr::V6(_), true) = (addr, guest, self.config.nat64) {
            return nat64::embed(if addr.is_loopback() { self.config.gateway } else { addr }).into();
        }
        let on_link = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        let named = addr.is_ipv4() == guest.is_ipv4() && !addr.is_loopback() && !on_link;
        if named && !self.config.restrict && !self.config.contains(addr) {
            addr
        } else {
            self.config.gateway_of(guest)
        }
    }

    /// How a packet, with so many bytes behind its IP header, goes on. IPv6 takes for granted that 1280 bytes
    /// arrive in one piece: on the way over IPv4, which may be narrower, they may be cut (RFC 7915 §5.1).
    pub(super) fn delivery(&self, ip: &IpHeader, len: usize) -> Delivery {
        let mut delivery = Delivery::from(ip);
        if self.config.translated(ip.dst).is_some() {
            delivery.dont_fragment &= IPV6_HEADER_LEN + len > usize::from(IPV6_MIN_MTU);
        }
        delivery
    }

    /// The peer in the key of a flow to `dst` that serves all peers of its kind.
    pub(super) fn all_peers(&self, dst: IpAddr) -> Option<Endpoint> {
        self.config.translated(dst).map(|_| Endpoint { addr: nat64::PREFIX.into(), port: 0 })
    }
}

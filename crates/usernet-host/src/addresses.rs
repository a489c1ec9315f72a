//! The host's own addresses, and its interfaces.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

use crate::netlink::Netlink;

/// The addresses of all interfaces of this network namespace, sorted, each once.
///
/// # Errors
/// The system does not tell: no descriptors are left, say. That is not to be taken for "none".
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = getifaddrs()?.filter_map(|entry| address_of(&entry)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// All that reaches this host itself, with the bits of each that count: its addresses and what routes give
/// it besides, whole networks maybe (`ip route add local`).
///
/// # Errors
/// The system does not tell.
pub fn own() -> io::Result<Vec<(IpAddr, u8)>> {
    let mut own = Netlink::open()?.own()?;
    // Those of an interface that is down have no route.
    own.extend(addresses()?.into_iter().map(|address| (address, if address.is_ipv4() { 32 } else { 128 })));
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it leads nowhere but back.
    pub loopback: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// All interfaces of this network namespace, sorted by name.
///
/// # Errors
/// The system does not tell.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces = BTreeMap::new();
    for entry in getifaddrs()? {
        let loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let new = |name| Interface { name, loopback, addresses: Vec::new() };
        let address = address_of(&entry);
        let name = entry.interface_name;
        let interface = interfaces.entry(name.clone()).or_insert_with(|| new(name));
        interface.addresses.extend(address);
    }
    Ok(interfaces.into_values().collect())
}

fn address_of(entry: &InterfaceAddress) -> Option<IpAddr> {
    let address = entry.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_is_among_them() {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(addresses().unwrap().contains(&localhost));
        let interfaces = interfaces().unwrap();
        assert!(
            interfaces.iter().any(|it| it.loopback && it.addresses.contains(&localhost)),
            "{interfaces:?}"
        );
    }
}

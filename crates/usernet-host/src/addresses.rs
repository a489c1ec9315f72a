//! The host's own addresses, and its interfaces.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use crate::netlink::Netlink;

/// The addresses of all interfaces of this network namespace, sorted, each once.
///
/// # Errors
/// The system does not tell: no descriptors are left, say. That is not to be taken for "none".
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
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

/// The names of all interfaces of this network namespace, sorted, each once.
///
/// # Errors
/// The system does not tell.
pub fn interfaces() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = getifaddrs()?.map(|interface| interface.interface_name).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_is_among_them() {
        assert!(addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}

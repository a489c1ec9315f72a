//! The host's own addresses, and its interfaces.

use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

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

/// The number of the interface by which IPv6 leaves for the world; none where it does not.
pub fn outward_interface_v6() -> Option<u32> {
    // An address of the world, any: nothing is sent there.
    const SOMEWHERE: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((SOMEWHERE, 9)).ok()?;
    let IpAddr::V6(source) = socket.local_addr().ok()?.ip() else { return None };
    let mut interfaces = getifaddrs().ok()?;
    let has_source = |address: &nix::ifaddrs::InterfaceAddress| {
        address.address.as_ref().and_then(|it| it.as_sockaddr_in6()).is_some_and(|it| it.ip() == source)
    };
    let interface = interfaces.find(has_source)?;
    if_nametoindex(interface.interface_name.as_str()).ok()
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

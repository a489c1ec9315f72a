//! IPv4 addresses as IPv6-only guests name them (RFC 6052): the last four bytes behind the well-known prefix
//! 64:ff9b::/96.
//!
//! Where the network translates (RFC 6146), a guest's packet to such an address is for the IPv4 address in
//! it, and IPv4 hosts appear to IPv6 guests by such addresses. The flows are the same as all others: what
//! differs is the kind of IP of their host ends. So there is no table of bindings here, nor any rewriting of
//! headers: TCP ends at the relay, and the headers of datagrams are made anew both ways.
//!
//! Where this differs from RFC 6052: §3.1 has no private IPv4 address behind the well-known prefix, since
//! no other network could tell whose it is. Here no other network sees it, and the LAN of the host must be
//! reached: they are translated as all others.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The well-known prefix (RFC 6052 §2.1), of 96 bits.
pub const PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// The IPv6 address that stands for an IPv4 one.
pub fn embed(addr: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(PREFIX.to_bits() | u128::from(addr.to_bits()))
}

/// The IPv4 address that an IPv6 one stands for, if it does.
pub fn extract(addr: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = addr.octets();
    let v4 = Ipv4Addr::new(a, b, c, d);
    (embed(v4) == addr).then_some(v4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_embedded_and_found_again() {
        let v4 = Ipv4Addr::new(192, 0, 2, 33);
        // RFC 6052 §2.4.
        assert_eq!(embed(v4).to_string(), "64:ff9b::c000:221");
        assert_eq!(extract(embed(v4)), Some(v4));
        for other in
            ["64:ff9b:0:0:0:1:c000:221", "64:ff9b:1::c000:221", "fd00::c000:221", "::ffff:192.0.2.33"]
        {
            assert_eq!(extract(other.parse().unwrap()), None, "{other}");
        }
    }
}

//! Neighbour discovery (RFC 4861) and the DNS options of router advertisements (RFC 8106).
//!
//! smoltcp's own option type knows neither of those, and stops at the first option that it refuses.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::{IpHeader, MacAddr, PROTOCOL_ICMPV6, icmpv6};
use crate::drops::DropReason;

const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOR_SOLICIT: u8 = 135;
const NEIGHBOR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;
const PREF64: u8 = 38;

/// RFC 4861 §7.1: what has been forwarded has a lower one.
const HOP_LIMIT: u8 = 255;
/// Router, solicited, override (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// All nodes on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The group of all routers.
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// What a guest says of itself and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ndp {
    /// It asks for routers.
    RouterSolicit {
        /// Its own MAC address, when it says so.
        mac: Option<MacAddr>,
    },
    /// It asks who has an address, or (from the unspecified address) whether anybody has.
    NeighborSolicit {
        /// The address that it asks about.
        target: Ipv6Addr,
        /// Its own MAC address, when it says so.
        mac: Option<MacAddr>,
    },
    /// It says who has an address.
    NeighborAdvert {
        /// The address.
        target: Ipv6Addr,
        /// Whose it is, when it says so.
        mac: Option<MacAddr>,
    },
    /// It says that it is a router, or where another is: a router advertisement or a redirect.
    Router,
}

impl Ndp {
    /// Reads an ICMPv6 message that came with `ip`; none when it is no neighbour discovery.
    ///
    /// # Errors
    /// [`DropReason::Ndp`] when it fails one of the checks of RFC 4861 §6.1 and §7.1.
    pub fn parse(ip: &IpHeader, message: &[u8]) -> Result<Option<Self>, DropReason> {
        let Some((header, _)) = message.split_first_chunk::<4>() else { return Ok(None) };
        let [kind, code, ..] = *header;
        if !(ROUTER_SOLICIT..=REDIRECT).contains(&kind) {
            return Ok(None);
        }
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else { return Err(DropReason::Ndp) };
        if ip.ttl != HOP_LIMIT || code != 0 || src.is_multicast() {
            return Err(DropReason::Ndp);
        }
        let ndp = match kind {
            ROUTER_SOLICIT => Self::RouterSolicit { mac: link_layer(message.get(8..), SOURCE_LINK_LAYER)? },
            NEIGHBOR_SOLICIT => Self::NeighborSolicit {
                target: target(message)?,
                mac: link_layer(message.get(24..), SOURCE_LINK_LAYER)?,
            },
            NEIGHBOR_ADVERT => {
                let flags = message.get(4).copied().unwrap_or_default();
                if dst.is_multicast() && flags & SOLICITED != 0 {
                    return Err(DropReason::Ndp);
                }
                let mac = link_layer(message.get(24..), TARGET_LINK_LAYER)?;
                Self::NeighborAdvert { target: target(message)?, mac }
            }
            _ => Self::Router,
        };
        match ndp {
            // Who has no address yet has no place to be answered at.
            Self::RouterSolicit { mac: Some(_) } if src.is_unspecified() => Err(DropReason::Ndp),
            Self::NeighborSolicit { target, mac }
                if src.is_unspecified() && (mac.is_some() || dst != solicited_node(target)) =>
            {
                Err(DropReason::Ndp)
            }
            Self::NeighborAdvert { .. } if src.is_unspecified() => Err(DropReason::Ndp),
            ndp => Ok(Some(ndp)),
        }
    }
}

fn target(message: &[u8]) -> Result<Ipv6Addr, DropReason> {
    let octets: [u8; 16] = message.get(8..).and_then(<[u8]>::first_chunk).copied().ok_or(DropReason::Ndp)?;
    Some(Ipv6Addr::from(octets)).filter(|target| !target.is_multicast()).ok_or(DropReason::Ndp)
}

/// The link-layer address in the option of `kind`. Every option is looked at: one of length 0, or that
/// ends behind the message, spoils the message.
fn link_layer(options: Option<&[u8]>, kind: u8) -> Result<Option<MacAddr>, DropReason> {
    let mut rest = options.ok_or(DropReason::Ndp)?;
    let mut found = None;
    while let Some((header, data)) = rest.split_first_chunk::<2>() {
        let [option, units] = *header;
        let len = (usize::from(units) * 8).checked_sub(2).ok_or(DropReason::Ndp)?;
        let (data, next) = data.split_at_checked(len).ok_or(DropReason::Ndp)?;
        if option == kind {
            found = found.or(data.first_chunk().map(|mac| MacAddr(*mac)));
        }
        rest = next;
    }
    if !rest.is_empty() || found.is_some_and(MacAddr::is_multicast) {
        return Err(DropReason::Ndp);
    }
    Ok(found)
}

/// The group in which the owner of `addr` is asked for (RFC 4291 §2.7.1).
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The MAC address of a group (RFC 2464 §7).
pub fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// The link-local address of a MAC address: fe80::/64 and the modified EUI-64 (RFC 4291 §2.5.1).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Says that the router at `mac` has `target`, to who asked from `asker`; to all when that is unspecified.
pub fn neighbor_advert(to: MacAddr, mac: MacAddr, target: Ipv6Addr, asker: Ipv6Addr) -> Vec<u8> {
    let (flags, dst, to) = if asker.is_unspecified() {
        (ROUTER | OVERRIDE, ALL_NODES, group_mac(ALL_NODES))
    } else {
        (ROUTER | SOLICITED | OVERRIDE, asker, to)
    };
    let mut message = vec![NEIGHBOR_ADVERT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    push_link_layer(&mut message, TARGET_LINK_LAYER, mac);
    icmpv6::frame(to, mac, &ndp_ip(target, dst), message)
}

/// Asks all neighbours who has `target`.
pub fn neighbor_solicit(mac: MacAddr, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOR_SOLICIT, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    push_link_layer(&mut message, SOURCE_LINK_LAYER, mac);
    let group = solicited_node(target);
    icmpv6::frame(group_mac(group), mac, &ndp_ip(src, group), message)
}

/// A router advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAdvert {
    /// Whether guests are to ask for addresses by DHCPv6 (the M flag).
    pub managed: bool,
    /// Whether guests are to ask for the rest by DHCPv6 (the O flag).
    pub other: bool,
    /// How long the router may be used; zero: not at all.
    pub lifetime: Duration,
    /// The MTU of the link in bytes.
    pub mtu: u16,
    /// The prefix that is on the link, and that guests make addresses in when it has 64 bits.
    pub prefix: Ipv6Addr,
    /// Its length in bits.
    pub prefix_len: u8,
    /// How long addresses in it are valid.
    pub valid: Duration,
    /// How long they are preferred.
    pub preferred: Duration,
    /// The DNS server; it may be used as long as the router.
    pub dns: Option<Ipv6Addr>,
    /// The prefix of 96 bits behind which IPv4 hosts are reached; it may be used as long as the router.
    pub nat64: Option<Ipv6Addr>,
    /// The domains to search, as [`domain_list`] writes them; empty: none.
    pub search: Vec<u8>,
}

impl RouterAdvert {
    /// The frame that tells `dst` of the router at `mac`.
    pub fn frame(&self, to: MacAddr, mac: MacAddr, dst: Ipv6Addr) -> Vec<u8> {
        let flags = u8::from(self.managed) << 7 | u8::from(self.other) << 6;
        let lifetime = u16::try_from(self.lifetime.as_secs()).unwrap_or(u16::MAX);
        let [hi, lo] = lifetime.to_be_bytes();
        // Hop limit 64; reachable time and retransmission timer are left to the guest.
        let mut message = vec![ROUTER_ADVERT, 0, 0, 0, 64, flags, hi, lo, 0, 0, 0, 0, 0, 0, 0, 0];
        push_link_layer(&mut message, SOURCE_LINK_LAYER, mac);
        message.extend([MTU, 1, 0, 0]);
        message.extend(u32::from(self.mtu).to_be_bytes());
        // On link; and, as RFC 4862 §5.5.3 (d) needs 64 bits, for addresses of the guest's own making.
        let flags = if self.prefix_len == 64 { 0xc0 } else { 0x80 };
        message.extend([PREFIX_INFORMATION, 4, self.prefix_len, flags]);
        message.extend(seconds(self.valid));
        message.extend(seconds(self.preferred));
        message.extend([0; 4]);
        message.extend(self.prefix.octets());
        if let Some(dns) = self.dns {
            message.extend([RDNSS, 3, 0, 0]);
            message.extend(seconds(self.lifetime));
            message.extend(dns.octets());
        }
        if let Some(prefix) = self.nat64 {
            // RFC 8781 §4: the lifetime in units of 8 seconds, in 13 bits; 0 in the other three: a /96.
            let units = (lifetime / 8).min(0x1fff) << 3;
            message.extend([PREF64, 2]);
            message.extend(units.to_be_bytes());
            message.extend(prefix.octets().iter().take(12));
        }
        // An option has room for 255 units of 8 bytes, 8 of them its header.
        let padded = self.search.len().next_multiple_of(8);
        if let Ok(units @ 2..) = u8::try_from(1 + padded / 8) {
            message.extend([DNSSL, units, 0, 0]);
            message.extend(seconds(self.lifetime));
            message.extend(&self.search);
            message.resize(message.len() + padded - self.search.len(), 0);
        }
        icmpv6::frame(to, mac, &ndp_ip(link_local(mac), dst), message)
    }
}

/// Domain names as RFC 1035 §3.1 writes them, uncompressed, one behind the other. What is no name is
/// left out, and so is what lies beyond `room` bytes.
pub fn domain_list<'a>(names: impl IntoIterator<Item = &'a String>, room: usize) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        let name = name.trim_end_matches('.');
        let labels = || name.split('.').map(|label| (u8::try_from(label.len()).unwrap_or(u8::MAX), label));
        // A length before each label, and a zero behind the last.
        let fits = name.len() <= 253 && list.len() + name.len() + 2 <= room;
        if !fits || labels().any(|(len, _)| !(1..=63).contains(&len)) {
            continue;
        }
        for (len, label) in labels() {
            list.push(len);
            list.extend(label.bytes());
        }
        list.push(0);
    }
    list
}

fn push_link_layer(message: &mut Vec<u8>, kind: u8, mac: MacAddr) {
    message.extend([kind, 1]);
    message.extend(mac.0);
}

fn seconds(time: Duration) -> [u8; 4] {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

fn ndp_ip(src: Ipv6Addr, dst: Ipv6Addr) -> IpHeader {
    let (src, dst) = (src.into(), dst.into());
    IpHeader { ttl: HOP_LIMIT, ..IpHeader::new(src, dst, PROTOCOL_ICMPV6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscRepr};

    const MAC: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);
    const GUEST: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

    fn addr(addr: &str) -> Ipv6Addr {
        addr.parse().unwrap()
    }

    /// The message in a frame, its checksum checked by smoltcp.
    fn checked(frame: &[u8]) -> (IpHeader, &[u8]) {
        let (ip, len, _) = IpHeader::parse_v6(&frame[14..], frame.len() - 14).unwrap();
        let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let checks = ChecksumCapabilities::default();
        Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &icmp, &checks).unwrap();
        (ip, &frame[14 + len..])
    }

    #[test]
    fn what_is_written_is_read() {
        let frame = neighbor_solicit(MAC, link_local(MAC), addr("fd00::15"));
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 0, 0x15]);
        let (ip, message) = checked(&frame);
        let asked = Ndp::NeighborSolicit { target: addr("fd00::15"), mac: Some(MAC) };
        assert_eq!(Ndp::parse(&ip, message), Ok(Some(asked)));
        for asker in ["fd00::15", "::"] {
            let frame = neighbor_advert(GUEST, MAC, addr("fd00::2"), addr(asker));
            let (ip, message) = checked(&frame);
            let told = Ndp::NeighborAdvert { target: addr("fd00::2"), mac: Some(MAC) };
            assert_eq!(Ndp::parse(&ip, message), Ok(Some(told)));
            let to_all = asker == "::";
            assert_eq!(ip.dst, IpAddr::V6(if to_all { ALL_NODES } else { addr(asker) }));
            assert_eq!(message[4] & SOLICITED == 0, to_all);
        }
    }

    #[test]
    fn a_router_advertisement_tells_all() {
        let search = domain_list(&["lab.example".to_owned(), "a..b".to_owned(), "example.".to_owned()], 256);
        assert_eq!(search, b"\x03lab\x07example\0\x07example\0");
        let mut advert = RouterAdvert {
            managed: true,
            other: true,
            lifetime: Duration::from_secs(1800),
            mtu: 9000,
            prefix: addr("fd00::"),
            prefix_len: 64,
            valid: Duration::from_secs(86_400),
            preferred: Duration::from_secs(14_400),
            dns: Some(addr("fd00::3")),
            nat64: None,
            search,
        };
        let frame = advert.frame(GUEST, MAC, ALL_NODES);
        let (ip, message) = checked(&frame);
        assert_eq!((ip.src.to_string(), ip.ttl), ("fe80::5055:aff:fe00:202".to_string(), 255));
        assert_eq!(Ndp::parse(&ip, message), Ok(Some(Ndp::Router)));
        let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let checks = ChecksumCapabilities::ignored();
        let read = Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &icmp, &checks).unwrap();
        let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { mtu, prefix_info, router_lifetime, flags, .. }) =
            read
        else {
            panic!("{read:?}")
        };
        assert_eq!((mtu, router_lifetime.secs(), flags.bits()), (Some(9000), 1800, 0xc0));
        let prefix = prefix_info.unwrap();
        assert_eq!((prefix.prefix_len, prefix.prefix, prefix.flags.bits()), (64, addr("fd00::"), 0xc0));
        assert_eq!((prefix.valid_lifetime.secs(), prefix.preferred_lifetime.secs()), (86_400, 14_400));
        // Source MAC, MTU and prefix end at 16 + 8 + 8 + 32.
        let (dns, search) = message[64..].split_at(24);
        assert_eq!((&dns[..8], &dns[8..]), (&[25, 3, 0, 0, 0, 0, 7, 8][..], &addr("fd00::3").octets()[..]));
        assert_eq!((search[0], usize::from(search[1]) * 8), (31, search.len()));
        assert_eq!(&search[8..30], b"\x03lab\x07example\0\x07example\0");
        advert.search = Vec::new();
        advert.prefix_len = 80;
        let frame = advert.frame(GUEST, MAC, ALL_NODES);
        assert_eq!((checked(&frame).1.len(), checked(&frame).1[35]), (88, 0x80));
        advert.nat64 = Some(crate::nat64::PREFIX);
        let frame = advert.frame(GUEST, MAC, ALL_NODES);
        // 1800 s are 225 units, above three bits.
        let pref64 = [38, 2, 7, 8, 0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(checked(&frame).1[88..], pref64);
    }

    #[test]
    fn what_fails_a_check_is_refused() {
        let frame = neighbor_solicit(GUEST, addr("fd00::15"), addr("fd00::2"));
        let (ip, message) = checked(&frame);
        let refused = |ip: IpHeader, message: &[u8]| {
            assert_eq!(Ndp::parse(&ip, message), Err(DropReason::Ndp), "{ip:?} {message:02x?}");
        };
        refused(IpHeader { ttl: 254, ..ip }, message);
        refused(IpHeader { src: IpAddr::V6(Ipv6Addr::UNSPECIFIED), ..ip }, message);
        let changed = |at: usize, byte| {
            let mut message = message.to_vec();
            message[at] = byte;
            message
        };
        refused(ip, &changed(1, 1));
        refused(ip, &changed(8, 0xff));
        refused(ip, &changed(25, 0));
        refused(ip, &changed(25, 2));
        refused(ip, &changed(26, 1));
        refused(ip, &message[..23]);
        refused(ip, &message[..31]);
        // Asked without an address of one's own: nothing to learn.
        let probe = IpHeader { src: IpAddr::V6(Ipv6Addr::UNSPECIFIED), ..ip };
        let expected = Ndp::NeighborSolicit { target: addr("fd00::2"), mac: None };
        assert_eq!(Ndp::parse(&probe, &message[..24]), Ok(Some(expected)));
        refused(IpHeader { dst: IpAddr::V6(ALL_NODES), ..probe }, &message[..24]);
        // An answer to all that claims to be asked for.
        let mut advert = changed(0, NEIGHBOR_ADVERT);
        advert[4] = SOLICITED;
        refused(IpHeader { dst: IpAddr::V6(ALL_NODES), ..ip }, &advert);
        assert_eq!(Ndp::parse(&ip, &[ICMP_ECHO_TYPE, 0, 0, 0]), Ok(None));
    }

    const ICMP_ECHO_TYPE: u8 = 128;
}

//! Forwarded ports, in the grammar of QEMU's `hostfwd`:
//!
//! ```text
//! rule := ["tcp" | "udp"] ":" [host-address] ":" [host-port] "-" [guest-address] ":" guest-port
//! ```
//!
//! Ports and the parts of addresses are numbers in any base that C knows (`22`, `0x16`, `026`), an
//! address may have fewer than four parts as `inet_aton` takes it (`127.1`), and it may be an IPv6 one in
//! brackets, which QEMU lacks. Stricter than QEMU in two places: nothing may
//! follow an address (there, `127.0.0.1 x` passes), and a port beyond 65,535 is refused at any size
//! (there, it wraps at 2³²).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for ForwardProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A host port to forward to a guest.
///
/// It is read from, and written as, a rule in the grammar of QEMU's `hostfwd`:
///
/// ```
/// use usernet::ForwardRule;
///
/// let rule: ForwardRule = "tcp:127.1:10022-:22".parse()?;
/// assert_eq!(rule.host_port, 10022);
/// assert_eq!(rule.to_string(), "tcp:127.0.0.1:10022-:22");
/// # Ok::<(), usernet::ParseForwardError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRule {
    /// The protocol; TCP where the rule names none.
    pub protocol: ForwardProtocol,
    /// The host address to listen on; 0.0.0.0 where the rule names none.
    pub host_addr: IpAddr,
    /// The host port; 0, or none in the rule: any free one.
    pub host_port: u16,
    /// The guest; `None`, or an unspecified address in the rule: the first address that DHCP gives out.
    pub guest_addr: Option<IpAddr>,
    /// The guest's port. Never 0.
    pub guest_port: u16,
}

/// Why a rule is none: the part that is wrong and what is wanted there, on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseForwardError(pub String);

impl FromStr for ForwardRule {
    type Err = ParseForwardError;

    fn from_str(rule: &str) -> Result<Self, Self::Err> {
        let (protocol, rest) = split(rule, ':', "the protocol")?;
        let protocol = match protocol {
            "tcp" | "" => ForwardProtocol::Tcp,
            "udp" => ForwardProtocol::Udp,
            other => return Err(wrong("protocol", other, "tcp or udp")),
        };
        let (host_addr, rest) = parse_address(rest, "host address")?;
        let (host_port, rest) = split(rest, '-', "the host port")?;
        let host_port = parse_port(or_zero(host_port))
            .ok_or_else(|| wrong("host port", host_port, "a number from 0 to 65535"))?;
        let (guest_addr, guest_port) = parse_address(rest, "guest address")?;
        let guest_port = parse_port(guest_port)
            .filter(|port| *port > 0)
            .ok_or_else(|| wrong("guest port", guest_port, "a number from 1 to 65535"))?;
        let guest_addr = Some(guest_addr).filter(|address| !address.is_unspecified());
        Ok(Self { protocol, host_addr, host_port, guest_addr, guest_port })
    }
}

/// Writes the rule so that it reads back as the same one.
impl fmt::Display for ForwardRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, host_addr, host_port, guest_addr, guest_port } = self;
        let bracketed = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let guest = guest_addr.as_ref().map(bracketed).unwrap_or_default();
        write!(f, "{protocol}:{}:{host_port}-{guest}:{guest_port}", bracketed(host_addr))
    }
}

/// An address and what follows the colon behind it: IPv4 as C takes it, IPv6 in brackets, or nothing.
fn parse_address<'a>(text: &'a str, part: &str) -> Result<(IpAddr, &'a str), ParseForwardError> {
    let the_part = format!("the {part}");
    let Some(rest) = text.strip_prefix('[') else {
        let (v4, rest) = split(text, ':', &the_part)?;
        let wanted = "an IPv4 address, an IPv6 address in brackets, or nothing";
        let address = inet_aton(or_zero(v4)).ok_or_else(|| wrong(part, v4, wanted))?;
        return Ok((address.into(), rest));
    };
    let (v6, rest) = split(rest, ']', "the IPv6 address")?;
    let address: Ipv6Addr = v6.parse().map_err(|_| wrong(part, v6, "an IPv6 address in the brackets"))?;
    if let Some(v4) = address.to_ipv4_mapped() {
        return Err(wrong(part, v6, &format!("written as what it means: write {v4}")));
    }
    Ok((address.into(), rest.strip_prefix(':').ok_or_else(|| missing(':', &the_part))?))
}

fn split<'a>(text: &'a str, separator: char, part: &str) -> Result<(&'a str, &'a str), ParseForwardError> {
    text.split_once(separator).ok_or_else(|| missing(separator, part))
}

fn missing(separator: char, part: &str) -> ParseForwardError {
    ParseForwardError(format!(
        "there is no '{separator}' after {part}; a rule is PROTOCOL:[HOST-ADDR]:HOST-PORT-[GUEST-ADDR]:GUEST-PORT, \
         such as tcp:127.0.0.1:10022-:22"
    ))
}

fn wrong(part: &str, got: &str, wanted: &str) -> ParseForwardError {
    // Debug keeps the message on one line, whatever is in the rule.
    ParseForwardError(format!("the {part} {got:?} must be {wanted}"))
}

/// An empty part of a rule stands for 0: the address of nobody in particular, or any port.
fn or_zero(part: &str) -> &str {
    if part.is_empty() { "0" } else { part }
}

/// A port as C's `strtol` with base 0 reads it: blanks and one plus sign may come first.
fn parse_port(text: &str) -> Option<u16> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    u16::try_from(parse_number(text.strip_prefix('+').unwrap_or(text))?).ok()
}

/// An IPv4 address of one to four parts, the last of which fills all bytes that are left.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts = text.split('.').map(parse_number).collect::<Option<Vec<u32>>>()?;
    let (last, leading) = parts.split_last()?;
    let mut address = 0;
    let mut bits = 32;
    for part in leading {
        bits = u32::checked_sub(bits, 8).filter(|bits| *bits > 0)?;
        address |= u32::from(u8::try_from(*part).ok()?) << bits;
    }
    (u64::from(*last) < 1 << bits).then(|| Ipv4Addr::from(address | last))
}

/// A number in the base that its prefix says: `0x` hexadecimal, `0` octal, else decimal.
fn parse_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would take a sign.
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(rule: &str) -> Result<ForwardRule, String> {
        rule.parse().map_err(|ParseForwardError(why)| why)
    }

    #[test]
    fn what_qemu_takes_is_taken() {
        for (rule, canonical) in [
            ("tcp:127.0.0.1:10022-:22", "tcp:127.0.0.1:10022-:22"),
            ("udp::5353-10.0.2.15:53", "udp:0.0.0.0:5353-10.0.2.15:53"),
            ("::8080-:80", "tcp:0.0.0.0:8080-:80"),
            ("tcp::0-:22", "tcp:0.0.0.0:0-:22"),
            ("tcp::-:22", "tcp:0.0.0.0:0-:22"),
            ("tcp::65535-:65535", "tcp:0.0.0.0:65535-:65535"),
            ("tcp::0x1F90-:0X16", "tcp:0.0.0.0:8080-:22"),
            ("tcp::010-:026", "tcp:0.0.0.0:8-:22"),
            ("tcp:: 8080-: +22", "tcp:0.0.0.0:8080-:22"),
            ("tcp:127.1:1-:1", "tcp:127.0.0.1:1-:1"),
            ("tcp:[::1]:1-[fd00:0::15]:1", "tcp:[::1]:1-[fd00::15]:1"),
            ("tcp::1-[::]:1", "tcp:0.0.0.0:1-:1"),
            ("tcp:127.2.3:1-:1", "tcp:127.2.0.3:1-:1"),
            ("tcp:0x7f.0x10.1:1-:1", "tcp:127.16.0.1:1-:1"),
            ("tcp:2130706433:1-:1", "tcp:127.0.0.1:1-:1"),
            ("tcp:4294967295:1-:1", "tcp:255.255.255.255:1-:1"),
            ("tcp:0177.1:1-012.0.2.017:1", "tcp:127.0.0.1:1-10.0.2.15:1"),
            ("tcp::8080-0.0.0.0:22", "tcp:0.0.0.0:8080-:22"),
            ("tcp::8080-0:22", "tcp:0.0.0.0:8080-:22"),
        ] {
            assert_eq!(parse(rule).map(|rule| rule.to_string()), Ok(canonical.to_owned()), "{rule}");
        }
    }

    #[test]
    fn ipv6_host_addresses_stand_in_brackets() {
        let rule = parse("tcp:[::1]:8080-:80").unwrap();
        assert_eq!(rule.host_addr, IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!((rule.host_port, rule.guest_port), (8080, 80));
        assert_eq!(parse("udp:[::]:1-:1").unwrap().to_string(), "udp:[::]:1-:1");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (rule, part) in [
            ("", "after the protocol"),
            ("8080", "after the protocol"),
            ("tcp:8080", "after the host address"),
            ("tcp::8080", "after the host port"),
            ("tcp::8080-10.0.2.15", "after the guest address"),
            ("tcp:[::1:8080-:80", "after the IPv6 address"),
            ("tcp:[::1]8080-:80", "after the host address"),
            ("TCP::8080-:22", "protocol \"TCP\""),
            ("sctp::8080-:22", "protocol"),
            ("tcp:8080-:22", "host address \"8080-\""),
            ("tcp:localhost:8080-:22", "host address"),
            ("tcp: 127.0.0.1:8080-:22", "host address"),
            ("tcp:127.0.0.1 x:8080-:22", "host address"),
            ("tcp:127.0.0.1.:8080-:22", "host address"),
            ("tcp:1.2.3.4.5:8080-:22", "host address"),
            ("tcp:127..1:8080-:22", "host address"),
            ("tcp:127.08.1:8080-:22", "host address"),
            ("tcp:127.0x.1:8080-:22", "host address"),
            ("tcp:127.0.0.256:8080-:22", "host address"),
            ("tcp:256.1:8080-:22", "host address"),
            ("tcp:127.16777216:8080-:22", "host address"),
            ("tcp:4294967296:8080-:22", "host address"),
            ("tcp:[::g]:8080-:22", "host address"),
            ("tcp:[127.0.0.1]:8080-:22", "host address"),
            ("tcp:[::ffff:127.0.0.1]:8080-:22", "write 127.0.0.1"),
            ("tcp::65536-:22", "host port"),
            ("tcp::4294967376-:22", "host port"),
            ("tcp::08-:22", "host port"),
            ("tcp::0x-:22", "host port"),
            ("tcp::8080 -:22", "host port"),
            ("tcp::+ 8080-:22", "host port"),
            ("tcp::http-:22", "host port"),
            ("tcp::8080-guest:22", "guest address"),
            ("tcp::8080-[::g]:22", "guest address"),
            ("tcp::8080-[::1]22", "guest address"),
            ("tcp::8080-:", "guest port"),
            ("tcp::8080-:0", "guest port"),
            ("tcp::8080-:-1", "guest port"),
            ("tcp::8080-:65536", "guest port"),
            ("tcp::8080-:22 ", "guest port"),
            ("tcp::8080-:22-:33", "guest port"),
            ("tcp::8080-:22\n\n", "guest port"),
        ] {
            let why = parse(rule).expect_err(rule);
            assert!(why.contains(part), "{rule:?}: {why}");
            assert!(!why.contains('\n'), "{rule:?}: {why}");
        }
    }

    fn any_rule() -> impl Strategy<Value = ForwardRule> {
        let address = || any::<IpAddr>().prop_map(|address| address.to_canonical());
        let specified = address().prop_filter("a guest's", |address| !address.is_unspecified());
        let guest_addr = proptest::option::of(specified);
        (any::<bool>(), address(), any::<u16>(), guest_addr, 1u16..).prop_map(
            |(tcp, host_addr, host_port, guest_addr, guest_port)| ForwardRule {
                protocol: if tcp { ForwardProtocol::Tcp } else { ForwardProtocol::Udp },
                host_addr,
                host_port,
                guest_addr,
                guest_port,
            },
        )
    }

    proptest! {
        #[test]
        fn a_rule_reads_back_as_itself(rule in any_rule()) {
            prop_assert_eq!(parse(&rule.to_string()), Ok(rule));
        }

        #[test]
        fn no_text_panics(text in "[tcpud]{0,3}:?\\PC{0,6}[:\\[\\]]?[0-9a-fxX.]{0,12}-?\\PC{0,8}:?[0-9]{0,11}") {
            let _ = parse(&text);
        }
    }
}

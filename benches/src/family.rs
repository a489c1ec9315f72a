//! IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The Internet Protocol that work is done over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Family {
    /// IPv4.
    #[value(name = "4")]
    V4,
    /// IPv6.
    #[value(name = "6")]
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The host, as guests know it.
    pub fn gateway(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 2, 2).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(),
        }
    }

    /// A guest.
    pub fn guest(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 2, 15).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15).into(),
        }
    }

    /// What it adds to the name of work.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "",
            Self::V6 => " over IPv6",
        }
    }

    /// The name of the same work over IPv4, if `work` is over IPv6.
    pub fn name_over_ipv4(work: &str) -> Option<String> {
        work.contains(Self::V6.suffix()).then(|| work.replace(Self::V6.suffix(), Self::V4.suffix()))
    }
}

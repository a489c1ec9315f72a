//! By what guests' flows leave the host.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ConfigError;
use crate::config::check;

/// By which of the host's addresses and by which interface guests' TCP, UDP and pings leave for the
/// outside; whatever is not given is left to the host's routes.
///
/// It is not for what stays on the host (its loopback, and its own addresses), nor for replies of forwarded
/// ports, nor for the queries of the DNS server, which are this host's own. While an address or the interface
/// is gone, guests are told that the network is unreachable; when it is back, it is used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// One of the host's IPv4 addresses.
    pub v4: Option<Ipv4Addr>,
    /// One of the host's IPv6 addresses.
    pub v6: Option<Ipv6Addr>,
    /// The name of one of the host's interfaces. Before Linux 5.7 only root may choose one, and before 5.18
    /// pings over IPv6 leave as routed.
    pub interface: Option<String>,
}

impl Outbound {
    /// The addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.v6.map(IpAddr::from);
        self.v4.map(IpAddr::from).into_iter().chain(v6)
    }

    /// The address for flows to `to`.
    pub(crate) fn address(&self, to: IpAddr) -> Option<IpAddr> {
        match to {
            IpAddr::V4(_) => self.v4.map(IpAddr::from),
            IpAddr::V6(_) => self.v6.map(IpAddr::from),
        }
    }

    /// Checks that packets can leave by it on some host.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.addresses().try_for_each(|address| {
            let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let unusable = address.is_loopback() || address.is_unspecified() || address.is_multicast();
            check(!unusable && !link_local, || {
                format!("nothing leaves this host by {address}: choose one of its addresses on a network")
            })
        })
    }

    /// Says where an address is not the interface's: it is taken nevertheless.
    pub(crate) fn warn_of_mismatch(&self) {
        let Some(name) = &self.interface else { return };
        let interfaces = usernet_host::interfaces().unwrap_or_default();
        let Some(interface) = interfaces.iter().find(|it| it.name == *name) else { return };
        for address in self.addresses().filter(|address| !interface.addresses.contains(address)) {
            tracing::warn!(
                "the outbound address {address} is another interface's than {name}: answers may not find back"
            );
        }
    }

    /// Checks that this host has what it names.
    pub(crate) fn check_host(&self, host: &[IpAddr]) -> Result<(), ConfigError> {
        for address in self.addresses() {
            // What Linux binds to is more: broadcast addresses, which then are the source of nothing.
            check(host.contains(&address), || {
                let kind = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                let usable = |other: &&IpAddr| {
                    let outbound = match **other {
                        IpAddr::V4(v4) => Self { v4: Some(v4), ..Self::default() },
                        IpAddr::V6(v6) => Self { v6: Some(v6), ..Self::default() },
                    };
                    other.is_ipv4() == address.is_ipv4() && outbound.validate().is_ok()
                };
                let usable: Vec<_> = host.iter().filter(usable).map(IpAddr::to_string).collect();
                let way_out = match usable.as_slice() {
                    [] => format!("it has no {kind} address to leave by"),
                    usable => format!("choose one of {}", usable.join(", ")),
                };
                format!("the outbound address {address} is none of this host's: {way_out}")
            })?;
        }
        let Some(name) = &self.interface else { return Ok(()) };
        let interfaces = usernet_host::interfaces().unwrap_or_default();
        let (loopbacks, others): (Vec<_>, Vec<_>) = interfaces.into_iter().partition(|it| it.loopback);
        let way_out = match usernet_host::interface(name) {
            Ok(_) if loopbacks.iter().all(|it| it.name != *name) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                "before Linux 5.7 only root may choose one: give an outbound address instead".to_owned()
            }
            _ if others.is_empty() => "this host has none but its loopback".to_owned(),
            _ => {
                let names: Vec<_> = others.iter().map(|it| it.name.as_str()).collect();
                format!("choose one of {}", names.join(", "))
            }
        };
        Err(ConfigError(format!("nothing can leave by an interface {name:?}: {way_out}")))
    }
}

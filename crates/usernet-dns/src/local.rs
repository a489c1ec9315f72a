//! Names that never go upstream: the network's own zone, the host's hosts file, localhost.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Mutex;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::answer::Answer;
use crate::dns64;
use crate::follow::Followed;
use crate::locked;
use crate::query::Query;

/// How long guests may keep these answers, in seconds: leases come and go.
const TTL: u32 = 5;

pub(crate) struct Local {
    zone: Name,
    gateway_name: Name,
    gateway: Gateway,
    hosts: Followed<Names>,
    leases: Mutex<Names>,
}

/// The host as guests see it: one address for each kind of IP that they have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gateway {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// How its IPv4 loopback is reached over IPv6, where IPv4 addresses are translated (DNS64).
    pub(crate) nat64: Option<Ipv6Addr>,
}

/// Names and addresses, both ways.
#[derive(Default)]
pub(crate) struct Names {
    addresses: HashMap<Name, Vec<IpAddr>>,
    /// Keyed by the name under `in-addr.arpa` or `ip6.arpa`.
    names: HashMap<Name, Name>,
}

impl Local {
    /// `None` when `zone` is not a domain name.
    pub(crate) fn new(zone: &str, gateway: Gateway, hosts: PathBuf) -> Option<Self> {
        let zone = absolute(zone).filter(|zone| !zone.is_root())?;
        Some(Self {
            gateway_name: zone.prepend_label("gateway").ok()?,
            zone,
            gateway,
            hosts: Followed::new(hosts, parse_hosts),
            leases: Mutex::default(),
        })
    }

    /// Replaces the names of guests.
    pub(crate) fn set_leases(&self, hosts: Vec<(String, IpAddr)>) {
        let mut names = Names::default();
        for (host, address) in hosts {
            let Some(name) = host_label(&host).and_then(|label| self.zone.prepend_label(label).ok()) else {
                continue;
            };
            // A guest that takes another's name does not get its connections.
            let taken = |held: &Vec<IpAddr>| held.iter().any(|held| held.is_ipv4() == address.is_ipv4());
            if !names.addresses.get(&name).is_some_and(taken) {
                names.add(name, address);
            }
        }
        *locked(&self.leases) = names;
    }

    /// The answer, when the question is a local matter.
    pub(crate) fn answer(&self, query: &Query) -> Option<Answer> {
        let in_zone = self.zone.zone_of(&query.name);
        let Some(mut data) = self.find(&query.name) else {
            return in_zone.then(|| {
                Answer::local(query, ResponseCode::NXDomain, Vec::new(), vec![self.start_of_authority()])
            });
        };
        // A name that exists never gives NXDOMAIN: its other types would be disbelieved too (RFC 8020).
        data.retain(|data| {
            matches!(query.class, DNSClass::IN | DNSClass::ANY)
                && (query.record_type == data.record_type() || query.record_type == RecordType::ANY)
        });
        let authorities =
            if data.is_empty() && in_zone { vec![self.start_of_authority()] } else { Vec::new() };
        let answers =
            data.into_iter().map(|data| Record::from_rdata(query.name.clone(), TTL, data)).collect();
        Some(Answer::local(query, ResponseCode::NoError, answers, authorities))
    }

    /// All data of a name; `None` when it is not known here.
    fn find(&self, name: &Name) -> Option<Vec<RData>> {
        // RFC 6761 §6.3.
        if name.is_localhost() {
            return Some(addresses([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
        }
        if *name == self.zone {
            return Some(vec![self.start_of_authority().data]);
        }
        if let (Some(known), Some(_)) = (dns64::well_known(name), self.gateway.nat64) {
            return Some(addresses(self.gateway.view(&known.map(IpAddr::from))));
        }
        if *name == self.gateway_name {
            return Some(addresses(self.gateway.addresses()));
        }
        let hosts = self.hosts.current();
        let leases = locked(&self.leases);
        if let Some(found) = hosts.addresses.get(name) {
            return Some(addresses(self.gateway.view(found)));
        }
        if let Some(found) = leases.addresses.get(name) {
            return Some(addresses(found.iter().copied()));
        }
        let owner = if self.gateway.addresses().any(|address| *name == Name::from(address)) {
            self.gateway_name.clone()
        } else if [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(IpAddr::into).contains(name) {
            absolute("localhost")?
        } else {
            hosts.names.get(name).or_else(|| leases.names.get(name))?.clone()
        };
        Some(vec![RData::PTR(PTR(owner))])
    }

    fn start_of_authority(&self) -> Record {
        // RFC 2606: a mailbox that cannot be.
        let mailbox = absolute("nobody.invalid").unwrap_or_default();
        let soa = SOA::new(self.gateway_name.clone(), mailbox, 1, 3600, 600, 86_400, TTL);
        Record::from_rdata(self.zone.clone(), TTL, RData::SOA(soa))
    }
}

impl Gateway {
    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::from).into_iter().chain(self.ipv6.map(IpAddr::from))
    }

    /// How guests see the addresses of a host.
    fn view(self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let mut seen: Vec<IpAddr> = addresses.iter().filter_map(|address| self.view_one(*address)).collect();
        if let Some(loopback) = self.nat64
            && !seen.iter().any(IpAddr::is_ipv6)
        {
            seen.extend(addresses.iter().filter_map(|address| match address {
                IpAddr::V4(address) if address.is_loopback() => Some(IpAddr::from(loopback)),
                IpAddr::V4(address) => Some(dns64::embed(*address).into()),
                IpAddr::V6(_) => None,
            }));
        }
        seen
    }

    /// The host's loopback is not the guests': there the host is the gateway, of the same kind of IP where
    /// they have it.
    fn view_one(self, address: IpAddr) -> Option<IpAddr> {
        let of_kind = match address {
            _ if !address.is_loopback() => return Some(address),
            IpAddr::V4(_) => self.ipv4.map(IpAddr::from).or(self.nat64.map(IpAddr::from)),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::from),
        };
        of_kind.or(self.addresses().next())
    }
}

impl Names {
    /// Adds an address to a name. The first name of an address is the one that it leads back to.
    fn add(&mut self, name: Name, address: IpAddr) {
        if !address.is_loopback()
            && let Entry::Vacant(free) = self.names.entry(address.into())
        {
            free.insert(name.clone());
        }
        self.addresses.entry(name).or_default().push(address);
    }
}

/// Reads hosts(5).
pub(crate) fn parse_hosts(text: &str) -> Names {
    let mut names = Names::default();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        for name in words.filter_map(absolute) {
            names.add(name, address);
        }
    }
    names
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The first label of what a guest says it is called, when it is a host name (RFC 1123 §2.1, and `_`).
fn host_label(name: &str) -> Option<&str> {
    let label = name.split('.').next()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    ((1..=63).contains(&label.len()) && label.bytes().all(fits)).then_some(label)
}

/// Address records, each once.
fn addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<RData> {
    let mut records = Vec::new();
    for address in addresses {
        let record = match address {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        };
        if !records.contains(&record) {
            records.push(record);
        }
    }
    records
}

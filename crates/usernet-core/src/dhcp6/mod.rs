//! The DHCPv6 server (RFC 8415, RFC 3646).
//!
//! [`Server::handle`] takes what a guest sent to UDP port 547 and returns what goes back to port 546 of
//! the same guest. Leases follow the rules of the DHCPv4 server ([`crate::leases`]): they belong to a DUID
//! and IAID *on a port of the switch*, are bounded by port and pool, and an address is kept for who had it.
//!
//! Where it differs from RFC 8415:
//!
//! - It is the only server of its network, so it is authoritative: a RENEW or REBIND for a binding that it
//!   does not know makes one (§18.3.4 allows it), with the address that the guest has when that is free.
//! - It leases one address for each IA_NA, no temporary ones (IA_TA) and no prefixes (IA_PD).
//! - What it knows of DNS it tells whether or not the guest asks for it (option 6).
//! - There are no relay agents on the network, and it never sends RECONFIGURE.

mod request;
#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::Encodable;
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, MessageType, OptionCode, Status, StatusCode, UnknownOption,
};

use crate::drops::DropReason;
use crate::leases::{Client, Grant, Lease, Pool, Table, host_label};
use crate::port::PortId;
use crate::time::Instant;
use crate::wire::{MacAddr, domain_list};

use request::{Ia, Request};

/// The longest list of domains that fits into a reply beside the leases.
const MAX_SEARCH: usize = 256;

/// An IPv6 network and what its router and its DHCPv6 server tell guests.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network's prefix.
    pub prefix: Ipv6Addr,
    /// The length of the prefix in bits, 1 to 127.
    pub prefix_len: u8,
    /// The gateway: the host, as guests see it. Never given out.
    pub gateway: Ipv6Addr,
    /// The DNS server. Never given out.
    pub dns: Ipv6Addr,
    /// Whether router and DNS server are kept from the guests, since nothing lies behind them.
    pub restricted: bool,
    /// Whether addresses are leased; otherwise guests make their own and ask for the rest only.
    pub managed: bool,
    /// The first address that is leased.
    pub start: Ipv6Addr,
    /// How long an address is valid.
    pub valid: Duration,
    /// How long an address is preferred; guests renew a lease after half of it.
    pub preferred: Duration,
    /// The host name that guests without one are known by.
    pub hostname: Option<String>,
    /// The domains to search; those that are no domain names are left out.
    pub search: Vec<String>,
    /// The most addresses that one port holds at a time, as in [`crate::dhcp::Config`].
    pub max_per_port: usize,
}

impl Default for Config {
    /// fd00::/64 with the gateway ::2, the DNS server ::3 and leases from ::15 on.
    fn default() -> Self {
        let at = |host| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host);
        Self {
            prefix: at(0),
            prefix_len: 64,
            gateway: at(2),
            dns: at(3),
            restricted: false,
            managed: true,
            start: at(0x15),
            valid: Duration::from_secs(86_400),
            preferred: Duration::from_secs(14_400),
            hostname: None,
            search: Vec::new(),
            max_per_port: 32,
        }
    }
}

impl Config {
    /// Whether `addr` lies in the network.
    pub fn contains(&self, addr: Ipv6Addr) -> bool {
        (addr.to_bits() ^ self.prefix.to_bits()) & self.mask() == 0
    }

    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(128_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0)
    }

    fn pool(&self) -> Pool<Ipv6Addr> {
        let first = self.prefix.to_bits() & self.mask();
        let net = first.into()..=(first | !self.mask()).into();
        let range = self.start..=*net.end();
        Pool::new(net, range, [self.gateway, self.dns], self.max_per_port, self.hostname.as_deref())
    }
}

/// What goes back to the guest, from UDP port 547 to 546.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// The leases that the message made or renewed.
    pub grants: Vec<Grant<Ipv6Addr>>,
    /// Whether it ended a lease.
    pub ended: bool,
}

/// The DHCPv6 server of one network.
#[derive(Debug)]
pub struct Server {
    config: Config,
    /// Its DUID: type 3, a hardware type of 1 for Ethernet, and a MAC address (RFC 8415 §11.4).
    id: Vec<u8>,
    search: Vec<u8>,
    table: Table<Ipv6Addr>,
}

impl Server {
    /// A server with an empty table, known by the MAC address of the network's gateway.
    pub fn new(config: Config, mac: MacAddr) -> Self {
        let id = [&[0, 3, 0, 1][..], &mac.0].concat();
        let search = domain_list(&config.search, MAX_SEARCH);
        Self { id, search, table: Table::new(config.pool()), config }
    }

    /// Takes one message, the UDP payload that the guest at `mac` sent to port 547.
    ///
    /// # Errors
    /// [`DropReason::Dhcp`] for what is malformed, [`DropReason::DhcpIgnored`] for what is not for this
    /// server or asks for nothing.
    pub fn handle(
        &mut self,
        port: PortId,
        mac: MacAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<Reply, DropReason> {
        let request = Request::parse(payload)?;
        self.check_ids(&request)?;
        let leases = !matches!(request.kind, MessageType::InformationRequest);
        if leases && (!self.config.managed || request.ias.is_empty() && request.prefixes.is_empty()) {
            return Err(DropReason::DhcpIgnored);
        }
        match request.kind {
            MessageType::Solicit if !request.rapid_commit => self.advertise(port, mac, &request, now),
            MessageType::Solicit | MessageType::Request | MessageType::Renew | MessageType::Rebind => {
                self.grant(port, mac, &request, now)
            }
            MessageType::Confirm => self.confirm(&request),
            MessageType::Release | MessageType::Decline => self.end(port, mac, &request, now),
            MessageType::InformationRequest => {
                Ok(self.reply(&request, MessageType::Reply, self.settings().collect()))
            }
            _ => Err(DropReason::DhcpIgnored),
        }
    }

    /// Leases an address to a guest that is configured without asking by DHCPv6, as
    /// [`crate::dhcp::Server::lease`].
    ///
    /// # Errors
    /// [`DropReason::DhcpExhausted`] when there is no address for this port.
    pub fn lease(
        &mut self,
        port: PortId,
        mac: MacAddr,
        hostname: Option<&str>,
        now: Instant,
    ) -> Result<Grant<Ipv6Addr>, DropReason> {
        let hostname = hostname.and_then(|name| host_label(name.as_bytes()));
        let client = Client { mac: mac.0, id: None };
        let address = self.table.offer(port, &client, None, now)?;
        self.table.bind(port, &client, address, hostname, None, now).map_err(|_| DropReason::DhcpExhausted)
    }

    /// Takes note that a guest was seen with an address, as [`crate::dhcp::Server::note_use`].
    pub fn note_use(&mut self, port: PortId, mac: MacAddr, address: Ipv6Addr) {
        self.table.note_use(port, mac.0, address);
    }

    /// Ends all leases of a port that went.
    pub fn port_gone(&mut self, port: PortId) {
        self.table.port_gone(port);
    }

    /// The leases that have not run out, by address.
    pub fn leases(&self, now: Instant) -> impl Iterator<Item = &Lease<Ipv6Addr>> {
        self.table.leases(now)
    }

    /// RFC 8415 §16: who must be named in which message.
    fn check_ids(&self, request: &Request) -> Result<(), DropReason> {
        let named = match request.kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => Some(false),
            MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
                Some(true)
            }
            _ => None,
        };
        let ours = request.server_id.as_ref().map(|id| *id == self.id);
        if named.is_some() && request.client_id.is_empty() {
            return Err(DropReason::Dhcp);
        }
        match (named, ours) {
            (Some(false), Some(_)) | (Some(true), None) => Err(DropReason::Dhcp),
            (_, Some(false)) => Err(DropReason::DhcpIgnored),
            _ => Ok(()),
        }
    }

    fn advertise(
        &mut self,
        port: PortId,
        mac: MacAddr,
        request: &Request,
        now: Instant,
    ) -> Result<Reply, DropReason> {
        let mut options: Vec<DhcpOption> = self.settings().collect();
        for ia in &request.ias {
            let offered = self.table.offer(port, &client(mac, request, ia), self.wanted(ia), now);
            options.push(self.ia(ia, offered.ok(), &[]));
        }
        Ok(self.reply(request, MessageType::Advertise, options))
    }

    /// All states in which a guest asks for a lease come to one question: which address may it have?
    fn grant(
        &mut self,
        port: PortId,
        mac: MacAddr,
        request: &Request,
        now: Instant,
    ) -> Result<Reply, DropReason> {
        let mut options: Vec<DhcpOption> = self.settings().collect();
        let until = Some(now + self.config.valid);
        let mut grants = Vec::new();
        for ia in &request.ias {
            let client = client(mac, request, ia);
            let granted = self.table.offer(port, &client, self.wanted(ia), now).ok().and_then(|address| {
                self.table.bind(port, &client, address, request.hostname.clone(), until, now).ok()
            });
            // §18.3.4: addresses that it has and may not keep are told with lifetimes of zero.
            let keeps = matches!(request.kind, MessageType::Renew | MessageType::Rebind);
            let stale = if keeps { &ia.addresses[..] } else { &[] };
            options.push(self.ia(ia, granted.map(|grant| grant.address), stale));
            grants.extend(granted);
        }
        options.extend(request.rapid_commit.then_some(DhcpOption::RapidCommit));
        Ok(Reply { grants, ..self.reply(request, MessageType::Reply, options) })
    }

    /// §18.3.3: whether the addresses that a guest has belong to this network.
    fn confirm(&self, request: &Request) -> Result<Reply, DropReason> {
        let mut addresses = request.ias.iter().flat_map(|ia| &ia.addresses).peekable();
        addresses.peek().ok_or(DropReason::DhcpIgnored)?;
        let fits = addresses.all(|address| self.config.contains(*address));
        let status = if fits { Status::Success } else { Status::NotOnLink };
        Ok(self.reply(request, MessageType::Reply, vec![told(status)]))
    }

    /// §18.3.7, §18.3.8: a guest gives addresses back, or has found them in use.
    fn end(
        &mut self,
        port: PortId,
        mac: MacAddr,
        request: &Request,
        now: Instant,
    ) -> Result<Reply, DropReason> {
        let mut options = vec![told(Status::Success)];
        let mut ended = false;
        for ia in &request.ias {
            let client = client(mac, request, ia);
            let mut known = false;
            for address in &ia.addresses {
                let done = match request.kind {
                    MessageType::Decline => self.table.decline(port, &client, *address, now),
                    _ => self.table.release(port, &client, *address, now),
                };
                known |= done.is_ok();
            }
            if !known {
                let opts = [told(Status::NoBinding)].into_iter().collect();
                options.push(DhcpOption::IANA(IANA { id: ia.id, t1: 0, t2: 0, opts }));
            }
            ended |= known;
        }
        Ok(Reply { ended, ..self.reply(request, MessageType::Reply, options) })
    }

    /// The address that a guest would like, if it is one of this network.
    fn wanted(&self, ia: &Ia) -> Option<Ipv6Addr> {
        ia.addresses.iter().copied().find(|address| self.config.contains(*address))
    }

    /// What an IA_NA is answered with.
    fn ia(&self, ia: &Ia, address: Option<Ipv6Addr>, stale: &[Ipv6Addr]) -> DhcpOption {
        let narrow = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let (valid, preferred) = (narrow(self.config.valid), narrow(self.config.preferred));
        let entry = |addr, preferred_life, valid_life| {
            DhcpOption::IAAddr(IAAddr { addr, preferred_life, valid_life, opts: DhcpOptions::new() })
        };
        let mut opts: DhcpOptions =
            stale.iter().filter(|old| Some(**old) != address).map(|old| entry(*old, 0, 0)).collect();
        opts.insert(match address {
            Some(address) => entry(address, preferred, valid),
            None => told(Status::NoAddrsAvail),
        });
        // §14.2: half and four fifths of the preferred lifetime.
        let (t1, t2) = if address.is_some() { (preferred / 2, preferred / 5 * 4) } else { (0, 0) };
        DhcpOption::IANA(IANA { id: ia.id, t1, t2, opts })
    }

    /// What a guest needs to know of the network.
    fn settings(&self) -> impl Iterator<Item = DhcpOption> + use<> {
        // The names are encoded already: dhcproto would compress them, which §10 forbids.
        let search = UnknownOption::new(OptionCode::DomainSearchList, self.search.clone());
        [
            (!self.config.restricted).then(|| DhcpOption::DomainNameServers(vec![self.config.dns])),
            (!self.search.is_empty()).then_some(DhcpOption::Unknown(search)),
        ]
        .into_iter()
        .flatten()
    }

    fn reply(&self, request: &Request, kind: MessageType, mut options: Vec<DhcpOption>) -> Reply {
        options.push(DhcpOption::ServerId(self.id.clone()));
        if !request.client_id.is_empty() {
            options.push(DhcpOption::ClientId(request.client_id.clone()));
        }
        for id in &request.prefixes {
            let opts = [told(Status::NoPrefixAvail)].into_iter().collect();
            options.push(DhcpOption::IAPD(IAPD { id: *id, t1: 0, t2: 0, opts }));
        }
        let options: DhcpOptions = options.into_iter().collect();
        let mut payload = vec![u8::from(kind)];
        payload.extend(request.xid);
        payload.extend(options.to_vec().expect("an option is shorter than 64 KiB"));
        Reply { payload, grants: Vec::new(), ended: false }
    }
}

/// Who an IA_NA belongs to.
fn client(mac: MacAddr, request: &Request, ia: &Ia) -> Client {
    let id = [&request.client_id[..], &ia.id.to_be_bytes()].concat();
    Client { mac: mac.0, id: Some(id.into()) }
}

fn told(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}

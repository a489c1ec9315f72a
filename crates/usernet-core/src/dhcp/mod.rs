//! The DHCPv4 server (RFC 2131, RFC 2132); the table of its leases is in [`crate::leases`].
//!
//! [`Server::handle`] takes what a guest sent to UDP port 67 and returns what goes back to port 68 of
//! the same guest. There is no timer: offers and leases that have run out are found when the next
//! message comes.
//!
//! A lease belongs to a client identifier or MAC address *on a port of the switch*: the same MAC on
//! two live ports is two guests with two addresses. What a guest can make grow is bounded by its port
//! ([`Config::max_per_port`]) and by the pool (`POOL_MAX` of `leases.rs`). An address whose lease ended
//! is kept for the guest that had it until the pool has nothing fresher to give.
//!
//! Where it differs from RFC 2131:
//!
//! - It is the only server of its network, so it is authoritative: a REQUEST from a guest that it
//!   does not know is granted when the address is free and refused with a NAK when not, never met
//!   with silence (§4.3.2). Guests keep their addresses when the network is restarted.
//! - There are no relay agents on the network: messages with `giaddr` set are ignored.
//! - Options inside of the `sname` and `file` fields of a request (option 52) are not read.
//! - The same MAC on the same port is the same guest when only one of two messages carries a client
//!   identifier: firmware, boot loader and operating system share one address.

mod request;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, DhcpOptions, MIN_PACKET_SIZE, MessageType, Opcode};
use dhcproto::{Encodable, Name};

use crate::drops::DropReason;
use crate::leases::{Client, Grant, Lease, Pool, Refusal, Table, host_label};
use crate::port::PortId;
use crate::time::Instant;

use request::Request;

/// The UDP payload that every client takes (RFC 2131 §2): a datagram of 576 bytes less the headers.
const ALWAYS_FITS: usize = 576 - HEADERS_LEN;

/// The IPv4 and UDP headers in front of a DHCP message.
const HEADERS_LEN: usize = 28;

/// What the server gives out. The default is QEMU's network.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network's address.
    pub net: Ipv4Addr,
    /// The length of its prefix in bits.
    pub prefix_len: u8,
    /// The server itself, and the router that it names (options 54 and 3). Never given out.
    pub gateway: Ipv4Addr,
    /// The DNS server (option 6). Never given out.
    pub dns: Ipv4Addr,
    /// Whether router and DNS server are kept from the guests, since nothing lies behind them.
    pub restricted: bool,
    /// The first address of the pool.
    pub start: Ipv4Addr,
    /// The last address of the pool; none: the last of the network.
    pub end: Option<Ipv4Addr>,
    /// How long a lease lasts (option 51).
    pub lease_time: Duration,
    /// The MTU of guests' interfaces in bytes (option 26).
    pub mtu: u16,
    /// The host name that guests are given (option 12).
    pub hostname: Option<String>,
    /// The domain name (option 15).
    pub domain: Option<String>,
    /// The domains to search (option 119); those that are no domain names are left out.
    pub search: Vec<String>,
    /// The name or address of the boot server (option 66); an address also goes to `siaddr`, where
    /// the gateway stands otherwise.
    pub tftp_server: Option<String>,
    /// The boot file (option 67 and `file`). One that begins with `http://` makes the reply an HTTP
    /// boot offer (option 60).
    pub bootfile: Option<String>,
    /// The most addresses that one port holds at a time: leased, offered, declined or in use without a
    /// lease. Never more than a quarter of the pool, where that is more than 4.
    pub max_per_port: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            net: Ipv4Addr::new(10, 0, 2, 0),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            restricted: false,
            start: Ipv4Addr::new(10, 0, 2, 15),
            end: None,
            lease_time: Duration::from_secs(86_400),
            mtu: 1500,
            hostname: None,
            domain: None,
            search: Vec::new(),
            tftp_server: None,
            bootfile: None,
            max_per_port: 32,
        }
    }
}

impl Config {
    fn mask(&self) -> Ipv4Addr {
        u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0).into()
    }

    /// The addresses from `start` on, but for the network's and its broadcast address.
    fn pool(&self) -> Pool<Ipv4Addr> {
        let network = u32::from(self.net) & u32::from(self.mask());
        let broadcast = network | !u32::from(self.mask());
        let first = self.start.max(network.saturating_add(1).into());
        let last = self.end.unwrap_or(Ipv4Addr::BROADCAST).min(broadcast.saturating_sub(1).into());
        Pool::new(
            network.into()..=broadcast.into(),
            first..=last,
            [self.gateway, self.dns],
            self.max_per_port,
            self.hostname.as_deref(),
        )
    }
}

/// What goes back to the guest, from UDP port 67 to 68.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The UDP payload, 300 bytes or more.
    pub payload: Vec<u8>,
    /// Where it goes, on the port that asked.
    pub to: Destination,
    /// The lease that the message made or renewed, when it is an ACK that did.
    pub grant: Option<Grant>,
}

/// Where a reply goes (RFC 2131 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To 255.255.255.255 and the broadcast MAC.
    Broadcast,
    /// To an address that the guest may not answer ARP for yet.
    Unicast {
        /// The guest's hardware address.
        mac: [u8; 6],
        /// The guest's address.
        address: Ipv4Addr,
    },
}

/// The DHCPv4 server of one network.
#[derive(Debug)]
pub struct Server {
    config: Config,
    search: Vec<Name>,
    table: Table<Ipv4Addr>,
}

impl Server {
    /// A server with an empty table.
    pub fn new(config: Config) -> Self {
        let search = config.search.iter().filter_map(|name| Name::from_ascii(name).ok()).collect();
        Self { search, table: Table::new(config.pool()), config }
    }

    /// Takes one DHCP or BOOTP message, the UDP payload that a guest sent to port 67. Returns the
    /// reply, or none for a message that is heeded without one (RELEASE, DECLINE).
    ///
    /// # Errors
    /// [`DropReason::Dhcp`] for what is malformed, [`DropReason::DhcpIgnored`] for what is not for
    /// this server, and [`DropReason::DhcpExhausted`] when there is no address for this port.
    pub fn handle(
        &mut self,
        port: PortId,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Reply>, DropReason> {
        let request = Request::parse(payload)?;
        match request.kind {
            None => self.bootp(port, &request, now).map(Some),
            Some(MessageType::Discover) => self.discover(port, &request, now).map(Some),
            Some(MessageType::Request) => self.request(port, &request, now).map(Some),
            Some(MessageType::Inform) => Ok(Some(self.inform(&request))),
            Some(MessageType::Decline) => {
                let address = request.requested.ok_or(DropReason::Dhcp)?;
                self.table.decline(port, &request.client, address, now).map(|()| None)
            }
            Some(MessageType::Release) => {
                self.table.release(port, &request.client, request.header.ciaddr(), now).map(|()| None)
            }
            Some(_) => Err(DropReason::DhcpIgnored),
        }
    }

    /// Leases an address to a guest that is configured without asking by DHCP. The lease lasts as
    /// long as the port does. Asked again, it gives the same address.
    ///
    /// # Errors
    /// [`DropReason::DhcpExhausted`] when there is no address for this port.
    pub fn lease(
        &mut self,
        port: PortId,
        mac: [u8; 6],
        hostname: Option<&str>,
        now: Instant,
    ) -> Result<Grant, DropReason> {
        let hostname = hostname.and_then(|name| host_label(name.as_bytes()));
        let client = Client { mac, id: None };
        let address = self.table.offer(port, &client, None, now)?;
        self.table.bind(port, &client, address, hostname, None, now).map_err(|_| DropReason::DhcpExhausted)
    }

    /// Takes note that a guest was seen with an address: while its port is there, no other guest is
    /// given that address.
    pub fn note_use(&mut self, port: PortId, mac: [u8; 6], address: Ipv4Addr) {
        self.table.note_use(port, mac, address);
    }

    /// Ends all leases of a port that went. A guest that comes back, on whatever port, gets its old
    /// address while nobody else has needed it.
    pub fn port_gone(&mut self, port: PortId) {
        self.table.port_gone(port);
    }

    /// The leases that have not run out, by address.
    pub fn leases(&self, now: Instant) -> impl Iterator<Item = &Lease> {
        self.table.leases(now)
    }

    /// Who holds `address`.
    pub fn lease_of(&self, address: Ipv4Addr, now: Instant) -> Option<&Lease> {
        self.table.lease_of(address, now)
    }

    fn discover(&mut self, port: PortId, request: &Request, now: Instant) -> Result<Reply, DropReason> {
        let address = self.table.offer(port, &request.client, request.requested, now)?;
        let options =
            self.dhcp_options(MessageType::Offer).chain(self.lease_options()).chain(self.settings());
        Ok(self.reply(request, address, options))
    }

    /// All states in which a guest requests (RFC 2131 §4.3.2) come to one question: may it have this
    /// address? SELECTING and INIT-REBOOT name it in option 50, RENEWING and REBINDING in `ciaddr`.
    fn request(&mut self, port: PortId, request: &Request, now: Instant) -> Result<Reply, DropReason> {
        if request.server.is_some_and(|server| server != self.config.gateway) {
            self.table.withdraw(port, &request.client);
            return Err(DropReason::DhcpIgnored);
        }
        let address = request.requested.or(request.ciaddr()).ok_or(DropReason::Dhcp)?;
        let until = Some(now + self.config.lease_time);
        match self.table.bind(port, &request.client, address, request.hostname.clone(), until, now) {
            Ok(grant) => {
                let options =
                    self.dhcp_options(MessageType::Ack).chain(self.lease_options()).chain(self.settings());
                Ok(Reply { grant: Some(grant), ..self.reply(request, address, options) })
            }
            Err(Refusal::Nak(why)) => Ok(self.nak(request, why)),
            Err(Refusal::Exhausted) => Err(DropReason::DhcpExhausted),
        }
    }

    /// RFC 1534: a BOOTP client gets an address for as long as it is there, and no DHCP options.
    fn bootp(&mut self, port: PortId, request: &Request, now: Instant) -> Result<Reply, DropReason> {
        let address = self.table.offer(port, &request.client, request.ciaddr(), now)?;
        let grant = self
            .table
            .bind(port, &request.client, address, request.hostname.clone(), None, now)
            .map_err(|_| DropReason::DhcpExhausted)?;
        Ok(Reply { grant: Some(grant), ..self.reply(request, address, self.settings()) })
    }

    /// RFC 2131 §4.3.5: the settings without a lease, for a guest that has its address from elsewhere.
    fn inform(&self, request: &Request) -> Reply {
        let options = self.dhcp_options(MessageType::Ack).chain(self.settings());
        self.reply(request, Ipv4Addr::UNSPECIFIED, options)
    }

    fn dhcp_options(&self, kind: MessageType) -> impl Iterator<Item = DhcpOption> + use<> {
        [DhcpOption::MessageType(kind), DhcpOption::ServerIdentifier(self.config.gateway)].into_iter()
    }

    /// The lease time, with RFC 2131 §4.4.5's defaults for T1 and T2.
    fn lease_options(&self) -> impl Iterator<Item = DhcpOption> + use<> {
        let time = u32::try_from(self.config.lease_time.as_secs()).unwrap_or(u32::MAX);
        [
            DhcpOption::AddressLeaseTime(time),
            DhcpOption::Renewal(time / 2),
            DhcpOption::Rebinding(time - time / 8),
        ]
        .into_iter()
    }

    /// What a guest needs to know of the network, the most needed first.
    fn settings(&self) -> impl Iterator<Item = DhcpOption> + use<> {
        let config = &self.config;
        let bytes = |text: &String| text.clone().into_bytes();
        let http = config.bootfile.as_ref().is_some_and(|file| file.starts_with("http://"));
        [
            Some(DhcpOption::SubnetMask(config.mask())),
            (!config.restricted).then(|| DhcpOption::Router(vec![config.gateway])),
            (!config.restricted).then(|| DhcpOption::DomainNameServer(vec![config.dns])),
            Some(DhcpOption::InterfaceMtu(config.mtu)),
            config.hostname.clone().map(DhcpOption::Hostname),
            config.domain.clone().map(DhcpOption::DomainName),
            http.then(|| DhcpOption::ClassIdentifier(b"HTTPClient".to_vec())),
            config.bootfile.as_ref().map(|file| DhcpOption::BootfileName(bytes(file))),
            config.tftp_server.as_ref().map(|name| DhcpOption::TFTPServerName(bytes(name))),
            (!self.search.is_empty()).then(|| DhcpOption::DomainSearch(self.search.clone())),
        ]
        .into_iter()
        .flatten()
    }

    /// RFC 2131 §4.3.1, table 3: the request's header with the reply's fields filled in.
    fn reply(
        &self,
        request: &Request,
        address: Ipv4Addr,
        options: impl Iterator<Item = DhcpOption>,
    ) -> Reply {
        let mut header = request.header.clone();
        header.set_yiaddr(address).set_siaddr(self.next_server());
        // The field holds 128 bytes with the NUL at its end.
        if let Some(file) = self.config.bootfile.as_ref().filter(|file| file.len() < 128) {
            header.set_fname_str(file);
        }
        let mac = request.client.mac;
        let to = match request.ciaddr().filter(|ciaddr| self.table.in_net(*ciaddr)) {
            Some(address) => Destination::Unicast { mac, address },
            None if header.flags().broadcast() || address.is_unspecified() => Destination::Broadcast,
            None => Destination::Unicast { mac, address },
        };
        Reply { payload: self.encode(request, header, options), to, grant: None }
    }

    /// RFC 2131 §4.1: a NAK is always broadcast, since the guest's address is the thing in doubt.
    fn nak(&self, request: &Request, why: &str) -> Reply {
        let mut header = request.header.clone();
        header.clear_addrs();
        let options = self.dhcp_options(MessageType::Nak).chain([DhcpOption::Message(why.to_owned())]);
        Reply { payload: self.encode(request, header, options), to: Destination::Broadcast, grant: None }
    }

    /// The boot server's address for `siaddr`.
    fn next_server(&self) -> Ipv4Addr {
        let named = self.config.tftp_server.as_ref().and_then(|name| name.parse().ok());
        named.unwrap_or(self.config.gateway)
    }

    /// Leaves out the options that would make the message longer than the guest takes; of a search
    /// list, only its end.
    fn encode(
        &self,
        request: &Request,
        mut header: dhcproto::v4::Message,
        options: impl Iterator<Item = DhcpOption>,
    ) -> Vec<u8> {
        let mtu = usize::from(self.config.mtu).saturating_sub(HEADERS_LEN).max(ALWAYS_FITS);
        // Behind the fixed fields and the cookie, and before the end mark.
        let mut room = request.max_len.min(mtu) - request::OPTIONS_AT - 1;
        let mut fitting = DhcpOptions::new();
        // RFC 6842: a client identifier comes back as it was sent.
        let echo = request.client_id.clone().map(DhcpOption::ClientIdentifier);
        for mut option in echo.into_iter().chain(options) {
            let mut len = encoded_len(&option);
            while let DhcpOption::DomainSearch(names) = &mut option
                && len > room
                && names.pop().is_some()
            {
                len = encoded_len(&option);
            }
            if len <= room {
                room -= len;
                fitting.insert(option);
            }
        }
        header.set_opcode(Opcode::BootReply).set_hops(0).set_secs(0).set_opts(fitting);
        let mut payload = header.to_vec().expect("each option has been encoded once");
        payload.resize(payload.len().max(MIN_PACKET_SIZE), 0);
        payload
    }
}

/// The bytes that `option` takes in a message; too many for any when it cannot be encoded.
fn encoded_len(option: &DhcpOption) -> usize {
    option.to_vec().map_or(usize::MAX, |bytes| bytes.len())
}

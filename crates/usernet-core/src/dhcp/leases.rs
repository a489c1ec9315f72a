//! Which address is whose.
//!
//! The table has at most one entry for each address of the pool. An entry that a guest could use,
//! [`State::Free`] aside, belongs to a port and counts towards the port's bound. A free entry
//! remembers whose the address was.
//!
//! An address that is given out is, in this order: the one that the guest holds, the one that it held
//! last, the one that it asks for, the lowest that nobody has held, the one that has been free the
//! longest, the oldest offer that nobody has taken up.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::request::host_label;
use super::{Config, POOL_MAX};
use crate::drops::DropReason;
use crate::port::PortId;
use crate::time::Instant;

/// How long an offer stands that nobody requests.
const OFFER_TIME: Duration = Duration::from_secs(60);

/// How long an address is set aside that a guest has found in use.
const DECLINE_TIME: Duration = Duration::from_secs(600);

/// An address that a guest holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The guest's port.
    pub port: PortId,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// What the guest calls itself (option 61), when that is more than its MAC; 1 to 255 bytes.
    pub client_id: Option<Box<[u8]>>,
    /// The address.
    pub address: Ipv4Addr,
    /// The guest's name, a DNS label in lower case. No other lease has the same.
    pub hostname: Option<String>,
    /// When the lease runs out; none: when the port goes.
    pub expires: Option<Instant>,
}

/// A lease that was made or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The address.
    pub address: Ipv4Addr,
    /// Whether the guest held the lease before.
    pub renewed: bool,
    /// Another port that holds a lease for the same MAC: two guests that were given one MAC, which is
    /// worth a warning.
    pub mac_also_on: Option<PortId>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) mac: [u8; 6],
    pub(super) id: Option<Box<[u8]>>,
}

/// Why an address is not leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The guest must not use this address: what the NAK says.
    Nak(&'static str),
    /// There is no room.
    Exhausted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered,
    Bound,
    Declined,
    /// A guest uses it without having asked.
    Used,
    Free,
}

#[derive(Debug)]
struct Entry {
    state: State,
    lease: Lease,
    /// Orders the entries by when they came into their state.
    changed: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    net: RangeInclusive<Ipv4Addr>,
    pool: RangeInclusive<u32>,
    /// Addresses inside of the pool that are the network's own.
    own: [Ipv4Addr; 2],
    max_per_port: usize,
    /// What a guest without a name of its own is known by.
    given_name: Option<String>,
    entries: BTreeMap<Ipv4Addr, Entry>,
    changes: u64,
}

impl Table {
    pub(super) fn new(config: &Config) -> Self {
        let mask = u32::from(config.mask());
        let network = u32::from(config.net) & mask;
        let broadcast = network | !mask;
        let first = u32::from(config.start).max(network.saturating_add(1));
        let last = config.end.map_or(u32::MAX, u32::from).min(broadcast.saturating_sub(1));
        let last = last.min(first.saturating_add(POOL_MAX - 1));
        let pool_len = (last.saturating_sub(first) as usize).saturating_add(1);
        Self {
            net: network.into()..=broadcast.into(),
            pool: first..=last,
            own: [config.gateway, config.dns],
            // A small pool is not for one guest alone.
            max_per_port: config.max_per_port.min((pool_len / 4).max(4)),
            given_name: config.hostname.as_ref().and_then(|name| host_label(name.as_bytes())),
            entries: BTreeMap::new(),
            changes: 0,
        }
    }

    pub(super) fn in_net(&self, address: Ipv4Addr) -> bool {
        self.net.contains(&address)
    }

    /// Finds an address for a guest and keeps it for a while.
    pub(super) fn offer(
        &mut self,
        port: PortId,
        client: &Client,
        wanted: Option<Ipv4Addr>,
        now: Instant,
    ) -> Result<Ipv4Addr, DropReason> {
        self.expire(now);
        let address = match self.held(port, client) {
            Some(held) if self.state(held) == Some(State::Bound) => return Ok(held),
            Some(held) => held,
            None => {
                self.make_room(port)?;
                self.best(client, |entry| entry.state == State::Free)
                    .or(wanted.filter(|wanted| self.is_free(*wanted, port)))
                    .or_else(|| self.pick())
                    .ok_or(DropReason::DhcpExhausted)?
            }
        };
        self.put(State::Offered, port, client, address, None, Some(now + OFFER_TIME));
        Ok(address)
    }

    /// Leases `address` to a guest, when it may have it.
    pub(super) fn bind(
        &mut self,
        port: PortId,
        client: &Client,
        address: Ipv4Addr,
        hostname: Option<String>,
        expires: Option<Instant>,
        now: Instant,
    ) -> Result<Grant, Refusal> {
        self.expire(now);
        let held = self.held(port, client);
        if held != Some(address) {
            if !self.in_net(address) {
                return Err(Refusal::Nak("the address is not on this network"));
            }
            if held.and_then(|held| self.state(held)) == Some(State::Bound) {
                return Err(Refusal::Nak("another address is leased to this client"));
            }
            if !self.in_pool(address) {
                return Err(Refusal::Nak("the address is not for lease"));
            }
            if !self.is_free(address, port) {
                return Err(Refusal::Nak("the address is in use"));
            }
            self.withdraw(port, client);
            self.make_room(port).map_err(|_| Refusal::Exhausted)?;
        }
        let renewed = held == Some(address) && self.state(address) == Some(State::Bound);
        let kept = self.entries.get(&address).and_then(|entry| entry.lease.hostname.clone());
        let mut names = [hostname, kept, self.given_name.clone()].into_iter().flatten();
        let hostname = names.find(|name| !self.is_taken(name, address));
        self.put(State::Bound, port, client, address, hostname, expires);
        Ok(Grant { address, renewed, mac_also_on: self.other_port(port, client.mac) })
    }

    /// Forgets what was offered to a guest that goes elsewhere.
    pub(super) fn withdraw(&mut self, port: PortId, client: &Client) {
        if let Some(held) = self.held(port, client)
            && self.state(held) == Some(State::Offered)
        {
            self.entries.remove(&held);
        }
    }

    /// Sets an address aside that its guest has found in use.
    pub(super) fn decline(
        &mut self,
        port: PortId,
        client: &Client,
        address: Ipv4Addr,
        now: Instant,
    ) -> Result<(), DropReason> {
        self.expire(now);
        self.held(port, client).filter(|held| *held == address).ok_or(DropReason::DhcpIgnored)?;
        self.put(State::Declined, port, client, address, None, Some(now + DECLINE_TIME));
        Ok(())
    }

    /// Ends a guest's lease at its own wish.
    pub(super) fn release(
        &mut self,
        port: PortId,
        client: &Client,
        address: Ipv4Addr,
        now: Instant,
    ) -> Result<(), DropReason> {
        self.expire(now);
        self.held(port, client).filter(|held| *held == address).ok_or(DropReason::DhcpIgnored)?;
        self.end(|entry| entry.lease.address == address);
        Ok(())
    }

    /// Takes note that a guest uses an address that nobody has a lease for.
    pub(super) fn note_use(&mut self, port: PortId, mac: [u8; 6], address: Ipv4Addr) {
        let unclaimed = self.state(address).is_none_or(|state| state == State::Free);
        if unclaimed && self.in_pool(address) && self.make_room(port).is_ok() {
            self.put(State::Used, port, &Client { mac, id: None }, address, None, None);
        }
    }

    pub(super) fn port_gone(&mut self, port: PortId) {
        self.end(|entry| entry.lease.port == port);
    }

    pub(super) fn leases(&self, now: Instant) -> impl Iterator<Item = &Lease> {
        self.entries.values().filter(move |entry| entry.is_leased(now)).map(|entry| &entry.lease)
    }

    pub(super) fn lease_of(&self, address: Ipv4Addr, now: Instant) -> Option<&Lease> {
        self.entries.get(&address).filter(|entry| entry.is_leased(now)).map(|entry| &entry.lease)
    }

    fn expire(&mut self, now: Instant) {
        self.end(|entry| entry.has_expired(now));
    }

    /// Leases become free and keep their guest in mind; offers and declined addresses are forgotten.
    fn end(&mut self, which: impl Fn(&Entry) -> bool) {
        self.changes += 1;
        self.entries.retain(|_, entry| {
            if entry.state == State::Free || !which(entry) {
                return true;
            }
            let was_bound = entry.state == State::Bound;
            entry.state = State::Free;
            entry.changed = self.changes;
            entry.lease.hostname = None;
            entry.lease.expires = None;
            was_bound
        });
    }

    fn put(
        &mut self,
        state: State,
        port: PortId,
        client: &Client,
        address: Ipv4Addr,
        hostname: Option<String>,
        expires: Option<Instant>,
    ) {
        self.changes += 1;
        let Client { mac, id } = client.clone();
        let lease = Lease { port, mac, client_id: id, address, hostname, expires };
        self.entries.insert(address, Entry { state, lease, changed: self.changes });
    }

    /// Sees to it that the port may hold one address more: its own oldest address that is not leased
    /// goes first.
    fn make_room(&mut self, port: PortId) -> Result<(), DropReason> {
        let of_port = |entry: &Entry| entry.state != State::Free && entry.lease.port == port;
        if self.entries.values().filter(|entry| of_port(entry)).count() < self.max_per_port {
            return Ok(());
        }
        let oldest = self
            .oldest(|entry| of_port(entry) && entry.state != State::Bound)
            .ok_or(DropReason::DhcpExhausted)?;
        self.entries.remove(&oldest);
        Ok(())
    }

    /// The address that a guest holds or has been offered on this port.
    fn held(&self, port: PortId, client: &Client) -> Option<Ipv4Addr> {
        self.best(client, |entry| {
            entry.lease.port == port && matches!(entry.state, State::Offered | State::Bound)
        })
    }

    /// Of the entries that fit a guest, the one that fits best, and the latest of those.
    fn best(&self, client: &Client, which: impl Fn(&Entry) -> bool) -> Option<Ipv4Addr> {
        let fits = |entry: &Entry| match (&entry.lease.client_id, &client.id) {
            (Some(held), Some(asks)) => (held == asks).then_some(2),
            (held, asks) => (entry.lease.mac == client.mac).then_some(u8::from(held == asks)),
        };
        let fitting = self.entries.values().filter(|entry| which(entry));
        let best = fitting.filter_map(|entry| Some((fits(entry)?, entry.changed, entry.lease.address))).max();
        best.map(|(_, _, address)| address)
    }

    fn pick(&self) -> Option<Ipv4Addr> {
        let unused = |address: &Ipv4Addr| self.in_pool(*address) && !self.entries.contains_key(address);
        self.pool
            .clone()
            .map(Ipv4Addr::from)
            .find(unused)
            .or_else(|| self.oldest(|entry| entry.state == State::Free))
            .or_else(|| self.oldest(|entry| entry.state == State::Offered))
    }

    fn oldest(&self, which: impl Fn(&Entry) -> bool) -> Option<Ipv4Addr> {
        let entries = self.entries.values().filter(|entry| which(entry));
        entries.min_by_key(|entry| entry.changed).map(|entry| entry.lease.address)
    }

    fn state(&self, address: Ipv4Addr) -> Option<State> {
        self.entries.get(&address).map(|entry| entry.state)
    }

    fn in_pool(&self, address: Ipv4Addr) -> bool {
        self.pool.contains(&address.into()) && !self.own.contains(&address)
    }

    /// Whether a guest on `port` may be given this address.
    fn is_free(&self, address: Ipv4Addr, port: PortId) -> bool {
        self.in_pool(address)
            && self.entries.get(&address).is_none_or(|entry| match entry.state {
                State::Free => true,
                State::Used => entry.lease.port == port,
                State::Offered | State::Bound | State::Declined => false,
            })
    }

    /// Whether another lease has this host name.
    fn is_taken(&self, name: &str, address: Ipv4Addr) -> bool {
        let mut leases = self.entries.values().map(|entry| &entry.lease);
        leases.any(|lease| lease.hostname.as_deref() == Some(name) && lease.address != address)
    }

    fn other_port(&self, port: PortId, mac: [u8; 6]) -> Option<PortId> {
        let bound = self.entries.values().filter(|entry| entry.state == State::Bound);
        let mut leases = bound.map(|entry| &entry.lease);
        leases.find(|lease| lease.mac == mac && lease.port != port).map(|lease| lease.port)
    }
}

impl Entry {
    fn is_leased(&self, now: Instant) -> bool {
        self.state == State::Bound && !self.has_expired(now)
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.lease.expires.is_some_and(|at| at <= now)
    }
}

//! Which address is whose.
//!
//! The table has at most one entry for each address of the pool. An entry that a guest could use, a free
//! one aside, belongs to a port and counts towards the bound of the port. A free entry remembers whose
//! the address was.
//!
//! An address that is given out is, in this order: the one that the guest holds, the one that it uses or
//! held last, the one that it asks for, the lowest that nobody has held, the one that has been free the
//! longest, the oldest offer that nobody has taken up.
//!
//! IPv4 and IPv6 addresses are leased by the same rules, each from a table of their own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::drops::DropReason;
use crate::port::PortId;
use crate::time::Instant;

/// The most addresses that a pool holds; a longer range is cut at its end.
pub(crate) const POOL_MAX: u32 = 4096;

/// How long an offer stands that nobody requests.
const OFFER_TIME: Duration = Duration::from_secs(60);

/// How long an address is set aside that a guest has found in use.
const DECLINE_TIME: Duration = Duration::from_secs(600);

/// A kind of address that can be leased.
pub trait Address: Copy + Ord + std::fmt::Debug + Into<IpAddr> {
    /// The address as a number.
    fn to_number(self) -> u128;
    /// The address with a number, which is one that [`Address::to_number`] has given or lies between two.
    fn from_number(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    fn to_number(self) -> u128 {
        self.to_bits().into()
    }

    fn from_number(number: u128) -> Self {
        u32::try_from(number).map_or(Self::BROADCAST, Self::from_bits)
    }
}

impl Address for Ipv6Addr {
    fn to_number(self) -> u128 {
        self.to_bits()
    }

    fn from_number(number: u128) -> Self {
        Self::from_bits(number)
    }
}

/// An address that a guest holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease<A = Ipv4Addr> {
    /// The guest's port.
    pub port: PortId,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// What the guest calls itself, when that is more than its MAC; 1 to 255 bytes: option 61, or of
    /// DHCPv6 the DUID and the IAID.
    pub client_id: Option<Box<[u8]>>,
    /// The address.
    pub address: A,
    /// The guest's name, a DNS label in lower case. No other lease has the same.
    pub hostname: Option<String>,
    /// When the lease runs out; none: when the port goes.
    pub expires: Option<Instant>,
}

/// A lease that was made or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<A = Ipv4Addr> {
    /// The address.
    pub address: A,
    /// Whether the guest held the lease before.
    pub renewed: bool,
    /// Another port that holds a lease for the same MAC: two guests that were given one MAC, which is
    /// worth a warning.
    pub mac_also_on: Option<PortId>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) mac: [u8; 6],
    pub(crate) id: Option<Box<[u8]>>,
}

/// Why an address is not leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
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
struct Entry<A> {
    state: State,
    lease: Lease<A>,
    /// Orders the entries by when they came into their state.
    changed: u64,
}

/// What a table leases.
#[derive(Debug)]
pub(crate) struct Pool<A> {
    /// The addresses of the network.
    net: RangeInclusive<A>,
    /// Those of them that are for lease.
    range: RangeInclusive<A>,
    /// Addresses that are the network's own.
    own: [A; 2],
    max_per_port: usize,
    /// What a guest without a name of its own is known by.
    given_name: Option<String>,
}

impl<A: Address> Pool<A> {
    /// The addresses of `range` that are in `net`: [`POOL_MAX`] of them at most.
    pub(crate) fn new(
        net: RangeInclusive<A>,
        range: RangeInclusive<A>,
        own: [A; 2],
        max_per_port: usize,
        hostname: Option<&str>,
    ) -> Self {
        let first = *range.start().max(net.start());
        let most = first.to_number().saturating_add(u128::from(POOL_MAX) - 1);
        let last = A::from_number(range.end().min(net.end()).to_number().min(most));
        let len = last.to_number().saturating_sub(first.to_number()).saturating_add(1);
        Self {
            net,
            range: first..=last,
            own,
            // A small pool is not for one guest alone.
            max_per_port: max_per_port.min(usize::try_from(len / 4).unwrap_or(usize::MAX).max(4)),
            given_name: hostname.and_then(|name| host_label(name.as_bytes())),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Table<A> {
    pool: Pool<A>,
    entries: BTreeMap<A, Entry<A>>,
    changes: u64,
}

impl<A: Address> Table<A> {
    pub(crate) fn new(pool: Pool<A>) -> Self {
        Self { pool, entries: BTreeMap::new(), changes: 0 }
    }

    pub(crate) fn in_net(&self, address: A) -> bool {
        self.pool.net.contains(&address)
    }

    /// Finds an address for a guest and keeps it for a while.
    pub(crate) fn offer(
        &mut self,
        port: PortId,
        client: &Client,
        wanted: Option<A>,
        now: Instant,
    ) -> Result<A, DropReason> {
        self.expire(now);
        let address = match self.held(port, client) {
            Some(held) if self.state(held) == Some(State::Bound) => return Ok(held),
            Some(held) => held,
            None => {
                self.make_room(port)?;
                // One that it uses it may have had a lease for from a network that was here before this one.
                let its_own = |entry: &Entry<A>| entry.state == State::Used && entry.lease.port == port;
                self.best(client, |entry| entry.state == State::Free || its_own(entry))
                    .or(wanted.filter(|wanted| self.is_free(*wanted, port)))
                    .or_else(|| self.pick())
                    .ok_or(DropReason::DhcpExhausted)?
            }
        };
        self.put(State::Offered, port, client, address, None, Some(now + OFFER_TIME));
        Ok(address)
    }

    /// Leases `address` to a guest, when it may have it.
    pub(crate) fn bind(
        &mut self,
        port: PortId,
        client: &Client,
        address: A,
        hostname: Option<String>,
        expires: Option<Instant>,
        now: Instant,
    ) -> Result<Grant<A>, Refusal> {
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
        let mut names = [hostname, kept, self.pool.given_name.clone()].into_iter().flatten();
        let hostname = names.find(|name| !self.is_taken(name, address));
        self.put(State::Bound, port, client, address, hostname, expires);
        Ok(Grant { address, renewed, mac_also_on: self.other_port(port, client.mac) })
    }

    /// Forgets what was offered to a guest that goes elsewhere.
    pub(crate) fn withdraw(&mut self, port: PortId, client: &Client) {
        if let Some(held) = self.held(port, client)
            && self.state(held) == Some(State::Offered)
        {
            self.entries.remove(&held);
        }
    }

    /// Sets an address aside that its guest has found in use.
    pub(crate) fn decline(
        &mut self,
        port: PortId,
        client: &Client,
        address: A,
        now: Instant,
    ) -> Result<(), DropReason> {
        self.expire(now);
        self.held(port, client).filter(|held| *held == address).ok_or(DropReason::DhcpIgnored)?;
        self.put(State::Declined, port, client, address, None, Some(now + DECLINE_TIME));
        Ok(())
    }

    /// Ends a guest's lease at its own wish.
    pub(crate) fn release(
        &mut self,
        port: PortId,
        client: &Client,
        address: A,
        now: Instant,
    ) -> Result<(), DropReason> {
        self.expire(now);
        self.held(port, client).filter(|held| *held == address).ok_or(DropReason::DhcpIgnored)?;
        self.end(|entry| entry.lease.address == address);
        Ok(())
    }

    /// Takes note that a guest uses an address that nobody has a lease for.
    pub(crate) fn note_use(&mut self, port: PortId, mac: [u8; 6], address: A) {
        let unclaimed = self.state(address).is_none_or(|state| state == State::Free);
        if unclaimed && self.in_pool(address) && self.make_room(port).is_ok() {
            self.put(State::Used, port, &Client { mac, id: None }, address, None, None);
        }
    }

    pub(crate) fn port_gone(&mut self, port: PortId) {
        self.end(|entry| entry.lease.port == port);
    }

    pub(crate) fn leases(&self, now: Instant) -> impl Iterator<Item = &Lease<A>> {
        self.entries.values().filter(move |entry| entry.is_leased(now)).map(|entry| &entry.lease)
    }

    pub(crate) fn lease_of(&self, address: A, now: Instant) -> Option<&Lease<A>> {
        self.entries.get(&address).filter(|entry| entry.is_leased(now)).map(|entry| &entry.lease)
    }

    fn expire(&mut self, now: Instant) {
        self.end(|entry| entry.has_expired(now));
    }

    /// Leases become free and keep their guest in mind; offers and declined addresses are forgotten.
    fn end(&mut self, which: impl Fn(&Entry<A>) -> bool) {
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
        address: A,
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
        let of_port = |entry: &Entry<A>| entry.state != State::Free && entry.lease.port == port;
        if self.entries.values().filter(|entry| of_port(entry)).count() < self.pool.max_per_port {
            return Ok(());
        }
        let oldest = self
            .oldest(|entry| of_port(entry) && entry.state != State::Bound)
            .ok_or(DropReason::DhcpExhausted)?;
        self.entries.remove(&oldest);
        Ok(())
    }

    /// The address that a guest holds or has been offered on this port.
    fn held(&self, port: PortId, client: &Client) -> Option<A> {
        self.best(client, |entry| {
            entry.lease.port == port && matches!(entry.state, State::Offered | State::Bound)
        })
    }

    /// Of the entries that fit a guest, the one that fits best, and the latest of those.
    fn best(&self, client: &Client, which: impl Fn(&Entry<A>) -> bool) -> Option<A> {
        let fits = |entry: &Entry<A>| match (&entry.lease.client_id, &client.id) {
            (Some(held), Some(asks)) => (held == asks).then_some(2),
            (held, asks) => (entry.lease.mac == client.mac).then_some(u8::from(held == asks)),
        };
        let fitting = self.entries.values().filter(|entry| which(entry));
        let best = fitting.filter_map(|entry| Some((fits(entry)?, entry.changed, entry.lease.address))).max();
        best.map(|(_, _, address)| address)
    }

    fn pick(&self) -> Option<A> {
        let unused = |address: &A| self.in_pool(*address) && !self.entries.contains_key(address);
        let range = &self.pool.range;
        (range.start().to_number()..=range.end().to_number())
            .map(A::from_number)
            .find(unused)
            .or_else(|| self.oldest(|entry| entry.state == State::Free))
            .or_else(|| self.oldest(|entry| entry.state == State::Offered))
    }

    fn oldest(&self, which: impl Fn(&Entry<A>) -> bool) -> Option<A> {
        let entries = self.entries.values().filter(|entry| which(entry));
        entries.min_by_key(|entry| entry.changed).map(|entry| entry.lease.address)
    }

    fn state(&self, address: A) -> Option<State> {
        self.entries.get(&address).map(|entry| entry.state)
    }

    fn in_pool(&self, address: A) -> bool {
        self.pool.range.contains(&address) && !self.pool.own.contains(&address)
    }

    /// Whether a guest on `port` may be given this address.
    fn is_free(&self, address: A, port: PortId) -> bool {
        self.in_pool(address)
            && self.entries.get(&address).is_none_or(|entry| match entry.state {
                State::Free => true,
                State::Used => entry.lease.port == port,
                State::Offered | State::Bound | State::Declined => false,
            })
    }

    /// Whether another lease has this host name.
    fn is_taken(&self, name: &str, address: A) -> bool {
        let mut leases = self.entries.values().map(|entry| &entry.lease);
        leases.any(|lease| lease.hostname.as_deref() == Some(name) && lease.address != address)
    }

    fn other_port(&self, port: PortId, mac: [u8; 6]) -> Option<PortId> {
        let bound = self.entries.values().filter(|entry| entry.state == State::Bound);
        let mut leases = bound.map(|entry| &entry.lease);
        leases.find(|lease| lease.mac == mac && lease.port != port).map(|lease| lease.port)
    }
}

impl<A> Entry<A> {
    fn is_leased(&self, now: Instant) -> bool {
        self.state == State::Bound && !self.has_expired(now)
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.lease.expires.is_some_and(|at| at <= now)
    }
}

/// The first label of a guest's name as one that DNS takes: lower-case letters, digits and inner
/// hyphens, 63 bytes at most.
pub(crate) fn host_label(name: &[u8]) -> Option<String> {
    let label: String = name
        .iter()
        .take_while(|byte| **byte != b'.')
        .filter(|byte| byte.is_ascii())
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte.to_ascii_lowercase()) } else { '-' })
        .skip_while(|char| *char == '-')
        .take(63)
        .collect();
    Some(label.trim_end_matches('-').to_owned()).filter(|label| !label.is_empty())
}

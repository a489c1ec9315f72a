//! Who is where: ports, MAC addresses and IP addresses of guests.
//!
//! The first port that uses an address keeps it until it goes, or has used too many others since: only a
//! lease can take an IP address over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use super::Limits;
use crate::port::{PortId, WorkerId};
use crate::time::Instant;
use crate::wire::MacAddr;

/// How often guests are asked for one address at most (RFC 1122 §2.3.2.1, RFC 4861 §10).
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Where an IP address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
}

#[derive(Debug, Default)]
pub(super) struct Switch {
    ports: BTreeMap<PortId, Member>,
    macs: HashMap<MacAddr, PortId>,
    neighbours: HashMap<IpAddr, Neighbour>,
    /// When guests were last asked for an address that is not known: of forwards only, and so as many at most
    /// as those name.
    wanted: HashMap<IpAddr, Instant>,
    /// Changes when an address gets another owner.
    pub(super) epoch: u64,
}

/// A port, and what is known of it.
#[derive(Debug)]
struct Member {
    home: WorkerId,
    macs: usize,
    /// The IP addresses that it was never leased, the one that is first to go first.
    learnt: Vec<IpAddr>,
    conflict_told: bool,
}

impl Switch {
    /// Adds a port, or another queue of one: its home is where its first queue is.
    pub(super) fn add(&mut self, port: PortId, home: WorkerId) {
        let member = Member { home, macs: 0, learnt: Vec::new(), conflict_told: false };
        self.ports.entry(port).or_insert(member);
    }

    pub(super) fn remove(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.macs.retain(|_, at| *at != port);
        self.neighbours.retain(|_, at| at.port != port);
        self.epoch += 1;
    }

    /// All ports.
    pub(super) fn ports(&self) -> impl ExactSizeIterator<Item = PortId> {
        self.ports.keys().copied()
    }

    /// The worker that has a port's first queue.
    pub(super) fn home(&self, port: PortId) -> Option<WorkerId> {
        self.ports.get(&port).map(|member| member.home)
    }

    /// Whether nobody was told yet that a port's MAC address is another's too.
    pub(super) fn tell_conflict(&mut self, port: PortId) -> bool {
        self.ports.get_mut(&port).is_some_and(|member| !std::mem::replace(&mut member.conflict_told, true))
    }

    pub(super) fn learn_mac(&mut self, port: PortId, mac: MacAddr, limits: &Limits) {
        if let Some(member) = self.ports.get_mut(&port)
            && member.macs < limits.macs
            && !self.macs.contains_key(&mac)
        {
            member.macs += 1;
            self.macs.insert(mac, port);
        }
    }

    pub(super) fn port_of(&self, mac: MacAddr) -> Option<PortId> {
        self.macs.get(&mac).copied()
    }

    /// Returns whether the address was not known before. Where there is no room for one more, the port's
    /// least recently learnt goes. That is no news to others (the epoch stays): whoever wants it asks for it.
    pub(super) fn learn_address(&mut self, addr: IpAddr, at: Neighbour, limits: &Limits) -> bool {
        let known = self.neighbours.get(&addr);
        if known.is_some_and(|known| known.port != at.port) {
            return false;
        }
        let Some(member) = self.ports.get_mut(&at.port) else { return false };
        let place = member.learnt.iter().position(|learnt| *learnt == addr);
        let is_new = known.is_none();
        if is_new && member.learnt.len() >= limits.addresses.max(1) {
            self.neighbours.remove(&member.learnt.remove(0));
        }
        if let Some(place) = place {
            member.learnt.remove(place);
        }
        if is_new || place.is_some() {
            member.learnt.push(addr);
        }
        self.neighbours.insert(addr, at);
        is_new
    }

    /// A lease says who an address belongs to, whatever was learnt before. Returns whether it was
    /// another's, or nobody's.
    pub(super) fn assign_address(&mut self, addr: IpAddr, at: Neighbour) -> bool {
        let old = self.neighbours.insert(addr, at);
        if let Some(member) = old.and_then(|old| self.ports.get_mut(&old.port)) {
            member.learnt.retain(|learnt| *learnt != addr);
        }
        if old.is_some_and(|old| old.port == at.port) {
            return false;
        }
        self.epoch += 1;
        true
    }

    /// The addresses of all ports.
    #[expect(clippy::disallowed_methods, reason = "the order ends in a sorted set")]
    pub(super) fn addresses(&self) -> BTreeSet<(PortId, IpAddr)> {
        self.neighbours.iter().map(|(addr, at)| (at.port, *addr)).collect()
    }

    /// Whether guests are to be asked for an address now.
    pub(super) fn want(&mut self, addr: IpAddr, now: Instant) -> bool {
        let asked = self.wanted.get(&addr);
        let ask = asked.is_none_or(|asked| *asked + ASK_AGAIN <= now);
        if ask {
            self.wanted.insert(addr, now);
        }
        ask
    }

    /// Whether an address that has been found now is one that was asked for.
    pub(super) fn was_wanted(&mut self, addr: IpAddr) -> bool {
        self.wanted.remove(&addr).is_some()
    }

    pub(super) fn neighbour(&self, addr: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&addr).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_a_guest_makes_up_push_out_its_oldest_and_no_lease() {
        let limits = Limits { addresses: 3, ..Limits::default() };
        let mut switch = Switch::default();
        let at = |port| Neighbour { port: PortId(port), mac: MacAddr([2, 0, 0, 0, 0, 1]) };
        let addr = |last: u8| IpAddr::from([10, 0, 2, last]);
        switch.add(PortId(1), WorkerId(0));
        switch.add(PortId(2), WorkerId(0));
        assert!(switch.learn_address(addr(1), at(1), &limits));
        assert!(switch.learn_address(addr(2), at(1), &limits));
        assert!(switch.learn_address(addr(9), at(2), &limits));
        // One that was learnt and then leased counts no more.
        assert!(!switch.assign_address(addr(1), at(1)));
        for last in 3..=4 {
            assert!(switch.learn_address(addr(last), at(1), &limits));
        }
        assert!(!switch.learn_address(addr(2), at(1), &limits));
        assert!(!switch.learn_address(addr(9), at(1), &limits), "another's stays another's");
        let epoch = switch.epoch;
        assert!(switch.learn_address(addr(5), at(1), &limits));
        let known = |switch: &Switch| {
            (1..=9).filter(|last| switch.neighbour(addr(*last)).is_some()).collect::<Vec<_>>()
        };
        assert_eq!((known(&switch), switch.epoch), (vec![1, 2, 4, 5, 9], epoch));
        // One that was pushed out may come back, or be another's.
        assert!(switch.learn_address(addr(3), at(2), &limits));
        switch.remove(PortId(1));
        assert_eq!(known(&switch), [3, 9]);
    }
}

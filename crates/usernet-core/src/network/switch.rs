//! Who is where: ports, MAC addresses and IP addresses of guests.
//!
//! The first port that uses an address keeps it until it goes: only a lease can take an IP address over.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::Limits;
use crate::port::{PortId, WorkerId};
use crate::wire::MacAddr;

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
    /// Changes when an address gets another owner.
    pub(super) epoch: u64,
}

/// A port, and how many addresses are known of it.
#[derive(Debug)]
struct Member {
    home: WorkerId,
    macs: usize,
    addresses: usize,
    conflict_told: bool,
}

impl Switch {
    /// Adds a port, or another queue of one: its home is where its first queue is.
    pub(super) fn add(&mut self, port: PortId, home: WorkerId) {
        let member = Member { home, macs: 0, addresses: 0, conflict_told: false };
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

    /// Returns whether the address was not known before.
    pub(super) fn learn_address(&mut self, addr: IpAddr, at: Neighbour, limits: &Limits) -> bool {
        match self.neighbours.get_mut(&addr) {
            Some(known) if known.port == at.port => {
                known.mac = at.mac;
                false
            }
            Some(_) => false,
            None => {
                let Some(member) = self.ports.get_mut(&at.port).filter(|m| m.addresses < limits.addresses)
                else {
                    return false;
                };
                member.addresses += 1;
                self.neighbours.insert(addr, at);
                true
            }
        }
    }

    /// A lease says who an address belongs to, whatever was learnt before. Returns whether it was
    /// another's, or nobody's.
    pub(super) fn assign_address(&mut self, addr: IpAddr, at: Neighbour) -> bool {
        let old = self.neighbours.insert(addr, at);
        if old.is_some_and(|old| old.port == at.port) {
            return false;
        }
        if let Some(member) = old.and_then(|old| self.ports.get_mut(&old.port)) {
            member.addresses = member.addresses.saturating_sub(1);
        }
        if let Some(member) = self.ports.get_mut(&at.port) {
            member.addresses += 1;
        }
        self.epoch += 1;
        true
    }

    pub(super) fn neighbour(&self, addr: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&addr).copied()
    }
}

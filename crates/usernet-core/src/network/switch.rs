//! Who is where: ports, MAC addresses and IP addresses of guests.
//!
//! The first port that uses an address keeps it until it goes: only a lease can take it over.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::Limits;
use crate::drops::Drops;
use crate::port::PortId;
use crate::wire::MacAddr;

/// What the network counts of a guest, and how much of what is bounded it holds.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// Frames from the guest.
    pub rx_frames: u64,
    /// Bytes from the guest.
    pub rx_bytes: u64,
    /// Why frames were dropped.
    pub drops: Drops,
    /// Frames for the guest wait in its link's buffer.
    pub(super) busy: bool,
    pub(super) connecting: usize,
    pub(super) kept: u32,
    pub(super) dns: usize,
    pub(super) dns_streams: usize,
    pub(super) conflict_told: bool,
    macs: usize,
    addresses: usize,
}

/// Where an IP address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
}

#[derive(Debug, Default)]
pub(super) struct Switch {
    pub(super) ports: BTreeMap<PortId, Port>,
    macs: HashMap<MacAddr, PortId>,
    neighbours: HashMap<IpAddr, Neighbour>,
}

impl Switch {
    pub(super) fn add(&mut self, port: PortId) {
        self.ports.insert(port, Port::default());
    }

    pub(super) fn remove(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.macs.retain(|_, at| *at != port);
        self.neighbours.retain(|_, at| at.port != port);
    }

    pub(super) fn learn_mac(&mut self, port: PortId, mac: MacAddr, limits: &Limits) {
        if let Some(entry) = self.ports.get_mut(&port)
            && entry.macs < limits.macs
            && !self.macs.contains_key(&mac)
        {
            entry.macs += 1;
            self.macs.insert(mac, port);
        }
    }

    /// A lease says whose a MAC address is, whoever was first to use it.
    pub(super) fn assign_mac(&mut self, port: PortId, mac: MacAddr) {
        let old = self.macs.insert(mac, port);
        for (port, step) in old.map(|old| (old, -1)).into_iter().chain([(port, 1)]) {
            if let Some(entry) = self.ports.get_mut(&port) {
                entry.macs = entry.macs.saturating_add_signed(step);
            }
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
                let Some(port) = self.ports.get_mut(&at.port).filter(|p| p.addresses < limits.addresses)
                else {
                    return false;
                };
                port.addresses += 1;
                self.neighbours.insert(addr, at);
                true
            }
        }
    }

    /// A lease says who an address belongs to, whatever was learnt before.
    pub(super) fn assign_address(&mut self, addr: IpAddr, at: Neighbour) {
        if let Some(old) = self.neighbours.insert(addr, at)
            && let Some(port) = self.ports.get_mut(&old.port)
        {
            port.addresses = port.addresses.saturating_sub(1);
        }
        if let Some(port) = self.ports.get_mut(&at.port) {
            port.addresses += 1;
        }
    }

    pub(super) fn neighbour(&self, addr: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&addr).copied()
    }
}

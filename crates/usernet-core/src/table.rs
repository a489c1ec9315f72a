//! Flows by number and by who they belong to.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use crate::nat64;
use crate::port::{PortId, WorkerId};
use crate::time::Instant;
use crate::wheel::TimerId;
use crate::wire::MacAddr;

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The port; for ICMP, the identifier.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint as the standard library's type.
    pub fn to_socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.addr, self.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { addr: addr.ip(), port: addr.port() }
    }
}

/// What a flow is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The guest.
    pub port: PortId,
    /// Its end.
    pub guest: Endpoint,
    /// The other end, as the guest sees it. Where one flow serves all (UDP, ICMP) it is `None`, or, as their
    /// sockets are others, [`crate::nat64::PREFIX`] and port 0 for the IPv4 peers of an IPv6 guest.
    pub peer: Option<Endpoint>,
}

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Ping,
}

/// The number of a flow. A number is used again for another flow, an identifier is not (for 2²⁸ lives).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// The protocol.
    pub kind: FlowKind,
    /// The place in the table of its protocol.
    pub index: u32,
    generation: u32,
}

const GENERATION_MASK: u32 = (1 << 28) - 1;

impl FlowId {
    /// The identifier as one number, for the data field of an epoll event; under 2⁶².
    pub fn to_token(self) -> u64 {
        let kind: u64 = match self.kind {
            FlowKind::Tcp => 1,
            FlowKind::Udp => 2,
            FlowKind::Ping => 3,
        };
        kind << 60 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The identifier that [`FlowId::to_token`] made `token` from.
    pub fn from_token(token: u64) -> Option<Self> {
        let kind = match token >> 60 {
            1 => FlowKind::Tcp,
            2 => FlowKind::Udp,
            3 => FlowKind::Ping,
            _ => return None,
        };
        let generation = u32::try_from(token >> 32 & u64::from(GENERATION_MASK)).ok()?;
        Some(Self { kind, index: u32::try_from(token & u64::from(u32::MAX)).ok()?, generation })
    }
}

/// A flow and what every kind of flow has.
#[derive(Debug)]
pub struct Entry<F> {
    /// What it is found by.
    pub key: FlowKey,
    /// Where its frames go.
    pub mac: MacAddr,
    /// The entry of the timer wheel that will look at it.
    pub armed: Option<(Instant, TimerId)>,
    /// Whether it waits in the list of flows to poll.
    pub queued: bool,
    /// The protocol's own part.
    pub flow: F,
    generation: u32,
    older: Option<u32>,
    newer: Option<u32>,
}

/// The flows of one group, from the least to the most recently used.
#[derive(Debug, Default)]
struct GroupList {
    oldest: Option<u32>,
    newest: Option<u32>,
    len: usize,
}

/// All flows of one protocol.
#[derive(Debug)]
pub struct FlowTable<F> {
    kind: FlowKind,
    seed: [u8; 16],
    slots: Vec<Result<Box<Entry<F>>, u32>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    groups: HashMap<Group, GroupList>,
    /// This table's worker, and the flows of all; none when it is the only one.
    owners: Option<(WorkerId, Arc<Owners>)>,
    /// Ports whose frames may come to other workers too.
    shared: HashSet<PortId>,
}

/// Which worker has which flow, where a guest's frames may come to any of several.
#[derive(Debug, Default)]
pub struct Owners(Mutex<HashMap<(FlowKind, FlowKey), WorkerId>>);

impl Owners {
    fn lock(&self) -> MutexGuard<'_, HashMap<(FlowKind, FlowKey), WorkerId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flows that share a bound: those of one port that serve one peer each, or those that serve all. So
/// strangers who send to a forwarded port cannot push out what the guest has opened itself.
type Group = (PortId, bool);

impl FlowKey {
    /// The other end, where there is only one.
    pub fn one_peer(&self) -> Option<Endpoint> {
        self.peer.filter(|peer| peer.addr != nat64::PREFIX || peer.port != 0)
    }

    fn group(&self) -> Group {
        (self.port, self.one_peer().is_some())
    }
}

impl<F> FlowTable<F> {
    /// An empty table whose hashes are keyed with `seed`: a guest cannot make keys collide. `owners` is
    /// for a table of one worker among several.
    pub fn new(kind: FlowKind, seed: [u8; 16], owners: Option<(WorkerId, Arc<Owners>)>) -> Self {
        Self {
            kind,
            seed,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashTable::new(),
            groups: HashMap::new(),
            owners,
            shared: HashSet::new(),
        }
    }

    /// Frames of `port` may come to other workers too: see to it that they know whose its flows are.
    pub fn share(&mut self, port: PortId) {
        self.shared.insert(port);
    }

    /// The port is no more. Its flows may live on for a while; frames come for none of them.
    pub fn unshare(&mut self, port: PortId) {
        for flow in self.of_port(port) {
            if let Some(key) = self.get(flow).map(|entry| entry.key) {
                self.disown(&key);
            }
        }
        self.shared.remove(&port);
    }

    fn disown(&self, key: &FlowKey) {
        let Some((worker, owners)) = self.owners(key) else { return };
        let mut owners = owners.lock();
        if owners.get(&(self.kind, *key)) == Some(worker) {
            owners.remove(&(self.kind, *key));
        }
    }

    /// The workers' common table, if it has flows of the port of `key`.
    fn owners(&self, key: &FlowKey) -> Option<&(WorkerId, Arc<Owners>)> {
        self.owners.as_ref().filter(|_| self.shared.contains(&key.port))
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// How many flows share a bound with `key`.
    pub fn count(&self, key: &FlowKey) -> usize {
        self.groups.get(&key.group()).map_or(0, |list| list.len)
    }

    /// The flow with this key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let slots = &self.slots;
        let index = *self
            .by_key
            .find(hash(&self.seed, key), |index| entry(slots, *index).is_some_and(|e| e.key == *key))?;
        self.id(index)
    }

    /// The other worker that has the flow with this key.
    pub fn elsewhere(&self, key: &FlowKey) -> Option<WorkerId> {
        let (worker, owners) = self.owners(key)?;
        owners.lock().get(&(self.kind, *key)).copied().filter(|owner| owner != worker)
    }

    /// Adds a flow whose key is not in the table.
    pub fn insert(&mut self, key: FlowKey, mac: MacAddr, flow: F) -> FlowId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Err(0));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let mut generation = 0;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            generation = slot.as_ref().err().copied().unwrap_or(0);
            *slot = Ok(Box::new(Entry {
                key,
                mac,
                armed: None,
                queued: false,
                flow,
                generation,
                older: None,
                newer: None,
            }));
        }
        self.index_key(index, key);
        self.link_newest(index, key.group());
        FlowId { kind: self.kind, index, generation }
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<Entry<F>> {
        let key = self.get(id)?.key;
        self.unlink(id.index, key.group());
        self.unindex_key(id.index, &key);
        let slot = self.slots.get_mut(id.index as usize)?;
        let entry = std::mem::replace(slot, Err((id.generation + 1) & GENERATION_MASK)).ok()?;
        self.free.push(id.index);
        Some(*entry)
    }

    /// The flow with this number.
    pub fn get(&self, id: FlowId) -> Option<&Entry<F>> {
        entry(&self.slots, id.index).filter(|e| e.generation == id.generation)
    }

    /// The flow with this number.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Entry<F>> {
        entry_mut(&mut self.slots, id.index).filter(|e| e.generation == id.generation)
    }

    /// Moves a flow to another port: its guest has been found.
    pub fn move_to(&mut self, id: FlowId, port: PortId, mac: MacAddr) {
        let Some(old) = self.get(id).map(|e| e.key) else { return };
        self.unlink(id.index, old.group());
        self.unindex_key(id.index, &old);
        let key = FlowKey { port, ..old };
        if let Some(entry) = self.get_mut(id) {
            entry.key = key;
            entry.mac = mac;
        }
        self.index_key(id.index, key);
        self.link_newest(id.index, key.group());
    }

    /// Makes a flow its group's most recently used.
    pub fn touch(&mut self, id: FlowId) {
        let Some(group) = self.get(id).map(|e| e.key.group()) else { return };
        if self.groups.get(&group).is_some_and(|list| list.newest != Some(id.index)) {
            self.unlink(id.index, group);
            self.link_newest(id.index, group);
        }
    }

    /// Makes a flow its group's first to go.
    pub fn retire(&mut self, id: FlowId) {
        let Some(group) = self.get(id).map(|e| e.key.group()) else { return };
        self.unlink(id.index, group);
        let list = self.groups.entry(group).or_default();
        let next = list.oldest.replace(id.index);
        list.newest.get_or_insert(id.index);
        list.len += 1;
        if let Some(next) = next
            && let Some(entry) = entry_mut(&mut self.slots, next)
        {
            entry.older = Some(id.index);
        }
        if let Some(entry) = entry_mut(&mut self.slots, id.index) {
            entry.newer = next;
        }
    }

    /// Of the flows that share a bound with `key`, the one that is first to go.
    pub fn oldest(&self, key: &FlowKey) -> Option<FlowId> {
        self.id(self.groups.get(&key.group())?.oldest?)
    }

    /// The flows of `port`, of each group the least recently used first.
    pub fn of_port(&self, port: PortId) -> Vec<FlowId> {
        let mut flows = Vec::new();
        for group in [(port, false), (port, true)] {
            let mut next = self.groups.get(&group).and_then(|list| list.oldest);
            while let Some(index) = next {
                flows.extend(self.id(index));
                next = entry(&self.slots, index).and_then(|e| e.newer);
            }
        }
        flows
    }

    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &Entry<F>)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| {
            let entry = slot.as_deref().ok()?;
            Some((FlowId { kind: self.kind, index, generation: entry.generation }, entry))
        })
    }

    fn id(&self, index: u32) -> Option<FlowId> {
        let generation = entry(&self.slots, index)?.generation;
        Some(FlowId { kind: self.kind, index, generation })
    }

    fn index_key(&mut self, index: u32, key: FlowKey) {
        let (slots, seed) = (&self.slots, &self.seed);
        let rehash = |index: &u32| entry(slots, *index).map_or(0, |e| hash(seed, &e.key));
        self.by_key.insert_unique(hash(seed, &key), index, rehash);
        if let Some((worker, owners)) = self.owners(&key) {
            owners.lock().entry((self.kind, key)).or_insert(*worker);
        }
    }

    fn unindex_key(&mut self, index: u32, key: &FlowKey) {
        if let Ok(found) = self.by_key.find_entry(hash(&self.seed, key), |other| *other == index) {
            found.remove();
        }
        self.disown(key);
    }

    fn link_newest(&mut self, index: u32, group: Group) {
        let list = self.groups.entry(group).or_default();
        let previous = list.newest.replace(index);
        list.oldest.get_or_insert(index);
        list.len += 1;
        if let Some(previous) = previous
            && let Some(entry) = entry_mut(&mut self.slots, previous)
        {
            entry.newer = Some(index);
        }
        if let Some(entry) = entry_mut(&mut self.slots, index) {
            entry.older = previous;
            entry.newer = None;
        }
    }

    fn unlink(&mut self, index: u32, group: Group) {
        let Some(entry) = entry_mut(&mut self.slots, index) else { return };
        let (older, newer) = (entry.older.take(), entry.newer.take());
        if let Some(entry) = older.and_then(|older| entry_mut(&mut self.slots, older)) {
            entry.newer = newer;
        }
        if let Some(entry) = newer.and_then(|newer| entry_mut(&mut self.slots, newer)) {
            entry.older = older;
        }
        if let Some(list) = self.groups.get_mut(&group) {
            list.len -= 1;
            if list.oldest == Some(index) {
                list.oldest = newer;
            }
            if list.newest == Some(index) {
                list.newest = older;
            }
            if list.len == 0 {
                self.groups.remove(&group);
            }
        }
    }
}

fn entry<F>(slots: &[Result<Box<Entry<F>>, u32>], index: u32) -> Option<&Entry<F>> {
    slots.get(index as usize)?.as_deref().ok()
}

fn entry_mut<F>(slots: &mut [Result<Box<Entry<F>>, u32>], index: u32) -> Option<&mut Entry<F>> {
    slots.get_mut(index as usize)?.as_deref_mut().ok()
}

/// A keyed hash of `value`.
pub(crate) fn hash(seed: &[u8; 16], value: &impl Hash) -> u64 {
    let mut hasher = SipHasher13::new_with_key(seed);
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u32, guest_port: u16) -> FlowKey {
        let guest = Endpoint { addr: IpAddr::from([10, 0, 2, 15]), port: guest_port };
        FlowKey { port: PortId(port), guest, peer: None }
    }

    fn table() -> FlowTable<u16> {
        FlowTable::new(FlowKind::Udp, [7; 16], None)
    }

    fn order(table: &FlowTable<u16>, port: u32) -> Vec<u16> {
        table.of_port(PortId(port)).iter().map(|id| table.get(*id).unwrap().flow).collect()
    }

    #[test]
    fn a_number_that_is_used_again_is_another_flow() {
        let mut table = table();
        let first = table.insert(key(1, 1), MacAddr::default(), 1);
        assert_eq!(FlowId::from_token(first.to_token()), Some(first));
        table.remove(first).unwrap();
        let second = table.insert(key(1, 2), MacAddr::default(), 2);
        assert_eq!(first.index, second.index);
        assert!(table.get(first).is_none());
        assert_eq!(table.find(&key(1, 2)), Some(second));
        assert_eq!(table.find(&key(1, 1)), None);
    }

    #[test]
    fn the_least_recently_used_of_a_port_is_first_to_go() {
        let mut table = table();
        let ids: Vec<_> = (0..4).map(|n| table.insert(key(1, n), MacAddr::default(), n)).collect();
        table.insert(key(2, 9), MacAddr::default(), 9);
        table.touch(ids[0]);
        table.touch(ids[2]);
        assert_eq!(order(&table, 1), [1, 3, 0, 2]);
        table.retire(ids[0]);
        assert_eq!(order(&table, 1), [0, 1, 3, 2]);
        table.remove(ids[3]);
        assert_eq!(order(&table, 1), [0, 1, 2]);
        table.move_to(ids[1], PortId(2), MacAddr::default());
        assert_eq!((order(&table, 1), order(&table, 2)), (vec![0, 2], vec![9, 1]));
        assert_eq!(table.find(&key(2, 1)), Some(ids[1]));
        for id in [ids[0], ids[2]] {
            table.remove(id);
        }
        assert_eq!((table.count(&key(1, 0)), table.oldest(&key(1, 0)), table.len()), (0, None, 2));
    }
}

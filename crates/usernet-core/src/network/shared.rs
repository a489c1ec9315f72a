//! What the cores of one network share: who is where, and the leases.
//!
//! A core that is alone owns it outright; several have a lock around it. It is asked when a guest says
//! something that is new, not for the frames of a flow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Config;
use super::config::gateway_mac;
use super::switch::Switch;
use crate::port::WorkerId;
use crate::table::Owners;
use crate::{dhcp, dhcp6};

pub(super) struct Registry {
    pub(super) switch: Switch,
    pub(super) dhcp: dhcp::Server,
    pub(super) dhcp6: Option<dhcp6::Server>,
}

/// A core's way to the registry.
pub(super) struct Shared {
    pub(super) worker: WorkerId,
    registry: Access,
}

enum Access {
    Own(Box<Registry>),
    Locked(Arc<Locked>),
}

struct Locked {
    owners: Arc<Owners>,
    /// The switch's own, to be read without the lock.
    epoch: AtomicU64,
    registry: Mutex<Registry>,
}

impl Registry {
    fn new(config: &Config) -> Self {
        Self {
            switch: Switch::default(),
            dhcp: dhcp::Server::new(config.dhcp.clone()),
            dhcp6: config.net6.clone().map(|net| dhcp6::Server::new(net, gateway_mac(config.gateway))),
        }
    }
}

impl Shared {
    /// For a core that is alone.
    pub(super) fn own(config: &Config) -> Self {
        Self { worker: WorkerId(0), registry: Access::Own(Box::new(Registry::new(config))) }
    }

    /// For `count` cores.
    pub(super) fn among(config: &Config, count: u16) -> impl Iterator<Item = Self> {
        let registry = Mutex::new(Registry::new(config));
        let owners = Arc::new(Owners::default());
        let locked = Arc::new(Locked { owners, epoch: AtomicU64::new(0), registry });
        (0..count).map(move |worker| Self {
            worker: WorkerId(worker),
            registry: Access::Locked(Arc::clone(&locked)),
        })
    }

    /// Which worker has which flow; none for a core that is alone.
    pub(super) fn owners(&self) -> Option<(WorkerId, Arc<Owners>)> {
        match &self.registry {
            Access::Own(_) => None,
            Access::Locked(locked) => Some((self.worker, Arc::clone(&locked.owners))),
        }
    }

    pub(super) fn is_alone(&self) -> bool {
        matches!(self.registry, Access::Own(_))
    }

    pub(super) fn with<R>(&mut self, act: impl FnOnce(&mut Registry) -> R) -> R {
        match &mut self.registry {
            Access::Own(registry) => act(registry),
            Access::Locked(locked) => {
                // A worker that panicked in here has left no half-made change that matters: each is one
                // insertion.
                let mut registry = locked.registry.lock().unwrap_or_else(PoisonError::into_inner);
                let result = act(&mut registry);
                locked.epoch.store(registry.switch.epoch, Ordering::Release);
                result
            }
        }
    }

    /// A number that changes when an address gets another owner: what was learnt before is to be learnt
    /// anew.
    pub(super) fn epoch(&self) -> u64 {
        match &self.registry {
            Access::Own(registry) => registry.switch.epoch,
            Access::Locked(locked) => locked.epoch.load(Ordering::Acquire),
        }
    }
}

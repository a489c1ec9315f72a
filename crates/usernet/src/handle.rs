//! The handle on a running network.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tokio::runtime;
use tokio::sync::{oneshot, watch};
use usernet_core::port::PortId;
use usernet_link::{Link, vhost_user};

use crate::core_config::guest_config;
use crate::roster::Roster;
use crate::worker::{Command, Commands, Listener};
use crate::{Config, DropInfo, Error, FlowInfo, ForwardInfo, ForwardRule, GuestConfig, LeaseInfo, PortInfo};

/// The worker that has the forwards.
const FIRST: usize = 0;

/// A handle on a running network. Cheap to clone. A call waits for a worker's next turn;
/// [`Handle::detached`] and [`Handle::ended`] wait for what they name.
#[derive(Clone)]
pub struct Handle {
    pub(crate) workers: Arc<[Commands]>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) runtime: runtime::Handle,
    pub(crate) config: Arc<Config>,
    pub(crate) next_forward: Arc<AtomicU32>,
    /// Whether a worker has ended.
    pub(crate) ended: watch::Receiver<bool>,
}

fn no_guest(port: u32) -> Error {
    Error::NotFound(format!("there is no guest on port {port}; `usernet ctl ports` lists them"))
}

impl Handle {
    /// The control plane's tokio runtime, for tasks of the embedder's own.
    pub fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }

    /// Plugs a guest in; returns its port. `name` is for tables and logs.
    ///
    /// # Errors
    /// The link cannot be polled, or the network has been shut down.
    pub fn attach(&self, link: Link, name: &str) -> Result<u32, Error> {
        self.attach_queues(vec![link], name)
    }

    /// Plugs a guest in that has several queues, each a link. Each goes to a worker of its own. Returns
    /// its port.
    ///
    /// # Errors
    /// There is no queue, or more than workers; the guest goes before all are plugged in; a link cannot be
    /// polled, or the network has been shut down.
    pub fn attach_queues(&self, links: Vec<Link>, name: &str) -> Result<u32, Error> {
        let queues = links.len();
        if queues == 0 {
            return Err(Error::NoQueues);
        }
        let (port, workers) = self
            .roster
            .add(queues)
            .ok_or_else(|| Error::TooManyQueues { queues, workers: self.workers.len() })?;
        for (link, worker) in links.into_iter().zip(&workers) {
            let (link, name) = (Box::new(link), name.to_owned());
            let attached =
                self.ask(*worker, |reply| Command::Attach { port, link, queues, name, reply }).flatten();
            if let Err(error) = attached {
                // What was attached before it goes again.
                let _ = self.detach(port.0);
                return Err(error);
            }
        }
        Ok(port.0)
    }

    /// Plugs in the guest of the vhost-user front end at the other end of `stream`, with as many pairs of
    /// queues as `queues` says, each served by a worker of its own. Returns its port. A thread holds the
    /// conversation for as long as both are there.
    ///
    /// # Errors
    /// As for [`Handle::attach_queues`]; or no descriptor or thread is left.
    pub fn attach_vhost_user(
        &self,
        stream: UnixStream,
        queues: NonZeroU16,
        name: &str,
    ) -> Result<u32, Error> {
        let failed = |error| Error::Io { what: "cannot make a vhost-user device".into(), error };
        let (links, session) = vhost_user::device(stream, queues, self.config.mtu).map_err(failed)?;
        let port = self.attach_queues(links, name)?;
        // Its end is the links' end, which the network tells of. Without a thread, it ends right here.
        let run = move || {
            let _span = tracing::info_span!("vhost-user", port).entered();
            drop(session.run());
        };
        thread::Builder::new().name(format!("vhost-user {port}")).spawn(run).map_err(failed)?;
        Ok(port)
    }

    /// Unplugs a guest.
    ///
    /// # Errors
    /// There is no such guest.
    pub fn detach(&self, port: u32) -> Result<(), Error> {
        let workers = self.roster.remove(PortId(port));
        for worker in workers.iter().filter_map(|worker| self.workers.get(*worker)) {
            worker.send(Command::Detach { port: PortId(port), reason: "detached".to_owned() });
        }
        if workers.is_empty() { Err(no_guest(port)) } else { Ok(()) }
    }

    /// Completes when the guest's link has ended, with the reason.
    pub async fn detached(&self, port: u32) -> String {
        let (reply, ended) = oneshot::channel();
        let Some(worker) = self.home(port) else { return "the link is gone".to_owned() };
        self.send(worker, Command::Watch { port: PortId(port), reply });
        ended.await.unwrap_or_else(|_| Error::Shutdown.to_string())
    }

    /// Completes when the network serves no more: it was shut down, or a worker has failed.
    pub async fn ended(&self) {
        // The sender goes with the workers.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Gives a guest that will not ask by DHCP a lease of each kind of IP that is on, for as long as it is
    /// there.
    ///
    /// # Errors
    /// There is no such guest, or no address is left for it.
    pub fn lease(&self, port: u32, mac: [u8; 6], hostname: Option<&str>) -> Result<GuestConfig, Error> {
        let hostname = hostname.map(str::to_owned);
        let worker = self.home(port).ok_or_else(|| no_guest(port))?;
        let id = PortId(port);
        let leased = self.ask(worker, |reply| Command::Lease { port: id, mac, hostname, reply })?;
        let none = || Error::NotFound(format!("no address is left for a guest on port {port}"));
        Ok(guest_config(&self.config, leased.ok_or_else(none)?))
    }

    /// Forwards a host port to a guest.
    ///
    /// # Errors
    /// The rule does not fit the network, or the port cannot be had: the text names the rule, the reason
    /// and the way out.
    pub fn add_forward(&self, rule: &ForwardRule) -> Result<ForwardInfo, Error> {
        self.config.validate_forward(rule)?;
        self.add_listener(rule.clone(), Listener::bind(rule)?)
    }

    pub(crate) fn add_listener(&self, rule: ForwardRule, listener: Listener) -> Result<ForwardInfo, Error> {
        let id = self.next_forward.fetch_add(1, Ordering::Relaxed);
        // Before the first datagram may come, and before anybody can learn the number and remove it.
        for worker in 1..self.workers.len() {
            if let Some(end) = listener.replies_by() {
                self.send(worker, Command::ShareForward { id, end });
            }
        }
        let added = self.ask(FIRST, |reply| Command::AddForward { id, rule, listener, reply }).flatten();
        if added.is_err() {
            self.unshare_forward(id)?;
        }
        added
    }

    /// Has the workers that do not have the forward itself forget it.
    fn unshare_forward(&self, id: u32) -> Result<(), Error> {
        for worker in 1..self.workers.len() {
            self.ask(worker, |reply| Command::RemoveForward { id, reply })?;
        }
        Ok(())
    }

    /// Ends a forward; connections that it accepted go on.
    ///
    /// # Errors
    /// There is no such forward.
    pub fn remove_forward(&self, id: u32) -> Result<(), Error> {
        if !self.ask(FIRST, |reply| Command::RemoveForward { id, reply })? {
            let why = format!("there is no forward {id}; `usernet ctl forwards` lists them");
            return Err(Error::NotFound(why));
        }
        self.unshare_forward(id)
    }

    /// The guests.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn ports(&self) -> Result<Vec<PortInfo>, Error> {
        let mut ports: BTreeMap<u32, PortInfo> = BTreeMap::new();
        for queue in self.ask_all(Command::Ports)?.into_iter().flatten() {
            match ports.get_mut(&queue.port) {
                Some(port) => port.add(queue),
                None => drop(ports.insert(queue.port, queue)),
            }
        }
        Ok(ports.into_values().collect())
    }

    /// The leases.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>, Error> {
        self.ask(FIRST, Command::Leases)
    }

    /// The flows.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn flows(&self) -> Result<Vec<FlowInfo>, Error> {
        Ok(self.ask_all(Command::Flows)?.concat())
    }

    /// The forwards.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn forwards(&self) -> Result<Vec<ForwardInfo>, Error> {
        self.ask(FIRST, Command::Forwards)
    }

    /// Why frames were dropped, of all guests together, those that went included.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn drops(&self) -> Result<Vec<DropInfo>, Error> {
        let mut drops: Vec<DropInfo> = Vec::new();
        for drop in self.ask_all(Command::Drops)?.into_iter().flatten() {
            match drops.iter_mut().find(|other| other.reason == drop.reason) {
                Some(other) => other.count += drop.count,
                None => drops.push(drop),
            }
        }
        Ok(drops)
    }

    /// The worker that has a guest's first queue.
    fn home(&self, port: u32) -> Option<usize> {
        self.roster.of(PortId(port)).first().copied()
    }

    fn send(&self, worker: usize, command: Command) -> bool {
        self.workers.get(worker).is_some_and(|worker| worker.send(command))
    }

    fn ask<T>(&self, worker: usize, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        if !self.send(worker, command(reply)) {
            return Err(Error::Shutdown);
        }
        answer.recv().map_err(|_| Error::Shutdown)
    }

    fn ask_all<T>(&self, command: impl Fn(SyncSender<T>) -> Command) -> Result<Vec<T>, Error> {
        (0..self.workers.len()).map(|worker| self.ask(worker, &command)).collect()
    }
}

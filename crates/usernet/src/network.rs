//! A running network and the handle on it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{oneshot, watch};
use usernet_core::network as core;
use usernet_core::port::{PortId, WorkerId};
use usernet_core::{dhcp, dhcp6};
use usernet_dns::Resolver;
use usernet_host::epoll::Poll;
use usernet_link::Link;

use crate::capture::Capture;
use crate::roster::Roster;
use crate::worker::{Command, Commands, Listener, Parts, Worker, mail};
use crate::{
    Config, ConfigError, DropInfo, FlowInfo, ForwardInfo, ForwardRule, GuestAddress, GuestConfig, LeaseInfo,
    Net6, PortInfo,
};

/// The worker that has the forwards.
const FIRST: usize = 0;
/// How often the host's own addresses are looked at, where guests may not reach them.
const HOST_ADDRESSES: Duration = Duration::from_secs(2);

/// Why something asked of a network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A forwarded port could not be had. The text names the rule, the reason and the way out.
    #[error("{0}")]
    Forward(String),
    /// A guest has no queue at all.
    #[error("a guest has at least one queue: give it one link or more")]
    NoQueues,
    /// A guest has more queues than the network has workers.
    #[error(
        "a guest with {queues} queues needs as many workers, and there are {workers}: start the network with more workers, or use fewer queues"
    )]
    TooManyQueues {
        /// The guest's queues.
        queues: usize,
        /// The network's workers.
        workers: usize,
    },
    /// There is no such port, lease or forward.
    #[error("{0}")]
    NotFound(String),
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Shutdown,
    /// The system failed us.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |error| Self::Io { what: what.into(), error }
    }
}

/// A network that runs on threads of its own until it is shut down or dropped.
pub struct Network {
    handle: Handle,
    workers: Vec<JoinHandle<()>>,
    capture: Option<JoinHandle<()>>,
    /// Dropping it ends the control thread.
    control_stop: Option<oneshot::Sender<()>>,
    control: Option<JoinHandle<()>>,
}

/// A handle on a running network. Cheap to clone. A call waits for a worker's next turn;
/// [`Handle::detached`] and [`Handle::ended`] wait for what they name.
#[derive(Clone)]
pub struct Handle {
    workers: Arc<[Commands]>,
    roster: Arc<Roster>,
    runtime: runtime::Handle,
    config: Arc<Config>,
    next_forward: Arc<AtomicU32>,
    /// Whether a worker has ended.
    ended: watch::Receiver<bool>,
}

impl Network {
    /// Starts a network: binds its forwards, opens its capture file, starts its threads.
    ///
    /// # Errors
    /// The configuration does not fit together, or something that it names cannot be had.
    pub fn start(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let config = Arc::new(config);
        let descriptors = usernet_host::limits::raise_descriptor_limit();
        if let Err(forbidden) = usernet_host::ping::ping_allowed() {
            tracing::warn!("{forbidden}");
        }
        let listeners: Vec<(ForwardRule, Listener)> = config
            .forwards
            .iter()
            .map(|rule| Ok((rule.clone(), Listener::bind(rule)?)))
            .collect::<Result<_, Error>>()?;
        let captured = match &config.pcap {
            Some(path) => {
                let what = format!("cannot write the capture file {}", path.display());
                Some(Capture::create(path).map_err(Error::io(what))?)
            }
            None => None,
        };
        let (capture, capture_thread) = captured.unzip();
        let resolver = Resolver::new(usernet_dns::Config {
            upstreams: config.dns_upstreams.clone(),
            gateway: config.gateway,
            // A few times what one guest may ask at once.
            max_in_flight: 1024,
            ..usernet_dns::Config::default()
        })
        .map_err(|error| ConfigError(error.to_string()))?;
        let (runtime, control_stop, control) =
            start_control().map_err(Error::io("cannot start the control thread"))?;
        let (ended_sender, ended) = watch::channel(false);
        let ended_sender = Arc::new(ended_sender);
        let workers = config.workers.map_or_else(default_workers, |workers| workers.get());
        let mut inboxes = Vec::new();
        for _ in 0..workers {
            inboxes.push(mail().map_err(Error::io("cannot make an eventfd"))?);
        }
        let handle = Handle {
            workers: inboxes.iter().map(|(commands, _)| commands.clone()).collect(),
            roster: Arc::new(Roster::new(workers.into())),
            runtime,
            config: Arc::clone(&config),
            next_forward: Arc::new(AtomicU32::new(1)),
            ended,
        };
        let mut network = Self {
            handle: handle.clone(),
            workers: Vec::new(),
            capture: capture_thread,
            control_stop: Some(control_stop),
            control: Some(control),
        };
        let origin = std::time::Instant::now();
        let core = core_config(&config, descriptors)?;
        let cores = match workers {
            1 => vec![core::Network::new(core)],
            many => core::Network::split(&core, many),
        };
        for ((id, core), (commands, mail)) in (0..).map(WorkerId).zip(cores).zip(inboxes) {
            let worker = Worker::new(Parts {
                core,
                poll: Poll::new().map_err(Error::io("cannot make an epoll instance"))?,
                waker: commands.waker,
                mail,
                id,
                workers: Arc::clone(&handle.workers),
                roster: Arc::clone(&handle.roster),
                resolver: resolver.clone(),
                runtime: handle.runtime.clone(),
                capture: capture.clone(),
                default_guest: config.default_guest(),
                origin,
            })
            .map_err(Error::io("cannot poll an eventfd"))?;
            let end = End(Arc::clone(&ended_sender));
            let thread = thread::Builder::new().name(format!("usernet-{}", id.0)).spawn(move || {
                let _end = end;
                worker.run();
            });
            network.workers.push(thread.map_err(Error::io("cannot start a worker thread"))?);
        }
        for (rule, listener) in listeners {
            network.handle.add_listener(rule, listener)?;
        }
        if !config.host_loopback {
            network.handle.follow_host_addresses();
        }
        Ok(network)
    }

    /// The handle on this network.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the network: host peers see a reset, guests a link that goes.
    pub fn shutdown(self) {}
}

impl Drop for Network {
    fn drop(&mut self) {
        for worker in &*self.handle.workers {
            worker.send(Command::Shutdown);
        }
        for thread in self.workers.drain(..).chain(self.capture.take()) {
            // It has told why, if it panicked.
            let _ = thread.join();
        }
        drop(self.control_stop.take());
        if let Some(control) = self.control.take()
            && control.thread().id() != thread::current().id()
        {
            let _ = control.join();
        }
    }
}

/// Says that a worker has ended, when it does, by a panic too.
struct End(Arc<watch::Sender<bool>>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// As many workers as there are processors, while that is not more than guests are likely to use.
fn default_workers() -> u16 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors).unwrap_or(u16::MAX).min(8)
}

/// Starts the thread that runs the control plane: DNS, and what the embedder adds.
fn start_control() -> io::Result<(runtime::Handle, oneshot::Sender<()>, JoinHandle<()>)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = thread::Builder::new().name("usernet-control".into()).spawn(move || {
        // The sender says nothing, it only goes.
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    })?;
    Ok((handle, stop, thread))
}

fn host_addresses() -> Result<Vec<IpAddr>, Error> {
    usernet_host::addresses()
        .map_err(Error::io("cannot list the host's own addresses, which are to be closed"))
}

fn core_config(config: &Config, descriptors: u64) -> Result<core::Config, Error> {
    let mut limits = core::Limits::default();
    // One guest must not take all descriptors: others, and the network itself, need some.
    limits.tcp = limits.tcp.min(usize::try_from(descriptors / 5 * 4).unwrap_or(usize::MAX));
    let mut seed = [0; 16];
    let what = "cannot draw a random seed";
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Io { what: what.to_owned(), error: error.into() })?;
    Ok(core::Config {
        net: config.net,
        prefix_len: config.prefix_len,
        gateway: config.gateway,
        dns: config.dns,
        mtu: config.mtu,
        host_loopback: config.host_loopback,
        host_addrs: if config.host_loopback { Vec::new() } else { host_addresses()? },
        dhcp: dhcp::Config {
            net: config.net,
            prefix_len: config.prefix_len,
            gateway: config.gateway,
            dns: config.dns,
            start: config.dhcp_start,
            mtu: config.mtu,
            hostname: config.hostname.clone(),
            domain: config.domain.clone(),
            search: config.dns_search.clone(),
            ..dhcp::Config::default()
        },
        ipv4: config.ipv4,
        net6: config.net6.as_ref().map(|net| dhcp6::Config {
            prefix: net.prefix,
            prefix_len: net.prefix_len,
            gateway: net.gateway,
            dns: net.dns,
            start: net.dhcp_start,
            hostname: config.hostname.clone(),
            search: config.dns_search.iter().chain(&config.domain).cloned().collect(),
            ..dhcp6::Config::default()
        }),
        limits,
        seed,
    })
}

fn guest_config(config: &Config, (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>)) -> GuestConfig {
    let Config { prefix_len, gateway, .. } = *config;
    let net6 = config.net6.as_ref();
    let dns = config.ipv4.then_some(config.dns.into());
    let search = config.dns_search.iter().chain(config.domain.as_ref());
    GuestConfig {
        ipv4: v4.map(|address| GuestAddress { address, prefix_len, gateway }),
        ipv6: v6.zip(net6).map(|(address, &Net6 { prefix_len, gateway, .. })| GuestAddress {
            address,
            prefix_len,
            gateway,
        }),
        dns: dns.into_iter().chain(net6.map(|net6| net6.dns.into())).collect(),
        mtu: config.mtu,
        search: search.cloned().collect(),
    }
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
    /// There is no queue, or more than workers; the guest goes before all are plugged in; a link cannot be polled, or the network has been shut down.
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

    fn add_listener(&self, rule: ForwardRule, listener: Listener) -> Result<ForwardInfo, Error> {
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
                Some(port) => port.add(&queue),
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

    /// Keeps the workers' list of the host's own addresses true.
    fn follow_host_addresses(&self) {
        let workers = Arc::clone(&self.workers);
        self.runtime.spawn(async move {
            let mut known: Vec<IpAddr> = Vec::new();
            let mut interval = tokio::time::interval(HOST_ADDRESSES);
            loop {
                interval.tick().await;
                // What cannot be read now has not changed.
                let Ok(addresses) = usernet_host::addresses() else { continue };
                if addresses != known {
                    known.clone_from(&addresses);
                    let told = |worker: &Commands| worker.send(Command::HostAddresses(addresses.clone()));
                    if !workers.iter().all(told) {
                        return;
                    }
                }
            }
        });
    }
}

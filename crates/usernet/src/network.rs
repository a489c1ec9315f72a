//! A running network and the handle on it.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{oneshot, watch};
use usernet_core::network as core;
use usernet_core::{dhcp, dhcp6};
use usernet_dns::Resolver;
use usernet_host::epoll::{Poll, Waker};
use usernet_link::Link;

use crate::capture::Capture;
use crate::worker::{Command, Commands, Listener, Parts, Worker};
use crate::{
    Config, ConfigError, DropInfo, FlowInfo, ForwardInfo, ForwardRule, GuestConfig, LeaseInfo, PortInfo,
};

/// Commands on their way to a worker; who has more waits.
const COMMANDS: usize = 1024;
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
    worker: Option<JoinHandle<()>>,
    capture: Option<JoinHandle<()>>,
    /// Dropping it ends the control thread.
    control_stop: Option<oneshot::Sender<()>>,
    control: Option<JoinHandle<()>>,
}

/// A handle on a running network. Cheap to clone. A call waits for the worker's next turn;
/// [`Handle::detached`] and [`Handle::ended`] wait for what they name.
#[derive(Clone)]
pub struct Handle {
    commands: Commands,
    runtime: runtime::Handle,
    guest: GuestConfig,
    /// Its sender goes with the worker.
    worker: watch::Receiver<()>,
}

impl Network {
    /// Starts a network: binds its forwards, opens its capture file, starts its threads.
    ///
    /// # Errors
    /// The configuration does not fit together, or something that it names cannot be had.
    pub fn start(config: Config) -> Result<Self, Error> {
        config.validate()?;
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
        let (sender, receiver) = sync_channel(COMMANDS);
        let poll = Poll::new().map_err(Error::io("cannot make an epoll instance"))?;
        let waker = Waker::new().map_err(Error::io("cannot make an eventfd"))?;
        let commands = Commands { commands: sender, waker: waker.clone() };
        let worker = Worker::new(Parts {
            core: core::Network::new(core_config(&config, descriptors)?),
            poll,
            waker,
            commands: receiver,
            replies: commands.clone(),
            resolver,
            runtime: runtime.clone(),
            capture,
            default_guest: config.default_guest(),
            origin: std::time::Instant::now(),
        })
        .map_err(Error::io("cannot poll an eventfd"))?;
        let (alive, ended) = watch::channel(());
        let worker = thread::Builder::new()
            .name("usernet-worker".into())
            .spawn(move || {
                let _alive = alive;
                worker.run();
            })
            .map_err(Error::io("cannot start the worker thread"))?;
        let handle = Handle { commands, runtime, guest: guest_config(&config), worker: ended };
        let network = Self {
            handle,
            worker: Some(worker),
            capture: capture_thread,
            control_stop: Some(control_stop),
            control: Some(control),
        };
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
        self.handle.commands.send(Command::Shutdown);
        for thread in [self.worker.take(), self.capture.take()].into_iter().flatten() {
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

fn guest_config(config: &Config) -> GuestConfig {
    let search = config.dns_search.iter().chain(config.domain.as_ref());
    GuestConfig {
        address: config.dhcp_start,
        prefix_len: config.prefix_len,
        gateway: config.gateway,
        dns: match &config.net6 {
            Some(net6) if !config.ipv4 => net6.dns.into(),
            _ => config.dns.into(),
        },
        mtu: config.mtu,
        search: search.cloned().collect(),
    }
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
        let (link, name) = (Box::new(link), name.to_owned());
        self.ask(|reply| Command::Attach { link, name, reply })?
    }

    /// Unplugs a guest.
    ///
    /// # Errors
    /// There is no such guest.
    pub fn detach(&self, port: u32) -> Result<(), Error> {
        let there = self.ask(|reply| Command::Detach { port, reply })?;
        there.then_some(()).ok_or_else(|| {
            Error::NotFound(format!("there is no guest on port {port}; `usernet ctl ports` lists them"))
        })
    }

    /// Completes when the guest's link has ended, with the reason.
    pub async fn detached(&self, port: u32) -> String {
        let (reply, ended) = oneshot::channel();
        self.commands.send(Command::Watch { port, reply });
        ended.await.unwrap_or_else(|_| Error::Shutdown.to_string())
    }

    /// Completes when the network serves no more: it was shut down, or its worker has failed.
    pub async fn ended(&self) {
        let mut worker = self.worker.clone();
        while worker.changed().await.is_ok() {}
    }

    /// Gives a lease to a guest that will not ask by DHCP, for as long as it is there.
    ///
    /// # Errors
    /// There is no such guest, or no address is left for it.
    pub fn lease(&self, port: u32, mac: [u8; 6], hostname: Option<&str>) -> Result<GuestConfig, Error> {
        let hostname = hostname.map(str::to_owned);
        let address = self.ask(|reply| Command::Lease { port, mac, hostname, reply })?;
        let none = || Error::NotFound(format!("no address is left for a guest on port {port}"));
        Ok(GuestConfig { address: address.ok_or_else(none)?, ..self.guest.clone() })
    }

    /// Forwards a host port to a guest.
    ///
    /// # Errors
    /// The port cannot be had: the text names the rule, the reason and the way out.
    pub fn add_forward(&self, rule: &ForwardRule) -> Result<ForwardInfo, Error> {
        self.add_listener(rule.clone(), Listener::bind(rule)?)
    }

    fn add_listener(&self, rule: ForwardRule, listener: Listener) -> Result<ForwardInfo, Error> {
        self.ask(|reply| Command::AddForward { rule, listener, reply })?
    }

    /// Ends a forward; connections that it accepted go on.
    ///
    /// # Errors
    /// There is no such forward.
    pub fn remove_forward(&self, id: u32) -> Result<(), Error> {
        let there = self.ask(|reply| Command::RemoveForward { id, reply })?;
        there.then_some(()).ok_or_else(|| {
            Error::NotFound(format!("there is no forward {id}; `usernet ctl forwards` lists them"))
        })
    }

    /// The guests.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn ports(&self) -> Result<Vec<PortInfo>, Error> {
        self.ask(Command::Ports)
    }

    /// The leases.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>, Error> {
        self.ask(Command::Leases)
    }

    /// The flows.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn flows(&self) -> Result<Vec<FlowInfo>, Error> {
        self.ask(Command::Flows)
    }

    /// The forwards.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn forwards(&self) -> Result<Vec<ForwardInfo>, Error> {
        self.ask(Command::Forwards)
    }

    /// Why frames were dropped, of all guests together, those that went included.
    ///
    /// # Errors
    /// The network has been shut down.
    pub fn drops(&self) -> Result<Vec<DropInfo>, Error> {
        self.ask(Command::Drops)
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        if !self.commands.send(command(reply)) {
            return Err(Error::Shutdown);
        }
        answer.recv().map_err(|_| Error::Shutdown)
    }

    /// Keeps the worker's list of the host's own addresses true.
    fn follow_host_addresses(&self) {
        let commands = self.commands.clone();
        self.runtime.spawn(async move {
            let mut known: Vec<IpAddr> = Vec::new();
            let mut interval = tokio::time::interval(HOST_ADDRESSES);
            loop {
                interval.tick().await;
                // What cannot be read now has not changed.
                let Ok(addresses) = usernet_host::addresses() else { continue };
                if addresses != known {
                    known.clone_from(&addresses);
                    if !commands.send(Command::HostAddresses(addresses)) {
                        return;
                    }
                }
            }
        });
    }
}

//! A running network: its threads and their end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::thread::{self, JoinHandle};

use tokio::runtime;
use tokio::sync::{oneshot, watch};
use usernet_core::nat64;
use usernet_core::network as core;
use usernet_core::port::WorkerId;
use usernet_dns::Resolver;
use usernet_host::epoll::Poll;

use crate::capture::Capture;
use crate::core_config::core_config;
use crate::host::Follower;
use crate::roster::Roster;
use crate::worker::{Command, Listener, Parts, Worker, mail};
use crate::{Config, ConfigError, Error, ForwardRule, Handle};

/// A network that runs on threads of its own until it is shut down or dropped.
pub struct Network {
    handle: Handle,
    workers: Vec<JoinHandle<()>>,
    capture: Option<JoinHandle<()>>,
    /// Dropping it ends the control thread.
    control_stop: Option<oneshot::Sender<()>>,
    control: Option<JoinHandle<()>>,
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
        let follower = Follower::new(&config)?;
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
            gateway: config.ipv4.then_some(config.gateway),
            gateway6: config.net6.as_ref().map(|net| net.gateway),
            dns64: config.nat64.then(|| nat64::embed(config.gateway)),
            // A few times what one guest may ask at once.
            max_in_flight: 1024,
            ..usernet_dns::Config::default()
        })
        .map_err(|error| ConfigError(error.to_string()))?;
        warn_of(&config);
        let (runtime, control_stop, control) =
            start_control().map_err(Error::io("cannot start the control thread"))?;
        let (ended_sender, ended) = watch::channel(false);
        let ended_sender = Arc::new(ended_sender);
        let workers = config.worker_count().get();
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
        let began = std::time::Instant::now();
        let core = core_config(&config, follower.host(), descriptors)?;
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
                host: Arc::clone(follower.host()),
                began,
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
        handle.runtime.spawn(follower.follow(Arc::clone(&handle.workers)));
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

/// Says what may not go as it is meant to, once nothing that the configuration names is wrong.
fn warn_of(config: &Config) {
    // Then nothing goes out.
    if config.restrict {
        return;
    }
    if let Err(forbidden) = usernet_host::ping::ping_allowed() {
        tracing::warn!("{forbidden}");
    }
    config.outbound.warn_of_mismatch();
    let addresses = usernet_host::addresses().unwrap_or_default();
    for (v4, option) in [(true, "--net"), (false, "--net6")] {
        let mut of_kind = addresses.iter().filter(|address| address.is_ipv4() == v4);
        if let Some(address) = of_kind.find(|address| config.is_inside(**address)) {
            tracing::warn!(
                "this host has the address {address}, which is on the guests' own network: they cannot reach \
                 it, nor what is near it; give them another network ({option})"
            );
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

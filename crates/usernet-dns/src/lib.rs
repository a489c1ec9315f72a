//! The resolver behind a user network's DNS address.
//!
//! A [`Resolver`] takes a guest's DNS message and gives the one to send back. Names of the network itself
//! (`gateway.usernet.internal`, guests by their host name), those in the host's `/etc/hosts`, and `localhost`
//! are answered here; all others go to the servers that the host asks, as messages: whatever the record type,
//! an answer keeps the bytes that the upstream wrote, but for the ID, the question's case, TTLs counted down,
//! and the OPT record, which is between neighbours. Answers are kept for as long as they allow. resolv.conf
//! and hosts are followed as they change.
//!
//! For guests without IPv4, names are given IPv6 addresses that stand for IPv4 ones (DNS64, `dns64.rs`).
//!
//! It does not validate DNSSEC (the DO, AD and CD bits pass through, so that a guest or the upstream can),
//! apply search lists (the guest has its own), or answer in more than one message (zone transfers).
//!
//! Bounds: queries in flight and the cache's memory ([`Config`]), queries of one stream (16), and every
//! answer comes within [`Config::timeout`].

mod answer;
mod cache;
mod dns64;
mod follow;
mod local;
mod query;
mod stream;
mod upstream;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

pub use crate::answer::Transport;
use crate::answer::{Answer, refusal};
use crate::dns64::Other;
use crate::follow::{Followed, parse_resolv_conf};
use crate::local::{Gateway, Local};
pub use crate::query::{Query, QueryError};
use crate::upstream::Upstream;
pub use crate::wire::Edns;

/// How a [`Resolver`] is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The servers to ask, the preferred first; empty: those of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// The domain of the network's own names.
    pub zone: String,
    /// What `gateway` in the zone stands for, and names that the host maps to its own loopback; none where
    /// guests have no IPv4.
    pub gateway: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// DNS64 (RFC 6147): names without IPv6 addresses are given such as stand for their IPv4 addresses, behind
    /// 64:ff9b::/96. This is the one for the host's IPv4 loopback; none: it is off.
    pub dns64: Option<Ipv6Addr>,
    /// Where the host's servers are named, as resolv.conf(5) has it.
    pub resolv_conf: PathBuf,
    /// Where the host's own names are, as hosts(5) has it.
    pub hosts: PathBuf,
    /// Memory for answers that are kept, in bytes, about. The least recently used go first.
    pub cache_bytes: usize,
    /// Guest queries that may wait for upstreams at once; those beyond get SERVFAIL. One that DNS64 asks two
    /// things about counts twice.
    pub max_in_flight: usize,
    /// How long upstreams may take for an answer, all together. The default is under the 5 s after which
    /// guests usually ask again.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            zone: "usernet.internal".into(),
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            gateway6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
            dns64: None,
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            cache_bytes: 4 << 20,
            max_in_flight: 256,
            timeout: Duration::from_secs(4),
        }
    }
}

/// [`Config::zone`] is not a domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a domain name; use one like \"usernet.internal\"")]
pub struct InvalidZone(pub String);

/// What a [`Resolver`] has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages given to [`Resolver::answer`], whatever they were.
    pub queries: u64,
    /// Queries answered with what was kept from before.
    pub cache_hits: u64,
    /// Queries that no upstream had a good answer to in time.
    pub upstream_failures: u64,
    /// Queries turned away, too many being in flight.
    pub refused: u64,
}

/// Answers DNS messages. Clones are one resolver.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    local: Local,
    dns64: bool,
    servers: Servers,
    upstream: Mutex<Arc<Upstream>>,
    cache_bytes: usize,
    timeout: Duration,
    in_flight: Semaphore,
    queries: AtomicU64,
    cache_hits: AtomicU64,
    upstream_failures: AtomicU64,
    refused: AtomicU64,
}

enum Servers {
    Fixed(Arc<Vec<SocketAddr>>),
    Followed(Followed<Vec<SocketAddr>>),
}

impl Resolver {
    /// Makes a resolver; does no I/O yet.
    ///
    /// # Errors
    /// The zone is not a domain name.
    pub fn new(config: Config) -> Result<Self, InvalidZone> {
        let Config { upstreams, zone, resolv_conf, hosts, cache_bytes, max_in_flight, timeout, .. } = config;
        let gateway = Gateway { ipv4: config.gateway, ipv6: config.gateway6, nat64: config.dns64 };
        let local = Local::new(&zone, gateway, hosts).ok_or(InvalidZone(zone))?;
        let servers = if upstreams.is_empty() {
            Servers::Followed(Followed::new(resolv_conf, parse_resolv_conf))
        } else {
            Servers::Fixed(Arc::new(upstreams))
        };
        let upstream = Upstream::new(servers.current(), timeout, cache_bytes);
        let shared = Shared {
            local,
            dns64: config.dns64.is_some(),
            servers,
            upstream: Mutex::new(Arc::new(upstream)),
            cache_bytes,
            timeout,
            in_flight: Semaphore::new(max_in_flight),
            queries: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
            upstream_failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The message to send back for a guest's message; `None` when it deserves silence (a response, or no
    /// whole header).
    ///
    /// Must run inside a tokio runtime with I/O and time. Dropping the future is fine at any point.
    pub async fn answer(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let shared = &*self.shared;
        shared.queries.fetch_add(1, Relaxed);
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(error) => return refusal(message, error.response_code()?),
        };
        let failure = |code| Some(Answer::failure(&query, code).render(&query, transport, 0));
        // RFC 6891 §6.1.3.
        if query.edns.is_some_and(|edns| edns.version != 0) {
            return failure(ResponseCode::BADVERS);
        }
        if let Some(answer) = shared.local.answer(&query) {
            return Some(answer.render(&query, transport, 0));
        }
        let other = if shared.dns64 { Other::of(&query) } else { None };
        let found = match other {
            None => shared.find(&query).await,
            Some(Other::Addresses(other)) => shared.find_addresses(&query, &other).await,
            Some(Other::Name(other)) => shared.find_name(&query, &other).await,
        };
        match found {
            Some((answer, age)) => Some(answer.render(&query, transport, age)),
            None => failure(ResponseCode::ServFail),
        }
    }

    /// Replaces the names of guests, `HOSTNAME.usernet.internal`: each a host name as the guest gave it and
    /// an address. Of a dotted name the first label counts; what is no host name is left out. The first to
    /// have a name keeps it (for each address family), and nobody gets `gateway`.
    pub fn set_names(&self, names: Vec<(String, IpAddr)>) {
        self.shared.local.set_leases(names);
    }

    /// Serves DNS over TCP (RFC 7766) on one end of a stream: messages behind a big-endian `u16` length, up
    /// to 16 looked up at once and answered as they are found. Returns when the guest has closed its side and
    /// has its answers, or after 10 s in which it was silent or did not read.
    pub async fn serve_stream(&self, stream: UnixStream) {
        stream::serve(self, stream).await;
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        Stats {
            queries: self.shared.queries.load(Relaxed),
            cache_hits: self.shared.cache_hits.load(Relaxed),
            upstream_failures: self.shared.upstream_failures.load(Relaxed),
            refused: self.shared.refused.load(Relaxed),
        }
    }
}

impl Shared {
    /// What the servers answer, or have answered so many seconds ago; `None` when they do not in time, or
    /// too many wait for them.
    async fn find(&self, query: &Query) -> Option<(Arc<Answer>, u32)> {
        let subject = query.subject();
        let upstream = self.upstream();
        if let Some(kept) = upstream.cached(&subject) {
            self.cache_hits.fetch_add(1, Relaxed);
            return Some(kept);
        }
        let Ok(_permit) = self.in_flight.try_acquire() else {
            self.refused.fetch_add(1, Relaxed);
            return None;
        };
        let answer = upstream.look_up(&subject).await;
        if answer.as_ref().is_none_or(|answer| answer.is_refusal()) {
            self.upstream_failures.fetch_add(1, Relaxed);
        }
        Some((answer?, 0))
    }

    /// The IPv6 addresses of a name, made of those that `other` asks for if there are none.
    async fn find_addresses(&self, query: &Query, other: &Query) -> Option<(Arc<Answer>, u32)> {
        let (own, others) = (self.find(query), self.find(other));
        tokio::pin!(own, others);
        let mut early = None;
        let own = loop {
            tokio::select! {
                biased;
                own = &mut own => break own,
                found = &mut others, if early.is_none() => early = Some(found),
            }
        };
        fn view((answer, age): &(Arc<Answer>, u32)) -> dns64::Found<'_> {
            (answer, *age)
        }
        let own_view = own.as_ref().map(view);
        let mut made_up = None;
        if !dns64::suffices(own_view) {
            let others = match early {
                Some(found) => found,
                None => others.await,
            };
            made_up = others.and_then(|others| dns64::synthesize(query, own_view, view(&others)));
        }
        let made_up = made_up.or_else(|| dns64::without_excluded(query, own_view?));
        made_up.map(|answer| (Arc::new(answer), 0)).or(own)
    }

    /// The name of the IPv4 address that `other` asks about, for the IPv6 one that stands for it.
    async fn find_name(&self, query: &Query, other: &Query) -> Option<(Arc<Answer>, u32)> {
        let (answer, age) = match self.local.answer(other) {
            Some(answer) => (Arc::new(answer), 0),
            None => self.find(other).await?,
        };
        Some((Arc::new(dns64::alias(query, other, (&answer, age))?), 0))
    }

    /// The servers to ask, as of now.
    fn upstream(&self) -> Arc<Upstream> {
        let servers = self.servers.current();
        let mut upstream = locked(&self.upstream);
        if upstream.servers != servers {
            tracing::info!(?servers, "upstream servers changed");
            *upstream = Arc::new(Upstream::new(servers, self.timeout, self.cache_bytes));
        }
        upstream.clone()
    }
}

impl Servers {
    fn current(&self) -> Arc<Vec<SocketAddr>> {
        match self {
            Self::Fixed(servers) => servers.clone(),
            Self::Followed(file) => file.current(),
        }
    }
}

/// Locks a mutex whose contents are whole at every moment, also when a holder panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

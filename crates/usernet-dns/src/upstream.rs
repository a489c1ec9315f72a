//! Asking the servers that the host asks.
//!
//! Messages are forwarded as they are, not rebuilt from parsed records. hickory-resolver's server pool parses
//! them: a negative answer comes out without its flags (AD among them), one record that it cannot read spoils
//! the message, and the first server that says SERVFAIL or REFUSED ends the lookup.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tracing::debug;

use crate::answer::{Answer, MAX_UDP};
use crate::cache::Cache;
use crate::locked;
use crate::query::Subject;
use crate::stream::{read_message, write_message};
use crate::wire::{HEADER_LEN, Header, QR, TC};

/// How long a server may be silent before the next is asked too.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a server that was silent comes after all others.
const SILENCE: Duration = Duration::from_secs(30);
/// A query may be lost on the way: each server is asked this often.
const ROUNDS: usize = 2;

/// A set of servers and what they have answered. A new set starts with nothing kept: on another network,
/// names may have other answers.
pub(crate) struct Upstream {
    pub(crate) servers: Arc<Vec<SocketAddr>>,
    timeout: Duration,
    cache: Mutex<Cache>,
    /// Lookups under way, for who asks the same meanwhile.
    lookups: Mutex<HashMap<Subject, Lookup>>,
    /// Servers that did not answer, and when that was found.
    silent: Mutex<HashMap<SocketAddr, Instant>>,
}

/// The outcome of a lookup; `None` when no server answered. Whoever waits drives it: when the first goes
/// away, the next takes over.
type Lookup = Arc<OnceCell<Option<Arc<Answer>>>>;

impl Upstream {
    pub(crate) fn new(servers: Arc<Vec<SocketAddr>>, timeout: Duration, cache_bytes: usize) -> Self {
        Self {
            servers,
            timeout,
            cache: Mutex::new(Cache::new(cache_bytes)),
            lookups: Mutex::default(),
            silent: Mutex::default(),
        }
    }

    /// An answer from before, and its age in seconds.
    pub(crate) fn cached(&self, subject: &Subject) -> Option<(Arc<Answer>, u32)> {
        locked(&self.cache).get(subject, Instant::now())
    }

    /// Asks the servers, once for all who want to know the same at the same time.
    pub(crate) async fn look_up(&self, subject: &Subject) -> Option<Arc<Answer>> {
        let waiting = Waiting {
            lookup: locked(&self.lookups).entry(subject.clone()).or_default().clone(),
            upstream: self,
            subject,
        };
        waiting
            .lookup
            .get_or_init(|| async {
                let answer = Arc::new(self.ask_servers(subject).await?);
                locked(&self.cache).insert(subject.clone(), answer.clone(), Instant::now());
                Some(answer)
            })
            .await
            .clone()
    }

    /// The first good answer of any server, within the time allowed; else a refusal, if one came.
    async fn ask_servers(&self, subject: &Subject) -> Option<Answer> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let servers = self.by_preference();
        let mut next = servers.iter().copied().cycle().take(servers.len() * ROUNDS);
        let mut asked = JoinSet::new();
        let mut refusals: Vec<(SocketAddr, Answer)> = Vec::new();
        loop {
            let latest = next.find(|server| refusals.iter().all(|(by, _)| by != server));
            if let Some(server) = latest {
                let subject = subject.clone();
                asked.spawn(async move { (server, ask(server, &subject).await) });
            }
            // One that is late may still answer while the next is asked.
            let patience = match latest {
                Some(_) => deadline.min(tokio::time::Instant::now() + PATIENCE),
                None => deadline,
            };
            match timeout_at(patience, asked.join_next()).await {
                Ok(Some(Ok((server, Ok(answer))))) => {
                    locked(&self.silent).remove(&server);
                    if !answer.is_refusal() {
                        return Some(answer);
                    }
                    refusals.push((server, answer));
                }
                Ok(Some(Ok((server, Err(error))))) => {
                    debug!(%server, %error, "upstream failed");
                    self.note_silent(server);
                }
                Ok(Some(Err(error))) => debug!(%error, "upstream query ended"),
                Err(_) if patience < deadline => {
                    if let Some(server) = latest {
                        debug!(%server, "upstream is silent");
                        self.note_silent(server);
                    }
                }
                // Nobody is left to ask or to wait for, or no time.
                Ok(None) | Err(_) => return refusals.pop().map(|(_, refusal)| refusal),
            }
        }
    }

    /// The servers in the order of the configuration, those that were silent of late behind the others.
    fn by_preference(&self) -> Vec<SocketAddr> {
        let mut silent = locked(&self.silent);
        silent.retain(|_, since| since.elapsed() < SILENCE);
        let mut servers = self.servers.to_vec();
        servers.sort_by_key(|server| silent.contains_key(server));
        servers
    }

    fn note_silent(&self, server: SocketAddr) {
        locked(&self.silent).insert(server, Instant::now());
    }
}

/// A share in a lookup. The last one to leave takes it off the list.
struct Waiting<'a> {
    lookup: Lookup,
    upstream: &'a Upstream,
    subject: &'a Subject,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut lookups = locked(&self.upstream.lookups);
        // Who comes now starts afresh or finds the answer in the cache; and shares are only made under the
        // lock, so one of the list's and one of ours are the last two.
        let last = self.lookup.initialized() || Arc::strong_count(&self.lookup) == 2;
        if last && lookups.get(self.subject).is_some_and(|listed| Arc::ptr_eq(listed, &self.lookup)) {
            lookups.remove(self.subject);
        }
    }
}

/// Asks one server: over UDP, and over TCP when the answer does not fit.
///
/// # Errors
/// The server cannot be reached, or what it says makes no sense.
async fn ask(server: SocketAddr, subject: &Subject) -> io::Result<Answer> {
    // RFC 5452 §4: the ID is not to be guessed, and the kernel takes a random port for each socket.
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = u16::from_ne_bytes(id);
    let query = subject.to_message(id, MAX_UDP);
    let expected = |reply: &[u8]| answers(reply, id, subject);

    let mut reply = ask_udp(server, &query, expected).await?;
    if Header::parse(&reply).is_some_and(|header| header.flags & TC != 0) {
        reply = ask_tcp(server, &query).await?;
        if !expected(&reply) {
            return Err(malformed());
        }
    }
    Answer::from_upstream(reply, subject).ok_or_else(malformed)
}

async fn ask_udp(server: SocketAddr, query: &[u8], expected: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected, it takes datagrams of this server only, and learns at once when nobody listens there.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut reply = Vec::with_capacity(4096);
    loop {
        reply.clear();
        socket.recv_buf(&mut reply).await?;
        // Anything else may be forged: the answer may still come.
        if expected(&reply) {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed answer")
}

/// Whether `reply` is a response to the query with this ID (RFC 5452 §9.1).
fn answers(reply: &[u8], id: u16, subject: &Subject) -> bool {
    let Some(header) = Header::parse(reply) else { return false };
    let same_question = || {
        let question = reply.get(HEADER_LEN..HEADER_LEN + subject.question.len())?;
        let (name, kind) = question.split_last_chunk::<4>()?;
        let (asked_name, asked_kind) = subject.question.split_last_chunk::<4>()?;
        Some(header.questions == 1 && kind == asked_kind && name.eq_ignore_ascii_case(asked_name))
    };
    // A server that could not read the query need not repeat its question.
    let not_understood = header.questions == 0 && header.rcode() != 0;
    header.id == id && header.flags & QR != 0 && (not_understood || same_question() == Some(true))
}

//! What other threads ask of a worker.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use tokio::sync::oneshot;
use usernet_core::network::DnsQuery;
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_core::wire::MacAddr;
use usernet_host::tcp::TcpEnd;
use usernet_host::udp::UdpEnd;
use usernet_link::Link;

use super::{Listener, Worker};
use crate::host::Host;
use crate::{DropInfo, Error, FlowInfo, ForwardInfo, ForwardRule, LeaseInfo, PortInfo};

/// Where the answer to a command goes. Whoever asked may have stopped waiting.
pub(crate) type Reply<T> = SyncSender<T>;

/// What a worker can be asked for.
pub(crate) enum Command {
    /// One of the `queues` links of a guest.
    Attach {
        port: PortId,
        link: Box<Link>,
        queues: usize,
        name: String,
        reply: Reply<Result<(), Error>>,
    },
    Detach {
        port: PortId,
        reason: String,
    },
    Watch {
        port: PortId,
        reply: oneshot::Sender<String>,
    },
    Lease {
        port: PortId,
        mac: [u8; 6],
        hostname: Option<String>,
        reply: Reply<Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)>>,
    },
    AddForward {
        id: u32,
        rule: ForwardRule,
        listener: Listener,
        reply: Reply<Result<ForwardInfo, Error>>,
    },
    RemoveForward {
        id: u32,
        reply: Reply<bool>,
    },
    /// The socket of a UDP forward of the first worker, for replies.
    ShareForward {
        id: u32,
        end: Arc<UdpEnd>,
    },
    Ports(Reply<Vec<PortInfo>>),
    Leases(Reply<Vec<LeaseInfo>>),
    Flows(Reply<Vec<FlowInfo>>),
    Forwards(Reply<Vec<ForwardInfo>>),
    Drops(Reply<Vec<DropInfo>>),
    DnsAnswer {
        query: DnsQuery,
        answer: Option<Vec<u8>>,
    },
    /// The host's network is like this now.
    Host(Arc<Host>),
    /// The host's network has changed: flows whose address has gone are no more, and those that have no route
    /// any more, if routes are to be looked at.
    CheckFlows {
        routes: bool,
    },
    Shutdown,
    /// From another worker: a connection for a guest of this one.
    Accepted {
        guest: Endpoint,
        peer: SocketAddr,
        end: Box<TcpEnd>,
    },
}

impl Worker {
    pub(super) fn handle_command(&mut self, command: Command) {
        match command {
            Command::Attach { port, link, queues, name, reply } => {
                let attached = self.attach(port, *link, queues, name);
                answer(&reply, attached);
            }
            Command::Detach { port, reason } => self.detach(port, &reason),
            Command::Watch { port, reply } => match self.ports.get_mut(&port) {
                Some(entry) => entry.watchers.push(reply),
                None => drop(reply.send("the link is gone".to_owned())),
            },
            Command::Lease { port, mac, hostname, reply } => {
                let there = self.ports.contains_key(&port);
                let core = &mut self.parts.core;
                let lease = there
                    .then(|| core.lease(port, MacAddr(mac), hostname.as_deref(), self.now).ok())
                    .flatten();
                answer(&reply, lease);
            }
            Command::AddForward { id, rule, listener, reply } => {
                let added = self.add_forward(id, &rule, listener);
                let what = || format!("cannot poll the forward {rule}");
                answer(&reply, added.map_err(|error| Error::Io { what: what(), error }));
            }
            Command::RemoveForward { id, reply } => {
                let there = self.remove_forward(id);
                answer(&reply, there);
            }
            Command::ShareForward { id, end } => drop(self.udp_forwards.insert(id, end)),
            Command::Ports(reply) => answer(&reply, self.port_infos()),
            Command::Leases(reply) => answer(&reply, self.lease_infos()),
            Command::Flows(reply) => answer(&reply, self.flow_infos()),
            Command::Forwards(reply) => answer(&reply, self.forward_infos()),
            Command::Drops(reply) => answer(&reply, self.drop_infos()),
            Command::DnsAnswer { query, answer } => self.parts.core.dns_answer(&query, answer.as_deref()),
            Command::Host(host) => self.host_changed(host),
            Command::CheckFlows { routes } => self.begin_check(routes),
            Command::Shutdown => self.stop = true,
            Command::Accepted { guest, peer, end } => self.take_accepted(guest, peer, *end),
        }
    }
}

fn answer<T>(reply: &Reply<T>, value: T) {
    // Nobody waits: nothing is lost.
    let _ = reply.try_send(value);
}

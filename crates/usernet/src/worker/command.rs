//! What other threads ask of a worker.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TryRecvError, TrySendError};

use tokio::sync::oneshot;
use usernet_core::datagrams::Datagrams;
use usernet_core::network::DnsQuery;
use usernet_core::offload::Offload;
use usernet_core::port::PortId;
use usernet_core::table::Endpoint;
use usernet_core::wire::MacAddr;
use usernet_host::epoll::Waker;
use usernet_host::tcp::TcpEnd;
use usernet_host::udp::UdpEnd;
use usernet_link::Link;

use super::{Listener, Worker};
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
        reply: Reply<Option<std::net::Ipv4Addr>>,
    },
    AddForward {
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
    HostAddresses(Vec<IpAddr>),
    Shutdown,
    /// From another worker: something for this one's guest or flow.
    Handed(Handed),
    /// From another worker: an address has been found.
    Found(IpAddr),
    /// From another worker: the resolver is to be told the names anew.
    NamesChanged,
}

/// What one worker hands to another. What finds no room is lost, as on a wire, and counted.
pub(crate) enum Handed {
    /// A frame for a guest.
    ToGuest { port: PortId, frame: Vec<u8>, offload: Offload },
    /// A frame from a guest, for a flow.
    FromGuest { port: PortId, frame: Vec<u8>, offload: Offload },
    /// A connection for a guest.
    Accepted { guest: Endpoint, peer: SocketAddr, end: Box<TcpEnd> },
    /// Datagrams for a guest, which came to a forwarded port.
    Forwarded {
        forward: u32,
        guest: Endpoint,
        from: SocketAddr,
        to: Option<IpAddr>,
        datagrams: Datagrams,
        payload: Vec<u8>,
    },
}

/// Sends commands to a worker and wakes it.
#[derive(Clone)]
pub(crate) struct Commands {
    pub(crate) commands: SyncSender<Command>,
    pub(crate) waker: Waker,
}

impl Commands {
    /// Returns whether the worker is there to hear it.
    pub(crate) fn send(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.waker.wake();
        sent
    }

    /// The same, but gives the command back when there is no room for it.
    pub(crate) fn try_send(&self, command: Command) -> Result<(), Command> {
        let sent = self.commands.try_send(command);
        self.waker.wake();
        sent.map_err(|error| match error {
            TrySendError::Full(command) | TrySendError::Disconnected(command) => command,
        })
    }
}

impl Worker {
    pub(super) fn handle_commands(&mut self) {
        loop {
            match self.parts.commands.try_recv() {
                Ok(command) => self.handle_command(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    return;
                }
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Attach { port, link, queues, name, reply } => {
                let attached = self.attach(port, *link, queues, name);
                answer(
                    &reply,
                    attached.map_err(|error| Error::Io { what: "cannot poll the link".into(), error }),
                );
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
            Command::AddForward { rule, listener, reply } => {
                let added = self.add_forward(&rule, listener);
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
            Command::HostAddresses(addrs) => self.parts.core.set_host_addrs(addrs),
            Command::Shutdown => self.stop = true,
            Command::Handed(handed) => self.take_handed(handed),
            Command::Found(addr) => self.parts.core.found(addr),
            Command::NamesChanged => self.names_changed = true,
        }
    }
}

fn answer<T>(reply: &Reply<T>, value: T) {
    // Nobody waits: nothing is lost.
    let _ = reply.try_send(value);
}

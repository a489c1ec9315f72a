//! What other threads ask of a worker.

use std::sync::mpsc::{SyncSender, TryRecvError};

use tokio::sync::oneshot;
use usernet_core::network::DnsQuery;
use usernet_core::port::PortId;
use usernet_core::wire::MacAddr;
use usernet_host::epoll::Waker;
use usernet_link::Link;

use super::{Listener, Worker};
use crate::{DropInfo, Error, FlowInfo, ForwardInfo, ForwardRule, LeaseInfo, PortInfo};

/// Where the answer to a command goes. Whoever asked may have stopped waiting.
pub(crate) type Reply<T> = SyncSender<T>;

/// What a worker can be asked for.
pub(crate) enum Command {
    Attach { link: Box<Link>, name: String, reply: Reply<Result<u32, Error>> },
    Detach { port: u32, reply: Reply<bool> },
    Watch { port: u32, reply: oneshot::Sender<String> },
    Lease { port: u32, mac: [u8; 6], hostname: Option<String>, reply: Reply<Option<std::net::Ipv4Addr>> },
    AddForward { rule: ForwardRule, listener: Listener, reply: Reply<Result<ForwardInfo, Error>> },
    RemoveForward { id: u32, reply: Reply<bool> },
    Ports(Reply<Vec<PortInfo>>),
    Leases(Reply<Vec<LeaseInfo>>),
    Flows(Reply<Vec<FlowInfo>>),
    Forwards(Reply<Vec<ForwardInfo>>),
    Drops(Reply<Vec<DropInfo>>),
    DnsAnswer { query: DnsQuery, answer: Option<Vec<u8>> },
    HostAddresses(Vec<std::net::IpAddr>),
    Shutdown,
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
            Command::Attach { link, name, reply } => {
                let attached = self.attach(*link, name).map(|port| port.0);
                answer(
                    &reply,
                    attached.map_err(|error| Error::Io { what: "cannot poll the link".into(), error }),
                );
            }
            Command::Detach { port, reply } => {
                let there = self.detach(PortId(port), "detached");
                answer(&reply, there);
            }
            Command::Watch { port, reply } => match self.ports.get_mut(&PortId(port)) {
                Some(entry) => entry.watchers.push(reply),
                None => drop(reply.send("the link is gone".to_owned())),
            },
            Command::Lease { port, mac, hostname, reply } => {
                let there = self.ports.contains_key(&PortId(port));
                let core = &mut self.parts.core;
                let lease = there
                    .then(|| core.lease(PortId(port), MacAddr(mac), hostname.as_deref(), self.now).ok())
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
            Command::Ports(reply) => answer(&reply, self.port_infos()),
            Command::Leases(reply) => answer(&reply, self.lease_infos()),
            Command::Flows(reply) => answer(&reply, self.flow_infos()),
            Command::Forwards(reply) => answer(&reply, self.forward_infos()),
            Command::Drops(reply) => answer(&reply, self.drop_infos()),
            Command::DnsAnswer { query, answer } => self.parts.core.dns_answer(&query, answer.as_deref()),
            Command::HostAddresses(addrs) => self.parts.core.set_host_addrs(addrs),
            Command::Shutdown => self.stop = true,
        }
    }
}

fn answer<T>(reply: &Reply<T>, value: T) {
    // Nobody waits: nothing is lost.
    let _ = reply.try_send(value);
}

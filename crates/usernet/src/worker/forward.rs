//! Forwarded ports: connections and datagrams from the host to a guest.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use usernet_core::table::Endpoint;
use usernet_host::epoll::{Event, Interest};
use usernet_host::listen::{Accept, TcpForward};
use usernet_host::udp::UdpEnd;

use super::{Worker, token};
use crate::{Error, ForwardInfo, ForwardProtocol, ForwardRule};

/// Connections that one forward may hand in before the others have their turn, and errors.
const BUDGET: usize = 64;
/// Batches of datagrams that it may hand in.
const BATCHES: usize = 4;

/// A bound socket of a forwarded port.
pub(crate) enum Listener {
    Tcp(TcpForward),
    Udp(Arc<UdpEnd>),
}

impl Listener {
    /// Binds what `rule` asks for.
    pub(crate) fn bind(rule: &ForwardRule) -> Result<Self, Error> {
        let addr = SocketAddr::new(rule.host_addr, rule.host_port);
        let bound = match rule.protocol {
            ForwardProtocol::Tcp => TcpForward::bind(addr).map(Self::Tcp),
            ForwardProtocol::Udp => UdpEnd::forward(addr).map(Arc::new).map(Self::Udp),
        };
        bound.map_err(|error| Error::Forward(refusal(rule, &error)))
    }

    /// The socket by which replies of a UDP forward leave.
    pub(crate) fn replies_by(&self) -> Option<Arc<UdpEnd>> {
        match self {
            Self::Tcp(_) => None,
            Self::Udp(end) => Some(Arc::clone(end)),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Udp(end) => end.as_fd(),
        }
    }

    fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(end) => end.local_addr(),
        }
    }
}

/// Names the rule, the reason and the way out.
fn refusal(rule: &ForwardRule, error: &io::Error) -> String {
    let port = rule.host_port;
    let way_out = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another program has the port; choose another one, or port 0 for any (who has it: ss -lnp 'sport = {port}')"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "ports under 1024 are for root; choose a higher one, or allow it: sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "the host has no such address; choose one that `ip address` lists, or leave it empty for all"
                .to_owned()
        }
        _ => "choose another address or port".to_owned(),
    };
    format!("cannot forward {rule}: {error}: {way_out}")
}

/// What a try to take in a connection or datagram says of the next one.
enum Next {
    /// There may be one.
    More,
    /// It waits for a descriptor.
    Parked,
    /// An event will tell.
    Drained,
}

/// A forwarded port.
pub(crate) struct Forward {
    listener: Listener,
    protocol: ForwardProtocol,
    guest: Endpoint,
    accepted: u64,
    /// It is on a list: of those to read, or of those that wait for descriptors.
    pub(super) ready: bool,
    /// It was said that descriptors have run out, and none has been had since.
    exhausted: bool,
}

impl Worker {
    pub(super) fn add_forward(
        &mut self,
        id: u32,
        rule: &ForwardRule,
        listener: Listener,
    ) -> io::Result<ForwardInfo> {
        self.parts.poll.add(listener.as_fd(), token::FORWARD | u64::from(id), Interest::Read)?;
        let addr = rule.guest_addr.unwrap_or(self.parts.default_guest);
        let guest = Endpoint { addr, port: rule.guest_port };
        self.udp_forwards.extend(listener.replies_by().map(|end| (id, end)));
        self.forwards.insert(
            id,
            Forward { listener, protocol: rule.protocol, guest, accepted: 0, ready: false, exhausted: false },
        );
        Ok(self.forward_infos().into_iter().find(|info| info.id == id).expect("it was just inserted"))
    }

    pub(super) fn remove_forward(&mut self, id: u32) -> bool {
        self.parts.core.remove_udp_forward(id);
        self.udp_forwards.remove(&id);
        let Some(forward) = self.forwards.remove(&id) else { return false };
        // Other workers may hold the socket a little longer.
        let _ = self.parts.poll.remove(forward.listener.as_fd());
        true
    }

    pub(super) fn forward_infos(&self) -> Vec<ForwardInfo> {
        let info = |(id, forward): (&u32, &Forward)| ForwardInfo {
            id: *id,
            protocol: forward.protocol.to_string(),
            host: forward.listener.local_addr(),
            guest: forward.guest.to_socket_addr(),
            accepted: forward.accepted,
        };
        self.forwards.iter().map(info).collect()
    }

    /// Takes in what epoll tells of a forward.
    pub(super) fn forward_ready(&mut self, id: u32, event: Event) {
        let Some(forward) = self.forwards.get_mut(&id) else { return };
        // Nobody is told of them: the guest that answered may not have asked.
        if event.error()
            && let Listener::Udp(end) = &forward.listener
        {
            for _ in 0..BUDGET {
                if end.take_error(&mut []).is_none() {
                    break;
                }
            }
        }
        if !std::mem::replace(&mut forward.ready, true) {
            self.ready_forwards.push_back(id);
        }
    }

    pub(super) fn read_forward(&mut self, id: u32) {
        let Some(forward) = self.forwards.get(&id) else { return };
        let is_tcp = matches!(forward.listener, Listener::Tcp(_));
        for _ in 0..if is_tcp { BUDGET } else { BATCHES } {
            let next = if is_tcp { self.accept(id) } else { self.receive_forwarded(id) };
            match next {
                Next::More => {}
                Next::Parked => return self.park(id),
                Next::Drained => {
                    if let Some(forward) = self.forwards.get_mut(&id) {
                        forward.ready = false;
                    }
                    return;
                }
            }
        }
        self.ready_forwards.push_back(id);
    }

    fn accept(&mut self, id: u32) -> Next {
        let Some(forward) = self.forwards.get_mut(&id) else { return Next::Drained };
        let Forward { listener: Listener::Tcp(listener), guest, accepted, exhausted, .. } = forward else {
            return Next::Drained;
        };
        match listener.accept() {
            Ok(Accept::Accepted(connection)) => {
                *accepted += 1;
                *exhausted = false;
                let guest = *guest;
                self.take_accepted(guest, connection.peer, connection.end);
                Next::More
            }
            Ok(Accept::Empty) => Next::Drained,
            Ok(Accept::Exhausted) => {
                if !std::mem::replace(exhausted, true) {
                    tracing::warn!(
                        forward = id,
                        "no descriptors left: connections wait until a flow ends; a higher hard limit (ulimit -Hn) allows more"
                    );
                }
                Next::Parked
            }
            Err(error) => {
                tracing::warn!(forward = id, %error, "a forwarded port accepts no more: remove the forward and add it again (usernet ctl)");
                Next::Drained
            }
        }
    }

    fn receive_forwarded(&mut self, id: u32) -> Next {
        let Some(Forward { listener: Listener::Udp(end), guest, .. }) = self.forwards.get(&id) else {
            return Next::Drained;
        };
        let guest = *guest;
        if end.receive(&mut self.inbox).is_err() {
            return Next::Drained;
        }
        if let Some(forward) = self.forwards.get_mut(&id) {
            forward.accepted += self.inbox.datagrams() as u64;
        }
        let more = self.inbox.is_full();
        let mut next = 0;
        while let Some(batch) = self.inbox.batch(next) {
            next = batch.messages.end;
            self.take_forwarded(id, guest, &batch);
        }
        if more { Next::More } else { Next::Drained }
    }
}

//! TCP: host ends of flows.

use std::io::IoSlice;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use usernet_core::drops::DropReason;
use usernet_core::host::{HostError, HostEvent, PeekEnd};
use usernet_core::network::{Target, TcpOp};
use usernet_core::port::PortId;
use usernet_core::table::{FlowId, FlowKind};
use usernet_core::tcp::{MAX_KEPT, SeqNumber};
use usernet_host::epoll::{Event, Interest};
use usernet_host::kept::Kept;
use usernet_host::tcp::TcpEnd;

use super::port::Sent;
use super::{Worker, slot};

/// The host end of a TCP flow.
pub(super) struct TcpSlot {
    flow: FlowId,
    pub(super) end: TcpEnd,
    kept: Kept,
    connecting: bool,
    /// The core wants to hear of room for sending.
    watching: bool,
    /// Where in the present batch its payload is gathered.
    gathered: Option<usize>,
}

/// Payload for one flow, gathered from a batch of frames.
pub(super) struct Gathered<'a> {
    pub(super) flow: FlowId,
    /// The position of the first byte.
    pub(super) at: SeqNumber,
    pub(super) len: usize,
    pub(super) slices: Vec<IoSlice<'a>>,
}

impl Worker {
    fn tcp_slot(&mut self, flow: FlowId) -> Option<&mut TcpSlot> {
        self.tcp.get_mut(flow.index as usize)?.as_mut().filter(|slot| slot.flow == flow)
    }

    /// Takes the host end away from a flow that is no more.
    pub(super) fn take_end(&mut self, flow: FlowId) -> Option<TcpEnd> {
        let slot = self.tcp.get_mut(flow.index as usize)?;
        slot.take_if(|slot| slot.flow == flow).map(|slot| slot.end)
    }

    fn tcp_event(&mut self, flow: FlowId, event: HostEvent) {
        self.parts.core.tcp_event(flow, event, self.now);
    }

    /// The first flow with a host end from place `at` of the table on, and its place.
    pub(super) fn next_tcp(&self, at: usize) -> Option<(usize, FlowId)> {
        let slots = self.tcp.iter().enumerate().skip(at);
        slots.filter_map(|(at, slot)| Some((at, slot.as_ref()?.flow))).next()
    }

    /// Gives a flow its host end.
    pub(super) fn add_tcp(&mut self, flow: FlowId, mut end: TcpEnd, connecting: bool) {
        let registered = self.parts.poll.add(end.as_fd(), flow.to_token(), Interest::ReadWrite);
        if registered.is_err() {
            return self.tcp_event(flow, HostEvent::Failed(HostError::Exhausted));
        }
        // Of a connection that is not there yet it says nothing.
        let free = (!connecting).then(|| end.send_space());
        let kept = Kept::new(MAX_KEPT as usize);
        *slot(&mut self.tcp, flow.index) =
            Some(TcpSlot { flow, end, kept, connecting, watching: false, gathered: None });
        if let Some(free) = free {
            self.tcp_event(flow, HostEvent::SendSpace { free });
        }
    }

    fn connect(&mut self, flow: FlowId, target: Target, dscp: u8) {
        tracing::debug!(?flow, ?target, "connecting");
        let end = match target {
            Target::Host(addr) => {
                let source = self.parts.host.source(addr.ip());
                TcpEnd::connect(addr, source, dscp).map(|end| (end, true))
            }
            Target::Dns => self.dns_stream().map(|end| (end, false)),
        };
        match end {
            Ok((end, connecting)) => {
                self.add_tcp(flow, end, connecting);
                if !connecting {
                    self.tcp_event(flow, HostEvent::Connected);
                }
            }
            Err(error) => self.tcp_failed(flow, error),
        }
    }

    /// DNS over TCP: the resolver serves the other end of a socket pair.
    fn dns_stream(&mut self) -> Result<TcpEnd, HostError> {
        let (ours, theirs) = UnixStream::pair().map_err(|_| HostError::Exhausted)?;
        theirs.set_nonblocking(true).map_err(|_| HostError::Exhausted)?;
        let resolver = self.parts.resolver.clone();
        self.parts.runtime.spawn(async move {
            if let Ok(stream) = tokio::net::UnixStream::from_std(theirs) {
                resolver.serve_stream(stream).await;
            }
        });
        TcpEnd::from_unix(ours)
    }

    pub(super) fn tcp_failed(&mut self, flow: FlowId, error: HostError) {
        tracing::debug!(?flow, %error, "the host end has failed");
        if error == HostError::Exhausted
            && let Some(port) = self.parts.core.port_of(flow)
        {
            self.parts.core.count_drop(port, DropReason::HostExhausted);
        }
        self.tcp_event(flow, HostEvent::Failed(error));
    }

    /// Takes in what epoll tells of a host end.
    pub(super) fn tcp_ready(&mut self, flow: FlowId, event: Event) {
        let Some(slot) = self.tcp_slot(flow) else { return };
        slot.end.note(event);
        if slot.connecting || event.error() {
            match slot.end.finish_connect() {
                Ok(true) if slot.connecting => {
                    slot.connecting = false;
                    let free = slot.end.send_space();
                    self.tcp_event(flow, HostEvent::SendSpace { free });
                    self.tcp_event(flow, HostEvent::Connected);
                }
                Ok(_) => {}
                Err(error) => return self.tcp_failed(flow, error),
            }
        }
        if event.readable() || event.read_closed() || event.hang_up() {
            self.tcp_event(flow, HostEvent::Readable);
        }
        if event.writable() {
            self.tell_space(flow);
        }
    }

    /// Tells the core of room for sending, if it waits for that.
    fn tell_space(&mut self, flow: FlowId) {
        let Some(slot) = self.tcp_slot(flow).filter(|slot| slot.watching && !slot.connecting) else { return };
        slot.watching = false;
        let free = slot.end.send_space();
        self.tcp_event(flow, HostEvent::SendSpace { free });
    }

    /// Does what the core asks for a flow.
    pub(super) fn tcp_op(&mut self, flow: FlowId, op: TcpOp) {
        if let TcpOp::Connect { target, dscp } = op {
            return self.connect(flow, target, dscp);
        }
        let now = self.now;
        let Some(slot) = self.tcp_slot(flow) else { return };
        match op {
            // A peek needs the guest's link too, and was taken care of by the caller.
            TcpOp::Connect { .. } | TcpOp::Peek { .. } => {}
            TcpOp::Discard { len } => match slot.end.discard(len) {
                Ok(true) => self.tcp_event(flow, HostEvent::Readable),
                Ok(false) => {}
                Err(error) => self.tcp_failed(flow, error),
            },
            TcpOp::WriteKept { at, len } => {
                let mut slices = Vec::new();
                if slot.kept.slices(at, len as usize, &mut slices) < len as usize {
                    return self.tcp_failed(flow, HostError::Reset);
                }
                match slot.end.write(&slices) {
                    Ok(written) => {
                        let written = u32::try_from(written).unwrap_or(len);
                        slot.kept.release(at + written);
                        let free = (written == len).then(|| slot.end.send_space_anew()).flatten();
                        self.parts.core.tcp_wrote_kept(flow, written, now);
                        if let Some(free) = free {
                            self.tcp_event(flow, HostEvent::SendSpace { free });
                        }
                    }
                    Err(error) => self.tcp_failed(flow, error),
                }
            }
            TcpOp::ShutdownWrite => slot.end.shutdown_write(),
            TcpOp::WatchSendSpace => {
                // An edge needs a failed write before it; modifying the registration makes one anew.
                let token = flow.to_token();
                let Some(slot) = self.tcp.get_mut(flow.index as usize).and_then(Option::as_mut) else {
                    return;
                };
                slot.watching = true;
                if self.parts.poll.modify(slot.end.as_fd(), token, Interest::ReadWrite).is_err() {
                    self.tcp_failed(flow, HostError::Exhausted);
                }
            }
            TcpOp::Close | TcpOp::Reset => {
                tracing::debug!(?flow, reset = op == TcpOp::Reset, "closed");
                let slot = self.tcp.get_mut(flow.index as usize).and_then(Option::take);
                match (slot, op) {
                    (Some(slot), TcpOp::Reset) => slot.end.reset(),
                    (slot, _) => drop(slot),
                }
                // A listener may be waiting for just this descriptor.
                self.ready_forwards.extend(self.parked.drain(..));
            }
        }
    }

    /// Copies host bytes into a guest's link.
    pub(super) fn peek(&mut self, flow: FlowId, port: PortId, at: u32, max: u32, segment: u16) {
        let Self { ports, tcp, parts, now, .. } = self;
        let core = &mut parts.core;
        let slot = tcp.get_mut(flow.index as usize).and_then(Option::as_mut);
        let (Some(entry), Some(slot)) = (ports.get_mut(&port), slot) else {
            return core.tcp_event(flow, HostEvent::Failed(HostError::Reset), *now);
        };
        let mut failed = None;
        let headers_len = core.headers_len(flow);
        let outcome =
            entry.fill((headers_len, segment.into(), max as usize), |room| match slot.end.peek(at, room) {
                Ok((len, end)) => {
                    let headers = core.tcp_peeked(flow, at, len, end, *now)?;
                    Some((headers, len as usize))
                }
                Err(error) => {
                    failed = Some(error);
                    None
                }
            });
        if let Some(error) = failed {
            self.tcp_failed(flow, error);
        }
        if let Some(Sent::Full | Sent::Never) = self.sent(port, outcome) {
            self.parts.core.tcp_peeked(flow, at, 0, PeekEnd::LinkFull, self.now);
            if let Some(entry) = self.ports.get_mut(&port) {
                entry.wait(flow);
            }
        }
    }

    /// A link has room again for a flow that waited for it.
    pub(super) fn link_has_space(&mut self, flow: FlowId) {
        match flow.kind {
            FlowKind::Tcp => self.tcp_event(flow, HostEvent::LinkSpace),
            FlowKind::Udp | FlowKind::Ping => self.ready_flows.push_back(flow),
        }
    }

    /// Where in the batch the flow's payload is gathered: where it was before, or at `next`.
    pub(super) fn gather_place(&mut self, flow: FlowId, next: usize) -> usize {
        self.tcp_slot(flow).map_or(next, |slot| *slot.gathered.get_or_insert(next))
    }

    /// Writes what a batch of frames had for one flow.
    pub(super) fn write_gathered(&mut self, batch: Gathered<'_>) {
        let Gathered { flow, at, len, mut slices } = batch;
        let Some(slot) = self.tcp_slot(flow) else { return };
        slot.gathered = None;
        match slot.end.write(&slices) {
            Ok(written) => {
                let mut kept = 0;
                if written < len {
                    let mut rest = slices.as_mut_slice();
                    IoSlice::advance_slices(&mut rest, written);
                    kept = slot.kept.keep(at + u32::try_from(written).unwrap_or(0), rest);
                }
                let free = (written == len).then(|| slot.end.send_space_anew()).flatten();
                if written + kept < len
                    && let Some(port) = self.parts.core.port_of(flow)
                {
                    self.parts.core.count_drop(port, DropReason::HostFull);
                }
                let narrow = |len| u32::try_from(len).unwrap_or(u32::MAX);
                self.tcp_event(flow, HostEvent::Wrote { len: narrow(written), kept: narrow(kept) });
                if let Some(free) = free {
                    self.tcp_event(flow, HostEvent::SendSpace { free });
                }
            }
            Err(error) => self.tcp_failed(flow, error),
        }
    }

    /// Keeps bytes that came out of order.
    pub(super) fn keep(&mut self, flow: FlowId, at: SeqNumber, slices: &[IoSlice<'_>]) {
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        if let Some(slot) = self.tcp_slot(flow)
            && slot.kept.keep(at, slices) < len
        {
            // The core counts on these bytes: without them the stream would have a hole.
            self.tcp_failed(flow, HostError::Reset);
        }
    }
}

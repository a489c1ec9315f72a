//! The other workers: handing them what is theirs, and taking what is ours.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};

use usernet_core::drops::DropReason;
use usernet_core::offload::Offload;
use usernet_core::port::{PortId, WorkerId};
use usernet_core::table::{Endpoint, FlowId};
use usernet_host::epoll::Waker;
use usernet_host::inbox::Batch;
use usernet_host::tcp::TcpEnd;
use usernet_link::{LinkError, LinkRx};

use super::mail::Handed;
use super::{Command, Worker};

impl Worker {
    /// Tells another worker what must not be lost.
    pub(super) fn tell(&self, to: usize, command: Command) {
        // One that is there no more has nothing left to do.
        let _ = self.parts.workers.get(to).is_some_and(|worker| worker.send(command));
    }

    /// Hands something to another worker, if it has room; a worker never waits for another.
    fn hand(&self, to: WorkerId, handed: Handed) -> bool {
        self.parts.workers.get(usize::from(to.0)).is_some_and(|worker| worker.hand(handed))
    }

    /// Hands a frame to or from the guest on `port` to another worker.
    fn hand_frame(&mut self, port: PortId, to: WorkerId, handed: Handed) {
        if !self.hand(to, handed) {
            self.parts.core.count_drop(port, DropReason::WorkerBusy);
        }
    }

    /// Hands a frame for a guest of another worker to that one.
    pub(super) fn send_elsewhere(&mut self, port: PortId, frame: &[IoSlice<'_>], offload: Offload) {
        let Some(to) = self.parts.core.home(port).filter(|home| *home != self.parts.id) else { return };
        let frame = joined(frame.iter().copied());
        self.hand_frame(port, to, Handed::ToGuest { port, frame, offload });
    }

    /// Hands a frame from a guest to the worker that has its flow.
    pub(super) fn hand_over(&mut self, port: PortId, to: WorkerId, rx: &dyn LinkRx, index: usize) {
        let mut frame = vec![0; rx.frame_len(index)];
        rx.copy_to(index, 0, &mut frame);
        let offload = rx.offload(index);
        self.hand_frame(port, to, Handed::FromGuest { port, frame, offload });
    }

    /// Begins the flow of a connection that was accepted on the host, here or where its guest is.
    pub(super) fn take_accepted(&mut self, guest: Endpoint, peer: SocketAddr, end: TcpEnd) {
        if let Some(to) = self.parts.core.elsewhere(guest.addr) {
            return self.hand_accepted(to, guest, peer, end);
        }
        match self.parts.core.accept_tcp(guest, peer, self.now) {
            Some(flow) => self.add_tcp(flow, end, false),
            None => end.reset(),
        }
    }

    fn hand_accepted(&self, to: WorkerId, guest: Endpoint, peer: SocketAddr, end: TcpEnd) {
        self.tell(to.0.into(), Command::Accepted { guest, peer, end: Box::new(end) });
    }

    /// A flow's guest was found at another worker.
    pub(super) fn rehome(&mut self, flow: FlowId, to: WorkerId, guest: Endpoint, peer: Endpoint) {
        let end = self.take_end(flow);
        self.parts.core.rehomed(flow);
        let Some(end) = end else { return };
        // It was added with the flow.
        let _ = self.parts.poll.remove(end.as_fd());
        self.hand_accepted(to, guest, peer.to_socket_addr(), end);
    }

    /// Takes datagrams that came to a forwarded port, here or where its guest is.
    pub(super) fn take_forwarded(&mut self, forward: u32, guest: Endpoint, batch: &Batch) {
        let &Batch { origin, datagrams, .. } = batch;
        if let Some(worker) = self.parts.core.elsewhere(guest.addr) {
            let payload = joined(self.inbox.payload(batch));
            let handed = Handed::Forwarded { forward, guest, origin, datagrams, payload };
            if !self.hand(worker, handed) {
                self.parts.core.count_lost(DropReason::WorkerBusy, datagrams.count());
            }
            return;
        }
        let outcome = self.parts.core.udp_from_forward(forward, guest, &origin, datagrams, self.now);
        if let Ok((port, headers)) = outcome {
            self.send_received(port, &headers, batch);
        }
    }

    /// Takes what another worker has handed over, at the expense of `budget`.
    pub(super) fn take_handed(&mut self, handed: Handed, budget: &mut usize) {
        // A frame from a guest is counted where it is looked at.
        if !matches!(handed, Handed::FromGuest { .. }) {
            *budget = budget.saturating_sub(1);
        }
        match handed {
            Handed::ToGuest { port, frame, offload } => {
                if self.ports.contains_key(&port) {
                    self.send(port, &[IoSlice::new(&frame)], offload);
                }
            }
            Handed::FromGuest { port, frame, offload } => {
                self.take_frame(port, frame, offload, budget);
                self.drain_outputs();
            }
            Handed::Forwarded { forward, guest, origin, datagrams, payload } => {
                let core = &mut self.parts.core;
                // The forward may have been removed meanwhile.
                if self.udp_forwards.contains_key(&forward)
                    && let Ok((port, headers)) =
                        core.udp_from_forward(forward, guest, &origin, datagrams, self.now)
                {
                    self.send(port, &[IoSlice::new(&headers), IoSlice::new(&payload)], headers.offload);
                }
            }
            Handed::Found(addr) => self.parts.core.found(addr),
        }
    }

    /// Looks at a frame from a guest that lies in no link.
    pub(super) fn take_frame(&mut self, port: PortId, frame: Vec<u8>, offload: Offload, budget: &mut usize) {
        let waker = self.parts.waker.clone();
        self.handle_batch(port, &Stray { frame, offload, waker }, &mut (0..1), budget);
    }

    /// Tells the others that an address has been found. Who does not hear of it asks again in time.
    pub(super) fn announce(&self, addr: IpAddr) {
        for worker in (0..self.parts.workers.len()).filter_map(|n| u16::try_from(n).ok()) {
            if worker != self.parts.id.0 {
                self.hand(WorkerId(worker), Handed::Found(addr));
            }
        }
    }
}

pub(super) fn joined<'a>(parts: impl Iterator<Item = IoSlice<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    parts.for_each(|part| bytes.extend_from_slice(&part));
    bytes
}

/// A frame that came to another worker's queue, or in fragments, as a batch of one.
struct Stray {
    frame: Vec<u8>,
    offload: Offload,
    waker: Waker,
}

impl LinkRx for Stray {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }

    fn receive(&mut self) -> Result<Option<usize>, LinkError> {
        Ok(None)
    }

    fn frame_len(&self, _index: usize) -> usize {
        self.frame.len()
    }

    fn offload(&self, _index: usize) -> Offload {
        self.offload
    }

    fn copy_to(&self, _index: usize, at: usize, to: &mut [u8]) -> usize {
        let rest = self.frame.get(at..).unwrap_or_default();
        let len = rest.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        len
    }

    fn slices<'a>(&'a self, _index: usize, range: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.frame.get(range).map(IoSlice::new));
    }
}

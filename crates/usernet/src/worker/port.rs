//! Guests' links: reading batches of frames, and giving frames to guests.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use tokio::sync::oneshot;
use usernet_core::datagrams::Datagrams;
use usernet_core::drops::DropReason;
use usernet_core::network::Verdict;
use usernet_core::offload::{Fragmentation, Offload};
use usernet_core::port::PortId;
use usernet_core::table::FlowId;
use usernet_core::wire::{self, Headers};
use usernet_host::epoll::Interest;
use usernet_link::{Link, LinkError, LinkRx, LinkTx, RoomTold, RxFrame, segment};

use super::datagram::Leaving;
use super::peers::joined;
use super::stream::Gathered;
use super::{Command, Worker, token};
use crate::{Error, Traffic, capture};

/// Batches that one link may hand in before the others have their turn.
const BATCHES: usize = 4;
/// Frames that it may, where each copy of one that goes to many counts: as many frames of 1,500 bytes as
/// a stream link's batches hold, which could be ten thousand small ones.
pub(super) const FRAMES: usize = 768;

/// A guest's link.
pub(crate) struct Port {
    /// Not there while a batch of it is being looked at.
    rx: Option<Rx>,
    tx: Box<dyn LinkTx>,
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// Whether this worker has the guest's first queue, and so tells of it.
    tells: bool,
    pub(super) traffic: Traffic,
    ready: bool,
    unflushed: bool,
    /// Its link was read from, and may have something to tell the guest before the worker sleeps.
    unsettled: bool,
    /// The system takes no more now: an event tells when it does.
    full: bool,
    waiting: Vec<FlowId>,
    pub(super) watchers: Vec<oneshot::Sender<String>>,
}

/// What comes from a guest.
struct Rx {
    link: Box<dyn LinkRx>,
    /// The frames of the link's batch that wait for the next turn.
    batch: Range<usize>,
}

impl Worker {
    /// Plugs in a guest's link, or one of its `queues`.
    pub(super) fn attach(
        &mut self,
        port: PortId,
        link: Link,
        queues: usize,
        name: String,
    ) -> Result<(), Error> {
        // Another of its queues may have ended already. Who strikes it off from now on tells us after this.
        let (roster, id) = (self.parts.roster.of(port), usize::from(self.parts.id.0));
        if !roster.contains(&id) {
            return Err(Error::NotFound(format!(
                "the guest {name} has gone before all of its queues were plugged in"
            )));
        }
        let link = match &self.parts.capture {
            Some(capture) => {
                let interface = format!("{} {name}", link.kind);
                capture::wrap(link, capture, &interface)
            }
            None => link,
        };
        let token = token::RX | u64::from(port.0);
        let added = self.parts.poll.add(link.rx.as_fd(), token, Interest::ReadLevel);
        added.map_err(|error| Error::Io { what: "cannot poll the link".into(), error })?;
        self.parts.core.add_queue(port, queues);
        let tells = roster.first() == Some(&id);
        if tells {
            tracing::info!(%port, kind = link.kind, name, queues, "guest attached");
        }
        let port_entry = Port {
            rx: Some(Rx { link: link.rx, batch: 0..0 }),
            tx: link.tx,
            kind: link.kind,
            name,
            tells,
            traffic: Traffic::default(),
            ready: false,
            unflushed: false,
            unsettled: false,
            full: false,
            waiting: Vec::new(),
            watchers: Vec::new(),
        };
        self.ports.insert(port, port_entry);
        Ok(())
    }

    /// Takes a guest off the network, at all workers.
    pub(super) fn detach(&mut self, port: PortId, reason: &str) {
        for worker in self.parts.roster.remove(port) {
            if worker != usize::from(self.parts.id.0) {
                self.tell(worker, Command::Detach { port, reason: reason.to_owned() });
            }
        }
        let Some(entry) = self.ports.remove(&port) else { return };
        if entry.tells {
            tracing::info!(%port, kind = entry.kind, name = entry.name, reason, "guest detached");
        }
        self.link_drops += entry.link_drops();
        // Somebody else may hold the descriptors open, and so what was asked of the poll.
        if let Some(rx) = &entry.rx {
            let _ = self.parts.poll.remove(rx.link.as_fd());
        }
        if entry.full {
            let _ = self.parts.poll.remove(entry.tx.as_fd());
        }
        self.parts.core.remove_port(port);
        for watcher in entry.watchers {
            // Whoever asked may have stopped waiting.
            let _ = watcher.send(reason.to_owned());
        }
    }

    pub(super) fn link_readable(&mut self, port: PortId) {
        if let Some(entry) = self.ports.get_mut(&port)
            && !entry.ready
        {
            entry.ready = true;
            self.ready_links.push_back(port);
        }
    }

    pub(super) fn link_writable(&mut self, port: PortId) {
        let Some(entry) = self.ports.get_mut(&port) else { return };
        if !entry.full {
            return;
        }
        match entry.tx.flush() {
            Ok(true) => self.link_space(port),
            Ok(false) => {}
            Err(error) => self.link_ended(port, &error),
        }
    }

    /// A link has room again: flows that waited for it go on.
    fn link_space(&mut self, port: PortId) {
        let Some(entry) = self.ports.get_mut(&port) else { return };
        entry.full = false;
        self.parts.core.set_link_busy(port, false);
        // It was added when the link was found full.
        let _ = self.parts.poll.remove(entry.tx.as_fd());
        for flow in std::mem::take(&mut entry.waiting) {
            self.link_has_space(flow);
        }
    }

    /// Reads from each ready link in turn.
    pub(super) fn read_links(&mut self) {
        for _ in 0..self.ready_links.len() {
            let Some(port) = self.ready_links.pop_front() else { break };
            let Some(mut rx) = self.ports.get_mut(&port).and_then(|entry| entry.rx.take()) else { continue };
            let outcome = self.read_link(port, &mut rx);
            let Some(entry) = self.ports.get_mut(&port) else {
                // The guest went meanwhile, but for this half of its link.
                self.link_drops += rx.link.dropped();
                let _ = self.parts.poll.remove(rx.link.as_fd());
                continue;
            };
            entry.rx = Some(rx);
            if !std::mem::replace(&mut entry.unsettled, true) {
                self.unsettled_links.push(port);
            }
            match outcome {
                Ok(true) => self.ready_links.push_back(port),
                Ok(false) => entry.ready = false,
                Err(error) => self.link_ended(port, &error),
            }
        }
    }

    /// Returns whether there may be more to read.
    fn read_link(&mut self, port: PortId, Rx { link, batch }: &mut Rx) -> Result<bool, LinkError> {
        let mut budget = FRAMES;
        for _ in 0..BATCHES {
            if Range::is_empty(batch) {
                let Some(frames) = link.receive()? else { return Ok(false) };
                let bytes = (0..frames).map(|index| link.frame_len(index)).sum();
                self.wait.moved(bytes);
                if let Some(entry) = self.ports.get_mut(&port) {
                    entry.traffic.rx_frames += frames as u64;
                    entry.traffic.rx_bytes += bytes as u64;
                }
                *batch = 0..frames;
            }
            self.handle_batch(port, &**link, batch, &mut budget);
            self.drain_outputs();
            if !self.ports.contains_key(&port) {
                return Ok(false);
            }
            if budget == 0 {
                break;
            }
        }
        Ok(true)
    }

    /// Takes frames off the front of a batch, until `budget` is used up or the guest has gone.
    pub(super) fn handle_batch(
        &mut self,
        port: PortId,
        rx: &dyn LinkRx,
        batch: &mut Range<usize>,
        budget: &mut usize,
    ) {
        let mut gathered: Vec<Gathered<'_>> = Vec::new();
        let mut leaving = Leaving::default();
        let mut slices = Vec::new();
        while *budget > 0
            && self.ports.contains_key(&port)
            && let Some(index) = batch.next()
        {
            *budget -= 1;
            let verdict = self.parts.core.handle_frame(port, &RxFrame { rx, index }, self.now);
            slices.clear();
            match verdict {
                Verdict::Done => {}
                Verdict::Dropped(reason) => tracing::trace!(%port, %reason, "dropped"),
                Verdict::Tcp { flow, payload, at } => {
                    let place = self.gather_place(flow, gathered.len());
                    if place == gathered.len() {
                        gathered.push(Gathered { flow, at, len: 0, slices: Vec::new() });
                    }
                    if let Some(batch) = gathered.get_mut(place).filter(|batch| batch.flow == flow) {
                        batch.len += payload.len();
                        rx.slices(index, payload, &mut batch.slices);
                    }
                }
                Verdict::Keep { flow, payload, at } => {
                    rx.slices(index, payload, &mut slices);
                    self.keep(flow, at, &slices);
                }
                Verdict::Udp { flow, via, to, payload, segment, delivery } => {
                    let datagrams = Datagrams { len: payload.len(), segment };
                    self.gather_udp(&mut leaving, (flow, via), (to, delivery), datagrams, |slices| {
                        rx.slices(index, payload, slices);
                    });
                }
                Verdict::Ping { flow, ident, to, header, payload, delivery } => {
                    slices.push(IoSlice::new(&header));
                    rx.slices(index, payload, &mut slices);
                    self.send_ping(flow, ident, to, &slices, delivery);
                    // The header goes with this frame.
                    slices = Vec::new();
                }
                Verdict::Dns { query, payload } => {
                    let mut message = vec![0; payload.len()];
                    rx.copy_to(index, payload.start, &mut message);
                    self.ask_dns(query, message);
                }
                Verdict::Reply { headers, payload } => {
                    slices.push(IoSlice::new(&headers));
                    rx.slices(index, payload, &mut slices);
                    self.send(port, &slices, headers.offload);
                    // The headers go with this frame.
                    slices = Vec::new();
                }
                Verdict::Relay(to) => {
                    rx.slices(index, 0..rx.frame_len(index), &mut slices);
                    self.send(to, &slices, rx.offload(index));
                }
                Verdict::Reassembled(frame) => {
                    // A segment of it may follow those that are gathered.
                    self.send_gathered(&mut gathered, &mut leaving);
                    // Its last fragment has paid for it, maybe with all that was left.
                    self.take_frame(port, frame, Offload::default(), &mut 1);
                }
                Verdict::HandOver(worker) => self.hand_over(port, worker, rx, index),
                Verdict::Flood(others) => {
                    rx.slices(index, 0..rx.frame_len(index), &mut slices);
                    *budget = budget.saturating_sub(others.len());
                    for to in others {
                        self.send(to, &slices, rx.offload(index));
                    }
                }
            }
        }
        self.send_gathered(&mut gathered, &mut leaving);
    }

    /// Gives the host what was gathered from a batch.
    fn send_gathered(&mut self, gathered: &mut Vec<Gathered<'_>>, leaving: &mut Leaving<'_>) {
        for batch in gathered.drain(..) {
            self.write_gathered(batch);
        }
        self.send_udp(leaving);
    }

    /// Gives a whole frame to a guest. Without room it is dropped and counted.
    pub(super) fn send(&mut self, port: PortId, frame: &[IoSlice<'_>], offload: Offload) {
        let Some(entry) = self.ports.get_mut(&port) else {
            return self.send_elsewhere(port, frame, offload);
        };
        let outcome = entry.send(frame, offload);
        if let Some(Sent::Full | Sent::Never) = self.sent(port, outcome) {
            self.parts.core.count_drop(port, DropReason::LinkFull);
        }
    }

    /// Takes note of what was given to a link.
    pub(super) fn sent(&mut self, port: PortId, outcome: Result<Sent, LinkError>) -> Option<Sent> {
        let entry = self.ports.get_mut(&port)?;
        match &outcome {
            Ok(Sent::Bytes(len)) => {
                self.wait.moved(*len);
                if !std::mem::replace(&mut entry.unflushed, true) {
                    self.unflushed_links.push(port);
                }
            }
            Ok(Sent::Full) => {
                if !std::mem::replace(&mut entry.full, true) {
                    self.parts.core.set_link_busy(port, true);
                    let token = token::TX | u64::from(port.0);
                    let interest = match entry.tx.room_told_by() {
                        RoomTold::Writable => Interest::Write,
                        RoomTold::Readable => Interest::ReadLevel,
                    };
                    if let Err(error) = self.parts.poll.add(entry.tx.as_fd(), token, interest) {
                        self.link_ended(port, &error.into());
                        return None;
                    }
                }
            }
            Ok(Sent::Elsewhere(frame, offload)) => {
                self.send_elsewhere(port, &[IoSlice::new(frame)], *offload);
            }
            Ok(Sent::Nothing | Sent::Never) => {}
            Err(error) => {
                self.link_ended(port, error);
                return None;
            }
        }
        outcome.ok()
    }

    pub(super) fn flush_links(&mut self) {
        for port in std::mem::take(&mut self.unflushed_links) {
            let Some(entry) = self.ports.get_mut(&port) else { continue };
            entry.unflushed = false;
            // What has fitted in beside that which waits is to be seen by the guest.
            if entry.full && entry.tx.room_told_by() == RoomTold::Writable {
                continue;
            }
            match entry.tx.flush() {
                Ok(true) if entry.full => self.link_space(port),
                outcome => {
                    let outcome = outcome.map(|all| if all { Sent::Nothing } else { Sent::Full });
                    self.sent(port, outcome);
                }
            }
        }
    }

    fn link_ended(&mut self, port: PortId, error: &LinkError) {
        match error {
            LinkError::Closed => {}
            error => tracing::warn!(%port, %error, "link ended"),
        }
        self.detach(port, &error.to_string());
    }
}

/// What became of something that was to go to a guest.
pub(super) enum Sent {
    /// A frame of this many bytes went into the link.
    Bytes(usize),
    /// The guest does not use this queue now: this frame is to go by its first one.
    Elsewhere(Vec<u8>, Offload),
    /// There was nothing to send.
    Nothing,
    /// The link has no room until an event tells.
    Full,
    /// An empty link has no room for it either.
    Never,
}

/// How a try to use a link's room went.
enum Room {
    Used(Result<usize, LinkError>),
    Unused,
    None,
}

impl Port {
    /// Fills room in the link: up to `max` bytes of payload in wire packets of `segment` bytes, with
    /// room for headers in front. `fill` puts payload there and returns the headers and how much it
    /// was, or nothing.
    pub(super) fn fill(
        &mut self,
        (header_len, segment, max): (usize, usize, usize),
        fill: impl FnOnce(&mut Vec<IoSliceMut<'_>>) -> Option<(Headers, usize)>,
    ) -> Result<Sent, LinkError> {
        let mut fill = Some(fill);
        let sent = self.with_room(|tx| {
            let mut room = Vec::new();
            if tx.reserve(header_len, segment, max, &mut room) == 0 {
                return Room::None;
            }
            let filled = fill.take().and_then(|fill| fill(&mut room));
            drop(room);
            match filled {
                Some((headers, len)) => {
                    Room::Used(tx.commit(&headers, len, headers.offload).map(|()| headers.len() + len))
                }
                None => Room::Unused,
            }
        })?;
        match (sent, fill) {
            (Sent::Full | Sent::Never, Some(fill)) if self.tx.is_idle() => {
                let mut payload = vec![0; max];
                let filled = fill(&mut vec![IoSliceMut::new(&mut payload)]);
                Ok(filled.map_or(Sent::Nothing, |(headers, len)| {
                    payload.truncate(len);
                    Sent::Elsewhere([&headers, &*payload].concat(), headers.offload)
                }))
            }
            (sent, _) => Ok(sent),
        }
    }

    /// Gives a whole frame to the link, in fragments where it is to go so.
    pub(super) fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<Sent, LinkError> {
        let sent = match offload.fragmentation {
            None => self.send_whole(frame, offload),
            Some(how) => self.send_fragments(frame, offload, how),
        };
        match sent? {
            Sent::Full | Sent::Never if self.tx.is_idle() => {
                Ok(Sent::Elsewhere(joined(frame.iter().copied()), offload))
            }
            sent => Ok(sent),
        }
    }

    /// Without room for one fragment the others are of no use.
    #[cold]
    fn send_fragments(
        &mut self,
        frame: &[IoSlice<'_>],
        offload: Offload,
        mut how: Fragmentation,
    ) -> Result<Sent, LinkError> {
        let mut len = 0;
        for packet in segment::finished(frame, offload) {
            for (headers, data) in wire::fragments(&packet, how) {
                match self.send_whole(&[IoSlice::new(&headers), IoSlice::new(data)], Offload::default())? {
                    Sent::Bytes(sent) => len += sent,
                    other => return Ok(other),
                }
            }
            how.ident = how.ident.wrapping_add(1);
        }
        Ok(Sent::Bytes(len))
    }

    fn send_whole(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<Sent, LinkError> {
        let len = frame.iter().map(|part| part.len()).sum();
        self.with_room(|tx| match tx.send(frame, offload) {
            Ok(true) => Room::Used(Ok(len)),
            Ok(false) => Room::None,
            Err(error) => Room::Used(Err(error)),
        })
    }

    /// Tries to use the link's room, and once more after a flush when there was none.
    fn with_room(&mut self, mut attempt: impl FnMut(&mut dyn LinkTx) -> Room) -> Result<Sent, LinkError> {
        for _ in 0..2 {
            match attempt(&mut *self.tx) {
                Room::Used(outcome) => {
                    let len = outcome?;
                    self.traffic.tx_frames += 1;
                    self.traffic.tx_bytes += len as u64;
                    return Ok(Sent::Bytes(len));
                }
                Room::Unused => return Ok(Sent::Nothing),
                Room::None if self.full => return Ok(Sent::Full),
                Room::None => {}
            }
            if !self.tx.flush()? {
                return Ok(Sent::Full);
            }
        }
        Ok(Sent::Never)
    }

    /// Frames that the link itself has dropped: what a device would not take, or nobody could cut.
    pub(super) fn link_drops(&self) -> u64 {
        self.rx.as_ref().map_or(0, |rx| rx.link.dropped()) + self.tx.dropped()
    }

    /// Whether the guest uses this queue.
    pub(super) fn is_in_use(&self) -> bool {
        !self.tx.is_idle()
    }

    /// Tells the guest what could wait until now.
    pub(super) fn settle(&mut self) {
        self.unsettled = false;
        if let Some(rx) = &mut self.rx {
            rx.link.settle();
        }
    }

    /// Why nothing moves, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.rx.as_ref().and_then(|rx| rx.link.trouble())
    }

    /// Remembers a flow that waits for room.
    pub(super) fn wait(&mut self, flow: FlowId) {
        self.waiting.push(flow);
    }
}

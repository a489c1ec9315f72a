//! A network card whose other side is a vhost-user back end, and the memory that it shares with it.
//!
//! ```text
//! for each pair: receive ring | transmit ring | receive buffers | slots to send from
//! ```

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use usernet_core::wire::Headers;
use usernet_link::virtio::feature;
use usernet_link::vnet;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryRegion as _, GuestRegionMmap, VolatileSlice,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{self, Buffer, Queue};

/// Where the guest's memory begins.
const BASE: u64 = 1 << 32;
/// Receive buffers, each as long as those of Linux when frames are long: a page.
const ROOMS: u16 = 1024;
const ROOM: usize = 4096;
/// Frames that may be on their way out at once. Each has a place for headers and one for payload.
const SLOTS: u16 = 128;
const SLOT_HEADERS: usize = 4096;
const SLOT: usize = SLOT_HEADERS + (64 << 10);
/// Receive and transmit queue; a frame to send has two descriptors.
const SIZES: [u16; 2] = [ROOMS, 2 * SLOTS];

const BUFFERS: usize = 2 * queue::ROOM;
const SLOTS_START: usize = BUFFERS + ROOMS as usize * ROOM;
const PAIR: usize = SLOTS_START + SLOTS as usize * SLOT;

/// What a frame's start has at most that anyone looks at: headers, and an answer behind them.
pub(super) const HEAD: usize = 256;

const FEATURES: u64 = feature::VERSION_1
    | feature::EVENT_IDX
    | feature::MRG_RXBUF
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::MTU;
/// That there are protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A card that is plugged in.
pub(super) struct Card {
    memory: GuestRegionMmap,
    bells: Vec<Bells>,
    /// The back end has the card for as long as the connection.
    _frontend: Frontend,
}

/// What each side wakes the other by.
struct Bells {
    kicks: [EventFd; 2],
    /// Of both queues.
    call: EventFd,
}

impl Card {
    /// Plugs a card with so many pairs of queues in to the network that listens on `socket`.
    pub(super) fn plug_in(socket: &Path, pairs: usize) -> Result<Self> {
        let queues = u64::try_from(2 * pairs)?;
        let mut frontend = Frontend::connect(socket, queues)
            .with_context(|| format!("nobody listens for front ends on {}", socket.display()))?;
        frontend.set_owner()?;
        let several = if pairs > 1 { feature::MQ } else { 0 };
        let wanted = FEATURES | PROTOCOL_FEATURES | several;
        let offered = frontend.get_features()?;
        ensure!(offered & wanted == wanted, "features {:#x} are not offered", wanted & !offered);
        frontend.get_protocol_features()?;
        frontend
            .set_protocol_features(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)?;
        // How many pairs there are is not asked: the library would take it for the number of queues.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted)?;

        let size = pairs * PAIR;
        let file = memfd_create("rings", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, u64::try_from(size)?)?;
        let file = FileOffset::new(file.into(), 0);
        let memory = GuestRegionMmap::from_range(GuestAddress(BASE), size, Some(file))?;
        // All of it is there before anything is measured.
        let whole = memory.as_volatile_slice()?;
        (0..size).step_by(4096).try_for_each(|page| whole.write_obj(0_u8, page))?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(&memory)?])?;

        let mut bells = Vec::new();
        for pair in 0..pairs {
            let [receive, transmit, call] = [EventFd::new(0)?, EventFd::new(0)?, EventFd::new(0)?];
            for (number, (size, kick)) in SIZES.into_iter().zip([&receive, &transmit]).enumerate() {
                let start = pair * PAIR + number * queue::ROOM;
                let user = |at: usize| memory.as_ptr() as u64 + at as u64;
                let [descriptors, available, used] = queue::parts(start, size).map(user);
                let queue = 2 * pair + number;
                frontend.set_vring_num(queue, size)?;
                frontend.set_vring_addr(
                    queue,
                    &VringConfigData {
                        queue_max_size: size,
                        queue_size: size,
                        flags: 0,
                        desc_table_addr: descriptors,
                        used_ring_addr: used,
                        avail_ring_addr: available,
                        log_addr: None,
                    },
                )?;
                frontend.set_vring_base(queue, 0)?;
                frontend.set_vring_call(queue, &call)?;
                frontend.set_vring_kick(queue, kick)?;
                frontend.set_vring_enable(queue, true)?;
            }
            bells.push(Bells { kicks: [receive, transmit], call });
        }
        Ok(Self { memory, bells, _frontend: frontend })
    }

    /// A pair of queues.
    pub(super) fn pair(&self, number: usize) -> Result<Pair<'_>> {
        let Bells { kicks: [receive, transmit], call } =
            self.bells.get(number).context("there is no such pair")?;
        let memory = self.memory.as_volatile_slice()?;
        let start = number * PAIR;
        let [rooms, entries] = SIZES;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, call.as_raw_fd(), event)?;
        let mut pair = Pair {
            memory,
            start,
            receive: Queue::new(memory, start, rooms, receive),
            transmit: Queue::new(memory, start + queue::ROOM, entries, transmit),
            free: (0..SLOTS).rev().collect(),
            epoll,
        };
        (0..ROOMS).for_each(|room| pair.receive.offer_room(room, pair.room(room)));
        pair.receive.publish();
        Ok(pair)
    }
}

/// A pair of queues, and the buffers for them.
pub(super) struct Pair<'m> {
    memory: VolatileSlice<'m>,
    start: usize,
    receive: Queue<'m>,
    transmit: Queue<'m>,
    /// Slots that nothing is on its way from.
    free: std::collections::VecDeque<u16>,
    epoll: Epoll,
}

impl Pair<'_> {
    /// Whether a frame can be sent.
    pub(super) fn can_send(&mut self) -> bool {
        while let Some((head, _)) = self.transmit.take() {
            self.free.push_back(head / 2);
        }
        !self.free.is_empty()
    }

    /// Sends a frame: headers, and what lies in the slot behind `start` as the rest of `len` payload bytes.
    /// `false` when it cannot.
    pub(super) fn send(&mut self, headers: &Headers, start: &[u8], len: usize) -> Result<bool> {
        if !self.can_send() {
            return Ok(false);
        }
        let Some(slot) = self.free.pop_front() else { return Ok(false) };
        let at = self.start + SLOTS_START + usize::from(slot) * SLOT;
        let header = [&vnet::encode(headers.offload), &**headers].concat();
        self.memory.write_slice(&header, at)?;
        self.memory.write_slice(start, at + SLOT_HEADERS)?;
        let first = Buffer { address: address(at), len: header.len() };
        let second = Buffer { address: address(at + SLOT_HEADERS), len };
        self.transmit.offer_bytes(2 * slot, first, (len > 0).then_some(second));
        Ok(true)
    }

    /// Takes the frames that have come; `hear` gets the start of each.
    /// What it makes of them is its own affair.
    pub(super) fn receive(&mut self, mut hear: impl FnMut(&[u8]) -> Option<()>) -> Result<usize> {
        let mut frames = 0;
        while let Some((room, len)) = self.receive.take() {
            let mut bytes = [0; HEAD];
            let head = bytes.get_mut(..len.min(HEAD)).context("a part of it")?;
            self.memory.read_slice(head, self.place(room))?;
            let Some((header, frame)) = head.split_first_chunk::<{ vnet::HEADER_LEN }>() else {
                bail!("a frame without a header")
            };
            let [.., low, high] = *header;
            let _ = hear(frame);
            frames += 1;
            self.receive.offer_room(room, self.room(room));
            // What belongs to a frame comes back with it.
            for _ in 1..u16::from_le_bytes([low, high]) {
                let (room, _) = self.receive.take().context("a part of a frame is missing")?;
                self.receive.offer_room(room, self.room(room));
            }
        }
        Ok(frames)
    }

    /// Lets the device know of everything.
    pub(super) fn publish(&mut self) {
        self.receive.publish();
        self.transmit.publish();
    }

    /// Waits until a frame has come, or has gone where none can be sent; `false` when `patience` is over.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<bool> {
        if self.receive.ask() || (self.free.is_empty() && self.transmit.ask()) {
            return Ok(true);
        }
        let mut events = [EpollEvent::default()];
        Ok(self.epoll.wait(i32::try_from(patience.as_millis())?, &mut events)? > 0)
    }

    /// Waits until all frames have gone.
    pub(super) fn drain(&mut self) -> Result<()> {
        while !self.transmit.is_idle() {
            while self.transmit.take().is_some() {}
            if !self.transmit.ask() && !self.transmit.is_idle() {
                let mut events = [EpollEvent::default()];
                ensure!(self.epoll.wait(1000, &mut events)? > 0, "the device takes no more frames");
            }
        }
        Ok(())
    }

    fn room(&self, room: u16) -> Buffer {
        Buffer { address: address(self.place(room)), len: ROOM }
    }

    fn place(&self, room: u16) -> usize {
        self.start + BUFFERS + usize::from(room) * ROOM
    }
}

/// The guest address of a place in the memory.
fn address(at: usize) -> u64 {
    BASE + at as u64
}

//! A guest behind a vhost-user front end.

use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use usernet::{Network, PortInfo};
use usernet_core::time::Instant;
use usernet_core::wire::MacAddr;
use usernet_testkit::driver::{Driver, GuestMemory};
use usernet_testkit::nic::{Nic, NicConfig, Queue, QueueConfig, feature};
use usernet_testkit::{Guest as _, GuestConfig, Ipv6, SmolGuest};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::raw;
use crate::guest::SOON;

/// Of the device: there are protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// How much higher than guest addresses those are by which rings are named.
pub(crate) const RINGS: u64 = 0x7f00_0000_0000;

pub(crate) struct Guest {
    pub(crate) port: u32,
    pub(crate) smol: SmolGuest,
    pub(crate) nic: Nic,
    pub(crate) memory: GuestMemory,
    pub(crate) config: NicConfig,
    pub(crate) front: Frontend,
    /// The front end's connection.
    pub(crate) stream: UnixStream,
    /// By how many pairs it sends, in turns.
    pub(crate) sends_by: usize,
    /// It leaves its rings alone.
    pub(crate) stalled: bool,
    /// It looks at its rings all the time, and asks for no interrupts.
    pub(crate) polls: bool,
    next: usize,
    started: std::time::Instant,
}

impl Guest {
    pub(crate) fn plug_in(network: &Network, config: NicConfig, last_octet: u8) -> Self {
        Self::with_more_memory(network, config, 0, last_octet)
    }

    /// A guest with more memory than its queues need.
    pub(crate) fn with_more_memory(network: &Network, config: NicConfig, more: u64, last_octet: u8) -> Self {
        let mut guest = Self::quiet(network, config, more, last_octet);
        guest.set_up(|_| 0);
        guest
    }

    /// A guest whose front end has said nothing yet.
    pub(crate) fn quiet(network: &Network, config: NicConfig, more: u64, last_octet: u8) -> Self {
        let memory = config.memory(more);
        let nic = Nic::new(&memory, config);
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, last_octet]);
        let ipv6 =
            Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 0)) + u128::from(last_octet));
        let smol = GuestConfig {
            mac,
            addr: None,
            ipv6: Some(Ipv6::Static(ipv6)),
            seed: last_octet.into(),
            ..GuestConfig::default()
        };
        let (stream, port) = attach(network, config.pairs);
        Self {
            port,
            smol: SmolGuest::new(smol),
            nic,
            memory,
            config,
            front: front_end(&stream),
            stream,
            sends_by: 1,
            stalled: false,
            polls: false,
            next: 0,
            started: std::time::Instant::now(),
        }
    }

    /// Ends the conversation and begins another, where the rings go on as they are.
    pub(crate) fn reconnect(&mut self, network: &Network) {
        (self.stream, self.port) = attach(network, self.config.pairs);
        self.front = front_end(&self.stream);
        self.set_up(|queue| queue.driver.used_index());
    }

    /// Says all that a front end says, up to queues that move from certain bases on.
    pub(crate) fn set_up(&mut self, base: impl Fn(&Queue) -> u16) {
        self.agree();
        let regions = self.regions();
        self.front.set_mem_table(&regions).unwrap();
        self.start(base);
    }

    pub(crate) fn agree(&mut self) {
        let QueueConfig { indirect, event_idx, .. } = self.config.rx;
        self.front.set_owner().unwrap();
        let mut features = self.config.features | feature::VERSION_1 | PROTOCOL_FEATURES;
        features |= if indirect { feature::INDIRECT_DESC } else { 0 };
        features |= if event_idx { feature::EVENT_IDX } else { 0 };
        let offered = self.front.get_features().unwrap();
        assert_eq!(features & !offered, 0, "all that is asked for is offered");
        self.front.set_features(features).unwrap();
        let offered = self.front.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::STATUS;
        assert!(offered.contains(wanted), "{offered:?}");
        self.front.set_protocol_features(wanted).unwrap();
        self.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    /// Its memory, each queue's and what is behind them a region of its own.
    pub(crate) fn regions(&mut self) -> Vec<VhostUserMemoryRegionInfo> {
        let mut extents: Vec<_> = self.nic.queues().map(|queue| queue.extent.clone()).collect();
        let (queues, end) = (extents[extents.len() - 1].end, self.memory.start() + self.memory.len());
        extents.extend((queues < end).then_some(queues..end));
        let region = |extent: Range<u64>| VhostUserMemoryRegionInfo {
            guest_phys_addr: extent.start,
            memory_size: extent.end - extent.start,
            userspace_addr: extent.start + RINGS,
            mmap_offset: extent.start - self.memory.start(),
            mmap_handle: self.memory.file().as_raw_fd(),
        };
        extents.into_iter().map(region).collect()
    }

    /// Has all queues move, from certain bases on.
    pub(crate) fn start(&mut self, base: impl Fn(&Queue) -> u16) {
        let Self { front, nic, .. } = self;
        for (index, queue) in nic.queues().enumerate() {
            start(front, index, queue, base(queue));
        }
    }

    /// Has all queues rest; returns with which chain each is to go on.
    pub(crate) fn stop(&mut self) -> Vec<u16> {
        let bases = (0..2 * self.config.pairs).map(|index| self.front.get_vring_base(index).unwrap());
        bases.map(|base| base.try_into().unwrap()).collect()
    }

    /// The queues' indices of what the device has given back.
    pub(crate) fn used(&mut self) -> Vec<u16> {
        self.nic.queues().map(|queue| queue.driver.used_index()).collect()
    }

    /// Says what the front end has no words for, and wants no answer.
    pub(crate) fn message(&self, request: u32, payload: &[u8]) {
        raw::say(&self.stream, request, raw::VERSION, payload, &[]);
    }

    /// Asks the same; returns the payload of the answer.
    pub(crate) fn ask(&self, request: u32) -> Vec<u8> {
        self.message(request, &[]);
        raw::answer(&self.stream)
    }

    pub(crate) fn info(&self, network: &Network) -> Option<PortInfo> {
        let ports = network.handle().ports().unwrap();
        ports.into_iter().find(|info| info.port == self.port)
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros().try_into().unwrap())
    }

    /// Does what can be done now; returns how long it may wait for more.
    fn turn(&mut self) -> Duration {
        if self.stalled {
            return SOON;
        }
        self.nic.hear();
        for frame in self.nic.receive() {
            self.smol.receive(frame, Instant::ZERO);
        }
        let now = self.now();
        let frames = self.smol.poll(now);
        if !frames.is_empty() {
            self.next = (self.next + 1) % self.sends_by;
        }
        self.nic.send(self.next, frames);
        if self.polls || self.nic.ask_for_interrupts() {
            return Duration::ZERO;
        }
        self.smol.next(now).map_or(SOON, |at| at.since(now))
    }
}

fn attach(network: &Network, pairs: usize) -> (UnixStream, u32) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let pairs = NonZeroU16::new(pairs.try_into().unwrap()).unwrap();
    (ours, network.handle().attach_vhost_user(theirs, pairs, "guest").unwrap())
}

fn front_end(stream: &UnixStream) -> Frontend {
    Frontend::from_stream(stream.try_clone().unwrap(), 16)
}

/// Has a queue move, from a base on.
pub(crate) fn start(front: &mut Frontend, index: usize, queue: &Queue, base: u16) {
    let Driver { size, descriptors, available, used, .. } = queue.driver;
    let place = VringConfigData {
        queue_max_size: size,
        queue_size: size,
        flags: 0,
        desc_table_addr: descriptors + RINGS,
        used_ring_addr: used + RINGS,
        avail_ring_addr: available + RINGS,
        log_addr: None,
    };
    front.set_vring_num(index, size).unwrap();
    front.set_vring_addr(index, &place).unwrap();
    front.set_vring_base(index, base).unwrap();
    front.set_vring_call(index, &queue.call).unwrap();
    front.set_vring_kick(index, &queue.kick).unwrap();
    front.set_vring_enable(index, true).unwrap();
}

/// Runs guests until `done`, which looks at each.
pub(crate) fn run(guests: &mut [Guest], what: &str, mut done: impl FnMut(&mut [Guest]) -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    let epoll = Epoll::new().unwrap();
    for queue in guests.iter_mut().flat_map(|guest| guest.nic.queues()) {
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, queue.call.as_raw_fd(), event).unwrap();
    }
    loop {
        let wait = guests.iter_mut().map(Guest::turn).min().unwrap();
        if done(guests) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{what} did not come in time");
        // Programs of the host, which `done` may be waiting for, are looked at now and then.
        let wait = wait.min(Duration::from_millis(20)).as_micros().div_ceil(1000);
        epoll.wait(wait.try_into().unwrap(), &mut [EpollEvent::default(); 4]).unwrap();
    }
}

pub(crate) fn guest_with_address(network: &Network, config: NicConfig, last_octet: u8) -> Guest {
    let mut guest = [Guest::plug_in(network, config, last_octet)];
    run(&mut guest, "a lease", |guest| guest[0].smol.addr().is_some());
    let [guest] = guest;
    guest
}

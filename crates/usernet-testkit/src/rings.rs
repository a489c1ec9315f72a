//! A guest with a virtio network device, down to the bytes of its rings.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use usernet_link::virtio::{Device, DeviceError, Memory, Region, RegionLayout, RingLayout, feature};
use usernet_link::{Link, LinkError, LinkRx, LinkTx};

use crate::driver::{Driver, GuestMemory};

/// The number of the queue of frames to the guest.
pub const RECEIVE: usize = 0;
/// The number of the queue of frames from the guest.
pub const TRANSMIT: usize = 1;

/// What rings' addresses are higher by than guest addresses, so that the two are not mixed up.
const RINGS: u64 = 0x7f00_0000_0000;

/// A queue, as its driver has it.
pub struct Queue {
    /// Its ring.
    pub driver: Driver,
    kick: OwnedFd,
    call: OwnedFd,
    err: OwnedFd,
}

impl Queue {
    /// Where its driver notifies the device.
    pub fn kick(&self) -> OwnedFd {
        self.kick.try_clone().unwrap()
    }

    /// Where its driver is interrupted.
    pub fn interrupts(&self) -> OwnedFd {
        self.call.try_clone().unwrap()
    }
}

/// A device of one pair of queues, the worker's halves of its link, and the drivers at the other side.
pub struct RingGuest {
    /// What a VMM has of it.
    pub device: Device,
    /// Frames from the guest; none after the link has ended.
    pub rx: Option<Box<dyn LinkRx>>,
    /// Frames to the guest.
    pub tx: Box<dyn LinkTx>,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The receive and the transmit queue.
    pub queues: [Queue; 2],
    /// What the driver has agreed to ([`feature`]).
    pub features: u64,
}

impl RingGuest {
    /// A guest with rings of `size` descriptors at the start of its memory, both empty and running.
    ///
    /// # Panics
    /// The system has no memory or descriptors left, or the memory is too small.
    pub fn new(memory: GuestMemory, size: u16, features: u64) -> Self {
        let (device, mut links) = Device::new(std::num::NonZeroU16::MIN).unwrap();
        let Link { rx, tx, .. } = links.pop().unwrap();
        let queue = |at| {
            let bell = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
            let driver = Driver::new(&memory, at, size, 0);
            Queue { driver, kick: bell(), call: bell(), err: bell() }
        };
        let receive = queue(memory.start());
        let transmit = queue(receive.driver.end().next_multiple_of(16));
        let queues = [receive, transmit];
        assert!(queues[TRANSMIT].driver.end() <= memory.start() + memory.len(), "the rings fit");
        let mut guest = Self { device, rx: Some(rx), tx, memory, queues, features };
        guest.set_features(features);
        let whole = guest.regions(1);
        guest.set_memory(&whole).unwrap();
        for index in [RECEIVE, TRANSMIT] {
            let Queue { call, err, .. } = &guest.queues[index];
            let [call, err] = [call, err].map(|bell| Some(bell.try_clone().unwrap()));
            guest.change(|device| device.set_call(index, call)).unwrap();
            guest.change(|device| device.set_err(index, err)).unwrap();
            guest.start(index).unwrap();
        }
        guest
    }

    /// The guest address behind both rings, for buffers.
    pub fn heap(&self) -> u64 {
        self.queues[TRANSMIT].driver.end().next_multiple_of(64)
    }

    /// Has the device do something that waits for the worker, while the worker takes in what there is:
    /// frames of that time are lost.
    pub fn change<T: Send>(&mut self, change: impl FnOnce(&Device) -> T + Send) -> T {
        let (device, rx) = (&self.device, &mut self.rx);
        thread::scope(|scope| {
            let (done, outcome) = mpsc::channel();
            scope.spawn(move || done.send(change(device)));
            loop {
                if rx.as_mut().is_some_and(|rx| rx.receive().is_err()) {
                    *rx = None;
                }
                match outcome.recv_timeout(Duration::from_micros(50)) {
                    Ok(outcome) => return outcome,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => panic!("the change has failed"),
                }
            }
        })
    }

    /// Agrees on other features.
    pub fn set_features(&mut self, features: u64) {
        self.features = features;
        // Who has gone agrees to nothing.
        let _ = self.change(|device| device.set_features(features));
    }

    /// The whole of the memory, as so many regions.
    pub fn regions(&self, count: u64) -> Vec<RegionLayout> {
        let len = (self.memory.len() / count).next_multiple_of(4096);
        let region = |n| {
            let offset = len * n;
            let guest = self.memory.start() + offset;
            let len = len.min(self.memory.len() - offset);
            RegionLayout { guest, rings: guest + RINGS, len, offset }
        };
        (0..count).map(region).collect()
    }

    /// Maps the memory anew.
    ///
    /// # Errors
    /// The device does not find its rings there.
    ///
    /// # Panics
    /// These are no regions of this memory.
    pub fn set_memory(&mut self, regions: &[RegionLayout]) -> Result<(), DeviceError> {
        let mut memory = Memory::default();
        for layout in regions {
            memory.add(Region::map(*layout, self.memory.file()).unwrap()).expect("regions are apart");
        }
        self.change(|device| device.set_memory(&memory))
    }

    /// Where a queue's ring is, as the device is told.
    pub fn ring(&self, index: usize) -> RingLayout {
        let Driver { size, descriptors, available, used, .. } = self.queues[index].driver;
        let has = |bit| self.features & bit != 0;
        RingLayout {
            size,
            descriptors: descriptors + RINGS,
            available: available + RINGS,
            used: used + RINGS,
            event_idx: has(feature::EVENT_IDX),
            indirect: has(feature::INDIRECT_DESC),
        }
    }

    /// Starts a queue where its driver takes back the next chain.
    ///
    /// # Errors
    /// The device refuses.
    pub fn start(&mut self, index: usize) -> Result<(), DeviceError> {
        let (ring, base) = (self.ring(index), self.queues[index].driver.seen);
        let kick = self.queues[index].kick();
        self.change(|device| device.start(index, ring, base, kick))
    }

    /// Has a queue rest.
    ///
    /// # Errors
    /// The link has gone.
    pub fn stop(&mut self, index: usize) -> Result<u16, DeviceError> {
        self.change(|device| device.stop(index))
    }

    /// Sets a queue up anew, as after a reset: its ring is empty, with this first index.
    ///
    /// # Errors
    /// The device refuses.
    pub fn renew(&mut self, index: usize, base: u16) -> Result<(), DeviceError> {
        self.stop(index)?;
        let Driver { size, descriptors, .. } = self.queues[index].driver;
        self.queues[index].driver = Driver::new(&self.memory, descriptors, size, base);
        self.start(index)
    }

    /// Notifies the device.
    pub fn kick(&self, index: usize) {
        rustix::io::write(&self.queues[index].kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Tells the device of chains that were offered, as its driver should.
    pub fn publish(&self, index: usize) {
        if self.queues[index].driver.publish(self.features & feature::EVENT_IDX != 0) {
            self.kick(index);
        }
    }

    /// Whether the guest was interrupted since this was last asked.
    pub fn interrupted(&self, index: usize) -> bool {
        rustix::io::read(&self.queues[index].call, &mut [0; 8]).is_ok()
    }

    /// Whether the device has said, since this was last asked, that the ring makes no sense.
    pub fn refused(&self, index: usize) -> bool {
        rustix::io::read(&self.queues[index].err, &mut [0; 8]).is_ok()
    }

    /// Takes in a batch.
    ///
    /// # Errors
    /// The link has ended.
    pub fn receive(&mut self) -> Result<Option<usize>, LinkError> {
        let rx = self.rx.as_mut().ok_or(LinkError::Closed)?;
        let received = rx.receive();
        rx.settle();
        received
    }

    /// The bytes of frame `index` of the batch.
    pub fn frame(&self, index: usize) -> Vec<u8> {
        let Some(rx) = &self.rx else { return Vec::new() };
        let mut bytes = vec![0; rx.frame_len(index)];
        let copied = rx.copy_to(index, 0, &mut bytes);
        bytes.truncate(copied);
        bytes
    }
}

//! The control queue: the driver says how many pairs of queues it uses (virtio 1.2 §5.1.6.5.5).
//!
//! It is polled and served by whoever has the device, since what it asks for is done by starting and stopping
//! other queues.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use usernet_core::frame::FrameBytes as _;

use super::memory::Memory;
use super::pair::{hear, ring_bell};
use super::ring::{Buffer, Direction, Ring, RingError, RingLayout};
use super::scattered::Scattered;

/// The longest command, in bytes: one for a table of MAC addresses, which is refused, may be long.
const MAX_COMMAND: usize = 64 * 1024;
/// Class and command of `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`, which a number of 16 bits follows.
const SET_PAIRS: [u8; 2] = [4, 0];
const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// A control queue.
#[derive(Debug, Default)]
pub struct ControlQueue {
    running: Option<Running>,
    /// Interrupts the guest.
    call: Option<OwnedFd>,
}

#[derive(Debug)]
struct Running {
    ring: Ring,
    kick: OwnedFd,
    /// How many pairs the driver uses.
    pairs: usize,
}

impl ControlQueue {
    /// Starts the queue, which goes on with the chain of index `base`. From then on the driver uses one pair
    /// until it says otherwise.
    ///
    /// # Errors
    /// There is no such ring.
    pub fn start(
        &mut self,
        layout: RingLayout,
        memory: &Memory,
        base: u16,
        kick: OwnedFd,
    ) -> Result<(), RingError> {
        ring_bell(&kick);
        self.running = Some(Running { ring: Ring::new(layout, memory, base)?, kick, pairs: 1 });
        Ok(())
    }

    /// Has the queue rest. Returns the index of the first chain that was not given back, if it moved.
    pub fn stop(&mut self) -> Option<u16> {
        self.running.take().map(|running| running.ring.base())
    }

    /// Gives the queue what interrupts the guest: a non-blocking eventfd.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
    }

    /// Moves the ring to other memory.
    ///
    /// # Errors
    /// It is not in it. The queue rests.
    pub fn remap(&mut self, memory: &Memory) -> Result<(), RingError> {
        if let Some(running) = self.running.take() {
            let ring = running.ring.moved(memory)?;
            self.running = Some(Running { ring, ..running });
        }
        Ok(())
    }

    /// What is readable when there may be a command.
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.kick.as_fd())
    }

    /// Whether the driver uses a pair; without a control queue, it uses all.
    pub fn uses(&self, pair: usize) -> bool {
        self.running.as_ref().is_none_or(|running| pair < running.pairs)
    }

    /// Takes in commands: of `most` pairs, the driver may use some. All else is refused.
    ///
    /// # Errors
    /// The ring makes no sense. The queue rests.
    pub fn serve(&mut self, memory: &Memory, most: usize) -> Result<(), RingError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let served = running.serve(memory, most);
        if running.ring.publish()
            && let Some(call) = &self.call
        {
            ring_bell(call);
        }
        if served.is_err() {
            self.running = None;
        }
        served
    }
}

impl Running {
    fn serve(&mut self, memory: &Memory, most: usize) -> Result<(), RingError> {
        hear(&self.kick)?;
        // No more than the ring has: a driver that goes on and on has its next turn with the next kick.
        for _ in 0..self.ring.size() {
            let mut buffers = Vec::new();
            let taken = self.ring.take(memory, Direction::Both, MAX_COMMAND, &mut buffers)?;
            let Some(chain) = taken else {
                if self.ring.ask_for_notification()? {
                    continue;
                }
                return Ok(());
            };
            let written = self.answer(memory, &buffers, most);
            self.ring.give_back(chain.head, written);
        }
        ring_bell(&self.kick);
        Ok(())
    }

    /// Does what a command asks; returns how many bytes were written to its buffers.
    fn answer(&mut self, memory: &Memory, buffers: &[Buffer], most: usize) -> u32 {
        let (asked, answer) = buffers.split_at(buffers.partition_point(|buffer| !buffer.to_guest));
        let bytes = |buffers: &[Buffer]| buffers.iter().map(|buffer| buffer.len).sum();
        let asked = Scattered { memory, buffers: asked, len: bytes(asked) };
        let mut command = [0; 4];
        let whole = asked.copy_to(0, &mut command) == command.len();
        let [class, number, low, high] = command;
        let pairs = usize::from(u16::from_le_bytes([low, high]));
        let done = whole && [class, number] == SET_PAIRS && (1..=most).contains(&pairs);
        if done {
            self.pairs = pairs;
        }
        Scattered { memory, buffers: answer, len: bytes(answer) }
            .write(0, &[if done { DONE } else { REFUSED }]);
        u32::from(!answer.is_empty())
    }
}

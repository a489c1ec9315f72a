//! A virtio network card as its driver has it, in memory that can be shared with whoever has the device.
//!
//! A [`Nic`] has frames, with the offloads that were agreed on, over pairs of [`Queue`]s: each a ring
//! ([`crate::driver`]) with a buffer for each of its slots. It counts who is told how often.

mod card;
mod queue;
mod super_frames;

pub use card::{Nic, NicConfig, Pair, feature};
pub use queue::{Queue, QueueConfig, bell};

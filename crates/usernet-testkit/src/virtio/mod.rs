//! The driver's side of a virtio network device, in memory that can be shared with who has the device's.
//!
//! - [`GuestMemory`]: areas of one memory file, apart from each other in the guest's address space,
//! - [`DriverRing`]: a split virtqueue with buffers of its own, each in an area,
//! - [`Nic`]: frames over pairs of such rings, with the offloads that were agreed on.

mod memory;
mod nic;
mod ring;
mod super_frames;

pub use memory::{Area, GuestMemory};
pub use nic::{Nic, NicConfig, feature};
pub use ring::{DriverRing, RingConfig, bell};

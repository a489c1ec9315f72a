//! A virtio network device whose rings are ours: frames move straight from and to the guest's memory.
//!
//! Whoever has the guest tells a [`Device`] of its memory, of the features that its driver took and of where
//! the rings are: a VMM for a guest of its own, or a [`crate::vhost_user::Session`] for one in another
//! process. Each pair of queues is a [`crate::Link`]; the worker that has the link moves the frames. Payload
//! is copied once, by the host socket's own system call, and neither side tells the other of anything while
//! both are busy.
//!
//! Nothing that a guest does to its rings or its memory hurts anybody else. A ring that makes no sense stops
//! its device until the guest sets it up anew; memory that has gone ends the link.
//!
//! # Signals
//! The first file that is mapped as memory ([`Region::map`]) installs a handler of `SIGBUS` for the process,
//! by which memory that somebody has cut short is told from a mistake. What it has no region for goes to the
//! handler that was there before; whoever installs another one later does the same. And a process that takes
//! front ends ignores `SIGPIPE`, as Rust programs do: a guest may be interrupted by a pipe whose other end has
//! gone.

mod control;
mod device;
mod fault;
pub mod feature;
mod from_guest;
mod memory;
mod pair;
mod ring;
mod scattered;
mod to_guest;

pub use control::ControlQueue;
pub use device::{Device, DeviceError};
pub use memory::{Memory, Region, RegionError, RegionLayout};
pub(crate) use pair::hear;
pub use ring::{MAX_SIZE, RingError, RingLayout};

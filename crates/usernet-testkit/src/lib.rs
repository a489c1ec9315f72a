//! For tests of the core: a guest, a host and the cable between them, all in memory and on one
//! virtual clock.
//!
//! - [`Sim`] drives a [`usernet_core::network::Network`] as a worker does, over
//! - guests: [`SmolGuest`] is smoltcp's own TCP/IP stack, [`SackGuest`] a receiver that knows SACK
//!   (smoltcp does not), behind
//! - [`Faults`] of their links: loss, duplicates, reordering, delay, a queue that is full, and
//! - a [`FakeHost`], whose ends have the semantics of real host ends and whose [`Peer`]s behave as
//!   told.
//!
//! And for tests of links, a device of a guest's, down to the bytes of its [`rings`], by its [`driver`]; for
//! guests of real networks, a [`nic`].
//!
//! A run is a function of its seed. Time jumps from one deadline to the next, so hours cost nothing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what goes wrong in here ends a test, which is what it is for"
)]

mod bytes;
pub mod driver;
mod frames;
mod host;
mod link;
pub mod nic;
pub mod rings;
mod sack;
mod sim;
mod smol;

pub use bytes::{Digest, Hasher, Rng, digest_of, fill};
pub use frames::{Segment, Unfinished, finish, packets, tcp_frame, udp_frame, udp_super_frame};
pub use host::{Connect, End, Ended, FakeHost, Peer, Then};
pub use link::Faults;
pub use sack::SackGuest;
pub use sim::{Guest, GuestConfig, Ipv6, Sim};
pub use smol::{App, Close, SmolGuest, StreamId};

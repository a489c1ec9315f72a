//! A lab for whole-program tests: the `usernet` binary, real guests, and the peers that they talk to.
//!
//! Every test makes a [`World`] first. It moves the test into a network namespace of its own, which
//! plays the host: it has a loopback, an address on a "LAN" ([`LAN`]), no route to the world beyond,
//! and nobody else's ports. Daemons and guests run in it as an ordinary user, the peers
//! ([`peers`], [`dns`]) as threads of the test. Guests are namespaces (`usernet exec`), virtual
//! machines ([`machine`]), or the test itself over a stream socket ([`stream_guest`]).
//!
//! Nothing here sleeps for a fixed time: [`wait`] has the one loop that waits for a condition. (The test of
//! idle flows does: time is what it measures.)

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a lab: whatever goes wrong here is the failure of a test"
)]

pub mod bursts;
pub mod daemon;
pub mod dns;
pub mod machine;
pub mod node;
pub mod noise;
pub mod peers;
pub mod process;
pub mod quic;
pub mod routers;
pub mod stories;
pub mod stream_guest;
pub mod wait;
mod world;

pub use daemon::Daemon;
pub use node::Node;
pub use noise::{Noise, noise_digest, sha256};
pub use process::{Outcome, Process};
pub use wait::eventually;
pub use world::{
    As, GATEWAY, GATEWAY6, INTERFACE, LAN, LAN6, NAMESERVER, NAMESERVER6, NO_ROUTE, NO_ROUTE6, UNREACHABLE,
    World, ip,
};

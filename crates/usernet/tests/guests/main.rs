//! Networks with real host sockets, and guests that are stacks of their own behind stream links.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what goes wrong in here ends a test")]

mod bounds;
mod guest;
mod stall;
mod vhost;
mod workers;

use std::net::Ipv4Addr;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const BULK: u64 = 4 << 20;

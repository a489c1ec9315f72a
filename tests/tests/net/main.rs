//! Real programs on the network, in namespaces.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "whatever goes wrong here is the failure of a test"
)]

mod control;
mod dhcp;
mod exec;
mod forward;
mod fragments;
mod hostile;
mod ipv6;
mod join;
mod load;
mod names;
mod nat64;
mod outbound;
mod path;
mod ping;
mod policy;
mod quic;
mod scan;
mod tcp;
mod udp;

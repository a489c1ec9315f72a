//! The user network itself, sans-IO.
#![forbid(unsafe_code)]

pub mod datagrams;
pub mod dhcp;
pub mod dhcp6;
pub mod drops;
pub mod frame;
pub mod host;
pub mod leases;
pub mod nat64;
pub mod network;
pub mod offload;
pub mod port;
pub mod table;
pub mod tcp;
pub mod time;
pub mod wheel;
pub mod wire;

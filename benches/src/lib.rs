//! Benches: what the network costs, alone and beside others.
//!
//! - [`compare`] runs `usernet` and its peers side by side on the same work.
//! - [`relay`] drives the core alone, for the micro benches and for counting instructions.
//!
//! `cargo xtask bench` is the way to run it.

pub mod compare;
pub mod relay;

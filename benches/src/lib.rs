//! Benches: what the network costs, alone and beside others.
//!
//! - [`compare`] runs `usernet` and its peers side by side on the same work.
//!
//! `cargo xtask bench` is the way to run it.

pub mod compare;

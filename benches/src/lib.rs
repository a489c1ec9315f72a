//! Benches: what the network costs, alone and beside others.
//!
//! - [`compare`] runs `usernet` and its peers side by side on the same work.
//! - [`budget`] counts what can be counted, and holds it to what it may be.
//! - [`machine`] is what the machines are that are guests here and in the tests.
//! - [`relay`] drives the core alone, for the micro benches and for counting instructions.
//!
//! `cargo xtask bench` is the way to run the first two, `cargo bench` the micro benches.

pub mod budget;
pub mod compare;
mod family;
pub mod machine;
pub mod relay;

pub use family::Family;

use std::path::PathBuf;

/// What a bench runs: the programs of this repository, built for release, and a kernel.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `usernet`.
    pub usernet: PathBuf,
    /// `usernet-load`.
    pub load: PathBuf,
    /// `usernet-core-load`.
    pub core_load: PathBuf,
    /// An unpacked kernel package for virtual machines; it need not be there.
    pub kernel: PathBuf,
}

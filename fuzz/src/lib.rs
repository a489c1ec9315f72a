//! The fuzz targets, as functions of bytes: the fuzzer runs them, and the tests replay their corpus.
//!
//! `cargo +nightly fuzz run --features fuzzing TARGET` looks for new inputs;
//! `cargo test --manifest-path fuzz/Cargo.toml` replays `corpus/TARGET` and mutates it a little, on
//! the stable toolchain. A crash that was found and mended leaves its input in the corpus.

mod core;
mod ipv6;
mod parsers;
mod reassembly;
mod vhost_messages;
mod vhost_ring;

pub use core::core_sequence;
pub use ipv6::{dhcp6, ipv6};
pub use parsers::{dhcp, dns, headers, hostfwd, stream_deframer};
pub use reassembly::reassembly;
pub use vhost_messages::vhost_messages;
pub use vhost_ring::vhost_ring;

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("core_sequence", core_sequence),
    ("stream_deframer", stream_deframer),
    ("dhcp", dhcp),
    ("dns", dns),
    ("hostfwd", hostfwd),
    ("headers", headers),
    ("ipv6", ipv6),
    ("dhcp6", dhcp6),
    ("reassembly", reassembly),
    ("vhost_ring", vhost_ring),
    ("vhost_messages", vhost_messages),
];

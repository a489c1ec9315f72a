//! The TCP relay: one state machine a flow, between a guest's segments and a host socket.
//!
//! Read first: RFC 9293 (TCP), RFC 5681 and 6675 (loss), RFC 6298 (timeout), RFC 7323 (window scale),
//! RFC 2018 (SACK), RFC 5961 (challenge ACKs), RFC 5382 (how long a NAT remembers).
//!
//! The relay ends the guest's connection and has one of its own on the host, so each side has its own
//! sequence numbers, windows and losses. What is special is where bytes live: host bytes stay in the
//! host socket's receive queue until the guest has acknowledged them, and guest bytes are acknowledged
//! only once the host socket has taken them. The state machine holds positions, never bytes.
//!
//! Deviations from a full TCP, and why they are safe:
//! - Checksums of guest segments are not verified: the link is memory, and a guest that sends wrong
//!   ones harms its own connections only.
//! - Data segments carry no SACK blocks; a pure ACK that carries them follows at once.
//! - The urgent pointer is ignored and urgent data delivered in line (RFC 6093 §6 advises so).
//! - One ACK a batch of segments, at its end. That of a small message may wait a few milliseconds for the
//!   host's answer to carry it, the less often the more of them waited in vain (`tcp/receive.rs`).

mod flow;
mod ranges;
mod receive;
mod rtt;
mod send;
mod seq;

pub use flow::{CloseReason, Output, TcpFlow};
pub use receive::{Accept, MAX_KEPT};
pub use seq::SeqNumber;

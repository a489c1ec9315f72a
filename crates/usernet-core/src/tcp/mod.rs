//! The TCP relay: one state machine a flow, between a guest's segments and a host socket.

mod seq;

pub use seq::SeqNumber;

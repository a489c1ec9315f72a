//! Wire formats, read once at the edge into values.

mod tcp;

pub use tcp::{TCP_HEADER_LEN, TcpFlags, TcpHeader};

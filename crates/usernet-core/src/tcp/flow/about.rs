//! What a flow tells about itself.

use super::{State, TcpFlow};
use crate::tcp::SeqNumber;
use crate::time::Instant;

impl TcpFlow {
    /// The state in RFC 9293's words, as seen from the relay towards the guest.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Connecting => "CONNECTING",
            State::SynReceived => "SYN-RECEIVED",
            State::SynSent => "SYN-SENT",
            State::TimeWait => "TIME-WAIT",
            State::Closed => "CLOSED",
            State::Open => match (self.rcv.fin_received, self.snd.fin_sent(), self.snd.fin_acked()) {
                (false, false, _) => "ESTABLISHED",
                (true, false, _) => "CLOSE-WAIT",
                (false, true, false) => "FIN-WAIT-1",
                (false, true, true) => "FIN-WAIT-2",
                (true, true, _) if self.snd.fin_first() => "CLOSING",
                (true, true, _) => "LAST-ACK",
            },
        }
    }

    /// Whether the host end is still being connected.
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// Whether the flow only waits for strays, and its host end is gone.
    pub fn is_time_wait(&self) -> bool {
        self.state == State::TimeWait && !self.has_host
    }

    /// Bytes that the driver keeps for the flow.
    pub fn kept(&self) -> u32 {
        self.rcv.kept()
    }

    /// Says how many more bytes may be kept for the flow's guest.
    pub fn set_keep_room(&mut self, room: u32) {
        self.rcv.keep_room = room;
    }

    /// Payload bytes of a full segment to the guest.
    pub fn segment(&self) -> u16 {
        self.snd.mss
    }

    /// The position of the guest's SYN.
    pub fn irs(&self) -> SeqNumber {
        self.rcv.rcv_nxt - 1
    }

    /// Payload bytes that the host took from the guest.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Payload bytes that the guest acknowledged.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// When the guest last sent a segment of this flow.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }
}

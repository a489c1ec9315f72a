//! The host addresses that a flow of a guest hears from (RFC 4787 REQ-8).

use std::net::IpAddr;

/// Those that the guest has sent to, the latest last.
#[derive(Debug, Default)]
pub struct Peers(Vec<IpAddr>);

impl Peers {
    /// The guest sends to `addr`. Where there are `most` already, the one that it turned to longest ago goes.
    pub(super) fn turn_to(&mut self, addr: IpAddr, most: usize) {
        if self.0.last() == Some(&addr) {
            return;
        }
        self.0.retain(|peer| *peer != addr);
        if self.0.len() >= most {
            self.0.remove(0);
        }
        self.0.push(addr);
    }

    /// Whether the guest has sent to `addr`.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }
}

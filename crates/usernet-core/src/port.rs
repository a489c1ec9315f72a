//! A guest's place on the switch.

use std::fmt;

/// The number of a port of the switch, which stands for one guest. Every key in the core begins with
/// it, so that guests with equal addresses are never taken for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

/// The number of a worker, from 0 on: each has a core of its own, and all serve one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

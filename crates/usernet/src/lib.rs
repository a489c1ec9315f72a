//! A user network for virtual machines: the library that a VMM embeds.

mod capture;
mod config;
mod forward;
mod info;
mod network;
mod worker;

pub use config::{Config, ConfigError};
pub use forward::{ForwardProtocol, ForwardRule, ParseForwardError};
pub use info::{DropInfo, FlowInfo, ForwardInfo, GuestConfig, LeaseInfo, PortInfo};
pub use network::{Error, Handle, Network};
pub use usernet_link as link;

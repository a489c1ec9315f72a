//! A running network and the handle on it.

use crate::{
    Config, ConfigError, DropInfo, FlowInfo, ForwardInfo, ForwardRule, GuestConfig, LeaseInfo, PortInfo,
};
use usernet_link::Link;

/// Why something asked of a network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A forwarded port could not be had. The text names the rule, the reason and the way out.
    #[error("{0}")]
    Forward(String),
    /// There is no such port, lease or forward.
    #[error("{0}")]
    NotFound(String),
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Shutdown,
    /// The system failed us.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        error: std::io::Error,
    },
}

/// A network that runs on threads of its own until it is shut down or dropped.
pub struct Network {
    handle: Handle,
}

/// A handle on a running network. Cheap to clone; every call answers within microseconds.
#[derive(Clone)]
pub struct Handle {}

impl Network {
    /// Starts a network: binds its forwards, opens its capture file, starts its threads.
    ///
    /// # Errors
    /// The configuration does not fit together, or something that it names cannot be had.
    pub fn start(_config: Config) -> Result<Self, Error> {
        Ok(Self { handle: Handle {} })
    }

    /// The handle on this network.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the network: host peers see a reset, guests a link that goes.
    pub fn shutdown(self) {}
}

impl Handle {
    /// The control plane's tokio runtime, for tasks of the embedder's own.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        todo!()
    }
    /// Plugs a guest in; returns its port.
    pub fn attach(&self, _link: Link, _name: &str) -> Result<u32, Error> {
        todo!()
    }
    /// Unplugs a guest.
    pub fn detach(&self, _port: u32) -> Result<(), Error> {
        todo!()
    }
    /// Completes when the port's link has ended, with the reason.
    pub async fn detached(&self, _port: u32) -> String {
        todo!()
    }
    /// Gives a lease to a guest that will not ask by DHCP.
    pub fn lease(&self, _port: u32, _mac: [u8; 6], _hostname: Option<&str>) -> Result<GuestConfig, Error> {
        todo!()
    }
    /// Forwards a host port.
    pub fn add_forward(&self, _rule: &ForwardRule) -> Result<ForwardInfo, Error> {
        todo!()
    }
    /// Ends a forward; connections that it accepted go on.
    pub fn remove_forward(&self, _id: u32) -> Result<(), Error> {
        todo!()
    }
    /// The guests.
    pub fn ports(&self) -> Result<Vec<PortInfo>, Error> {
        todo!()
    }
    /// The leases.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>, Error> {
        todo!()
    }
    /// The flows.
    pub fn flows(&self) -> Result<Vec<FlowInfo>, Error> {
        todo!()
    }
    /// The forwards.
    pub fn forwards(&self) -> Result<Vec<ForwardInfo>, Error> {
        todo!()
    }
    /// The drop counters of all guests together.
    pub fn drops(&self) -> Result<Vec<DropInfo>, Error> {
        todo!()
    }
}

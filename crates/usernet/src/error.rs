//! What can go wrong with a network that runs.

use std::io;

use crate::ConfigError;

/// Why something asked of a network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A forwarded port could not be had. The text names the rule, the reason and the way out.
    #[error("{0}")]
    Forward(String),
    /// A guest has no queue at all.
    #[error("a guest has at least one queue: give it one link or more")]
    NoQueues,
    /// A guest has more queues than the network has workers.
    #[error(
        "a guest with {queues} queues needs as many workers, and there are {workers}: start the network with more workers, or use fewer queues"
    )]
    TooManyQueues {
        /// The guest's queues.
        queues: usize,
        /// The network's workers.
        workers: usize,
    },
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
        error: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |error| Self::Io { what: what.into(), error }
    }
}

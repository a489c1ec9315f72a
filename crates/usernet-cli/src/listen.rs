//! Sockets that others connect to.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use crate::endpoint::{Endpoint, without_delay};
use crate::paths::{Folder, MadeFile, default_folder};

/// How long a listener that cannot accept waits before it tries again: a descriptor may come free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A socket that is bound and not yet served.
#[derive(Debug)]
pub(crate) struct Listener {
    endpoint: Endpoint,
    socket: StdSocket,
}

#[derive(Debug)]
enum StdSocket {
    Unix(StdUnixListener),
    Tcp(std::net::TcpListener),
}

impl Listener {
    /// Binds a socket; a Unix one has a file, which goes when what this returns beside it is dropped.
    ///
    /// # Errors
    /// The address cannot be had. The message names it and the reason, and `option`, which names
    /// another.
    pub(crate) fn bind(endpoint: &Endpoint, option: &str) -> Result<(Self, Option<MadeFile>)> {
        let bind = || {
            Ok::<_, anyhow::Error>(match endpoint {
                Endpoint::Unix(path) => {
                    let listener = bind_unix(path)?;
                    let file = MadeFile::new(path)?;
                    listener.set_nonblocking(true)?;
                    let endpoint = Endpoint::Unix(std::path::absolute(path)?);
                    (Self { endpoint, socket: StdSocket::Unix(listener) }, Some(file))
                }
                Endpoint::Tcp(address) => {
                    let listener = std::net::TcpListener::bind(address)?;
                    listener.set_nonblocking(true)?;
                    let endpoint = Endpoint::Tcp(listener.local_addr()?);
                    (Self { endpoint, socket: StdSocket::Tcp(listener) }, None)
                }
            })
        };
        bind().with_context(|| format!("cannot listen on {endpoint} ({option} names another)"))
    }

    /// Binds a Unix socket that has no name any more. Who has the descriptor beside it, and nobody else, can
    /// connect, by the descriptor's own path in /proc.
    ///
    /// # Errors
    /// There is no place to bind it in.
    pub(crate) fn unnamed() -> Result<(Self, OwnedFd)> {
        const VARIABLES: &str = "$XDG_RUNTIME_DIR or $TMPDIR";
        let folder = default_folder();
        let _folder = Folder::make(folder.clone(), &format!("{VARIABLES} names another"))?;
        let path = folder.join(format!("run-{}.sock", std::process::id()));
        let (listener, _file) = Self::bind(&Endpoint::Unix(path.clone()), VARIABLES)?;
        let descriptor = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok((listener, descriptor))
    }

    /// Where it is; a Unix socket by its absolute path.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Begins to accept, on the current runtime.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub(crate) fn accept(self) -> io::Result<Acceptor> {
        let socket = match self.socket {
            StdSocket::Unix(listener) => Socket::Unix(UnixListener::from_std(listener)?),
            StdSocket::Tcp(listener) => Socket::Tcp(TcpListener::from_std(listener)?),
        };
        Ok(Acceptor { endpoint: self.endpoint, socket, complained: false })
    }
}

/// A socket that accepts.
#[derive(Debug)]
pub(crate) struct Acceptor {
    endpoint: Endpoint,
    socket: Socket,
    complained: bool,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Acceptor {
    /// Where it is.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The next connection. A failure to accept, such as having no descriptor left, is waited out.
    pub(crate) async fn next(&mut self) -> OwnedFd {
        loop {
            match self.try_next().await {
                Ok(connection) => {
                    self.complained = false;
                    return connection;
                }
                Err(error) => {
                    if !self.complained {
                        warn!("cannot accept on {}: {error}; trying again until it works", self.endpoint);
                    }
                    self.complained = true;
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn try_next(&self) -> io::Result<OwnedFd> {
        Ok(match &self.socket {
            Socket::Unix(listener) => listener.accept().await?.0.into_std()?.into(),
            Socket::Tcp(listener) => without_delay(listener.accept().await?.0)?,
        })
    }
}

/// Binds a Unix socket, in place of one that nobody listens on any more.
fn bind_unix(path: &Path) -> Result<StdUnixListener> {
    match StdUnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            Ok(StdUnixListener::bind(path)?)
        }
        bound => Ok(bound?),
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    match StdUnixStream::connect(path) {
        Ok(_) => bail!("another process is listening there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // Refused is also what a file says that is no socket.
            let found = std::fs::symlink_metadata(path)?;
            if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) {
                bail!("there is a file that is no socket");
            }
            Ok(std::fs::remove_file(path)?)
        }
        // It went by itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(anyhow!(error).context("another process seems to be listening there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("guest.sock");
        let endpoint = Endpoint::Unix(path.clone());
        // Bound and closed without removing the file: what a killed daemon leaves.
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = Listener::bind(&endpoint, "--listen").unwrap();

        let why = format!("{:#}", Listener::bind(&endpoint, "--listen").unwrap_err());
        assert!(why.contains("another process is listening") && why.contains("--listen"), "{why}");
        assert!(path.exists());

        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        let why = format!("{:#}", Listener::bind(&Endpoint::Unix(path.clone()), "--listen").unwrap_err());
        assert!(why.contains("no socket"), "{why}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}

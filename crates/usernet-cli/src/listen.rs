//! Where guests come from: sockets that they connect to, and sockets of theirs that we connect to.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::{info, warn};
use usernet::Handle;
use usernet::link::stream::StreamLink;

use crate::paths::MadeFile;

/// How long a listener that cannot accept waits before it tries again: a descriptor may come free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long to wait between attempts to connect: the first time, doubled up to the longest.
const CONNECT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Where a stream socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => address
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "TCP wants an address and a port, such as tcp:127.0.0.1:9000 or tcp:[::1]:9000"),
            _ => Err("a stream socket is unix:PATH or tcp:ADDRESS:PORT, such as unix:/tmp/guest.sock"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Endpoint {
    async fn connect(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(path) => UnixStream::connect(path).await?.into_std()?.into(),
            Self::Tcp(address) => without_delay(TcpStream::connect(address).await?)?,
        })
    }

    /// The arguments with which QEMU plugs a guest in here.
    fn qemu_arguments(&self, mtu: u16) -> String {
        // A comma ends a value unless there are two.
        let (address, quoted) = match self {
            Self::Unix(path) => ("unix,addr.path=", path.display().to_string().replace(',', ",,")),
            Self::Tcp(address) => {
                // A listener on any address is reached on the loopback.
                let host = match (address.ip().is_unspecified(), address.is_ipv6()) {
                    (false, _) => address.ip().to_string(),
                    (true, false) => "127.0.0.1".into(),
                    (true, true) => "::1".into(),
                };
                ("inet,addr.host=", format!("{host},addr.port={}", address.port()))
            }
        };
        let quoted = if quoted.contains([' ', '\'', '$', '&', ';', '(', ')']) {
            format!("'{}'", quoted.replace('\'', r"'\''"))
        } else {
            quoted
        };
        let host_mtu = if mtu == 1500 { String::new() } else { format!(",host_mtu={mtu}") };
        format!(
            "-netdev stream,id=net0,server=off,addr.type={address}{quoted} -device virtio-net-pci,netdev=net0{host_mtu}"
        )
    }
}

/// Where vhost-user front ends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VhostUser {
    pub(crate) path: PathBuf,
    pub(crate) queues: NonZeroU16,
}

impl FromStr for VhostUser {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, queues) = match text.rsplit_once(",queues=") {
            Some((path, queues)) => (path, queues.parse().map_err(|_| "queues= wants a number from 1 on")?),
            None => (text, NonZeroU16::MIN),
        };
        if path.is_empty() {
            return Err("a vhost-user socket is a path, such as /tmp/guest.sock");
        }
        Ok(Self { path: path.into(), queues })
    }
}

/// What a guest at a socket speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Speaks {
    /// QEMU's framing.
    Frames,
    /// vhost-user, with so many pairs of queues.
    VhostUser(NonZeroU16),
}

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

    /// What to tell the person who has a guest for it.
    pub(crate) fn invitation(&self, mtu: u16) -> String {
        let arguments = self.endpoint.qemu_arguments(mtu);
        format!("Guests plug in at {}. For QEMU 7.2 or later:\n  {arguments}\n", self.endpoint)
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

/// Plugs in every guest that connects.
pub(crate) async fn welcome_guests(mut acceptor: Acceptor, speaks: Speaks, handle: Handle) {
    let mut guests = Guests { handle, speaks, endpoint: acceptor.endpoint.clone(), count: 0 };
    loop {
        let socket = acceptor.next().await;
        if let Err(error) = guests.plug_in(socket) {
            warn!("cannot plug in a guest at {}: {error:#}", guests.endpoint);
        }
    }
}

/// Plugs in what listens at `endpoint`, and does so again whenever it goes.
pub(crate) async fn keep_connected(endpoint: Endpoint, handle: Handle) {
    let (shortest, longest) = CONNECT_RETRY;
    let mut delay = shortest;
    let mut complained = false;
    let mut guests = Guests { handle, speaks: Speaks::Frames, endpoint, count: 0 };
    loop {
        let started = Instant::now();
        let port = match guests.endpoint.connect().await {
            Ok(socket) => guests.plug_in(socket),
            Err(error) => Err(error.into()),
        };
        match port {
            Ok(port) => {
                complained = false;
                let reason = guests.handle.detached(port).await;
                info!(endpoint = %guests.endpoint, "the guest has gone ({reason}); connecting again");
            }
            // One line for each time that it goes, not for each attempt.
            Err(error) if !complained => {
                complained = true;
                warn!("cannot connect to {}: {error:#}; trying again until it works", guests.endpoint);
            }
            Err(_) => {}
        }
        delay = if started.elapsed() > longest { shortest } else { delay };
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(longest);
    }
}

/// The guests that came by one socket.
struct Guests {
    handle: Handle,
    speaks: Speaks,
    endpoint: Endpoint,
    count: u64,
}

impl Guests {
    fn plug_in(&mut self, socket: OwnedFd) -> Result<u32> {
        self.count += 1;
        let name = format!("{}#{}", self.endpoint, self.count);
        Ok(match self.speaks {
            Speaks::Frames => self.handle.attach(StreamLink::new(socket)?, &name)?,
            Speaks::VhostUser(queues) => self.handle.attach_vhost_user(socket.into(), queues, &name)?,
        })
    }
}

/// Frames are written when they are due, and small ones must not wait for more.
fn without_delay(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    Ok(stream.into_std()?.into())
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
    fn endpoints_read_back() {
        for text in ["unix:/tmp/a:b", "tcp:127.0.0.1:9000", "tcp:[::1]:9000"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "/tmp/a", "unix:", "tcp:", "tcp:9000", "tcp:localhost:9000", "udp:127.0.0.1:1"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn qemu_arguments_can_be_pasted() {
        let arguments = |text: &str, mtu| text.parse::<Endpoint>().unwrap().qemu_arguments(mtu);
        assert_eq!(
            arguments("unix:/run/a,b.sock", 1500),
            "-netdev stream,id=net0,server=off,addr.type=unix,addr.path=/run/a,,b.sock \
             -device virtio-net-pci,netdev=net0"
        );
        assert!(arguments("unix:/tmp/it's mine", 1500).contains(r"addr.path='/tmp/it'\''s mine' "));
        assert_eq!(
            arguments("tcp:0.0.0.0:9000", 65520),
            "-netdev stream,id=net0,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=9000 \
             -device virtio-net-pci,netdev=net0,host_mtu=65520"
        );
    }

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

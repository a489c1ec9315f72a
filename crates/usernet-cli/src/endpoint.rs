//! Where a socket is, and how to get there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::net::{TcpStream, UnixStream};

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
    pub(crate) async fn connect(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(path) => UnixStream::connect(path).await?.into_std()?.into(),
            Self::Tcp(address) => without_delay(TcpStream::connect(address).await?)?,
        })
    }
}

/// Frames are written when they are due, and small ones must not wait for more.
pub(crate) fn without_delay(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    Ok(stream.into_std()?.into())
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
}

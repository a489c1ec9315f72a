//! Files of the host that are followed as they change.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::locked;

/// How long a file is believed unchanged.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const DNS_PORT: u16 = 53;

/// What a file says. It is looked at when asked for, at most once a second; while it cannot be read, what it
/// said before holds.
pub(crate) struct Followed<T> {
    path: PathBuf,
    parse: fn(&str) -> T,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    checked: Option<Instant>,
    seen: Option<Version>,
}

/// Which file it was, and as of when.
#[derive(PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl<T> Followed<T> {
    /// Follows `path`, which need not exist: then it says what an empty file says.
    pub(crate) fn new(path: PathBuf, parse: fn(&str) -> T) -> Self {
        let state = State { value: Arc::new(parse("")), checked: None, seen: None };
        Self { path, parse, state: Mutex::new(state) }
    }

    pub(crate) fn current(&self) -> Arc<T> {
        let mut state = locked(&self.state);
        if state.checked.is_none_or(|checked| checked.elapsed() >= CHECK_INTERVAL) {
            state.checked = Some(Instant::now());
            self.refresh(&mut state);
        }
        state.value.clone()
    }

    fn refresh(&self, state: &mut State<T>) {
        // Asked before it is read: a change in between is seen next time.
        let version = match fs::metadata(&self.path) {
            Ok(file) => Some(Version {
                device: file.dev(),
                inode: file.ino(),
                size: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            }),
            Err(_) => None,
        };
        if version.is_none() || version == state.seen {
            return;
        }
        match fs::read(&self.path) {
            Ok(text) => {
                debug!(path = %self.path.display(), "read");
                state.value = Arc::new((self.parse)(&String::from_utf8_lossy(&text)));
                state.seen = version;
            }
            Err(error) => debug!(path = %self.path.display(), %error, "not readable"),
        }
    }
}

/// The servers that resolv.conf(5) names. `[ADDRESS]:PORT`, as OpenBSD has it, is understood too. With none,
/// it is the host itself.
pub(crate) fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then(|| words.next().and_then(parse_server))?
        })
        .collect();
    if servers.is_empty() { vec![(Ipv4Addr::LOCALHOST, DNS_PORT).into()] } else { servers }
}

fn parse_server(word: &str) -> Option<SocketAddr> {
    if let Some((address, port)) = word.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return Some((address.parse::<IpAddr>().ok()?, port.parse().ok()?).into());
    }
    match word.split_once('%') {
        None => Some((word.parse::<IpAddr>().ok()?, DNS_PORT).into()),
        // A link-local address with its interface. With a numeric address the C library looks up nothing
        // but the interface's index.
        Some((address, _)) => {
            address.parse::<Ipv6Addr>().ok()?;
            (word, DNS_PORT).to_socket_addrs().ok()?.next()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_resolv_conf() {
        let text = "; old\n#nameserver 192.0.2.9\nsearch lan\noptions ndots:2\nnameserver\t127.0.0.53 # stub\n\
                    nameserver 2001:db8::1\nnameserver nonsense\nnameserver\nnameserver fe80::1%lo\n\
                    nameserver [::1]:5353\nnameserver dns.test%lo\n";
        let servers: Vec<_> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[2001:db8::1]:53", "[fe80::1%1]:53", "[::1]:5353"]);
        assert_eq!(
            parse_resolv_conf("").iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["127.0.0.1:53"]
        );
    }
}

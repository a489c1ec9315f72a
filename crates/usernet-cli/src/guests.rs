//! Guests that come by a socket: they connect to one of ours, or we to one of theirs.

use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};
use usernet::Handle;
use usernet::link::stream::StreamLink;

use crate::endpoint::Endpoint;
use crate::listen::Acceptor;
use crate::qemu::{Backend, Card, quoted};

/// How long to wait between attempts to connect: the first time, doubled up to the longest.
const CONNECT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A vhost-user front end that goes sooner than this has most likely been refused something, and will ask for
/// it again: the next one waits.
const BRIEF: Duration = Duration::from_secs(1);

/// The most queues that one guest may have: as many as there may be workers.
pub(crate) const MAX_QUEUES: u16 = 64;

/// What a guest at a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// QEMU's framing.
    Frames,
    /// vhost-user, with so many pairs of queues.
    VhostUser(NonZeroU16),
}

impl Speaks {
    /// The option that names where such guests plug in.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Frames => "--listen",
            Self::VhostUser(_) => "--vhost-user",
        }
    }
}

/// Where vhost-user front ends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VhostUser {
    pub(crate) endpoint: Endpoint,
    pub(crate) queues: NonZeroU16,
    /// Whether the front end is the one that listens.
    pub(crate) connect: bool,
}

impl FromStr for VhostUser {
    type Err = String;

    /// Reads `[unix:]PATH[,queues=N][,connect]`, where as for QEMU a comma of the path's own is written twice.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No path has this byte in it.
        let text = text.replace(",,", "\0");
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default().replace('\0', ",");
        if path.starts_with("tcp:") {
            return Err(
                "vhost-user shares memory, which no TCP connection can: name the path of a Unix socket"
                    .into(),
            );
        }
        // As --listen has it.
        let path = path.strip_prefix("unix:").unwrap_or(&path);
        if path.is_empty() {
            return Err("a vhost-user socket is a path, such as /tmp/guest.sock".into());
        }
        let endpoint = Endpoint::Unix(path.into());
        let mut socket = Self { endpoint, queues: NonZeroU16::MIN, connect: false };
        for part in parts {
            match part.split_once('=') {
                Some(("queues", queues)) => {
                    let queues = queues.parse().ok().filter(|queues: &NonZeroU16| queues.get() <= MAX_QUEUES);
                    socket.queues =
                        queues.ok_or_else(|| format!("queues= wants a number from 1 to {MAX_QUEUES}"))?;
                }
                None if part == "connect" => socket.connect = true,
                _ => {
                    return Err(format!(
                        "after the path come queues=N and connect, not {:?}; a comma in the path is written \
                         twice",
                        part.replace('\0', ",,")
                    ));
                }
            }
        }
        Ok(socket)
    }
}

/// What to tell the person who has a guest for a socket that we listen on.
pub(crate) fn invitation(endpoint: &Endpoint, speaks: Speaks, mtu: u16) -> String {
    let card = |backend| Card { id: "net0", backend, driver: "virtio-net-pci", mac: None, mtu }.for_shell();
    match (endpoint, speaks) {
        (Endpoint::Unix(path), Speaks::VhostUser(queues)) => format!(
            "Guests plug in by vhost-user at {}. For QEMU 7.2 or later, where size= is what -m says \
             (from 9.2 on with reconnect-ms=1000 for reconnect=1; 7.2 without KVM wants vectors=0 for the \
             device):\n  {}\n{}",
            path.display(),
            card(Backend::vhost_user(path, "1G", queues)),
            user_mode_linux(path)
                .map(|option| format!("For User Mode Linux:\n  {option}\n"))
                .unwrap_or_default(),
        ),
        _ => format!(
            "Guests plug in at {endpoint}. For QEMU 7.2 or later:\n  {}\n",
            card(Backend::stream(endpoint))
        ),
    }
}

/// The option of User Mode Linux for the socket at `path`, as a shell wants it. Its kernel ends the path at a
/// colon, and an option at a space unless it is in quotes.
fn user_mode_linux(path: &Path) -> Option<String> {
    let path = path.display().to_string();
    if path.contains([':', '"']) {
        None
    } else if path.contains(char::is_whitespace) {
        Some(quoted(&format!("virtio_uml.device=\"{path}:1\"")))
    } else {
        Some(quoted(&format!("virtio_uml.device={path}:1")))
    }
}

/// Plugs in every guest that connects, under this name or numbers.
pub(crate) async fn welcome(mut acceptor: Acceptor, speaks: Speaks, name: Option<String>, handle: Handle) {
    let mut guests = Guests { handle, speaks, endpoint: acceptor.endpoint().clone(), name, count: 0 };
    let brief = Arc::new(AtomicU32::new(0));
    loop {
        let socket = acceptor.next().await;
        tokio::time::sleep(pause(brief.load(Ordering::Relaxed))).await;
        match guests.plug_in(socket) {
            // QEMU connects again at once and for ever when it is refused what it was started for.
            Ok(port) if matches!(speaks, Speaks::VhostUser(_)) => {
                let (handle, brief) = (guests.handle.clone(), Arc::clone(&brief));
                tokio::spawn(async move {
                    match tokio::time::timeout(BRIEF, handle.detached(port)).await {
                        Ok(_) => brief.fetch_add(1, Ordering::Relaxed),
                        Err(_) => brief.swap(0, Ordering::Relaxed),
                    }
                });
            }
            Ok(_) => {}
            Err(error) => warn!("cannot plug in a guest at {}: {error:#}", guests.endpoint),
        }
    }
}

/// How long the next guest waits when so many in a row were brief.
fn pause(brief: u32) -> Duration {
    let (shortest, longest) = CONNECT_RETRY;
    match brief.checked_sub(1) {
        Some(doublings) => shortest.saturating_mul(2_u32.saturating_pow(doublings)).min(longest),
        None => Duration::ZERO,
    }
}

/// Plugs in what listens at `endpoint`, and does so again whenever it goes.
pub(crate) async fn keep_connected(endpoint: Endpoint, speaks: Speaks, handle: Handle) {
    let (shortest, longest) = CONNECT_RETRY;
    let mut delay = shortest;
    let mut complained = false;
    let mut guests = Guests { handle, speaks, endpoint, name: None, count: 0 };
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
    /// What each is called, unless it is by where it came and its number.
    name: Option<String>,
    count: u64,
}

impl Guests {
    fn plug_in(&mut self, socket: OwnedFd) -> Result<u32> {
        self.count += 1;
        let name = self.name.clone().unwrap_or_else(|| format!("{}#{}", self.endpoint, self.count));
        Ok(match self.speaks {
            Speaks::Frames => self.handle.attach(StreamLink::new(socket)?, &name)?,
            Speaks::VhostUser(queues) => self.handle.attach_vhost_user(socket.into(), queues, &name)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vhost_user_socket_has_a_path_and_properties() {
        let socket = |path: &str, queues, connect| VhostUser {
            endpoint: Endpoint::Unix(path.into()),
            queues: NonZeroU16::new(queues).unwrap(),
            connect,
        };
        for (text, expected) in [
            ("/run/a.sock", socket("/run/a.sock", 1, false)),
            ("a.sock,queues=4", socket("a.sock", 4, false)),
            ("a.sock,connect,queues=64", socket("a.sock", 64, true)),
            ("/run/a,,b=c.sock,connect", socket("/run/a,b=c.sock", 1, true)),
            ("unix:/run/a.sock,connect", socket("/run/a.sock", 1, true)),
            ("a,,queues=4", socket("a,queues=4", 1, false)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, words) in [
            ("", "such as /tmp/guest.sock"),
            (",queues=2", "such as /tmp/guest.sock"),
            ("unix:", "such as /tmp/guest.sock"),
            ("tcp:127.0.0.1:9000", "the path of a Unix socket"),
            ("a,queues=0", "a number from 1 to 64"),
            ("a,queues=65", "a number from 1 to 64"),
            ("a,queues=", "a number from 1 to 64"),
            ("a,b.sock", "a comma in the path is written twice"),
            ("a,queue=2", "not \"queue=2\""),
            ("a,queues", "not \"queues\""),
            ("a,connect=on", "not \"connect=on\""),
        ] {
            let why = text.parse::<VhostUser>().expect_err(text);
            assert!(why.contains(words), "{text}: {why}");
        }
    }

    #[test]
    fn front_ends_that_go_at_once_wait_longer_and_longer() {
        let millis = |brief| pause(brief).as_millis();
        assert_eq!([0, 1, 2, 6, 7, u32::MAX].map(millis), [0, 100, 200, 3200, 5000, 5000]);
    }

    #[test]
    fn an_invitation_says_what_to_paste() {
        let endpoint = Endpoint::Unix("/run/my guest".into());
        let told = invitation(&endpoint, Speaks::VhostUser(NonZeroU16::MIN), 1500);
        assert!(told.contains("\n  -object memory-backend-memfd,"), "{told}");
        assert!(told.contains("\n  'virtio_uml.device=\"/run/my guest:1\"'\n"), "{told}");
        assert_eq!(user_mode_linux("/run/a".as_ref()).unwrap(), "virtio_uml.device=/run/a:1");
        assert_eq!(user_mode_linux("/run/a:b".as_ref()), None);
        let told = invitation(&endpoint, Speaks::Frames, 1500);
        assert!(told.contains("\n  -netdev 'stream,id=net0,"), "{told}");
    }
}

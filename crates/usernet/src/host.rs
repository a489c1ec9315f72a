//! The host's network as the workers know it, and word of its changes.
//!
//! The control thread listens to the kernel. Whatever it hears of, it reads the host's addresses anew and
//! tells the workers at once if they are others. Then it has them look for flows that the change has
//! killed: [`SETTLED`] later for those whose own address has gone, and, when nothing has changed any more
//! for [`QUIET`], for those that have no route. An interface that is set up anew loses its routes for a
//! moment, and connections survive that.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep, timeout_at};
use usernet_host::Source;

use crate::worker::{Command, Commands};
use crate::{Config, Error, Outbound};

/// For how long addresses may change before flows are looked at. Changes come in bursts.
const SETTLED: Duration = Duration::from_millis(100);
/// After this long without a change, the routes are what they will be;
const QUIET: Duration = Duration::from_secs(1);
/// they are not waited for any longer than this.
const RESTLESS: Duration = Duration::from_secs(5);
/// The index of no interface: sends by it are refused at once.
const NO_INTERFACE: u32 = i32::MAX.unsigned_abs();

/// What the workers know of the host's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its own addresses, sorted.
    pub(crate) addresses: Vec<IpAddr>,
    /// All that reaches it, with the bits of each that count, where guests are kept off it.
    pub(crate) closed: Option<Vec<(IpAddr, u8)>>,
    /// By what guests' flows leave; none: as routed.
    outbound: Option<Outbound>,
    /// The index of the outbound interface; [`NO_INTERFACE`] while there is none.
    interface: u32,
}

impl Host {
    /// What it is like now.
    fn look(outbound: &Outbound, open: bool) -> io::Result<Self> {
        let index = |name: &String| usernet_host::interface(name).unwrap_or(NO_INTERFACE);
        Ok(Self {
            addresses: usernet_host::addresses()?,
            closed: if open { None } else { Some(usernet_host::own()?) },
            outbound: (*outbound != Outbound::default()).then(|| outbound.clone()),
            interface: outbound.interface.as_ref().map_or(0, index),
        })
    }

    /// By what a guest's flow leaves for `to`.
    pub(crate) fn source(&self, to: IpAddr) -> Source {
        match &self.outbound {
            None => Source::default(),
            Some(outbound) => self.outbound_source(outbound, to),
        }
    }

    #[inline(never)]
    fn outbound_source(&self, outbound: &Outbound, to: IpAddr) -> Source {
        // Over another interface than the one that has it, a host does not reach itself.
        if to.is_loopback() || self.has(to) {
            return Source::default();
        }
        Source { address: outbound.address(to), interface: self.interface }
    }

    /// The address that a ping socket is bound to, which is for all peers of the same kind of IP as `to`;
    /// none: it is left to the routes.
    pub(crate) fn ping_address(&self, to: IpAddr) -> Option<IpAddr> {
        self.outbound.as_ref()?.address(to)
    }

    /// Whether an address is one of the host's own.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    /// Whether an outbound address has gone since it was like `before`.
    pub(crate) fn has_lost_outbound(&self, before: &Self) -> bool {
        let mut addresses = self.outbound.iter().flat_map(Outbound::addresses);
        addresses.any(|address| before.has(address) && !self.has(address))
    }

    /// Says which parts of the outbound have gone, or are back, since it was like `before`.
    fn tell_of_outbound(&self, before: &Self) {
        let Some(outbound) = &self.outbound else { return };
        let addresses = outbound.addresses().map(|address| {
            let had = [before, self].map(|host| host.has(address));
            (format!("address {address}"), had)
        });
        let interface = outbound.interface.iter().map(|name| {
            let had = [before, self].map(|host| host.interface != NO_INTERFACE);
            (format!("interface {name}"), had)
        });
        for (what, had) in addresses.chain(interface) {
            match had {
                [true, false] => tracing::warn!(
                    "the outbound {what} has gone from this host: guests are told that the network is unreachable \
                     until it is back"
                ),
                [false, true] => tracing::info!("the outbound {what} is back"),
                _ => {}
            }
        }
    }
}

/// Follows the host's network.
pub(crate) struct Follower {
    /// None: it cannot be followed.
    changes: Option<OwnedFd>,
    outbound: Outbound,
    /// Guests may reach the host itself.
    open: bool,
    host: Arc<Host>,
}

impl Follower {
    /// Looks at the host, and checks that it has what the configuration names of it.
    ///
    /// # Errors
    /// It has not; or it does not tell, where guests are to be kept off its addresses.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let must = !config.host_loopback || config.outbound != Outbound::default();
        let open = config.host_loopback;
        let looked = usernet_host::changes()
            .and_then(|changes| Ok((Some(changes), Host::look(&config.outbound, open)?)));
        let (changes, host) = match looked {
            Err(error) if must => {
                return Err(Error::io("cannot follow the host's addresses over netlink")(error));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot follow the host's addresses and routes over netlink");
                (None, Host::default())
            }
            Ok(looked) => looked,
        };
        config.outbound.check_host(&host.addresses)?;
        Ok(Self { changes, outbound: config.outbound.clone(), open, host: Arc::new(host) })
    }

    /// What the host was like at last.
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Follows it for as long as the workers are there. To be run by tokio.
    pub(crate) async fn follow(mut self, workers: Arc<[Commands]>) {
        let Some(changes) = self.changes.take() else { return };
        // To tokio, one socket of datagrams is like another.
        let changes = match UnixDatagram::from_std(changes.into()) {
            Ok(changes) => changes,
            Err(error) => return tracing::warn!(%error, "cannot follow the host's addresses and routes"),
        };
        while changed(&changes).await {
            let latest = Instant::now() + RESTLESS;
            loop {
                self.tell(&workers);
                sleep(SETTLED).await;
                // What came meanwhile is seen to here, too.
                drain(&changes);
                self.tell(&workers);
                tell(&workers, || Command::CheckFlows { routes: false });
                let now = Instant::now();
                let until = latest.min(now + QUIET);
                if now >= latest || !timeout_at(until, changed(&changes)).await.unwrap_or(false) {
                    break;
                }
            }
            if !tell(&workers, || Command::CheckFlows { routes: true }) {
                return;
            }
        }
    }

    /// Looks anew, and tells the workers what is different.
    fn tell(&mut self, workers: &[Commands]) {
        // What cannot be read now has not changed.
        let Ok(host) = Host::look(&self.outbound, self.open) else { return };
        if host != *self.host {
            host.tell_of_outbound(&self.host);
            self.host = Arc::new(host);
            tell(workers, || Command::Host(Arc::clone(&self.host)));
        }
    }
}

/// Waits for a change. `false`: none will be told of any more.
async fn changed(changes: &UnixDatagram) -> bool {
    while changes.readable().await.is_ok() {
        if drain(changes) {
            return true;
        }
    }
    false
}

/// Takes in all word of changes that has come. Returns whether there was any.
fn drain(changes: &UnixDatagram) -> bool {
    let mut any = false;
    // What it says is not read: the kernel is asked anew, since word may be lost in a burst, which is
    // told by an error.
    while !matches!(changes.try_recv(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        any = true;
    }
    any
}

/// Tells all workers. `false`: they are not there any more.
fn tell(workers: &[Commands], command: impl Fn() -> Command) -> bool {
    workers.iter().all(|worker| worker.send(command()))
}

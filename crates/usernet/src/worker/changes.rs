//! Changes of the host's network, and the flows that they kill.

use std::sync::Arc;

use usernet_core::drops::DropReason;
use usernet_core::host::HostError;
use usernet_core::network::Target;
use usernet_core::table::FlowId;
use usernet_host::{Netlink, Path};

use super::Worker;
use crate::host::Host;

/// Flows that a turn looks at: half a millisecond.
const FLOWS: usize = 64;

/// A walk over all TCP flows, a part of it each turn, that resets those which have lost their way.
///
/// UDP needs none: its sockets have no address of their own and ask the routes each time.
pub(super) struct Check {
    /// Where in the table it goes on.
    next: usize,
    /// Who is asked for routes; none: only flows whose address has gone are reset. Answers are not kept:
    /// rules may tell by ports, which no two flows to a peer have in common.
    routes: Option<Netlink>,
    reset: usize,
}

impl Worker {
    /// Takes in what the host's network is like now.
    pub(super) fn host_changed(&mut self, host: Arc<Host>) {
        self.parts.core.set_host_addrs(host.closed.clone().unwrap_or_default());
        let before = std::mem::replace(&mut self.parts.host, host);
        self.outward = None;
        if self.parts.host.has_lost_outbound(&before) {
            // The kernel would go on sending by it. The next requests open other sockets.
            self.ping.fill_with(|| None);
        }
    }

    /// Begins to look for flows that have lost their way; one that was under way begins again.
    pub(super) fn begin_check(&mut self, routes: bool) {
        let before = self.check.take().and_then(|check| check.routes);
        // Without, flows are kept that have no route: they time out.
        let routes = before.or_else(|| routes.then(Netlink::open)?.ok());
        self.check = Some(Check { next: 0, routes, reset: 0 });
    }

    /// Looks at a turn's share of the flows.
    pub(super) fn check_flows(&mut self) {
        let Some(mut check) = self.check.take() else { return };
        for _ in 0..FLOWS {
            let Some((at, flow)) = self.next_tcp(check.next) else {
                if check.reset > 0 {
                    tracing::info!(
                        connections = check.reset,
                        "reset what the host has no address or no route for any more"
                    );
                }
                return;
            };
            check.next = at + 1;
            let Some(path) = self.path(flow) else { continue };
            let lost = if !self.parts.host.has(path.local()) && !path.has_address() {
                "address"
            } else if check.routes.as_ref().is_some_and(|kernel| !path.has_route(kernel)) {
                "route"
            } else {
                continue;
            };
            tracing::debug!(?flow, lost, local = %path.local(), peer = %path.peer(), "its way is lost");
            self.count_drop(flow, DropReason::HostChanged);
            self.tcp_failed(flow, HostError::NetUnreachable);
            check.reset += 1;
        }
        self.check = Some(check);
    }

    /// The way that a flow goes; `None`: it does not leave the host.
    fn path(&self, flow: FlowId) -> Option<Path> {
        let to = match self.parts.core.tcp_flows().get(flow)?.flow.target {
            Some(Target::Host(to)) => Some(to),
            Some(Target::Dns) => return None,
            None => None,
        };
        self.tcp.get(flow.index as usize)?.as_ref()?.end.path(to)
    }
}

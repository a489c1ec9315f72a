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
#[derive(Default)]
pub(super) struct Check {
    round: Round,
    /// Who is asked for routes; none: only flows whose address has gone are reset. Answers are not kept:
    /// rules may tell by ports, which no two flows to a peer have in common.
    routes: Option<Netlink>,
    reset: usize,
}

/// A way through all places of a table, which begins anywhere and ends there.
#[derive(Default)]
struct Round {
    /// The place that it goes on from,
    next: usize,
    /// the place that it began at,
    begin: usize,
    /// and whether it has been at the table's end since.
    wrapped: bool,
}

impl Round {
    /// Begins anew where it is: what changes all the time does not keep it from any place.
    fn begin(&mut self) {
        (self.begin, self.wrapped) = (self.next, false);
    }

    /// What is next; `find` looks for the first from a place on. `None`: it has been everywhere.
    fn step<T>(&mut self, find: impl Fn(usize) -> Option<(usize, T)>) -> Option<T> {
        let mut found = find(self.next);
        if found.is_none() && !self.wrapped {
            self.wrapped = true;
            found = find(0);
        }
        let (at, found) = found.filter(|(at, _)| !self.wrapped || *at < self.begin)?;
        self.next = at + 1;
        Some(found)
    }
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

    /// Begins to look for flows that have lost their way; one that was under way goes on until it has been
    /// everywhere since.
    pub(super) fn begin_check(&mut self, routes: bool) {
        let mut check = self.check.take().unwrap_or_default();
        check.round.begin();
        if routes && check.routes.is_none() {
            // Without, flows are kept that have no route: they time out.
            check.routes = Netlink::open().ok();
        }
        self.check = Some(check);
    }

    /// Looks at a turn's share of the flows.
    pub(super) fn check_flows(&mut self) {
        let Some(mut check) = self.check.take() else { return };
        for _ in 0..FLOWS {
            let Some(flow) = check.round.step(|at| self.next_tcp(at)) else {
                if check.reset > 0 {
                    tracing::info!(
                        connections = check.reset,
                        "reset what the host has no address or no route for any more"
                    );
                }
                return;
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes steps through a table that has something at these places.
    fn steps(round: &mut Round, places: &[usize], count: usize) -> Vec<usize> {
        let find = |at| places.iter().find(|place| **place >= at).map(|place| (*place, *place));
        std::iter::from_fn(|| round.step(find)).take(count).collect()
    }

    #[test]
    fn a_round_that_begins_anew_goes_on_and_leaves_no_place_out() {
        let places = [0, 2, 3, 7, 8];
        let mut round = Round::default();
        assert_eq!(steps(&mut round, &places, 9), places);
        let mut round = Round::default();
        assert_eq!(steps(&mut round, &places, 2), [0, 2]);
        round.begin();
        assert_eq!(steps(&mut round, &places, 2), [3, 7]);
        round.begin();
        assert_eq!(steps(&mut round, &places, 2), [8, 0]);
        round.begin();
        assert_eq!(steps(&mut round, &places, 9), [2, 3, 7, 8, 0]);
        assert_eq!(steps(&mut round, &places, 9), []);
    }

    #[test]
    fn a_round_ends_where_the_table_is_empty_or_has_changed() {
        let mut round = Round::default();
        round.begin();
        assert_eq!(steps(&mut round, &[], 9), []);
        let mut round = Round::default();
        assert_eq!(steps(&mut round, &[0, 5, 9], 2), [0, 5]);
        round.begin();
        // The last has gone, and what it began behind, too.
        assert_eq!(steps(&mut round, &[0], 9), [0]);
        assert_eq!(steps(&mut round, &[0], 9), []);
    }
}

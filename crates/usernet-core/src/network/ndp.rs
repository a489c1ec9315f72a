//! Neighbour discovery: who has which IPv6 address, and the network as its guests' router.
//!
//! A guest that has spoken IPv6 is told of the router at once, twice more soon after, then every few
//! minutes, and whenever it asks. Where this differs from RFC 4861: answers are not delayed (§6.2.6 does so
//! that several routers do not answer at once, and there is one), and the network does not look for
//! duplicates of its own addresses, which no guest may have: it defends them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::switch::Neighbour;
use super::{Network, Packet, Timer, Verdict};
use crate::drops::DropReason;
use crate::nat64;
use crate::port::PortId;
use crate::table::hash;
use crate::time::Instant;
use crate::wheel::TimerId;
use crate::wire::{
    ALL_NODES, MacAddr, Ndp, RouterAdvert, domain_list, group_mac, neighbor_advert, neighbor_solicit,
};

/// RFC 4861 §6.2.1, AdvDefaultLifetime: three times the longest interval.
const LIFETIME: Duration = Duration::from_secs(1800);
/// MinRtrAdvInterval and MaxRtrAdvInterval, in seconds.
const INTERVAL: (u64, u64) = (200, 600);
/// MAX_INITIAL_RTR_ADVERT_INTERVAL and MAX_INITIAL_RTR_ADVERTISEMENTS (RFC 4861 §10).
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const INITIAL_ADVERTS: u8 = 3;
/// MIN_DELAY_BETWEEN_RAS: what goes to all goes no more often.
const LEAST_INTERVAL: Duration = Duration::from_secs(3);
/// The longest list of domains that an advertisement tells: it is to fit into the least MTU.
const MAX_SEARCH: usize = 512;

/// The ports that the router advertises itself to.
#[derive(Debug, Default)]
pub(super) struct Router(BTreeMap<PortId, Advertiser>);

#[derive(Debug)]
struct Advertiser {
    /// When all nodes of the port were told last.
    last: Instant,
    /// How often they were told, up to [`INITIAL_ADVERTS`].
    told: u8,
    timer: Option<TimerId>,
}

impl Network {
    /// A guest speaks IPv6: see to it that it is told of the router.
    pub(super) fn heard_ipv6(&mut self, port: PortId, now: Instant) {
        if !self.router.0.contains_key(&port) && self.ports.contains_key(&port) {
            self.advertise(port, now);
        }
    }

    /// Tells all nodes of a port of the router, and will again.
    fn advertise(&mut self, port: PortId, now: Instant) {
        let old = self.router.0.remove(&port);
        let told = old.as_ref().map_or(0, |advertiser| advertiser.told);
        if let Some(timer) = old.and_then(|advertiser| advertiser.timer) {
            self.wheel.cancel(timer);
        }
        let wait = if told + 1 < INITIAL_ADVERTS {
            INITIAL_INTERVAL
        } else {
            let (least, most) = INTERVAL;
            let random = hash(&self.config.seed, &(port, now.as_micros()));
            Duration::from_secs(least + random % (most - least))
        };
        let timer = Some(self.wheel.insert(now + wait, Timer::Advertise(port)));
        let told = (told + 1).min(INITIAL_ADVERTS);
        self.router.0.insert(port, Advertiser { last: now, told, timer });
        self.send_router_advert(port, group_mac(ALL_NODES), ALL_NODES);
    }

    /// Advertises sooner than planned: a guest asks that cannot be answered alone.
    fn advertise_soon(&mut self, port: PortId, now: Instant) {
        let Some(advertiser) = self.router.0.get_mut(&port) else { return };
        let at = advertiser.last + LEAST_INTERVAL;
        if at <= now {
            return self.advertise(port, now);
        }
        let timer = self.wheel.insert(at, Timer::Advertise(port));
        if let Some(old) = advertiser.timer.replace(timer) {
            self.wheel.cancel(old);
        }
    }

    /// The timer of a port's advertisements has fired.
    pub(super) fn advertise_timeout(&mut self, port: PortId, now: Instant) {
        if let Some(advertiser) = self.router.0.get_mut(&port) {
            advertiser.timer = None;
            self.advertise(port, now);
        }
    }

    /// A port is no more.
    pub(super) fn stop_advertising(&mut self, port: PortId) {
        if let Some(timer) = self.router.0.remove(&port).and_then(|advertiser| advertiser.timer) {
            self.wheel.cancel(timer);
        }
    }

    fn send_router_advert(&mut self, port: PortId, to: MacAddr, dst: Ipv6Addr) {
        let Some(net) = &self.config.net6 else { return };
        let advert = RouterAdvert {
            managed: net.managed,
            other: true,
            lifetime: if net.restricted { Duration::ZERO } else { LIFETIME },
            mtu: self.config.mtu,
            prefix: net.prefix,
            prefix_len: net.prefix_len,
            valid: net.valid,
            preferred: net.preferred,
            dns: (!net.restricted).then_some(net.dns),
            nat64: self.config.nat64.then_some(nat64::PREFIX),
            search: domain_list(&net.search, MAX_SEARCH),
        };
        let frame = advert.frame(to, self.mac, dst);
        self.send_frame(port, frame);
    }

    pub(super) fn handle_ndp(
        &mut self,
        packet: &Packet<'_>,
        ndp: Ndp,
        ours: bool,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let IpAddr::V6(src) = packet.ip.src else { return Err(DropReason::Ndp) };
        let is_ours = |addr: Ipv6Addr| self.config.is_ours(addr.into());
        if is_ours(src) || !(src.is_unspecified() || self.is_neighbour(src.into())) {
            return Err(DropReason::SourceAddress);
        }
        let port = packet.port;
        let at = |mac: Option<MacAddr>| Neighbour { port, mac: mac.unwrap_or(packet.mac) };
        match ndp {
            Ndp::Router => return Err(DropReason::RogueRouter),
            Ndp::RouterSolicit { mac } => {
                if src.is_unspecified() {
                    self.advertise_soon(port, now);
                } else {
                    self.learn_address(src.into(), at(mac));
                    self.send_router_advert(port, at(mac).mac, src);
                }
                return Ok(Verdict::Done);
            }
            Ndp::NeighborSolicit { target, mac } => {
                let defend = is_ours(target);
                // Who asks from no address may not get the one that it asks about.
                if !src.is_unspecified() {
                    self.learn_address(src.into(), at(mac));
                }
                if defend {
                    let frame = neighbor_advert(at(mac).mac, self.mac, target, src);
                    self.send_frame(port, frame);
                    return Ok(Verdict::Done);
                }
            }
            Ndp::NeighborAdvert { target, mac } => {
                if is_ours(target) || !self.is_neighbour(target.into()) {
                    return Err(DropReason::SourceAddress);
                }
                self.learn_address(target.into(), at(mac));
            }
        }
        if ours {
            Ok(Verdict::Done)
        } else {
            self.flood(packet.port, DropReason::NoSuchGuest).or(Ok(Verdict::Done))
        }
    }

    /// Asks all guests who has `target`.
    pub(super) fn ask_for_v6(&mut self, target: Ipv6Addr) {
        if self.config.net6.is_none() {
            return;
        }
        let frame = neighbor_solicit(self.mac, self.config.link_local(), target);
        let ports: Vec<PortId> = self.shared.with(|registry| registry.switch.ports().collect());
        for port in ports {
            self.send_frame(port, frame.clone());
        }
    }
}

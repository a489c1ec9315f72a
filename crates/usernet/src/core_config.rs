//! What a configuration means: for the core, and for a guest that is told it.

use std::net::{Ipv4Addr, Ipv6Addr};

use usernet_core::network as core;
use usernet_core::{dhcp, dhcp6};

use crate::host::Host;
use crate::{Config, Error, GuestAddress, GuestConfig, Net6};

pub(crate) fn core_config(config: &Config, host: &Host, descriptors: u64) -> Result<core::Config, Error> {
    let mut limits = core::Limits::default();
    // One guest must not take all descriptors: others, and the network itself, need some.
    limits.tcp = limits.tcp.min(usize::try_from(descriptors / 5 * 4).unwrap_or(usize::MAX));
    let mut seed = [0; 16];
    let what = "cannot draw a random seed";
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Io { what: what.to_owned(), error: error.into() })?;
    Ok(core::Config {
        net: config.net,
        prefix_len: config.prefix_len,
        gateway: config.gateway,
        dns: config.dns,
        mtu: config.mtu,
        host_loopback: config.host_loopback,
        host_addrs: host.closed.clone().unwrap_or_default(),
        host_link_local: config.host_link_local,
        restrict: config.restrict,
        multicast: config.multicast.clone(),
        dhcp: dhcp::Config {
            net: config.net,
            prefix_len: config.prefix_len,
            gateway: config.gateway,
            dns: config.dns,
            start: config.dhcp_start,
            mtu: config.mtu,
            hostname: config.hostname.clone(),
            domain: config.domain.clone(),
            search: config.dns_search.clone(),
            ..dhcp::Config::default()
        },
        ipv4: config.ipv4,
        net6: config.net6.as_ref().map(|net| dhcp6::Config {
            prefix: net.prefix,
            prefix_len: net.prefix_len,
            gateway: net.gateway,
            dns: net.dns,
            start: net.dhcp_start,
            hostname: config.hostname.clone(),
            search: config.dns_search.iter().chain(&config.domain).cloned().collect(),
            ..dhcp6::Config::default()
        }),
        nat64: config.nat64,
        limits,
        seed,
    })
}

pub(crate) fn guest_config(config: &Config, (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>)) -> GuestConfig {
    let Config { prefix_len, gateway, restrict, .. } = *config;
    let net6 = config.net6.as_ref();
    let gateway = (!restrict).then_some(gateway);
    let dns = config.ipv4.then_some(config.dns.into());
    let dns = dns.into_iter().chain(net6.map(|net6| net6.dns.into()));
    let search = config.dns_search.iter().chain(config.domain.as_ref());
    GuestConfig {
        ipv4: v4.map(|address| GuestAddress { address, prefix_len, gateway }),
        ipv6: v6.zip(net6).map(|(address, &Net6 { prefix_len, gateway, .. })| GuestAddress {
            address,
            prefix_len,
            gateway: (!restrict).then_some(gateway),
        }),
        dns: dns.filter(|_| !restrict).collect(),
        mtu: config.mtu,
        search: search.cloned().collect(),
    }
}

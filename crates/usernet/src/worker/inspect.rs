//! What a worker tells about itself.

use usernet_core::leases::{Address, Lease};
use usernet_core::network::UdpKind;
use usernet_core::port::PortId;
use usernet_core::table::{Entry, FlowKey};
use usernet_core::time::Instant;
use usernet_core::wire::MacAddr;

use super::Worker;
use crate::{DropInfo, FlowInfo, LeaseInfo, PortInfo, QueueInfo};

impl Worker {
    pub(super) fn port_infos(&mut self) -> Vec<PortInfo> {
        let addresses = self.parts.core.addresses();
        let info = |(port, counted): (PortId, &usernet_core::network::Port)| {
            let entry = self.ports.get(&port)?;
            let worker = usize::from(self.parts.id.0);
            let queue = self.parts.roster.of(port).into_iter().position(|other| other == worker);
            let queue = queue.map(|queue| QueueInfo {
                queue,
                worker,
                in_use: entry.is_in_use(),
                traffic: entry.traffic,
            });
            Some(PortInfo {
                port: port.0,
                name: entry.name.clone(),
                kind: entry.kind.to_owned(),
                addresses: addresses.iter().filter(|(at, _)| *at == port).map(|(_, addr)| *addr).collect(),
                traffic: entry.traffic,
                drops: counted.drops.iter().map(|(_, count)| count).sum::<u64>() + entry.link_drops(),
                queues: queue.into_iter().collect(),
                trouble: entry.trouble(),
            })
        };
        self.parts.core.ports().filter_map(info).collect()
    }

    pub(super) fn lease_infos(&mut self) -> Vec<LeaseInfo> {
        let (core, now) = (&mut self.parts.core, self.now);
        let v4: Vec<_> = core.leases(now).into_iter().map(|lease| lease_info(&lease, now)).collect();
        v4.into_iter().chain(core.leases6(now).into_iter().map(|lease| lease_info(&lease, now))).collect()
    }

    pub(super) fn flow_infos(&self) -> Vec<FlowInfo> {
        let core = &self.parts.core;
        let tcp = core.tcp_flows().iter().map(|(_, entry)| {
            let flow = &entry.flow;
            let origin = if flow.target.is_some() { "guest" } else { "host" };
            FlowInfo {
                bytes_out: flow.tcp.bytes_out(),
                bytes_in: flow.tcp.bytes_in(),
                ..self.flow_info("tcp", entry, origin, flow.tcp.state_name(), flow.tcp.last_heard())
            }
        });
        let udp = core.udp_flows().iter().map(|(_, entry)| {
            let origin = match entry.flow.kind {
                UdpKind::Nat { .. } | UdpKind::Multicast { .. } => "guest",
                UdpKind::Forward { .. } => "host",
            };
            FlowInfo {
                bytes_out: entry.flow.bytes_out,
                bytes_in: entry.flow.bytes_in,
                ..self.flow_info("udp", entry, origin, "OPEN", entry.flow.last_used)
            }
        });
        let ping = core.ping_flows().iter().map(|(_, entry)| FlowInfo {
            bytes_out: entry.flow.bytes_out,
            bytes_in: entry.flow.bytes_in,
            ..self.flow_info("icmp", entry, "guest", "OPEN", entry.flow.last_used)
        });
        tcp.chain(udp).chain(ping).collect()
    }

    fn flow_info<F>(
        &self,
        protocol: &str,
        entry: &Entry<F>,
        origin: &str,
        state: &str,
        last: Instant,
    ) -> FlowInfo {
        let FlowKey { port, guest, .. } = entry.key;
        FlowInfo {
            protocol: protocol.to_owned(),
            port: self.ports.contains_key(&port).then_some(port.0),
            guest: guest.to_socket_addr(),
            peer: entry.key.one_peer().map(|peer| peer.to_socket_addr()),
            origin: origin.to_owned(),
            state: state.to_owned(),
            bytes_out: 0,
            bytes_in: 0,
            idle: self.now.since(last).as_secs(),
        }
    }

    pub(super) fn drop_infos(&self) -> Vec<DropInfo> {
        let mut drops: Vec<DropInfo> = self
            .parts
            .core
            .drops()
            .iter()
            .map(|(reason, count)| DropInfo { reason: reason.name().to_owned(), count })
            .collect();
        let link: u64 = self.link_drops + self.ports.values().map(super::Port::link_drops).sum::<u64>();
        if link > 0 {
            drops.push(DropInfo { reason: "link".to_owned(), count: link });
        }
        drops
    }
}

fn lease_info<A: Address>(lease: &Lease<A>, now: Instant) -> LeaseInfo {
    LeaseInfo {
        port: lease.port.0,
        address: lease.address.into(),
        mac: MacAddr(lease.mac).to_string(),
        hostname: lease.hostname.clone(),
        expires_in: lease.expires.map(|at| at.since(now).as_secs()),
    }
}

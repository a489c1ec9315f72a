//! Addresses: DHCP and DHCPv6 requests of guests, and leases that are given without them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::switch::Neighbour;
use super::{Network, Output, Packet, Verdict, udp};
use crate::dhcp;
use crate::drops::DropReason;
use crate::frame::FrameBytes;
use crate::leases::{Address, Grant, Lease};
use crate::port::PortId;
use crate::time::Instant;
use crate::wire::MacAddr;

/// A message that is longer is cut here (RFC 2131 §2 asks for 548 bytes at least).
const MAX_LEN: usize = 2048;
pub(super) const DHCPV6_SERVER: u16 = 547;
const DHCPV6_CLIENT: u16 = 546;

impl Network {
    /// Leases an address of each kind of IP that is on to a guest that will not ask by DHCP.
    ///
    /// # Errors
    /// [`DropReason::DhcpExhausted`] when a pool, or what one port may hold, is used up.
    pub fn lease(
        &mut self,
        port: PortId,
        mac: MacAddr,
        hostname: Option<&str>,
        now: Instant,
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), DropReason> {
        let ipv4 = self.config.ipv4;
        let (v4, v6) = self.shared.with(|registry| {
            let v4 = ipv4.then(|| registry.dhcp.lease(port, mac.0, hostname, now)).transpose()?;
            let v6 = registry.dhcp6.as_mut().map(|dhcp6| dhcp6.lease(port, mac, hostname, now));
            Ok::<_, DropReason>((v4, v6.transpose()?))
        })?;
        if let Some(grant) = v4 {
            self.granted(port, mac, grant);
        }
        if let Some(grant) = v6 {
            self.granted(port, mac, grant);
        }
        Ok((v4.map(|grant| grant.address), v6.map(|grant| grant.address)))
    }

    /// The leases that have not run out, of all workers' guests.
    pub fn leases(&mut self, now: Instant) -> Vec<Lease> {
        self.shared.with(|registry| registry.dhcp.leases(now).cloned().collect())
    }

    /// The IPv6 leases that have not run out, of all workers' guests.
    pub fn leases6(&mut self, now: Instant) -> Vec<Lease<Ipv6Addr>> {
        self.shared
            .with(|registry| registry.dhcp6.iter().flat_map(|dhcp6| dhcp6.leases(now)).cloned().collect())
    }

    pub(super) fn handle_dhcp<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let message = udp::message(packet, frame, MAX_LEN)?;
        let reply = self.shared.with(|registry| registry.dhcp.handle(packet.port, &message, now))?;
        let Some(reply) = reply else {
            self.outputs.push_back(Output::LeasesChanged);
            return Ok(Verdict::Done);
        };
        let (mac, dst) = match reply.to {
            dhcp::Destination::Broadcast => (MacAddr::BROADCAST, Ipv4Addr::BROADCAST),
            dhcp::Destination::Unicast { mac, address } => (MacAddr(mac), address),
        };
        if let Some(grant) = reply.grant {
            self.granted(packet.port, packet.mac, grant);
        }
        self.send_udp(packet.port, mac, (self.config.gateway.into(), 67), (dst.into(), 68), &reply.payload);
        Ok(Verdict::Done)
    }

    pub(super) fn handle_dhcp6<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let message = udp::message(packet, frame, MAX_LEN)?;
        let reply = self.shared.with(|registry| {
            let server = registry.dhcp6.as_mut().ok_or(DropReason::Protocol)?;
            server.handle(packet.port, packet.mac, &message, now)
        })?;
        for grant in reply.grants {
            self.granted(packet.port, packet.mac, grant);
        }
        if reply.ended {
            self.outputs.push_back(Output::LeasesChanged);
        }
        let src = (self.config.link_local().into(), DHCPV6_SERVER);
        self.send_udp(packet.port, packet.mac, src, (packet.ip.src, DHCPV6_CLIENT), &reply.payload);
        Ok(Verdict::Done)
    }

    fn granted<A: Address>(&mut self, port: PortId, mac: MacAddr, grant: Grant<A>) {
        let addr = grant.address.into();
        // Once a guest: it may ask as often as it likes.
        let (awaited, conflict) = self.shared.with(|registry| {
            let is_new = registry.switch.assign_address(addr, Neighbour { port, mac });
            registry.switch.learn_mac(port, mac, &self.config.limits);
            let awaited = is_new && registry.switch.was_wanted(addr);
            (awaited, grant.mac_also_on.filter(|_| registry.switch.tell_conflict(port)))
        });
        if awaited {
            self.announce(addr);
        }
        if !grant.renewed {
            self.outputs.push_back(Output::LeasesChanged);
        }
        if let Some(other) = conflict {
            self.outputs.push_back(Output::MacConflict { port, other, mac });
        }
    }
}

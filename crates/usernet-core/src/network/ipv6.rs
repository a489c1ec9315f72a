//! IPv6: what a guest's packet has to be before its protocol sees it.

use std::net::IpAddr;

use super::addresses::DHCPV6_SERVER;
use super::config::Place;
use super::{Network, Packet, Verdict, udp};
use crate::drops::DropReason;
use crate::frame::FrameBytes;
use crate::port::PortId;
use crate::time::Instant;
use crate::wire::{
    ETHERNET_HEADER_LEN, ICMPV6_ECHO, ICMPV6_ECHO_REPLY, ICMPV6_LISTENER, IcmpError, IpHeader, Ipv6Error,
    MacAddr, Ndp, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, is_icmpv6_error,
};

/// RFC 8200 §4.7: nothing follows.
const NO_NEXT_HEADER: u8 = 59;

/// Where a frame came from and where its headers were copied to.
pub(super) struct Arrived<'a> {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
    /// The start of the frame.
    pub(super) head: &'a [u8],
    /// Whether the frame was sent to the gateway's MAC address.
    pub(super) ours: bool,
}

impl Network {
    // Apart from the path of IPv4, whose stack frame it would make larger.
    #[inline(never)]
    pub(super) fn handle_ipv6<F: FrameBytes + ?Sized>(
        &mut self,
        Arrived { port, mac, head, ours }: Arrived<'_>,
        frame: &F,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        self.heard_ipv6(port, now);
        let bytes = head.get(ETHERNET_HEADER_LEN..).unwrap_or_default();
        let packet = |ip, header_len, transport_len| {
            let start = ETHERNET_HEADER_LEN + header_len;
            Packet {
                port,
                mac,
                ip,
                head,
                ip_at: ETHERNET_HEADER_LEN,
                transport: start..start + transport_len,
            }
        };
        let (ip, header_len, transport_len) = IpHeader::parse_v6(bytes, frame.len() - ETHERNET_HEADER_LEN)
            .map_err(|error| {
                if let Ipv6Error::Problem { header, .. } = error {
                    self.send_problem(&packet(header, 0, bytes.len()), error);
                }
                DropReason::from(error)
            })?;
        let packet = packet(ip, header_len, transport_len);
        if ip.protocol == PROTOCOL_ICMPV6 {
            let message = packet.transport_head();
            if let Some(ndp) = Ndp::parse(&ip, message)? {
                return self.handle_ndp(&packet, ndp, ours, now);
            }
            // Who listens to which group matters to no one here: a group's frames go to all.
            if message.first().is_some_and(|kind| ICMPV6_LISTENER.contains(kind)) {
                return Ok(Verdict::Done);
            }
        }
        self.handle_ipv6_packet(&packet, frame, ours, now)
    }

    fn handle_ipv6_packet<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        ours: bool,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let ip = packet.ip;
        if !self.is_neighbour(ip.src) || self.config.is_ours(ip.src) {
            return Err(DropReason::SourceAddress);
        }
        let place = self.config.place(ip.dst);
        let for_us = place == Place::Group || self.config.is_ours(ip.dst);
        if for_us
            && ip.protocol == PROTOCOL_UDP
            && udp::ports(packet).is_some_and(|(_, dst)| dst == DHCPV6_SERVER)
        {
            return self.handle_dhcp6(packet, frame, now);
        }
        if place == Place::Group || !ours {
            return self.handle_group(packet, frame, now);
        }
        if ip.fragment {
            return self.handle_fragment(packet, frame, now);
        }
        self.note_sender(packet);
        if is_link_local(ip.src) && !self.config.is_ours(ip.dst) {
            self.send_icmp_error(packet, IcmpError::BeyondScope);
            return Err(DropReason::SourceAddress);
        }
        let verdict = self.dispatch(packet, frame, place, now);
        if let Err(DropReason::Protocol) = verdict
            && ip.protocol != NO_NEXT_HEADER
        {
            self.send_problem(packet, ip.unknown_protocol());
        }
        verdict
    }

    /// Tells a guest which byte of its packet is at fault.
    fn send_problem(&mut self, packet: &Packet<'_>, error: Ipv6Error) {
        let Ipv6Error::Problem { code, pointer, of_group, .. } = error else { return };
        // RFC 4443 §2.4 (e): of what went to a group, only where it is asked for.
        if of_group || self.config.place(packet.ip.dst) != Place::Group {
            self.send_icmp_error(packet, IcmpError::ParameterProblem { code, pointer });
        }
    }

    /// Whether an address can be a guest's: in the network, or link-local.
    pub(super) fn is_neighbour(&self, addr: IpAddr) -> bool {
        self.config.contains(addr) || is_link_local(addr)
    }

    /// Who says something to other guests in an IPv6 packet, and of whom it speaks.
    ///
    /// # Errors
    /// Routers are nobody's to announce (RFC 6105), in fragments too (RFC 7113): only what needs no
    /// guessing is let through.
    pub(super) fn senders_v6(&self, bytes: &[u8], available: usize) -> Result<[IpAddr; 2], DropReason> {
        if self.config.net6.is_none() {
            return Err(DropReason::EtherType);
        }
        let (ip, header_len, transport_len) = IpHeader::parse_v6(bytes, available)?;
        let end = bytes.len().min(header_len + transport_len);
        let transport = bytes.get(header_len..end).unwrap_or_default();
        if ip.fragment {
            return may_relay(transport).then_some([ip.src; 2]).ok_or(DropReason::Fragment);
        }
        if ip.protocol != PROTOCOL_ICMPV6 {
            return Ok([ip.src; 2]);
        }
        match Ndp::parse(&ip, transport)? {
            Some(Ndp::Router) => Err(DropReason::RogueRouter),
            Some(Ndp::NeighborAdvert { target, .. }) => Ok([ip.src, target.into()]),
            _ => Ok([ip.src; 2]),
        }
    }
}

/// Whether the rest of a fragmented packet can be told from its fragment header and what follows: TCP,
/// UDP, and of ICMPv6 echoes.
fn may_relay(fragment: &[u8]) -> bool {
    let Some(([protocol, _, hi, lo, ..], message)) = fragment.split_first_chunk::<8>() else { return false };
    let first = u16::from_be_bytes([*hi, *lo]) & 0xfff8 == 0;
    match *protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => true,
        PROTOCOL_ICMPV6 => {
            !first || message.first().is_some_and(|kind| matches!(*kind, ICMPV6_ECHO | ICMPV6_ECHO_REPLY))
        }
        _ => false,
    }
}

/// Whether an ICMPv6 error may be sent about a packet (RFC 4443 §2.4 (e)). Each is caused by one frame
/// and goes to its sender alone, so no rate needs to be limited.
pub(super) fn may_be_told(packet: &Packet<'_>) -> bool {
    let IpAddr::V6(src) = packet.ip.src else { return true };
    let error = packet.ip.protocol == PROTOCOL_ICMPV6
        && packet.transport_head().first().is_some_and(|kind| is_icmpv6_error(*kind));
    !src.is_unspecified() && !src.is_multicast() && !error
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;

//! Multicast and broadcast from guests.
//!
//! The rule: what a guest sends to a group goes to all other guests of the network, whoever asked for the
//! group, and nowhere else: not to the host (where QEMU hands 255.255.255.255 to the host's loopback), not
//! outside, and it may not give another's address as its own. Beside that, the network takes what it is a
//! member for: ARP, DHCP, neighbour discovery, and an ICMPv6 echo request to all nodes or all routers, which
//! the gateway answers. IPv4 echo requests to a group it does not answer, as hosts do not.
//!
//! Questions of the services in [`Config::multicast`](super::Config::multicast) go to the host's network,
//! too, each from a socket of its own: hosts there take it for one that asks once (RFC 6762 §6.7) and answer
//! it alone. Whoever answers is let in, by the service's port if it has one, for ten seconds after the
//! guest's last question. What a guest announces stays inside, where its addresses mean something, and what
//! is sent to the groups outside does not come in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Delivery, Network, Output, Packet, UdpKind, Verdict, udp};
use crate::drops::DropReason;
use crate::frame::FrameBytes;
use crate::port::WorkerId;
use crate::table::{Endpoint, FlowKey};
use crate::time::Instant;
use crate::wire::{
    ALL_NODES, ALL_ROUTERS, ICMPV6_ECHO, IPV6_HEADER_LEN, IpHeader, PROTOCOL_ICMPV6, PROTOCOL_UDP,
    echo_reply_v6,
};

/// A service of the host's network that is found by multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MulticastService {
    /// Multicast DNS (RFC 6762): names in `.local`, printers and the like. To 224.0.0.251 and ff02::fb,
    /// port 5353, from where it is answered.
    Mdns,
    /// The Simple Service Discovery Protocol of UPnP. To 239.255.255.250 and ff02::c, port 1900; answered
    /// from any port.
    Ssdp,
}

impl MulticastService {
    /// All services.
    pub const ALL: [Self; 2] = [Self::Mdns, Self::Ssdp];

    /// The service's name in options: `mdns`, `ssdp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mdns => "mdns",
            Self::Ssdp => "ssdp",
        }
    }

    /// Where it is asked for, by `guest`'s kind of IP.
    fn group(self, guest: IpAddr) -> Endpoint {
        let (v4, v6, port) = match self {
            Self::Mdns => ([224, 0, 0, 251], 0xfb, 5353),
            Self::Ssdp => ([239, 255, 255, 250], 0xc, 1900),
        };
        let addr = match guest {
            IpAddr::V4(_) => Ipv4Addr::from(v4).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, v6).into(),
        };
        Endpoint { addr, port }
    }

    /// Whether a message asks for something, rather than announces it.
    fn is_question(self, message: &[u8]) -> bool {
        match self {
            // RFC 6762 §18.2: the bit QR.
            Self::Mdns => message.get(2).is_some_and(|flags| flags & 0x80 == 0),
            Self::Ssdp => message.starts_with(b"M-SEARCH "),
        }
    }

    /// Whether answers come from this port. RFC 6762 §6: all of mDNS come from the service's own.
    pub(super) fn answers_from(self, port: u16) -> bool {
        self == Self::Ssdp || port == 5353
    }
}

impl Network {
    // Apart from the path of what goes to one.
    #[inline(never)]
    pub(super) fn handle_group<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let taken = match self.asked_for(packet) {
            Some(question) if frame.offload().segmentation.is_none() => {
                match self.ask(packet, frame, question, now)? {
                    Some(worker) => return Ok(Verdict::HandOver(worker)),
                    None => true,
                }
            }
            _ => self.answer_echo(packet, frame),
        };
        match self.flood(packet.port, DropReason::Multicast) {
            Err(_) if taken => Ok(Verdict::Done),
            verdict => verdict,
        }
    }

    /// The service of the host's network that a packet asks for, and who asks.
    fn asked_for(&self, packet: &Packet<'_>) -> Option<(MulticastService, Endpoint)> {
        let (from, port) = udp::ports(packet).filter(|_| packet.ip.protocol == PROTOCOL_UDP)?;
        let to = Endpoint { addr: packet.ip.dst, port };
        let service = *self.config.multicast.iter().find(|service| service.group(packet.ip.src) == to)?;
        let start = udp::payload(packet).ok()?.start;
        let asks = service.is_question(packet.head.get(start..).unwrap_or_default());
        (asks && from != 0).then_some((service, Endpoint { addr: packet.ip.src, port: from }))
    }

    /// Asks the host's network; returns the other worker that is to do it, if one has the flow.
    fn ask<F: FrameBytes + ?Sized>(
        &mut self,
        packet: &Packet<'_>,
        frame: &F,
        (service, guest): (MulticastService, Endpoint),
        now: Instant,
    ) -> Result<Option<WorkerId>, DropReason> {
        let to = service.group(guest.addr);
        let key = FlowKey { port: packet.port, guest, peer: Some(to) };
        let payload = udp::message(packet, frame, usize::from(u16::MAX))?;
        let flow = match self.udp.find(&key) {
            Some(flow) => flow,
            None if let Some(worker) = self.udp.elsewhere(&key) => return Ok(Some(worker)),
            None => self.insert_udp(key, packet.mac, UdpKind::Multicast { service }, now),
        };
        self.udp.touch(flow);
        let entry = self.udp.get_mut(flow).ok_or(DropReason::NoFlow)?;
        entry.mac = packet.mac;
        entry.flow.last_used = now;
        entry.flow.bytes_out += payload.len() as u64;
        // The guest is as far away as the host: groups of one link have a time to live that is checked.
        let delivery = Delivery { ttl: packet.ip.ttl.max(1), ..Delivery::from(&packet.ip) };
        self.outputs.push_back(Output::Multicast { flow, to: to.to_socket_addr(), delivery, payload });
        Ok(None)
    }

    /// Answers an echo request to all nodes or all routers, as the gateway.
    fn answer_echo<F: FrameBytes + ?Sized>(&mut self, packet: &Packet<'_>, frame: &F) -> bool {
        let IpHeader { src, dst, protocol, .. } = packet.ip;
        let asked = protocol == PROTOCOL_ICMPV6
            && [ALL_NODES, ALL_ROUTERS].map(IpAddr::V6).contains(&dst)
            && packet.transport_head().starts_with(&[ICMPV6_ECHO, 0]);
        let IpAddr::V6(guest) = src else { return false };
        // What would have to be cut is nobody's way to look for neighbours.
        if !asked || IPV6_HEADER_LEN + packet.transport.len() > usize::from(self.config.mtu) {
            return false;
        }
        let mut message = vec![0; packet.transport.len()];
        frame.copy_to(packet.transport.start, &mut message);
        // RFC 4443 §4.2: from the interface that it came to.
        let reply = echo_reply_v6(packet.mac, self.mac, self.config.link_local(), guest, message);
        self.send_frame(packet.port, reply);
        true
    }
}

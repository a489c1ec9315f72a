//! What is on its way to guests: frames, packets that are to be cut, ICMP errors.

use std::net::IpAddr;

use super::config::Place;
use super::{Network, Output, Packet, ipv6};
use crate::drops::DropReason;
use crate::offload::{Fragmentation, Offload};
use crate::port::PortId;
use crate::table::hash;
use crate::wire::{ETHERNET_HEADER_LEN, Headers, IcmpError, IpHeader, Offender, PROTOCOL_ICMP};

impl Network {
    pub(super) fn send_frame(&mut self, port: PortId, frame: Vec<u8>) {
        self.outputs.push_back(Output::Frame { port, frame, offload: Offload::default() });
    }

    /// Has wire packets to a guest, with `longest` bytes of payload at most, go in fragments where they are
    /// longer than its MTU. `ip` is their header.
    #[inline]
    pub(super) fn fit(
        &mut self,
        port: PortId,
        headers: &mut Headers,
        ip: &IpHeader,
        (longest, packets): (usize, usize),
    ) {
        if headers.len() - ETHERNET_HEADER_LEN + longest > usize::from(self.config.mtu) {
            self.fragment(port, headers, ip, packets);
        }
    }

    #[cold]
    fn fragment(&mut self, port: PortId, headers: &mut Headers, ip: &IpHeader, packets: usize) {
        // RFC 7739 §5.3: a counter that begins elsewhere for each pair of addresses. It is the guest's own:
        // one for all would tell each how much the others get.
        let pair = hash(&self.config.seed, &(ip.src, ip.dst, self.shared.worker.0));
        let start = u32::try_from(pair & u64::from(u32::MAX)).unwrap_or_default();
        let Some(port) = self.ports.get_mut(&port) else { return };
        let ident = start.wrapping_add(port.next_ident);
        port.next_ident = port.next_ident.wrapping_add(u32::try_from(packets).unwrap_or(1));
        headers.offload.fragmentation = Some(Fragmentation { mtu: self.config.mtu, ident });
    }

    pub(super) fn send_icmp_error(&mut self, packet: &Packet<'_>, error: IcmpError) {
        if !ipv6::may_be_told(packet) {
            return;
        }
        // An error about what went to one of our addresses comes from that address.
        let IpHeader { src: guest, dst, .. } = packet.ip;
        let src = if self.config.is_ours(dst) { dst } else { self.config.gateway_of(guest) };
        let ip = IpHeader::new(src, guest, PROTOCOL_ICMP);
        if let Some(frame) = error.frame(packet.mac, self.mac, ip, packet.quote()) {
            self.send_frame(packet.port, frame);
        }
    }

    /// Lets pass what a host is to take. Of what has no such place its sender is told.
    #[inline]
    pub(super) fn check_place(&mut self, packet: &Packet<'_>, place: Place) -> Result<(), DropReason> {
        let (error, reason) = match place {
            Place::Gateway | Place::Outside => return Ok(()),
            Place::Dns => (IcmpError::PortUnreachable, DropReason::Policy),
            Place::Closed => (IcmpError::Prohibited, DropReason::Policy),
            Place::Inside | Place::Group | Place::Forbidden => {
                (IcmpError::HostUnreachable, DropReason::NoSuchGuest)
            }
        };
        self.send_icmp_error(packet, error);
        Err(reason)
    }

    /// The header of an ICMP error about what `guest` sent to `dst`. What no one has sent, the host itself has
    /// found out: it is the gateway's word, but where `dst` is the host.
    pub(super) fn error_ip(
        &self,
        error: IcmpError,
        offender: Option<Offender>,
        guest: IpAddr,
        dst: IpAddr,
    ) -> IpHeader {
        let Some(Offender { addr, ttl }) = offender else {
            let src = if error == IcmpError::PortUnreachable { dst } else { self.config.gateway_of(guest) };
            return IpHeader::new(src, guest, PROTOCOL_ICMP);
        };
        let ip = IpHeader::new(self.guest_view(addr, guest), guest, PROTOCOL_ICMP);
        // This network is one more hop.
        IpHeader { ttl: ttl.map_or(ip.ttl, |ttl| ttl.saturating_sub(1).max(1)), ..ip }
    }
}

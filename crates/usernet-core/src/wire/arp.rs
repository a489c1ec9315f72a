//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::{ETHERTYPE_ARP, EthernetHeader, MacAddr};
use crate::drops::DropReason;

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Whether it asks, or else answers.
    pub request: bool,
    /// The sender's MAC address.
    pub sender_mac: MacAddr,
    /// The sender's IP address; 0.0.0.0 in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The address that is asked for, or answered to.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads the packet behind an Ethernet header.
    ///
    /// # Errors
    /// [`DropReason::Arp`] when it is too short or not about IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let packet = ArpPacket::new_checked(bytes).map_err(|_| DropReason::Arp)?;
        match ArpRepr::parse(&packet).map_err(|_| DropReason::Arp)? {
            ArpRepr::EthernetIpv4 {
                operation: operation @ (ArpOperation::Request | ArpOperation::Reply),
                source_hardware_addr,
                source_protocol_addr,
                target_protocol_addr,
                ..
            } => Ok(Self {
                request: operation == ArpOperation::Request,
                sender_mac: MacAddr(source_hardware_addr.0),
                sender: source_protocol_addr,
                target: target_protocol_addr,
            }),
            _ => Err(DropReason::Arp),
        }
    }

    /// The frame that carries the packet to `to`.
    pub fn frame(self, to: MacAddr) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: if self.request { ArpOperation::Request } else { ArpOperation::Reply },
            source_hardware_addr: EthernetAddress(self.sender_mac.0),
            source_protocol_addr: self.sender,
            target_hardware_addr: EthernetAddress(if self.request { [0; 6] } else { to.0 }),
            target_protocol_addr: self.target,
        };
        let mut frame =
            EthernetHeader { dst: to, src: self.sender_mac, ethertype: ETHERTYPE_ARP }.to_bytes().to_vec();
        let mut packet = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut packet));
        frame.extend_from_slice(&packet);
        frame
    }
}

//! Wire formats, read once at the edge into values.

mod arp;
mod ethernet;
mod headers;
mod icmp;
mod ip;
mod tcp;

pub use arp::Arp;
pub use ethernet::{
    ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, MacAddr,
};
pub use headers::{Headers, TCP_FRAME_HEADERS, UDP_FRAME_HEADERS, UDP_HEADER_LEN, update_checksum};
pub use icmp::{ICMP_ECHO, ICMP_ECHO_REPLY, ICMP_HEADER_LEN, IcmpError};
pub use ip::{IPV4_HEADER_LEN, IpHeader, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
pub use tcp::{TCP_HEADER_LEN, TcpFlags, TcpHeader};

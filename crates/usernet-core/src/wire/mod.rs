//! Wire formats, read once at the edge into values.

mod arp;
mod ethernet;
mod fragment;
mod headers;
mod icmp;
mod icmpv6;
mod ip;
mod ipv6;
mod ndp;
mod tcp;

pub use arp::Arp;
pub use ethernet::{
    ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, MacAddr,
};
pub use fragment::fragments;
pub(crate) use fragment::{FRAGMENT_HEADER_LEN, Fragment};
pub use headers::{
    Headers, IPV6_MORE, TCP_FRAME_HEADERS, UDP_FRAME_HEADERS, UDP_HEADER_LEN, update_checksum,
};
pub use icmp::{ICMP_ECHO, ICMP_ECHO_REPLY, ICMP_HEADER_LEN, IcmpError, Offender};
pub(crate) use icmpv6::echo_reply_v6;
pub use icmpv6::{ICMP_MAX_QUOTE, ICMPV6_ECHO, ICMPV6_ECHO_REPLY, ICMPV6_LISTENER, is_icmpv6_error};
pub use ip::{DSCP, IPV4_HEADER_LEN, IpHeader, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
pub use ipv6::{IPV6_HEADER_LEN, IPV6_MIN_MTU, Ipv6Error, PROTOCOL_ICMPV6, PROTOCOL_IPV6_FRAGMENT};
pub(crate) use ndp::ALL_ROUTERS;
pub use ndp::{
    ALL_NODES, Ndp, RouterAdvert, domain_list, group_mac, link_local, neighbor_advert, neighbor_solicit,
    solicited_node,
};
pub use tcp::{TCP_HEADER_LEN, TcpFlags, TcpHeader};

//! Questions to the kernel about routes, over rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The table of what is the host itself (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u8 = 255;

/// A conversation with the kernel about the network namespace of the thread that began it.
pub struct Netlink(Socket);

impl Netlink {
    /// Begins one.
    ///
    /// # Errors
    /// No descriptors are left, or this process may not.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers are there when a request has been sent. One that is lost is not waited for.
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// The route that a packet to `to` takes which is as the attributes say.
    pub(crate) fn route(&self, to: IpAddr, mut attributes: Vec<RouteAttribute>) -> io::Result<RouteMessage> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        attributes.push(RouteAttribute::Destination(to.into()));
        question.attributes = attributes;
        self.send(question, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        match parse(&answer)?.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("no route: {other:?}"))),
        }
    }

    /// What the kernel takes for this host itself, with the bits of each that count.
    ///
    /// # Errors
    /// It does not tell.
    pub(crate) fn own(&self) -> io::Result<Vec<(IpAddr, u8)>> {
        // Only one table is told then. Linux before 4.20 tells all.
        let _ = self.0.set_netlink_get_strict_chk(true);
        let mut own = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            (question.header.address_family, question.header.table) = (family, TABLE_LOCAL);
            self.send(question, NLM_F_DUMP)?;
            self.gather_own(&mut own)?;
        }
        Ok(own)
    }

    /// Takes in routes until the last.
    fn gather_own(&self, own: &mut Vec<(IpAddr, u8)>) -> io::Result<()> {
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = &*answer;
            while !rest.is_empty() {
                let message = parse(rest)?;
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                        own.extend(own_addresses(&route));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return match error.to_io() {
                            // There is no such table yet.
                            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                            error => Err(error),
                        };
                    }
                    _ => {}
                }
                // Messages begin at multiples of four bytes.
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn send(&self, question: RouteMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        Ok(())
    }
}

/// What a route says of addresses of this host; `None`: nothing. Its table is an attribute, too, which need
/// not be looked at: no other has such routes, unless somebody wants it so.
fn own_addresses(route: &RouteMessage) -> Option<(IpAddr, u8)> {
    let RouteHeader { kind, address_family, destination_prefix_length, .. } = route.header;
    if !matches!(kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast) {
        return None;
    }
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    // A route to everywhere names no destination.
    let everywhere = || match address_family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    };
    Some((destination.or_else(everywhere)?, destination_prefix_length))
}

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

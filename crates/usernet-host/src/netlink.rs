//! Questions to the kernel about routes, over rtnetlink(7).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

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

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

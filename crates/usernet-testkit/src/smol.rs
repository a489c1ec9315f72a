//! A guest with smoltcp's own TCP/IP stack.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr,
    IpEndpoint, Ipv4Cidr, Ipv6Cidr,
};
use usernet_core::time::Instant;
use usernet_core::wire::{MacAddr, link_local};

use crate::bytes::{Digest, Hasher, fill};
use crate::sim::{Guest, GuestConfig, Ipv6};

/// When a guest's program ends its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// When it has sent all.
    Sent,
    /// When it has sent all and has seen the end of the peer's stream.
    Eof,
    /// Never.
    Never,
}

/// What a guest's program does with a TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct App {
    /// Which stream it sends.
    pub seed: u64,
    /// How many bytes of it.
    pub send: u64,
    /// Whether it sends back what it receives.
    pub echo: bool,
    /// When it ends its stream.
    pub close: Close,
    /// How fast it reads, in bytes a millisecond; `None`: at once. Zero: not at all.
    pub reads: Option<u32>,
    /// It resets the connection when it has received this many bytes.
    pub abort_after: Option<u64>,
    /// Bytes of its socket's buffer for receiving; the one for sending is as large.
    pub buffer: usize,
}

impl Default for App {
    fn default() -> Self {
        Self {
            seed: 0,
            send: 0,
            echo: false,
            close: Close::Eof,
            reads: None,
            abort_after: None,
            buffer: 256 << 10,
        }
    }
}

/// The number of a TCP connection of a guest.
pub type StreamId = usize;

struct Stream {
    handle: SocketHandle,
    app: App,
    sent: u64,
    received: Hasher,
    echoes: VecDeque<u8>,
    /// Whether the connection was ever there.
    opened: bool,
    next_read: Option<Instant>,
}

/// A guest on smoltcp.
pub struct SmolGuest {
    device: Queues,
    iface: Interface,
    sockets: SocketSet<'static>,
    streams: Vec<Stream>,
    dhcp: Option<SocketHandle>,
    next_port: u16,
}

struct Queues {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Device for Queues {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Rx, Tx<'_>)> {
        self.rx.pop_front().map(|frame| (Rx(frame), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

struct Rx(Vec<u8>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(now.as_micros() as i64)
}

impl SmolGuest {
    /// A guest with this MAC address; `addr` none: it asks by DHCP.
    pub fn new(config: GuestConfig) -> Self {
        let mut device = Queues { rx: VecDeque::new(), tx: VecDeque::new(), mtu: config.mtu };
        let mac = HardwareAddress::Ethernet(EthernetAddress(config.mac.0));
        let mut iface_config = Config::new(mac);
        iface_config.random_seed = config.seed;
        let slaac = matches!(config.ipv6, Some(Ipv6::Slaac));
        iface_config.slaac = slaac;
        let iface = Interface::new(iface_config, &mut device, SmolInstant::ZERO);
        let mut guest = Self {
            device,
            iface,
            sockets: SocketSet::new(Vec::new()),
            streams: Vec::new(),
            dhcp: None,
            next_port: 49152 + (config.seed % 1000) as u16,
        };
        match config.addr {
            Some(addr) => {
                // Beside an IPv4 route, smoltcp takes none from a router advertisement.
                let router = (!slaac).then_some(Ipv4Addr::new(10, 0, 2, 2));
                guest.configure(Ipv4Cidr::new(addr, 24), router);
            }
            None => guest.dhcp = Some(guest.sockets.add(dhcpv4::Socket::new())),
        }
        if let Some(ipv6) = config.ipv6 {
            guest.configure_v6(ipv6, config.mac);
        }
        guest
    }

    fn configure(&mut self, cidr: Ipv4Cidr, router: Option<Ipv4Addr>) {
        self.iface.update_ip_addrs(|addrs| {
            addrs.retain(|addr| matches!(addr, IpCidr::Ipv6(_)));
            addrs.push(IpCidr::Ipv4(cidr)).unwrap();
        });
        self.iface.routes_mut().remove_default_ipv4_route();
        if let Some(router) = router {
            self.iface.routes_mut().add_default_ipv4_route(router).unwrap();
        }
    }

    fn configure_v6(&mut self, ipv6: Ipv6, mac: MacAddr) {
        self.iface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::Ipv6(Ipv6Cidr::new(link_local(mac), 64))).unwrap();
            if let Ipv6::Static(addr) = ipv6 {
                addrs.push(IpCidr::Ipv6(Ipv6Cidr::new(addr, 64))).unwrap();
            }
        });
        if let Ipv6::Static(_) = ipv6 {
            let router = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
            self.iface.routes_mut().add_default_ipv6_route(router).unwrap();
        }
    }

    /// The guest's IPv6 address that is not link-local.
    pub fn addr_v6(&self) -> Option<Ipv6Addr> {
        self.iface.ip_addrs().iter().find_map(|cidr| match cidr.address() {
            IpAddress::Ipv6(addr) if !addr.is_unicast_link_local() => Some(addr),
            _ => None,
        })
    }

    /// The guest's address.
    pub fn addr(&self) -> Option<Ipv4Addr> {
        self.iface.ipv4_addr()
    }

    /// The guest's MAC address.
    pub fn mac(&self) -> MacAddr {
        let HardwareAddress::Ethernet(mac) = self.iface.hardware_addr();
        MacAddr(mac.0)
    }

    // --- TCP -------------------------------------------------------------------------------

    /// Connects to `to`.
    pub fn connect(&mut self, to: SocketAddrV4, app: App) -> StreamId {
        self.connect_to(to.into(), app)
    }

    /// Connects to `to`, of either kind of IP.
    pub fn connect_to(&mut self, to: SocketAddr, app: App) -> StreamId {
        self.next_port = self.next_port.checked_add(1).unwrap_or(49152);
        let mut socket = new_socket(&app);
        socket.connect(self.iface.context(), IpEndpoint::from(to), self.next_port).unwrap();
        self.add(socket, app)
    }

    /// Connects to `to` from a port.
    pub fn connect_from(&mut self, port: u16, to: SocketAddrV4, app: App) -> StreamId {
        let mut socket = new_socket(&app);
        socket.connect(self.iface.context(), (IpAddress::Ipv4(*to.ip()), to.port()), port).unwrap();
        self.add(socket, app)
    }

    /// Waits for a connection at `port`.
    pub fn listen(&mut self, port: u16, app: App) -> StreamId {
        let mut socket = new_socket(&app);
        socket.listen(port).unwrap();
        self.add(socket, app)
    }

    fn add(&mut self, socket: tcp::Socket<'static>, app: App) -> StreamId {
        self.streams.push(Stream {
            handle: self.sockets.add(socket),
            app,
            sent: 0,
            received: Hasher::default(),
            echoes: VecDeque::new(),
            opened: false,
            next_read: None,
        });
        self.streams.len() - 1
    }

    /// A stream's socket.
    pub fn socket(&mut self, stream: StreamId) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.streams[stream].handle)
    }

    /// A stream's TCP state.
    pub fn state(&self, stream: StreamId) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(self.streams[stream].handle).state()
    }

    /// Whether the stream's connection was ever there.
    pub fn opened(&self, stream: StreamId) -> bool {
        self.streams[stream].opened
    }

    /// Bytes that the stream has received.
    pub fn received(&self, stream: StreamId) -> u64 {
        self.streams[stream].received.len
    }

    /// The digest of what the stream has received.
    pub fn digest(&self, stream: StreamId) -> Digest {
        self.streams[stream].received.digest()
    }

    /// Changes what a stream's program does.
    pub fn app(&mut self, stream: StreamId) -> &mut App {
        &mut self.streams[stream].app
    }

    /// Resets all connections.
    pub fn abort_all(&mut self) {
        for stream in &self.streams {
            self.sockets.get_mut::<tcp::Socket<'_>>(stream.handle).abort();
        }
    }

    // --- UDP and ICMP ------------------------------------------------------------------------

    /// Opens a UDP socket on `port`.
    pub fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 65536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends a datagram.
    pub fn udp_send(&mut self, socket: SocketHandle, to: SocketAddrV4, payload: &[u8]) {
        self.udp_send_to(socket, to.into(), payload);
    }

    /// Sends a datagram over either kind of IP.
    pub fn udp_send_to(&mut self, socket: SocketHandle, to: SocketAddr, payload: &[u8]) {
        let to = IpEndpoint::from(to);
        self.sockets.get_mut::<udp::Socket<'_>>(socket).send_slice(payload, to).unwrap();
    }

    /// The datagrams that came, with who sent them.
    pub fn udp_received(&mut self, socket: SocketHandle) -> Vec<(IpEndpoint, Vec<u8>)> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(socket);
        std::iter::from_fn(|| socket.recv().ok().map(|(data, meta)| (meta.endpoint, data.to_vec()))).collect()
    }

    /// Opens a ping socket with an identifier.
    pub fn ping(&mut self, ident: u16) -> SocketHandle {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 64], vec![0; 65536]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(ident)).unwrap();
        self.sockets.add(socket)
    }

    /// Sends an echo request.
    pub fn ping_send(&mut self, socket: SocketHandle, to: Ipv4Addr, ident: u16, seq_no: u16, data: &[u8]) {
        let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(socket);
        let room = socket.send(repr.buffer_len(), IpAddress::Ipv4(to)).unwrap();
        repr.emit(&mut Icmpv4Packet::new_unchecked(room), &phy::ChecksumCapabilities::default());
    }

    /// Sends an ICMPv6 echo request.
    pub fn ping_send_v6(&mut self, socket: SocketHandle, to: Ipv6Addr, ident: u16, seq_no: u16, data: &[u8]) {
        let repr = Icmpv6Repr::EchoRequest { ident, seq_no, data };
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(socket);
        let room = socket.send(repr.buffer_len(), IpAddress::Ipv6(to)).unwrap();
        // The socket makes the checksum, once it knows its own address.
        let mut packet = Icmpv6Packet::new_unchecked(room);
        repr.emit(&to, &to, &mut packet, &phy::ChecksumCapabilities::ignored());
    }

    /// The echo replies that came: from where, their sequence numbers and data.
    pub fn ping_received(&mut self, socket: SocketHandle) -> Vec<(IpAddress, u16, Vec<u8>)> {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(socket);
        let mut replies = Vec::new();
        while let Ok((bytes, from)) = socket.recv() {
            // The interface has looked at ICMPv6's checksum, which covers the addresses.
            let checks = phy::ChecksumCapabilities::ignored();
            let reply = match from {
                IpAddress::Ipv4(_) => {
                    let checks = phy::ChecksumCapabilities::default();
                    match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(bytes).unwrap(), &checks) {
                        Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) => Some((seq_no, data)),
                        _ => None,
                    }
                }
                IpAddress::Ipv6(from) => {
                    match Icmpv6Repr::parse(&from, &from, &Icmpv6Packet::new_checked(bytes).unwrap(), &checks)
                    {
                        Ok(Icmpv6Repr::EchoReply { seq_no, data, .. }) => Some((seq_no, data)),
                        _ => None,
                    }
                }
            };
            replies.extend(reply.map(|(seq_no, data)| (from, seq_no, data.to_vec())));
        }
        replies
    }

    fn poll_dhcp(&mut self) {
        let Some(handle) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                let (address, router) = (config.address, config.router);
                self.configure(address, router);
            }
            Some(dhcpv4::Event::Deconfigured) => {
                self.iface.update_ip_addrs(|addrs| addrs.retain(|addr| matches!(addr, IpCidr::Ipv6(_))));
                self.iface.routes_mut().remove_default_ipv4_route();
            }
            None => {}
        }
    }
}

fn new_socket(app: &App) -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; app.buffer]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

impl Guest for SmolGuest {
    fn receive(&mut self, frame: Vec<u8>, _: Instant) {
        self.device.rx.push_back(frame);
    }

    fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        loop {
            self.iface.poll(smol(now), &mut self.device, &mut self.sockets);
            self.poll_dhcp();
            let mut progress = false;
            for stream in &mut self.streams {
                progress |= stream.run(self.sockets.get_mut(stream.handle), now);
            }
            if !progress {
                return self.device.tx.drain(..).collect();
            }
        }
    }

    fn next(&mut self, now: Instant) -> Option<Instant> {
        let reads = self.streams.iter().filter_map(|stream| {
            let waits = self.sockets.get::<tcp::Socket<'_>>(stream.handle).recv_queue() > 0;
            stream.next_read.filter(|_| waits && stream.app.reads != Some(0))
        });
        let at = self.iface.poll_at(smol(now), &self.sockets);
        let at = at.map(|at| Instant::from_micros(at.total_micros() as u64));
        reads.chain(at).min()
    }
}

impl Stream {
    /// Does what the program does now; returns whether it did anything.
    fn run(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> bool {
        use tcp::State;
        if matches!(socket.state(), State::Listen | State::SynSent | State::SynReceived | State::Closed) {
            return false;
        }
        let mut progress = !self.opened;
        self.opened = true;
        progress |= self.read(socket, now);
        if self.app.abort_after.is_some_and(|limit| self.received.len >= limit) {
            socket.abort();
            return true;
        }
        progress |= self.write(socket);
        let all = self.sent == self.app.send && self.echoes.is_empty();
        let eof = !socket.may_recv();
        let over = match self.app.close {
            Close::Sent => !self.app.echo || eof,
            Close::Eof => eof,
            Close::Never => false,
        };
        if all && over && socket.may_send() {
            socket.close();
            progress = true;
        }
        progress
    }

    fn read(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> bool {
        if self.next_read.is_some_and(|at| now < at) || !socket.can_recv() {
            return false;
        }
        let mut left = self.app.reads.map_or(usize::MAX, |n| n as usize);
        self.next_read = self.app.reads.map(|_| now + Duration::from_millis(1));
        let mut progress = false;
        while left > 0 && socket.can_recv() {
            let n = socket.recv(|bytes| {
                let bytes = &bytes[..bytes.len().min(left)];
                self.received.update(bytes);
                if self.app.echo {
                    self.echoes.extend(bytes);
                }
                (bytes.len(), bytes.len())
            });
            left -= n.unwrap_or(0);
            progress = true;
        }
        progress
    }

    fn write(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut progress = false;
        while socket.can_send() && self.sent < self.app.send {
            let n = socket.send(|room| {
                let n = room.len().min((self.app.send - self.sent) as usize);
                fill(self.app.seed, self.sent, &mut room[..n]);
                (n, n)
            });
            self.sent += n.unwrap_or(0) as u64;
            progress = true;
        }
        while socket.can_send() && !self.echoes.is_empty() {
            let n = socket.send_slice(self.echoes.as_slices().0).unwrap_or(0);
            self.echoes.drain(..n);
            progress = true;
        }
        progress
    }
}

//! A guest that is the test itself: smoltcp's network stack over a stream link, or raw frames.
//!
//! The framing is QEMU's: the length of a frame as a big-endian `u32`, then the frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::sha256;
use crate::wait::{SOON, poll_until};

/// The largest frame that the guest's stack makes or takes, in bytes.
const FRAME: usize = 1514;

/// Bytes that may wait to be sent before the stack is held back.
const UNSENT: usize = 1 << 20;

/// A TCP buffer for bulk transfers, in bytes.
const BULK: usize = 1 << 18;

/// The guest's end of a stream link.
pub struct Wire {
    stream: UnixStream,
    received: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
    unsent: Vec<u8>,
}

impl Wire {
    /// Plugs in.
    pub fn plug_in(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, received: Vec::new(), frames: VecDeque::new(), unsent: Vec::new() })
    }

    /// Queues a frame of any length, and sends what the link takes.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.unsent.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        self.unsent.extend_from_slice(frame);
        self.flush()
    }

    /// The next frame that has come, if any. Sends what waited, too.
    pub fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.flush()?;
        self.fill()?;
        Ok(self.frames.pop_front())
    }

    /// Waits until there is something to receive, or room where there was none.
    pub fn wait(&self, deadline: Instant) {
        let writable = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        poll_until(&self.stream, PollFlags::IN | writable, deadline);
    }

    /// Whether so much waits to be sent that there is no sense in more.
    pub fn is_full(&self) -> bool {
        self.unsent.len() > UNSENT
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1 << 16];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let mut rest = self.received.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
            let Some((frame, after)) = after.split_at_checked(length) else { break };
            self.frames.push_back(frame.to_vec());
            rest = after;
        }
        self.received = rest.to_vec();
        Ok(())
    }
}

/// A guest with a TCP/IP stack. It runs only while it is waited for.
pub struct StreamGuest {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    started: Instant,
    next_port: u16,
}

impl StreamGuest {
    /// Plugs a guest with this MAC address in.
    pub fn plug_in(socket: &Path, mac: [u8; 6]) -> Self {
        let mut wire = Wire::plug_in(socket).unwrap();
        let config = Config::new(EthernetAddress(mac).into());
        let interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = sockets.add(dhcpv4::Socket::new());
        Self { wire, interface, sockets, dhcp, started: Instant::now(), next_port: 49152 }
    }

    /// Takes a lease and sets the stack up by it. Returns the address.
    pub fn lease(&mut self) -> Ipv4Addr {
        let (address, router) = self.until("a lease comes", |guest| {
            match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(guest.dhcp).poll() {
                Some(dhcpv4::Event::Configured(config)) => Some((config.address, config.router)),
                _ => None,
            }
        });
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(IpCidr::Ipv4(address)).unwrap();
        });
        self.interface.routes_mut().add_default_ipv4_route(router.expect("a router was told")).unwrap();
        address.address()
    }

    /// Opens a TCP connection.
    pub fn connect(&mut self, peer: SocketAddrV4) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BULK]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        self.next_port += 1;
        socket.connect(self.interface.context(), (*peer.ip(), peer.port()), self.next_port).unwrap();
        let handle = self.sockets.add(socket);
        self.until("a connection is established", |guest| guest.tcp(handle).may_send().then_some(()));
        handle
    }

    /// The socket of a connection.
    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends all of these bytes.
    pub fn send(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let sent = self.until("there is room to send", |guest| {
                let sent = guest.tcp(handle).send_slice(bytes).unwrap();
                (sent > 0).then_some(sent)
            });
            bytes = &bytes[sent..];
        }
    }

    /// Fetches `path` over HTTP and returns the SHA-256 of the body.
    pub fn fetch_digest(&mut self, server: SocketAddrV4, path: &str) -> String {
        let handle = self.connect(server);
        self.send(handle, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        let mut reader = Receiver { guest: self, handle };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        sha256(reader).unwrap()
    }

    /// Runs the stack until `condition` gives a value.
    ///
    /// # Panics
    /// It gave none soon, or the link has ended.
    pub fn until<T>(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        loop {
            self.turn();
            if let Some(value) = condition(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "did not happen within {SOON:?}: {what}");
            let delay = self.interface.poll_delay(self.now(), &self.sockets);
            let wake = delay.map_or(deadline, |delay| Instant::now() + Duration::from(delay));
            self.wire.wait(wake.min(deadline));
        }
    }

    fn turn(&mut self) {
        self.wire.fill().unwrap();
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        self.wire.flush().unwrap();
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::ZERO + self.started.elapsed().into()
    }
}

/// A connection of a guest, to read from.
struct Receiver<'g> {
    guest: &'g mut StreamGuest,
    handle: SocketHandle,
}

impl Read for Receiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let handle = self.handle;
        self.guest.until("bytes come", |guest| match guest.tcp(handle).recv_slice(buffer) {
            Ok(0) => None,
            Ok(length) => Some(Ok(length)),
            Err(tcp::RecvError::Finished) => Some(Ok(0)),
            Err(tcp::RecvError::InvalidState) => Some(Err(ErrorKind::ConnectionReset.into())),
        })
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Frame, Sending<'_>)> {
        if self.is_full() {
            return None;
        }
        let frame = self.frames.pop_front()?;
        Some((Frame(frame), Sending(&mut self.unsent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        (!self.is_full()).then_some(Sending(&mut self.unsent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// A frame that has come.
pub struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// The place where a frame is made.
pub struct Sending<'w>(&'w mut Vec<u8>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        let at = self.0.len();
        self.0.resize(at + length, 0);
        f(&mut self.0[at..])
    }
}

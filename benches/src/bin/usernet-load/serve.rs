//! The servers: a TCP port for all that moves, one for idle connections, and a UDP port.
//!
//! The first byte of a connection or datagram says what is wanted.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use serde_json::json;

use crate::tcp::{self, CHUNK};
use crate::udp::{self, Trial};

/// Read what comes, for the times (warm-up, measurement) that follow as two `u32` of milliseconds;
/// answers with the counts.
pub(crate) const SINK: u8 = b's';
/// Send for as long as it is read.
pub(crate) const SOURCE: u8 = b'g';
/// Send back all that comes.
pub(crate) const ECHO: u8 = b'e';
/// Send one byte and close.
pub(crate) const ONE: u8 = b'1';
/// A datagram to count.
pub(crate) const DATA: u8 = b'd';
/// How many datagrams of a run were received.
pub(crate) const RECEIVED: u8 = b'r';
/// How many datagrams of a run were sent; there is no answer before it is over.
pub(crate) const SENT: u8 = b't';

/// Connections that can be served at a time: enough for all streams and a few that have not yet
/// noticed their end. Threads that wait in `accept` cost less than one that is made for each.
const THREADS: usize = 48;
/// How long a peer that has its answer may go on sending.
const DRAIN: Duration = Duration::from_secs(2);

pub(crate) fn run(address: IpAddr) -> Result<()> {
    let any = SocketAddr::new(address, 0);
    let listener = Arc::new(TcpListener::bind(any).context("cannot listen")?);
    let idle = TcpListener::bind(any).context("cannot listen")?;
    let datagrams = Arc::new(udp::socket(any)?);
    crate::report(&json!({
        "address": address,
        "tcp": listener.local_addr()?.port(),
        "idle": idle.local_addr()?.port(),
        "udp": datagrams.local_addr()?.port(),
    }))?;
    for _ in 0..THREADS {
        let listener = Arc::clone(&listener);
        // A client that goes away is no failure of the server's.
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(serve_tcp(stream))));
    }
    thread::spawn(move || hold_idle(&idle).expect("the idle server can wait"));
    thread::spawn(move || serve_udp(&datagrams));
    loop {
        thread::park();
    }
}

fn serve_tcp(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match byte(&mut stream)? {
        SINK => {
            let times = [millis(&mut stream)?, millis(&mut stream)?];
            let counts = tcp::measure(&mut stream, times)?;
            stream.write_all(&counts.to_bytes())?;
            stream.set_read_timeout(Some(DRAIN))?;
            let mut buffer = vec![0; CHUNK];
            while stream.read(&mut buffer)? > 0 {}
            Ok(())
        }
        SOURCE => {
            let chunk = vec![0; CHUNK];
            loop {
                stream.write_all(&chunk)?;
            }
        }
        ECHO => loop {
            let byte = byte(&mut stream)?;
            stream.write_all(&[byte])?;
        },
        ONE => stream.write_all(&[ONE]),
        _ => Ok(()),
    }
}

fn byte(stream: &mut TcpStream) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let [byte] = byte;
    Ok(byte)
}

fn millis(stream: &mut TcpStream) -> io::Result<Duration> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(Duration::from_millis(u32::from_le_bytes(bytes).into()))
}

/// Holds connections until their clients end them.
fn hold_idle(listener: &TcpListener) -> Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut held: HashMap<RawFd, TcpStream> = HashMap::new();
    let token = |fd: RawFd| epoll::EventData::new_u64(u64::from(fd.cast_unsigned()));
    epoll::add(&poll, listener, token(listener.as_raw_fd()), epoll::EventFlags::IN)?;
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in &events {
            let fd = i32::try_from(event.data.u64()).unwrap_or(-1);
            if fd != listener.as_raw_fd() {
                held.remove(&fd);
            } else if let Ok((stream, _)) = listener.accept() {
                epoll::add(&poll, &stream, token(stream.as_raw_fd()), epoll::EventFlags::IN)?;
                held.insert(stream.as_raw_fd(), stream);
            }
        }
    }
}

/// Counts, sends and echoes datagrams. One client at a time: a new run ends what is known of the last.
fn serve_udp(socket: &Arc<UdpSocket>) {
    let mut received = (0, 0u64);
    // The run that is or was last sent, and how many datagrams that took once it is over.
    let mut sent = (0, Arc::new(OnceLock::new()));
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An ICMP error for an earlier answer would be reported here.
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(datagram) = buffer.get(..len) else { continue };
        let Some((op, run, parameters)) = udp::parse(datagram) else { continue };
        // A datagram that cannot be sent is one that is lost.
        match op {
            DATA if received.0 == run => received.1 += 1,
            DATA => received = (run, 1),
            RECEIVED => {
                let count = if received.0 == run { received.1 } else { 0 };
                let _ = socket.send_to(&udp::message(RECEIVED, run, &count.to_le_bytes()), from);
            }
            SOURCE if sent.0 != run => {
                let Some(trial) = Trial::from_bytes(parameters) else { continue };
                sent = (run, Arc::new(OnceLock::new()));
                let (socket, count) = (Arc::clone(socket), Arc::clone(&sent.1));
                thread::spawn(move || {
                    let sent = trial.send(run, |datagram| socket.send_to(datagram, from));
                    count.set(sent.packets)
                });
            }
            SENT => {
                if let Some(count) = sent.1.get().filter(|_| sent.0 == run) {
                    let _ = socket.send_to(&udp::message(SENT, run, &count.to_le_bytes()), from);
                }
            }
            ECHO => drop(socket.send_to(datagram, from)),
            _ => {}
        }
    }
}

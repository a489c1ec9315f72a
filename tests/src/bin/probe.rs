//! A guest program that says exactly what it sees: addresses, bytes and errors.
//!
//! It runs in namespace guests and, with its libraries, in QEMU guests.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program of the tests' own"
)]

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use usernet_tests::noise::{hex, unhex};
use usernet_tests::{Noise, bursts, sha256};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments.as_slice() {
        ["connect", peer] => connect(peer),
        ["udp", peer, text] => udp(peer, text),
        ["marked", kind, peer, tos] => marked(kind, peer, tos.parse().unwrap()),
        ["ask-group", port, group, text] => ask_group(port.parse().unwrap(), group, text),
        ["burst", peer, seed, size, count] => {
            burst(peer, seed.parse().unwrap(), size.parse().unwrap(), count.parse().unwrap())
        }
        ["send", peer, seed, length] => send(peer, seed.parse().unwrap(), length.parse().unwrap()),
        ["receive-then-send", peer, seed, length] => {
            receive_then_send(peer, seed.parse().unwrap(), length.parse().unwrap())
        }
        ["put", peer, file] => put(peer, file),
        ["ask", peer, message] => ask(peer, message),
        ["hold", peer, count] => hold(peer, count.parse().unwrap()),
        ["echo", port] => echo(port.parse().unwrap()),
        ["echo-udp", port] => echo_udp(port.parse().unwrap()),
        _ => panic!("usage: see this file's main"),
    };
    if let Err(error) = result {
        println!("{:?}", error.kind());
        std::process::exit(1);
    }
}

/// Says whether a connection can be had.
fn connect(peer: &str) -> io::Result<()> {
    dial(peer)?;
    println!("connected");
    Ok(())
}

/// Sends one datagram and prints the answer and who it came from.
fn udp(peer: &str, text: &str) -> io::Result<()> {
    let socket = udp_socket(peer)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(peer)?;
    socket.send(text.as_bytes())?;
    let mut buffer = vec![0; 1 << 16];
    let length = socket.recv(&mut buffer)?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

/// Says something in packets with this DSCP and ECN, over UDP or TCP, and prints the answer.
fn marked(kind: &str, peer: &str, tos: u32) -> io::Result<()> {
    let peer: SocketAddr = peer.parse().map_err(io::Error::other)?;
    let socket =
        Socket::new(Domain::for_address(peer), if kind == "udp" { Type::DGRAM } else { Type::STREAM }, None)?;
    if peer.is_ipv4() {
        socket.set_tos_v4(tos)?
    } else {
        socket.set_tclass_v6(tos)?
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&peer.into())?;
    socket.send(b"hello\n")?;
    let mut buffer = [0; 1000];
    let length = (&socket).read(&mut buffer)?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

/// Sends one datagram from a port to a group, and prints the first answer and who it came from.
fn ask_group(port: u16, group: &str, text: &str) -> io::Result<()> {
    let group: SocketAddr = group.parse().map_err(io::Error::other)?;
    let any: IpAddr =
        if group.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(text.as_bytes(), group)?;
    let mut buffer = vec![0; 1 << 16];
    let (length, from) = socket.recv_from(&mut buffer)?;
    println!("{} from {from}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

/// Sends datagrams by one call, the last a byte shorter, and prints how long those are that come back
/// and the digest of what they say.
fn burst(peer: &str, seed: u64, size: u16, count: usize) -> io::Result<()> {
    let socket = udp_socket(peer)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut payload = vec![0; usize::from(size) * count - 1];
    Noise::new(seed).read_exact(&mut payload)?;
    bursts::send(&socket, peer.parse().map_err(io::Error::other)?, &payload, size)?;
    let answer = bursts::receive(&socket)?;
    println!("{} {}", answer.size, sha256(&answer.payload[..])?);
    Ok(())
}

/// Sends bytes, ends its own direction, and prints what comes after.
fn send(peer: &str, seed: u64, length: u64) -> io::Result<()> {
    let mut stream = dial(peer)?;
    io::copy(&mut Noise::new(seed).take(length), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::stdout())?;
    println!();
    Ok(())
}

/// Prints what comes up to the peer's end, and only then sends bytes.
fn receive_then_send(peer: &str, seed: u64, length: u64) -> io::Result<()> {
    let mut stream = dial(peer)?;
    io::copy(&mut stream, &mut io::stdout())?;
    io::copy(&mut Noise::new(seed).take(length), &mut stream)?;
    Ok(())
}

/// Sends a file by HTTP and prints the response.
fn put(peer: &str, file: &str) -> io::Result<()> {
    let mut stream = dial(peer)?;
    let mut file = File::open(file)?;
    write!(stream, "PUT / HTTP/1.0\r\nContent-Length: {}\r\n\r\n", file.metadata()?.len())?;
    io::copy(&mut file, &mut stream)?;
    io::copy(&mut stream, &mut io::stdout())?;
    println!();
    Ok(())
}

/// Sends the bytes of a hexadecimal text over TCP and prints the answer in the same way.
fn ask(peer: &str, message: &str) -> io::Result<()> {
    let mut stream = dial(peer)?;
    stream.write_all(&unhex(message))?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    println!("{}", hex(&answer));
    Ok(())
}

/// Opens connections, says so, and holds them until it is killed.
fn hold(peer: &str, count: usize) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    let streams = (0..count).map(|_| dial(peer)).collect::<io::Result<Vec<_>>>()?;
    println!("holding {}", streams.len());
    std::thread::park();
    drop(streams);
    Ok(())
}

/// Accepts connections, says who they come from, and echoes what they send.
fn echo(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening");
    for stream in listener.incoming() {
        let stream = stream?;
        println!("from {}", stream.peer_addr()?.ip());
        std::thread::spawn(move || {
            let _ = io::copy(&mut &stream, &mut &stream);
            stream.shutdown(Shutdown::Write)
        });
    }
    Ok(())
}

/// Echoes datagrams.
fn echo_udp(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    println!("listening");
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        println!("from {}", from.ip());
        socket.send_to(&buffer[..length], from)?;
    }
}

/// A socket of the peer's kind of IP.
fn udp_socket(peer: &str) -> io::Result<UdpSocket> {
    UdpSocket::bind((if peer.starts_with('[') { "::" } else { "0.0.0.0" }, 0))
}

fn dial(peer: &str) -> io::Result<TcpStream> {
    let peer: SocketAddr = peer.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

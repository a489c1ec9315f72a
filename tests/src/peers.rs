//! What guests talk to on the host: each server is threads of the test, on a port of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use socket2::SockRef;

use crate::{Noise, bursts, sha256};

/// Serves every connection with `serve` on a thread of its own, for as long as the test runs. The
/// address is on all interfaces of the host, IPv4 and IPv6: guests reach it by the gateway's address too.
pub fn tcp(serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            // A guest that goes away is no failure of the server's.
            thread::spawn(move || stream.and_then(serve));
        }
    });
    port
}

/// An HTTP server. `GET /SEED/LENGTH` answers with that much of that [`Noise`]; `PUT` and `POST` of
/// anything answer with its SHA-256.
pub fn http() -> u16 {
    tcp(|stream| {
        let mut reader = BufReader::new(stream.try_clone()?);
        let request = read_line(&mut reader)?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut reader)?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            headers.push(line);
        }
        let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let (method, path) = request.split_once(' ').unwrap_or_default();
        if method == "GET" {
            let path = path.split_whitespace().next().unwrap_or_default();
            let mut numbers = path.split('/').skip(1).map(|number| number.parse::<u64>());
            let (Some(Ok(seed)), Some(Ok(length))) = (numbers.next(), numbers.next()) else {
                return respond(&stream, "404 Not Found", 0, io::empty());
            };
            respond(&stream, "200 OK", length, Noise::new(seed))
        } else {
            if header("expect").is_some() {
                (&stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            let digest = sha256(reader.take(length))?;
            respond(&stream, "200 OK", 64, digest.as_bytes())
        }
    })
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn respond(mut stream: &TcpStream, status: &str, length: u64, body: impl Read) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut body.take(length), &mut stream)?;
    Ok(())
}

/// Reads a connection to its end, and only then answers with the SHA-256 of what came.
pub fn digest_after_end() -> u16 {
    tcp(|mut stream| {
        let digest = sha256(&stream)?;
        stream.write_all(digest.as_bytes())
    })
}

/// Sends a greeting, ends its own direction at once, and sends to `heard` what comes after.
pub fn ends_first(heard: std::sync::mpsc::Sender<String>) -> u16 {
    tcp(move |mut stream| {
        stream.write_all(b"that is all\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // A test that has ended does not listen any more.
        let _ = heard.send(sha256(&stream)?);
        Ok(())
    })
}

/// Echoes datagrams to whoever sent them, over IPv4 and IPv6.
pub fn udp_echo() -> u16 {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            // An ICMP error for an earlier answer would be reported here.
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    port
}

/// Says how long a datagram was to whoever sent it, over IPv4 and IPv6, with this DSCP and ECN.
pub fn udp_length(tos: u32) -> u16 {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    SockRef::from(&socket).set_tos_v4(tos).unwrap();
    SockRef::from(&socket).set_tclass_v6(tos).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(length.to_string().as_bytes(), from);
        }
    });
    port
}

/// Sends back every burst of datagrams as one, and the digest of what it said to `heard`.
pub fn udp_burst_echo(heard: std::sync::mpsc::Sender<String>) -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || -> io::Result<()> {
        loop {
            let burst = bursts::receive(&socket)?;
            // A test that has ended does not listen any more.
            let _ = heard.send(sha256(&burst.payload[..])?);
            bursts::send(&socket, burst.from, &burst.payload, burst.size)?;
        }
    });
    port
}

/// Fetches `path` over HTTP and returns the SHA-256 of the body.
pub fn fetch_digest(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    while !read_line(&mut reader)?.is_empty() {}
    sha256(reader)
}

/// A TCP port of the host on which nobody listens.
pub fn closed_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

//! QUIC, by an implementation of its own (`quinn`): many datagrams of one size in a row, sent and received
//! by as few system calls as the kernel allows (`UDP_SEGMENT`, `UDP_GRO`).
//!
//! A transfer is one stream. Who connects sends the seed and the length of what it wants, then as much of
//! the [`Noise`] of that seed; the answer is the digest of that, then the noise that was asked for.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig};
use sha2::{Digest, Sha256};

use crate::Noise;
use crate::noise::{hex, unhex};

/// The name in the server's certificate.
const NAME: &str = "host.test";
/// What is read and written at a time.
const CHUNK: usize = 1 << 16;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A server on the host, for as long as the test runs.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its certificate in hexadecimal, which its clients need.
    pub certificate: String,
}

impl Server {
    /// Starts a server at this address of the host.
    pub fn start(address: SocketAddr) -> Self {
        let (sender, started) = channel();
        // A runtime has the network of the thread that it is made on.
        thread::spawn(move || {
            runtime().block_on(async {
                let key = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
                let certificate = key.cert.der().clone();
                let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
                let config =
                    ServerConfig::with_single_cert(vec![certificate.clone()], private.into()).unwrap();
                let endpoint = Endpoint::server(config, address).unwrap();
                let address = endpoint.local_addr().unwrap();
                sender.send(Self { address, certificate: hex(&certificate) }).unwrap();
                while let Some(incoming) = endpoint.accept().await {
                    // A guest that goes away is no failure of the server's.
                    tokio::spawn(async { serve(incoming.await?).await });
                }
            });
        });
        started.recv().unwrap()
    }
}

async fn serve(connection: Connection) -> Result<()> {
    let (mut sender, mut receiver) = connection.accept_bi().await?;
    let mut wanted = [0; 16];
    receiver.read_exact(&mut wanted).await?;
    let (seed, length) = wanted.split_at(8);
    let (seed, length) = (u64::from_le_bytes(seed.try_into()?), u64::from_le_bytes(length.try_into()?));
    let digest = receive(&mut receiver).await?;
    sender.write_all(digest.as_bytes()).await?;
    send(&mut sender, seed, length).await?;
    connection.closed().await;
    Ok(())
}

/// Sends that much to a [`Server`], and then receives as much. Reports the digests of what was `sent`, as
/// the server received it, and of what was `received`. Returns the rates of both in Gbit/s.
///
/// # Errors
/// The connection fails.
pub fn transfer(
    server: SocketAddr,
    certificate: &str,
    seed: u64,
    length: u64,
    report: &mut dyn FnMut(&str, &str),
) -> Result<[f64; 2]> {
    runtime().block_on(async {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(unhex(certificate)))?;
        let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let endpoint = Endpoint::client(SocketAddr::new(any, 0))?;
        let config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let connection = endpoint.connect_with(config, server, NAME)?.await?;
        let (mut sender, mut receiver) = connection.open_bi().await?;

        let began = Instant::now();
        sender.write_all(&[seed.to_le_bytes(), length.to_le_bytes()].concat()).await?;
        send(&mut sender, seed, length).await?;
        let mut digest = [0; 64];
        receiver.read_exact(&mut digest).await?;
        let out = began.elapsed();
        report("sent", &String::from_utf8_lossy(&digest));
        let began = Instant::now();
        let received = receive(&mut receiver).await?;
        let back = began.elapsed();
        report("received", &received);
        connection.close(0_u8.into(), b"");
        endpoint.wait_idle().await;
        Ok([out, back].map(|time| length as f64 * 8e-9 / time.as_secs_f64()))
    })
}

async fn send(sender: &mut SendStream, seed: u64, length: u64) -> Result<()> {
    let mut noise = Noise::new(seed).take(length);
    let mut buffer = vec![0; CHUNK];
    loop {
        match noise.read(&mut buffer)? {
            0 => return Ok(sender.finish()?),
            n => sender.write_all(&buffer[..n]).await?,
        }
    }
}

async fn receive(receiver: &mut RecvStream) -> Result<String> {
    let mut digest = Sha256::new();
    while let Some(chunk) = receiver.read_chunk(CHUNK, true).await? {
        digest.update(&chunk.bytes);
    }
    Ok(hex(&digest.finalize()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

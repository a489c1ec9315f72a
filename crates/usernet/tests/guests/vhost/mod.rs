//! Guests behind vhost-user: their stack is smoltcp, their driver is the testkit's, and their front end is
//! that of the `vhost` crate.

mod alone;
mod guest;
mod hostile;
mod life;
mod pairs;
mod raw;
mod transfers;

use std::io::{ErrorKind, Write as _};
use std::net::TcpListener;

use usernet_testkit::fill;

/// A host's program that sends so many bytes of a stream on one connection, and ends it. Returns its port.
fn source(seed: u64, len: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut chunk = vec![0; 1 << 16];
        let mut sent = 0;
        while sent < len {
            fill(seed, sent, &mut chunk);
            match stream.write_all(&chunk) {
                Ok(()) => sent += chunk.len() as u64,
                Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
    });
    port
}

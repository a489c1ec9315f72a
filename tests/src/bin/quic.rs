//! The guest's end of a QUIC transfer: `quic SERVER CERTIFICATE SEED LENGTH` prints the digest of what the
//! server received, then that of what came back, and the rates of both in Gbit/s. `quic serve ADDRESS` is
//! the other end, for measurements by hand: it prints where it listens and its certificate.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program of the tests' own")]

use usernet_tests::quic::{Server, transfer};

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        ["serve", address] => {
            let server = Server::start(address.parse().unwrap());
            println!("{} {}", server.address, server.certificate);
            loop {
                std::thread::park();
            }
        }
        [server, certificate, seed, length] => {
            let (seed, length) = (seed.parse().unwrap(), length.parse().unwrap());
            let done = transfer(server.parse().unwrap(), certificate, seed, length, &mut |what, digest| {
                println!("{what} {digest}");
            });
            match done {
                Ok([out, back]) => println!("out {out:.2}\nin {back:.2}"),
                Err(error) => {
                    println!("{error}");
                    std::process::exit(1);
                }
            }
        }
        _ => panic!("usage: see this file's head"),
    }
}

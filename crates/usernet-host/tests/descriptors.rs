//! Running out of descriptors, alone in its process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::{IpAddr, Ipv4Addr, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{LOCALHOST, Watch};
use usernet_core::host::HostError;
use usernet_host::Source;
use usernet_host::limits::raise_descriptor_limit;
use usernet_host::listen::{Accept, TcpForward};
use usernet_host::tcp::TcpEnd;
use usernet_host::udp::UdpEnd;

#[test]
fn running_out_of_descriptors_is_survived() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let forward = TcpForward::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut watch = Watch::new(&forward);
    let mut peers = vec![TcpStream::connect(forward.local_addr()).unwrap()];
    watch.until(|event| event.readable());

    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: hard }).unwrap();
    while let Ok(peer) = peers[0].try_clone() {
        peers.push(peer);
    }
    assert!(matches!(forward.accept(), Ok(Accept::Exhausted)));
    assert_eq!(
        TcpEnd::connect(forward.local_addr(), Source::default(), 0).map(drop),
        Err(HostError::Exhausted)
    );
    assert_eq!(UdpEnd::open(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).map(drop), Err(HostError::Exhausted));

    assert_eq!(raise_descriptor_limit(), hard.unwrap_or(u64::MAX));
    assert!(matches!(forward.accept(), Ok(Accept::Accepted(_))), "the connection has waited");
    assert!(UdpEnd::open(LOCALHOST, 0).is_ok());
}

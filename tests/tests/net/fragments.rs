//! Datagrams and pings that are longer than a link's MTU, with the fragments of real kernels.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use usernet_tests::routers::{FAR, FAR6, Routers};
use usernet_tests::wait::SOON;
use usernet_tests::{Daemon, GATEWAY, GATEWAY6, LAN, LAN6, NAMESERVER, NAMESERVER6, World, peers, sha256};

fn ping(to: impl std::fmt::Display) -> String {
    format!("ping -c 2 -i 0.2 -W 5 -s 60000 {to}")
}

#[test]
fn pings_of_60000_bytes_come_back() {
    let world = World::with_ipv6();
    let _routers = Routers::new(&world, 1500);
    let v4 = [GATEWAY, NAMESERVER, LAN, FAR].map(IpAddr::from);
    let v6 = [GATEWAY6, NAMESERVER6, LAN6, FAR6].map(IpAddr::from);
    let script: Vec<String> = v4.into_iter().chain(v6).map(ping).collect();
    let outcome = world.exec(&[], &script.join(" && "));
    assert_eq!(outcome.ok().matches("60008 bytes from").count(), 16, "{outcome}");
    assert!(!outcome.says("wrong data"), "{outcome}");
}

#[test]
fn datagrams_of_60000_bytes_come_back_as_they_were() {
    let world = World::with_ipv6();
    let routers = Routers::new(&world, 1500);
    let port = peers::udp_echo();
    let host: [IpAddr; 4] = [GATEWAY.into(), LAN.into(), GATEWAY6.into(), LAN6.into()];
    let host = host.map(|address| SocketAddr::new(address, port));
    let far_port = routers.far(peers::udp_echo);
    let far: [IpAddr; 2] = [FAR.into(), FAR6.into()];
    let far = far.map(|address| SocketAddr::new(address, far_port));
    let all: Vec<String> = host.iter().chain(&far).map(SocketAddr::to_string).collect();
    // 60000 letters, since the probe speaks text. Nothing is lost in between, so it asks once.
    let script = format!(
        "echo $(head -c 45000 /dev/urandom | base64 -w 0) >sent; for peer in {}; do \
         $PROBE udp $peer $(cat sent) | cmp - sent && echo same; done",
        all.join(" ")
    );
    let outcome = world.exec(&[], &script);
    assert_eq!(outcome.stdout.matches("same").count(), 6, "{outcome}");
}

#[test]
fn a_forwarded_port_takes_large_datagrams_and_answers_with_them() {
    let world = World::new();
    for options in [&[][..], &["--workers", "2"]] {
        let daemon = Daemon::start(&world, &[&["--hostfwd", "udp:127.0.0.1:0-:7"], options].concat());
        let mut guest = daemon.spawn("echo up; exec socat -b 65535 UDP4-RECVFROM:7,fork PIPE");
        guest.line_with("up");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(SOON / 10)).unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, daemon.forwarded().port()));
        let sent: Vec<u8> = (0..=250).cycle().take(60_000).collect();
        let mut back = vec![0; 65_535];
        // The guest's program may not listen yet.
        let length = (0..20).find_map(|_| {
            socket.send_to(&sent, to).unwrap();
            socket.recv(&mut back).ok()
        });
        assert_eq!(length, Some(sent.len()));
        assert_eq!(sha256(&back[..60_000]).unwrap(), sha256(&sent[..]).unwrap());
        daemon.terminate();
    }
}

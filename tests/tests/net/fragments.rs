//! Datagrams and pings that are longer than a link's MTU, with the fragments of real kernels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use usernet_tests::wait::SOON;
use usernet_tests::{As, Daemon, GATEWAY, LAN, NAMESERVER, Process, World, ip, peers, sha256};

const GATEWAY6: &str = "fd00::2";
/// The host's own address on its LAN, and another host's behind a link of 1,500 bytes.
const LAN6: &str = "2001:db8::1";
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

fn world() -> World {
    let world = World::new();
    ip("address add 2001:db8::1/64 dev lo nodad");
    world
}

/// Another host, on a cable to this one. It echoes datagrams to its port 7.
fn neighbour(world: &World) -> Process {
    let mut command = world.command(As::Root, "unshare");
    let script =
        "echo up; until ip link show far up | grep -q LOWER_UP; do ip link set far up; sleep 0.1; done
        ip address add 198.18.0.2/24 dev far; ip -6 address add 2001:db8:1::2/64 dev far nodad
        socat -b 65535 UDP6-RECVFROM:7,ipv6only=0,fork PIPE & echo ready; wait";
    command.args(["--net", "--", "sh", "-c", script]);
    let mut neighbour = Process::spawn(command);
    neighbour.line_with("up");
    ip(&format!("link add near type veth peer name far netns {}", neighbour.pid()));
    ip("address add 198.18.0.1/24 dev near");
    ip("-6 address add 2001:db8:1::1/64 dev near nodad");
    ip("link set near up");
    neighbour.line_with("ready");
    neighbour
}

fn ping(to: impl std::fmt::Display) -> String {
    format!("ping -c 2 -i 0.2 -W 5 -s 60000 {to}")
}

#[test]
fn pings_of_60000_bytes_come_back() {
    let world = world();
    let _neighbour = neighbour(&world);
    let v4 = [GATEWAY, NAMESERVER, LAN, NEIGHBOUR].map(IpAddr::from);
    let v6 = [GATEWAY6, "fd00::3", LAN6, &NEIGHBOUR6.to_string()].map(|address| address.parse().unwrap());
    let script: Vec<String> = v4.into_iter().chain(v6).map(ping).collect();
    let outcome = world.exec(&[], &script.join(" && "));
    assert_eq!(outcome.ok().matches("60008 bytes from").count(), 16, "{outcome}");
    assert!(!outcome.says("wrong data"), "{outcome}");
}

#[test]
fn datagrams_of_60000_bytes_come_back_as_they_were() {
    let world = world();
    let _neighbour = neighbour(&world);
    let port = peers::udp_echo();
    let host6 = ["UDP6:[fd00::2]", "UDP6:[2001:db8::1]"].map(|address| format!("{address}:{port}"));
    let host = [GATEWAY, LAN].map(|address| format!("UDP4:{address}:{port}"));
    let neighbours = [format!("UDP4:{NEIGHBOUR}:7"), format!("UDP6:[{NEIGHBOUR6}]:7")];
    // The echo listens to IPv4; a program of the guest's world does to IPv6.
    let mut echo6 = world.command(As::User, "socat");
    echo6.args(["-b", "65535", &format!("UDP6-RECVFROM:{port},ipv6only=1,fork"), "PIPE"]);
    let _echo6 = Process::spawn(echo6);
    let all: Vec<String> = host.into_iter().chain(host6).chain(neighbours).collect();
    // Nothing is lost in between; a socket's buffer is what there is of that.
    let script = format!(
        "head -c 60000 /dev/urandom >sent; for peer in {}; do \
         timeout 20 sh -c \"socat -b 65535 -T 2 - $peer <sent | head -c 60000 >back\"; \
         cmp sent back && echo same; done",
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

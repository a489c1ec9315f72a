//! A way out of the host: two routers, and a place far away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use crate::process::finish;
use crate::wait::{SOON, eventually};
use crate::{Node, Process, World, ip};

/// The routers, as the host sees them.
pub const ROUTERS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(198, 18, 2, 2)];
/// Their IPv6 addresses.
pub const ROUTERS6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)];
/// The place behind them.
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 2);
/// Its IPv6 address.
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);

/// What a namespace sets up for itself: errors are sent as often as there is a reason to, and addresses
/// are used as soon as they are there.
const SETTINGS: &str = "cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding; \
                        echo 0 >ipv4/icmp_ratelimit; echo 0 >ipv6/icmp/ratelimit; \
                        for of in all default; do echo 0 >ipv6/conf/$of/accept_dad; done";

/// Host, router, router, far away: each linked to the next.
pub struct Routers {
    first: Node,
    second: Node,
    far: Node,
}

impl Routers {
    /// Leads the default routes of `world` to the first of two routers. The link between them takes packets
    /// of `mtu` bytes, the others of 1500.
    pub fn new(world: &World, mtu: u32) -> Self {
        let node = || Node::with(world, SETTINGS);
        let routers = Self { first: node(), second: node(), far: node() };
        routers.link(1, None, &routers.first, 1500);
        routers.link(2, Some(&routers.first), &routers.second, mtu);
        routers.link(3, Some(&routers.second), &routers.far, 1500);
        for (node, via) in [
            (None, (1, 2)),
            (Some(&routers.first), (2, 2)),
            (Some(&routers.second), (2, 1)),
            (Some(&routers.far), (3, 1)),
        ] {
            inside(node, &format!("route add default via 198.18.{}.{}", via.0, via.1));
            inside(node, &format!("-6 route add default via 2001:db8:{}::{}", via.0, via.1));
        }
        // Links that have just been plugged in may drop what is sent over them for up to a second.
        for far in [IpAddr::from(FAR), FAR6.into()] {
            eventually("the routers forward", || {
                let mut ping = Command::new("ping");
                ping.args(["-c", "1", "-W", "1"]).arg(far.to_string());
                (finish(ping, SOON).code() == 0).then_some(())
            });
        }
        routers
    }

    /// Links a node (none: the host) to the next.
    fn link(&self, number: u32, near: Option<&Node>, far: &Node, mtu: u32) {
        inside(near, &format!("link add out type veth peer name in netns {}", far.pid()));
        for (node, device, host) in [(near, "out", 1), (Some(far), "in", 2)] {
            inside(node, &format!("address add 198.18.{number}.{host}/24 dev {device}"));
            inside(node, &format!("address add 2001:db8:{number}::{host}/64 dev {device} nodad"));
            inside(node, &format!("link set {device} mtu {mtu} up"));
        }
    }

    /// What `run` returns, which runs far away, with all threads that it starts.
    pub fn far<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        self.far.run(run)
    }

    /// Looks at the packets that come far away and that a filter (pcap-filter(7)) lets through.
    pub fn watch(&self, filter: &str) -> Process {
        let mut command = self.far.command("sh");
        command.args(["-c", &format!("exec tcpdump -Z root -l -n -v -i in '{filter}' 2>&1")]);
        let mut process = Process::spawn(command);
        process.line_with("listening on");
        process
    }
}

/// Runs `ip` on a node, or the host.
fn inside(node: Option<&Node>, arguments: &str) {
    match node {
        Some(node) => node.ip(arguments),
        None => ip(arguments),
    }
}

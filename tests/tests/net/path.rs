//! The way to a place behind two routers: who is on it, how wide it is, and what the packets carry along.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::process::Command;

use usernet_tests::process::finish;
use usernet_tests::routers::{FAR, FAR6, ROUTERS, ROUTERS6, Routers};
use usernet_tests::wait::SOON;
use usernet_tests::{GATEWAY, GATEWAY6, Outcome, World, noise_digest, peers};

/// The addresses in the lines that begin with the number of a hop.
fn hops(outcome: &Outcome) -> Vec<String> {
    let lines = outcome.ok().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut hops: Vec<String> = lines
        .filter(|words| words.len() > 1 && words[0].trim_end_matches([':', '?']).parse::<u8>().is_ok())
        .map(|words| words[1].to_owned())
        .collect();
    hops.dedup();
    hops
}

fn the_way() -> [Vec<String>; 2] {
    [
        [GATEWAY, ROUTERS[0], ROUTERS[1], FAR].map(|hop| hop.to_string()).to_vec(),
        [GATEWAY6, ROUTERS6[0], ROUTERS6[1], FAR6].map(|hop| hop.to_string()).to_vec(),
    ]
}

#[test]
fn traceroute_shows_every_hop() {
    let world = World::new();
    let _routers = Routers::new(&world, 1500);
    let [v4, v6] = the_way();
    for (way, options) in [
        (&v4, format!("{FAR}")),
        (&v4, format!("-I {FAR}")),
        (&v6, format!("-6 {FAR6}")),
        (&v6, format!("-6 -I {FAR6}")),
    ] {
        let outcome = world.exec(&[], &format!("traceroute -n -w 2 {options}"));
        assert_eq!(hops(&outcome), **way, "{outcome}");
        assert!(!outcome.says("*"), "{outcome}");
    }
}

#[test]
fn tracepath_shows_every_hop_and_the_narrow_one() {
    let world = World::new();
    let _routers = Routers::new(&world, 1280);
    let [v4, v6] = the_way();
    for (way, options) in [(&v4, format!("{FAR}")), (&v6, format!("-6 {FAR6}"))] {
        let outcome = world.exec(&[], &format!("tracepath -n {options}"));
        let mut hops = hops(&outcome);
        hops.retain(|hop| hop != "[LOCALHOST]");
        assert_eq!(hops, **way, "{outcome}");
        // Errors have as many hops left as the way back has taken of them.
        assert!(!outcome.says("asymm"), "{outcome}");
        assert!(outcome.says("pmtu 1280") && outcome.says("Resume: pmtu 1280"), "{outcome}");
    }
}

/// What travels in the narrow hop's way is cut nowhere: TCP's ends find out, each for itself.
#[test]
fn bulk_transfers_pass_a_narrow_hop_both_ways() {
    const BULK: u64 = 8 << 20;
    let world = World::new();
    let routers = Routers::new(&world, 1280);
    let port = routers.far(peers::http);
    let expected = noise_digest(7, BULK);
    for far in [format!("{FAR}"), format!("[{FAR6}]")] {
        let server = format!("http://{far}:{port}");
        let script = format!(
            "set -e
            curl --silent --fail --max-time 40 --output bulk {server}/7/{BULK}
            sha256sum bulk
            curl --silent --fail --max-time 40 --upload-file bulk {server}/"
        );
        assert_eq!(world.exec(&[], &script).ok(), format!("{expected}  bulk\n{expected}"), "{far}");
    }
}

#[test]
fn ping_is_told_how_wide_the_way_is() {
    let world = World::new();
    let _routers = Routers::new(&world, 1280);
    let outcome = world
        .exec(&[], &format!("ping -M do -c 1 -W 5 -s 1400 {FAR}; ping -6 -M do -c 1 -W 5 -s 1400 {FAR6}"));
    assert!(
        outcome.says(&format!("From {} icmp_seq=1 Frag needed and DF set (mtu = 1280)", ROUTERS[0])),
        "{outcome}"
    );
    assert!(outcome.says(&format!("From {} icmp_seq=1 Packet too big: mtu=1280", ROUTERS6[0])), "{outcome}");
    // What may be cut on its way is.
    let outcome = world.exec(&[], &format!("ping -M dont -c 1 -W 5 -s 1400 {FAR}"));
    assert!(outcome.ok().contains(" 0% packet loss"), "{outcome}");
}

/// A script that sends a datagram until the guest's kernel knows the MTU of the way, and shows what it knows.
fn learns(far: impl Into<IpAddr>, length: u32, mtu: u32) -> String {
    let far = far.into();
    let address = if far.is_ipv4() { format!("UDP4:{far}:9") } else { format!("UDP6:[{far}]:9") };
    format!(
        "n=0; until ip route get {far} | grep 'mtu {mtu}'; do n=$((n+1)); [ $n -lt 50 ] || exit 99; \
         head -c {length} /dev/zero | socat -u -b 9000 - {address}; sleep 0.1; done; "
    )
}

#[test]
fn a_guest_that_sends_datagrams_learns_how_wide_the_way_is() {
    let world = World::new();
    let _routers = Routers::new(&world, 1280);
    world.exec(&[], &(learns(FAR, 1400, 1280) + &learns(FAR6, 1400, 1280))).ok();
    // What is too long for the host's own link is told by the host.
    world.exec(&["--mtu", "9000"], &(learns(FAR, 8000, 1500) + &learns(FAR6, 8000, 1500))).ok();
}

#[test]
fn what_may_be_cut_on_its_way_arrives() {
    let world = World::new();
    let routers = Routers::new(&world, 1280);
    let port = routers.far(|| peers::udp_length(0));
    // 0: never "don't fragment".
    let script = format!("head -c 1400 /dev/zero | socat -T 3 -b 2000 - UDP4:{FAR}:{port},mtudiscover=0");
    assert_eq!(world.exec(&[], &script).ok(), "1400");
}

/// Expedited forwarding with ECT(1) out, AF11 with "congestion experienced" in.
#[test]
fn dscp_and_ecn_pass_both_ways() {
    let world = World::new();
    let routers = Routers::new(&world, 1500);
    let port = routers.far(|| peers::udp_length(0x2b));
    let tcp = routers.far(|| {
        peers::tcp(|mut stream| {
            // Closed with something unread, it would be reset.
            stream.read_exact(&mut [0; 6])?;
            stream.write_all(b"welcome\n")
        })
    });
    let mut seen = routers.watch(&format!("dst host {FAR} or dst host {FAR6}"));
    let script = format!(
        "set -e
        for far in {FAR} [{FAR6}]; do
            $PROBE marked udp $far:{port} 185
            $PROBE marked tcp $far:{tcp} 184
        done
        ping -c 1 -W 5 -Q 0x29 {FAR}
        ping -6 -c 1 -W 5 -Q 0x29 {FAR6}"
    );
    world.exec(&["--pcap", "seen"], &script).ok();
    for outward in
        ["tos 0xb9,ECT(1), ttl 61", "class 0xb9", "tos 0xb8", "class 0xb8", "tos 0x29", "class 0x29"]
    {
        seen.line_with(outward);
    }
    let mut command = Command::new("tcpdump");
    command.args(["-n", "-v", "-r"]).arg(world.home().join("seen")).args([
        "src",
        "net",
        "198.18.3.0/24",
        "or",
        "2001:db8:3::/64",
    ]);
    let inward = finish(command, SOON);
    for (seen, times) in [("tos 0x2b,CE", 1), ("class 0x2b", 1), ("tos 0x29", 1), ("class 0x29", 1)] {
        assert_eq!(inward.ok().matches(seen).count(), times, "{seen}: {inward}");
    }
}

//! The way to a place behind two routers: who is on it, how wide it is, and what the packets carry along.

use std::net::{IpAddr, SocketAddr};

use usernet_tests::routers::{FAR, FAR6, ROUTERS, ROUTERS6, Routers};
use usernet_tests::{GATEWAY, Outcome, World, noise_digest, peers};

const GATEWAY6: &str = "fd00::2";

/// The addresses in the lines that begin with the number of a hop.
fn hops(outcome: &Outcome) -> Vec<String> {
    let lines = outcome.ok().lines().map(|line| line.trim_start().split_whitespace().collect::<Vec<_>>());
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
        [GATEWAY6.to_owned(), ROUTERS6[0].to_string(), ROUTERS6[1].to_string(), FAR6.to_string()].to_vec(),
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
        println!("{outcome}");
        let mut hops = hops(&outcome);
        hops.retain(|hop| hop != "[LOCALHOST]");
        assert_eq!(hops, **way, "{outcome}");
        assert!(outcome.says("pmtu 1280") && outcome.says("Resume: pmtu 1280"), "{outcome}");
    }
}

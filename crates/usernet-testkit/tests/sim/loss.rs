//! Loss costs little: it is found by what arrives, and the timeout is the last resort.

use std::time::Duration;

use usernet_testkit::{App, Faults, GuestConfig, Peer, SackGuest, Sim, Then, digest_of};

use super::{PORT, config, connect, one_guest, peer_addr};

const LEN: u64 = 20_000_000;

fn source(seed: u64) -> Peer {
    Peer { seed, send: LEN, then: Then::Fin, ..Peer::default() }
}

/// How long a guest that knows SACK takes for 20 MB, and how many segments it got in vain.
fn sack(seed: u64, faults: Faults, window: u32) -> (Duration, u64) {
    let mut sim = Sim::new(seed, config(seed));
    sim.host.peers.insert(PORT, source(seed));
    let guest = SackGuest::new(GuestConfig { seed, ..GuestConfig::default() }, peer_addr(), window);
    let port = sim.add(guest, Faults::default(), faults);
    let start = sim.now;
    assert!(sim.run(Duration::from_secs(120), |sim| sim.guest(port).closed), "seed {seed}: too long");
    let guest = sim.guest(port);
    assert_eq!((guest.received(), guest.digest()), (LEN, digest_of(seed, LEN)));
    let duplicates = guest.duplicates;
    let took = sim.now - start;
    sim.finish();
    (took, duplicates)
}

fn smoltcp(seed: u64, faults: Faults) -> Duration {
    let (mut sim, port) = one_guest(seed, Faults::default(), faults, source(seed));
    let stream = connect(&mut sim, port, App { buffer: 1 << 20, ..App::default() });
    let start = sim.now;
    assert!(sim.run(Duration::from_secs(120), |sim| sim.guest(port).received(stream) == LEN));
    let took = sim.now - start;
    assert_eq!(sim.guest(port).digest(stream), digest_of(seed, LEN));
    sim.finish();
    took
}

#[test]
fn every_hundredth_frame_lost_with_sack() {
    for (seed, window) in (0..).zip([64 << 10, 256 << 10, 3 << 20]) {
        let (took, duplicates) = sack(seed, Faults { every: Some(100), ..Faults::default() }, window);
        println!("sack, window {window}: {took:?}, {duplicates} duplicates");
        assert!(took < Duration::from_secs(1), "window {window}: {took:?}");
        assert!(duplicates < 300, "window {window}: {duplicates} segments in vain");
    }
}

#[test]
fn random_loss_with_sack() {
    for seed in 10..14 {
        let (took, duplicates) = sack(seed, Faults { loss: 10, ..Faults::default() }, 1 << 20);
        println!("sack, random: {took:?}, {duplicates} duplicates");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(duplicates < 500, "{duplicates} segments in vain");
    }
}

#[test]
fn reordering_with_sack_is_no_collapse() {
    for seed in 20..23 {
        let faults = Faults { reorder: 10, late: Duration::from_micros(300), ..Faults::default() };
        let (took, duplicates) = sack(seed, faults, 1 << 20);
        println!("sack, reordered: {took:?}, {duplicates} duplicates");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[test]
fn every_hundredth_frame_lost_without_sack() {
    for seed in 30..32 {
        let took = smoltcp(seed, Faults { every: Some(100), ..Faults::default() });
        println!("no sack: {took:?}");
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}

#[test]
fn no_loss_no_timeout() {
    let took = smoltcp(40, Faults::default());
    println!("no loss: {took:?}");
    assert!(took < Duration::from_millis(150), "{took:?}");
    let (took, duplicates) = sack(41, Faults::default(), 1 << 20);
    assert!(took < Duration::from_millis(150), "{took:?}");
    assert_eq!(duplicates, 0);
}

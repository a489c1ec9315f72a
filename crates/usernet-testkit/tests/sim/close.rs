//! Ends of streams, orderly and not, from both sides.

use std::time::Duration;

use smoltcp::socket::tcp::State;
use usernet_core::host::{HostError, HostEvent};
use usernet_testkit::{App, Close, Ended, Faults, Peer, Rng, Sim, SmolGuest, Then, digest_of};

use super::{assert_streams, connect, is_over, one_guest, wind_down};

/// A link that loses what the seed says.
fn faults(seed: u64) -> Faults {
    Faults { loss: if seed.is_multiple_of(3) { 100 } else { 0 }, ..Faults::default() }
}

#[test]
fn the_guest_ends_its_half_first_and_goes_on_receiving() {
    for seed in 0..30 {
        let app = App { seed: seed + 1, send: 70_000, close: Close::Sent, ..App::default() };
        let peer = Peer { seed, send: 200_000, then: Then::Waits, queue: 8192, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(120), is_over), "seed {seed}");
        assert_streams(&mut sim, port, stream, &app, &peer);
        assert_eq!(sim.host.ends()[0].ended, Ended::Closed);
        wind_down(sim);
    }
}

#[test]
fn the_host_ends_its_half_first_and_goes_on_receiving() {
    for seed in 0..30 {
        // The guest's program begins to send when it has seen the end.
        let app = App { send: 0, close: Close::Never, ..App::default() };
        let peer = Peer { seed, send: 100_000, then: Then::Fin, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(120), |sim| sim.guest(port).state(stream) == State::CloseWait));
        assert_eq!(sim.guest(port).digest(stream), digest_of(seed, 100_000));
        let app = App { seed: 5, send: 90_000, close: Close::Sent, ..app };
        *sim.guest(port).app(stream) = app;
        assert!(sim.run(Duration::from_secs(120), is_over), "seed {seed}");
        assert_streams(&mut sim, port, stream, &app, &peer);
        wind_down(sim);
    }
}

#[test]
fn both_end_at_once() {
    for seed in 0..40 {
        let rng = &mut Rng::new(seed);
        let send = rng.pick(&[0, 1, 1460, 5000]);
        let app = App { seed, send, close: Close::Sent, ..App::default() };
        let peer = Peer { seed: 9, send, then: Then::Fin, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed + 1), peer);
        let stream = connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(120), is_over), "seed {seed}");
        assert_streams(&mut sim, port, stream, &app, &peer);
        wind_down(sim);
    }
}

#[test]
fn a_peer_that_resets_resets_the_guest() {
    for seed in 0..20 {
        let app = App { seed, send: 500_000, close: Close::Never, ..App::default() };
        let peer = Peer { send: 300_000, reset_after: Some(100_000), room: 20_000, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        let over = sim.run(Duration::from_secs(120), |sim| sim.guest(port).state(stream) == State::Closed);
        assert!(over, "seed {seed}: {:?}", sim.guest(port).state(stream));
        assert!(sim.guest(port).opened(stream));
        wind_down(sim);
    }
}

/// The host has no address or no route for it any more.
#[test]
fn a_flow_that_has_lost_its_way_is_reset_at_both_ends() {
    for seed in 0..20 {
        let app = App { seed, send: 5_000_000, ..App::default() };
        let peer = Peer { send: 5_000_000, reads: Some(5000), ..Peer::default() };
        let (mut sim, port) = one_guest(seed, Faults::default(), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(60), |sim| {
            sim.host.ends().first().is_some_and(|end| end.received() > 20_000)
        }));
        let flow = sim.host.ends()[0].flow;
        sim.net.tcp_event(flow, HostEvent::Failed(HostError::NetUnreachable), sim.now);
        let over = sim.run(Duration::from_secs(1), |sim| sim.guest(port).state(stream) == State::Closed);
        assert!(over, "seed {seed}: {:?}", sim.guest(port).state(stream));
        assert_eq!(sim.host.ends()[0].ended, Ended::Reset);
        wind_down(sim);
    }
}

#[test]
fn a_guest_that_resets_resets_the_peer() {
    for seed in 0..20 {
        let app = App { seed, send: 500_000, abort_after: Some(100_000), ..App::default() };
        let peer = Peer { send: 300_000, room: 20_000, ..Peer::default() };
        // The RST itself must not be lost: nothing would tell of it.
        let (mut sim, port) = one_guest(seed, Faults::default(), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(60), |sim| sim.host.ends().len() == 1 && sim.host.open() == 0));
        assert_eq!(sim.guest(port).state(stream), State::Closed);
        assert_eq!(sim.host.ends()[0].ended, Ended::Reset);
        wind_down(sim);
    }
}

#[test]
fn a_guest_that_goes_in_mid_transfer_resets_the_peer() {
    for seed in 0..20 {
        let app = App { seed, send: 5_000_000, ..App::default() };
        let peer = Peer { send: 5_000_000, reads: Some(5000), ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(60), |sim| {
            sim.host.ends().first().is_some_and(|end| end.received() > 20_000)
        }));
        sim.remove(port);
        assert_eq!(sim.host.ends()[0].ended, Ended::Reset, "at once");
        sim.finish();
    }
}

#[test]
fn a_guest_that_does_not_read_stops_the_peer_and_nothing_is_lost() {
    for seed in 0..20 {
        let app = App { reads: Some(0), buffer: 16_384, ..App::default() };
        let peer = Peer { seed, send: 100_000, then: Then::Fin, queue: 30_000, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        // An hour before a shut window.
        sim.pass(Duration::from_secs(3600));
        assert_eq!(sim.guest(port).state(stream), State::Established);
        assert!(sim.host.ends()[0].queued() <= 30_000);
        sim.guest(port).app(stream).reads = None;
        assert!(sim.run(Duration::from_secs(300), is_over), "seed {seed}");
        assert_eq!(sim.guest(port).digest(stream), digest_of(seed, 100_000));
        wind_down(sim);
    }
}

#[test]
fn a_peer_that_does_not_read_stops_the_guest_and_nothing_is_lost() {
    for seed in 0..20 {
        let app = App { seed, send: 1_000_000, close: Close::Sent, ..App::default() };
        let peer = Peer { reads: Some(0), room: 50_000, then: Then::Waits, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        sim.pass(Duration::from_secs(600));
        assert_eq!(sim.guest(port).state(stream), State::Established);
        let flow = sim.host.ends()[0].flow;
        sim.host.change(flow, |peer| peer.reads = Some(20_000));
        assert!(sim.run(Duration::from_secs(600), is_over), "seed {seed}");
        assert_eq!(sim.host.ends()[0].digest(), digest_of(seed, 1_000_000));
        wind_down(sim);
    }
}

#[test]
fn slow_readers_on_both_sides_get_everything() {
    for seed in 0..15 {
        let rng = &mut Rng::new(seed);
        let app = App {
            seed,
            send: 60_000,
            close: Close::Sent,
            reads: Some(rng.pick(&[100, 500, 3000])),
            buffer: rng.pick(&[2000, 9000, 65_535]),
            ..App::default()
        };
        let peer = Peer {
            seed: 3,
            send: 60_000,
            reads: Some(rng.pick(&[100, 500, 3000])),
            room: rng.pick(&[5000, 10_000, 100_000]),
            ..Peer::default()
        };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        let done = |sim: &mut Sim<SmolGuest>| is_over(sim) && sim.guest(port).received(stream) == peer.send;
        assert!(sim.run(Duration::from_secs(600), done), "seed {seed}");
        assert_streams(&mut sim, port, stream, &app, &peer);
        wind_down(sim);
    }
}

#[test]
fn what_is_echoed_comes_back() {
    for seed in 0..15 {
        let app = App { seed, send: 150_000, close: Close::Sent, ..App::default() };
        let peer = Peer { echo: true, room: 9000, queue: 9000, ..Peer::default() };
        let (mut sim, port) = one_guest(seed, faults(seed), faults(seed), peer);
        let stream = connect(&mut sim, port, app);
        assert!(sim.run(Duration::from_secs(300), is_over), "seed {seed}");
        assert_eq!(sim.guest(port).digest(stream), digest_of(seed, 150_000));
        wind_down(sim);
    }
}

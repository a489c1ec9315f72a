//! Streams arrive whole, whatever the link does to them.

use std::time::Duration;

use usernet_testkit::{App, Close, Faults, Peer, Rng, Then};

use super::{assert_streams, connect, one_guest, wind_down};

const LIMIT: Duration = Duration::from_secs(600);

fn run(seed: u64, outward: Faults, inward: Faults, app: App, peer: Peer) -> Duration {
    let (mut sim, port) = one_guest(seed, outward, inward, peer);
    let start = sim.now;
    let stream = connect(&mut sim, port, app);
    let done = sim.run(LIMIT, |sim| {
        sim.guest(port).received(stream) == peer.send
            && sim.host.ends().first().is_some_and(|end| end.received() == app.send)
    });
    let took = sim.now - start;
    assert!(done, "seed {seed}: not all arrived");
    assert_streams(&mut sim, port, stream, &app, &peer);
    wind_down(sim);
    took
}

/// Up to 300 kB each way.
fn ends(rng: &mut Rng) -> (App, Peer) {
    let close = rng.pick(&[Close::Sent, Close::Eof]);
    let then = if close == Close::Eof { Then::Fin } else { rng.pick(&[Then::Waits, Then::Fin]) };
    let app = App {
        seed: rng.draw(),
        send: rng.below(300_000),
        close,
        buffer: rng.pick(&[4096, 65_535, 256 << 10]),
        ..App::default()
    };
    let peer = Peer {
        seed: rng.draw(),
        send: rng.below(300_000),
        then,
        room: rng.pick(&[5000, 64 << 10, 1 << 20]),
        queue: rng.pick(&[3000, 64 << 10, 1 << 20]),
        ..Peer::default()
    };
    (app, peer)
}

fn many(seeds: std::ops::Range<u64>, faults: impl Fn(&mut Rng) -> Faults) {
    for seed in seeds {
        let rng = &mut Rng::new(seed);
        let (outward, inward) = (faults(rng), faults(rng));
        let (app, peer) = ends(rng);
        run(seed, outward, inward, app, peer);
    }
}

#[test]
fn without_faults() {
    many(0..60, |_| Faults::default());
}

#[test]
fn with_loss() {
    many(100..160, |rng| Faults { loss: rng.pick(&[5, 20, 100]), ..Faults::default() });
}

#[test]
fn with_every_nth_frame_lost() {
    many(200..240, |rng| Faults { every: Some(rng.pick(&[7, 13, 50, 100])), ..Faults::default() });
}

#[test]
fn with_reordering() {
    many(300..340, |rng| Faults { reorder: rng.pick(&[10, 100, 400]), ..Faults::default() });
}

#[test]
fn with_duplicates() {
    many(400..440, |rng| Faults { duplicate: rng.pick(&[10, 100, 400]), ..Faults::default() });
}

#[test]
fn with_a_link_that_is_full() {
    many(500..540, |rng| Faults { full: rng.pick(&[10, 100, 400]), ..Faults::default() });
}

#[test]
fn with_everything_at_once() {
    many(600..660, |rng| Faults {
        delay: Duration::from_micros(rng.below(5000)),
        loss: rng.pick(&[0, 5, 50]),
        every: None,
        duplicate: rng.pick(&[0, 50]),
        reorder: rng.pick(&[0, 100]),
        late: Duration::from_millis(rng.pick(&[1, 20])),
        full: rng.pick(&[0, 50]),
    });
}

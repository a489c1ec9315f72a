//! What takes minutes and hours.

use std::time::Duration;

use smoltcp::socket::tcp::State;
use usernet_testkit::{App, Close, Ended, Faults, Peer, Then};

use super::{connect, is_over, one_guest, peer_addr, wind_down};

const HOUR: Duration = Duration::from_secs(3600);

fn idle() -> (App, Peer) {
    (App { close: Close::Never, ..App::default() }, Peer { then: Then::Stays, ..Peer::default() })
}

#[test]
fn an_idle_flow_whose_guest_lives_stays() {
    let (app, peer) = idle();
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer);
    let stream = connect(&mut sim, port, app);
    sim.pass(24 * HOUR);
    assert_eq!(sim.guest(port).state(stream), State::Established);
    assert!(sim.frames < 40, "{} frames in a day of silence", sim.frames);
    sim.finish();
}

#[test]
fn an_idle_flow_whose_guest_is_dead_ends_after_two_hours() {
    let (app, peer) = idle();
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer);
    let stream = connect(&mut sim, port, app);
    assert!(sim.run(HOUR, |sim| sim.guest(port).opened(stream)));
    let start = sim.now;
    sim.set_outward(port, Faults { loss: 1000, ..Faults::default() });
    assert!(sim.run(3 * HOUR, |sim| sim.host.open() == 0));
    let took = sim.now - start;
    assert!(took > Duration::from_secs(7200) && took < Duration::from_secs(7200 + 300), "{took:?}");
    assert_eq!(sim.host.ends()[0].ended, Ended::Reset);
    sim.finish();
}

#[test]
fn a_guest_that_dies_with_bytes_on_the_way_is_noticed_in_minutes() {
    let (app, peer) = idle();
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer);
    let stream = connect(&mut sim, port, app);
    assert!(sim.run(HOUR, |sim| sim.guest(port).opened(stream)));
    sim.set_outward(port, Faults { loss: 1000, ..Faults::default() });
    let flow = sim.host.ends()[0].flow;
    sim.host.change(flow, |peer| peer.send = 100);
    let start = sim.now;
    assert!(sim.run(HOUR, |sim| sim.host.open() == 0));
    assert!(sim.now - start < Duration::from_secs(600), "{:?}", sim.now - start);
    sim.finish();
}

#[test]
fn a_half_closed_flow_lives_as_long_as_its_guest() {
    // The guest has ended its stream, the peer has not.
    let app = App { close: Close::Sent, ..App::default() };
    let peer = Peer { then: Then::Stays, ..Peer::default() };
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer);
    let stream = connect(&mut sim, port, app);
    sim.pass(2 * HOUR);
    assert_eq!(sim.guest(port).state(stream), State::FinWait2);
    let flow = sim.host.ends()[0].flow;
    sim.host.change(flow, |peer| {
        peer.send = 1000;
        peer.then = Then::Fin;
    });
    assert!(sim.run(HOUR, is_over));
    assert_eq!(sim.guest(port).received(stream), 1000);
    wind_down(sim);
}

#[test]
fn a_port_is_used_again_while_its_last_flow_waits_for_strays() {
    let app = App { close: Close::Eof, ..App::default() };
    let peer = Peer { then: Then::Fin, send: 10, ..Peer::default() };
    let (mut sim, port) = one_guest(1, Faults::default(), Faults::default(), peer);
    let mut at_once = 0;
    for n in 0..20 {
        let start = sim.now;
        let stream = sim.guest(port).connect_from(50_000, peer_addr(), app);
        let done =
            sim.run(Duration::from_secs(300), |sim| sim.guest(port).received(stream) == 10 && is_over(sim));
        assert!(done, "connection {n}");
        assert_eq!(sim.net.tcp_flows().len(), 1);
        assert!(sim.net.tcp_flows().iter().all(|(_, e)| e.flow.tcp.is_time_wait()));
        // smoltcp takes its first sequence number at random: every other one lies behind the last
        // flow's, and has to wait.
        at_once += u32::from(sim.now - start < Duration::from_millis(10));
    }
    assert!(at_once > 4, "{at_once}");
    wind_down(sim);
}

//! Time that passes.

use super::*;

#[test]
fn an_idle_flow_is_asked_and_then_given_up() {
    let mut script = Script::open();
    assert_eq!(script.jump(), KEEPALIVE_AFTER);
    assert_eq!(script.sent(), [(ACK, 0, 1, 0)]);
    // An answer keeps it.
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 0).unwrap();
    assert_eq!(script.jump(), KEEPALIVE_AFTER);
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.now - start, KEEPALIVE_INTERVAL * u32::from(KEEPALIVE_PROBES));
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.ops.contains(&Output::ResetHost));
}

#[test]
fn a_half_closed_flow_is_asked_sooner() {
    let mut script = Script::open();
    script.segment(&seg(FIN, IRS + 1, ISS + 1), 0).unwrap();
    script.sent();
    assert_eq!(script.jump(), KEEPALIVE_HALF_CLOSED);
    assert_eq!(script.sent(), [(ACK, 0, 2, 0)]);

    let mut script = Script::open();
    script.host_ends();
    script.segment(&seg(ACK, IRS + 1, ISS + 2), 0).unwrap();
    script.sent();
    assert_eq!(script.jump(), KEEPALIVE_HALF_CLOSED);
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
}

#[test]
fn a_keepalive_of_the_guests_is_answered() {
    let mut script = Script::open();
    script.now = us(5_000_000);
    assert_eq!(script.segment(&seg(ACK, IRS, ISS + 1), 0), Err(DropReason::OutsideWindow));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.flow.last_heard(), us(5_000_000));
}

#[test]
fn everything_works_across_the_wrap_of_sequence_numbers() {
    let first = TcpHeader { seq: SeqNumber(u32::MAX - 500), ..syn() };
    let iss = SeqNumber(u32::MAX - 1000);
    let mut script = Script::new(TcpFlow::from_guest(&first, iss, MSS, us(0)));
    script.drain();
    script.host(HostEvent::SendSpace { free: ROOM });
    script.host(HostEvent::Connected);
    script.segment(&seg(ACK, first.seq + 1, iss + 1), 0).unwrap();
    script.host_sends(30_000);
    script.segment(&seg(ACK, first.seq + 1, iss + 30_001), 5000).unwrap();
    assert_eq!((script.discarded, script.flow.bytes_in(), script.flow.bytes_out()), (30_000, 30_000, 5000));
}

#[test]
fn an_idle_flow_is_silent() {
    let mut script = Script::open();
    script.pass(Duration::from_secs(3600));
    assert_eq!(script.sent(), []);
}

#[test]
fn a_probe_that_an_urgent_mark_cuts_short_is_one_probe() {
    let mut script = Script::open();
    script.flow.handle_host(HostEvent::Readable, script.now);
    let mut peeks = 0;
    // The kernel ends a peek at the mark, however much there is behind it.
    let (mark, end) = (2500, 3000);
    for due in [false, true] {
        if due {
            script.now = script.flow.poll_timeout().unwrap();
            script.flow.handle_timeout(script.now);
        }
        while let Some(output) = script.flow.poll_output(script.now) {
            let Output::Peek { at, max, .. } = output else { continue };
            let len = max.min(if at < mark { mark - at } else { end - at });
            script.flow.handle_peeked(
                at,
                len,
                if len == 0 { PeekEnd::Empty } else { PeekEnd::More },
                script.now,
            );
            peeks += 1;
            assert!(peeks < 10, "peeks without end");
        }
    }
    assert!(peeks > 3, "the tail was probed");
}

#[test]
fn what_the_host_refuses_is_written_when_it_has_room_and_not_before() {
    let mut script = Script::open();
    let accept = script.flow.handle_segment(&seg(ACK, IRS + 1, ISS + 1), 1000, script.now).unwrap();
    assert!(matches!(accept, Accept::Deliver { .. }));
    script.flow.handle_host(HostEvent::Wrote { len: 0, kept: 1000 }, script.now);
    let outputs: Vec<_> = std::iter::from_fn(|| script.flow.poll_output(script.now)).take(10).collect();
    assert!(outputs.contains(&Output::WatchSendSpace));
    assert!(!outputs.iter().any(|output| matches!(output, Output::WriteKept { .. })), "{outputs:?}");

    script.flow.handle_host(HostEvent::SendSpace { free: ROOM }, script.now);
    assert_eq!(script.flow.poll_output(script.now), Some(Output::WriteKept { at: IRS + 1, len: 1000 }));
    // A write that falls short again waits again.
    script.flow.handle_wrote_kept(400, script.now);
    let outputs: Vec<_> = std::iter::from_fn(|| script.flow.poll_output(script.now)).take(10).collect();
    assert!(!outputs.iter().any(|output| matches!(output, Output::WriteKept { .. })), "{outputs:?}");
}

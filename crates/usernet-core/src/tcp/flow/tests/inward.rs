//! The host's stream.

use super::*;

#[test]
fn the_guests_window_bounds_what_is_sent() {
    // 4000 << 4 = 64,000 bytes.
    let mut script = Script::open();
    script.host_sends(100_000);
    let sent = script.sent();
    assert_eq!(sent.iter().map(|(_, _, _, len)| len).sum::<u32>(), 64_000);
    let mut ack = seg(ACK, IRS + 1, ISS + 1 + 64_000);
    ack.window = 0;
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.discarded, 64_000);
    // Probes that back off, without a byte beyond the window.
    let mut waits = Vec::new();
    for _ in 0..4 {
        waits.push(script.jump().as_millis());
        assert_eq!(script.sent(), [(ACK, 64_000, 1, 0)]);
    }
    assert_eq!(waits, [200, 400, 800, 1600]);
    script.segment(&seg(ACK, IRS + 1, ISS + 64_001), 0).unwrap();
    assert_eq!(script.sent().iter().map(|(_, _, _, len)| len).sum::<u32>(), 36_000);
}

#[test]
fn a_shut_window_is_probed_for_as_long_as_the_guest_answers() {
    let mut script = Script::open();
    script.host_sends(100_000);
    let shut = TcpHeader { window: 0, ..seg(ACK, IRS + 1, ISS + 64_001) };
    script.segment(&shut, 0).unwrap();
    for _ in 0..100 {
        script.jump();
        script.segment(&shut, 0).unwrap();
    }
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
    // No more answers.
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.now - start < Duration::from_secs(900));
}

#[test]
fn a_fin_before_a_shut_window_waits_for_as_long_as_the_guest_answers() {
    let mut script = Script::open();
    script.host_sends(1000);
    script.host_ends();
    assert_eq!(script.sent(), [(ACK, 1, 1, 1000), (FIN, 1001, 1, 0)]);
    let shut = TcpHeader { window: 0, ..seg(ACK, IRS + 1, ISS + 1001) };
    script.segment(&shut, 0).unwrap();
    for _ in 0..30 {
        script.jump();
        script.segment(&shut, 0).unwrap();
    }
    assert_eq!(script.closed(), None);
    script.segment(&seg(ACK, IRS + 1, ISS + 1002), 0).unwrap();
    assert_eq!(script.flow.state_name(), "FIN-WAIT-2");
}

#[test]
fn a_single_segment_that_is_lost_goes_again_after_the_timeout() {
    let mut script = Script::open();
    script.host_sends(500);
    assert_eq!(script.sent(), [(ACK, 1, 1, 500)]);
    assert_eq!(script.jump(), Duration::from_millis(200));
    assert_eq!(script.sent(), [(ACK, 1, 1, 500)]);
    assert_eq!(script.jump(), Duration::from_millis(400));
    script.segment(&seg(ACK, IRS + 1, ISS + 501), 0).unwrap();
    assert_eq!((script.discarded, script.flow.bytes_in()), (500, 500));
}

#[test]
fn a_lost_tail_is_probed_before_the_timeout() {
    let mut script = Script::open();
    script.host_sends(5500);
    script.sent();
    assert_eq!(script.jump(), Duration::from_millis(10));
    assert_eq!(script.sent(), [(ACK, 4501, 1, 1000)]);
}

#[test]
fn three_duplicate_acks_repair_one_segment() {
    let mut script = Script::open();
    script.host_sends(10_000);
    script.sent();
    script.segment(&seg(ACK, IRS + 1, ISS + 2001), 0).unwrap();
    for _ in 0..2 {
        script.segment(&seg(ACK, IRS + 1, ISS + 2001), 0).unwrap();
    }
    assert_eq!(script.sent(), []);
    script.segment(&seg(ACK, IRS + 1, ISS + 2001), 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 2001, 1, 1000)]);
    // A partial acknowledgement: the next hole at once.
    script.segment(&seg(ACK, IRS + 1, ISS + 5001), 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 5001, 1, 1000)]);
    script.segment(&seg(ACK, IRS + 1, ISS + 10_001), 0).unwrap();
    assert_eq!(script.sent(), []);
}

#[test]
fn sack_repairs_all_holes_at_once_and_each_once() {
    let mut script = Script::open();
    script.host_sends(20_000);
    script.sent();
    let mut ack = seg(ACK, IRS + 1, ISS + 1);
    ack.sack =
        [Some((ISS + 1001, ISS + 3001)), Some((ISS + 4001, ISS + 9001)), Some((ISS + 11_001, ISS + 20_001))];
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 1, 1, 1000), (ACK, 3001, 1, 1000), (ACK, 9001, 1, 2000)]);
    script.segment(&ack, 0).unwrap();
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.sent(), []);
    script.segment(&TcpHeader { ack: ISS + 20_001, sack: [None; 3], ..ack }, 0).unwrap();
    assert_eq!(script.discarded, 20_000);
}

#[test]
fn a_repair_that_is_lost_is_found_by_what_came_after_it() {
    let mut script = Script::open();
    script.host_sends(20_000);
    let mut ack = seg(ACK, IRS + 1, ISS + 1);
    ack.sack[0] = Some((ISS + 1001, ISS + 20_001));
    script.segment(&ack, 0).unwrap();
    script.sent();
    // New data goes out behind the repair, and is acknowledged; the hole is not.
    script.host_sends(3000);
    assert_eq!(script.sent(), [(ACK, 20_001, 1, 3000)]);
    ack.sack[0] = Some((ISS + 1001, ISS + 23_001));
    script.segment(&ack, 0).unwrap();
    assert_eq!(script.sent(), [(ACK, 1, 1, 1000)]);
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut script = Script::open();
    script.host_sends(1000);
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.now - start < Duration::from_secs(900));
    assert_eq!(script.segments.last().unwrap().0.flags, RST | ACK);
}

#[test]
fn host_bytes_that_vanish_reset_the_flow() {
    let mut script = Script::open();
    script.host_sends(500);
    script.queue = 0;
    script.jump();
    assert_eq!(script.closed(), Some(CloseReason::Host(HostError::Reset)));
}

#[test]
fn a_full_link_stops_sending_and_the_timeout() {
    let mut script = Script::open();
    script.flow.handle_host(HostEvent::Readable, script.now);
    let Some(Output::Peek { at: 0, .. }) = script.flow.poll_output(script.now) else { panic!("no peek") };
    assert!(script.flow.handle_peeked(0, 2000, PeekEnd::LinkFull, script.now).is_some());
    script.queue = 5000;
    for _ in 0..20 {
        script.jump();
        assert_eq!(script.segments.len(), 0, "into a full link");
        if script.now - us(0) > Duration::from_secs(100) {
            break;
        }
    }
    script.host(HostEvent::LinkSpace);
    assert_eq!(script.sent(), [(ACK, 2001, 1, 3000)]);
}

//! Acknowledgements and discards that wait.

use super::*;

/// An open flow whose guest has sent a request of 10 bytes and has its answer of 5.
fn acquainted() -> Script {
    let mut script = Script::open();
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 10).unwrap();
    assert_eq!(script.sent(), [(ACK, 1, 11, 0)], "the first is acknowledged at once");
    script.host_sends(5);
    assert_eq!(script.sent(), [(ACK, 1, 11, 5)]);
    script.segment(&seg(ACK, IRS + 11, ISS + 6), 0).unwrap();
    assert_eq!((script.discarded, script.queue), (5, 0));
    script
}

/// The next such exchange, the first being number 1: the request acknowledges the answer before.
fn exchange(script: &mut Script, number: u32) {
    let (request, answer) = (1 + 10 * number, 1 + 5 * number);
    script.segment(&seg(ACK, IRS + request, ISS + answer), 10).unwrap();
    assert_eq!(script.sent(), [], "an acknowledgement with nothing to go with");
    script.host_sends(5);
    assert_eq!(script.sent(), [(ACK, answer, request + 10, 5)]);
}

#[test]
fn an_answer_carries_the_acknowledgement_of_its_request() {
    let mut script = acquainted();
    (1..100).for_each(|number| exchange(&mut script, number));
    let next = script.flow.poll_timeout().expect("a retransmission timeout");
    assert!(next - script.now >= Duration::from_millis(100), "{next:?}");
}

#[test]
fn a_request_without_an_answer_is_acknowledged_soon_and_the_next_at_once() {
    let mut script = acquainted();
    script.segment(&seg(ACK, IRS + 11, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), []);
    assert!(script.jump() <= Duration::from_millis(5));
    assert_eq!(script.sent(), [(ACK, 6, 21, 0)]);
    script.segment(&seg(ACK, IRS + 21, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 31, 0)]);
}

#[test]
fn a_guest_that_waits_for_each_acknowledgement_waits_a_little_in_all() {
    let mut script = Script::open();
    let start = script.now;
    for number in 0..10_000 {
        script.segment(&seg(ACK, IRS + 1 + number * 10, ISS + 1), 10).unwrap();
        while script.segments.is_empty() {
            script.jump();
        }
        assert_eq!(script.sent(), [(ACK, 1, 11 + number * 10, 0)]);
    }
    assert!(script.now - start < Duration::from_millis(50), "{:?}", script.now - start);
}

#[test]
fn only_small_messages_in_order_wait_for_their_acknowledgement() {
    let mut script = acquainted();
    script.segment(&seg(ACK, IRS + 11, ISS + 6), 1460).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 1471, 0)]);
    script.segment(&seg(ACK, IRS + 1471, ISS + 6), 600).unwrap();
    assert_eq!(script.sent(), []);
    script.segment(&seg(ACK, IRS + 2071, ISS + 6), 600).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 2671, 0)]);
    script.segment(&seg(ACK, IRS + 2671, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), []);
    script.segment(&seg(ACK, IRS + 2671, ISS + 6), 10).unwrap_err();
    assert_eq!(script.sent(), [(ACK, 6, 2681, 0)]);
    script.segment(&seg(ACK, IRS + 2691, ISS + 6), 10).unwrap();
    assert_eq!(script.sent(), [(ACK, 6, 2681, 0)]);
}

#[test]
fn answers_are_discarded_together() {
    let mut script = acquainted();
    (1..=16).for_each(|number| exchange(&mut script, number));
    assert_eq!(script.discarded, 5);
    (17..100).for_each(|number| exchange(&mut script, number));
    assert!(script.discarded >= 400, "{}", script.discarded);
    // Nothing follows: the host's peer may wait to hear that all was read.
    script.segment(&seg(ACK, IRS + 1001, ISS + 501), 0).unwrap();
    assert_eq!((script.discarded, script.queue), (500, 0));
}

#[test]
fn large_answers_are_discarded_at_once() {
    let mut script = acquainted();
    script.host_sends(1500);
    script.segment(&seg(ACK, IRS + 11, ISS + 1506), 10).unwrap();
    assert_eq!(script.queue, 0);
}

#[test]
fn a_close_leaves_nothing_of_what_waits_to_be_discarded() {
    let mut script = acquainted();
    (1..4).for_each(|number| exchange(&mut script, number));
    script.sent();
    script.host_ends();
    assert_eq!(script.sent(), [(FIN, 21, 41, 0)]);
    assert_eq!(script.queue, 15);
    script.segment(&seg(FIN, IRS + 41, ISS + 22), 0).unwrap();
    assert_eq!(script.ops, [Output::CloseHost]);
    assert_eq!(script.queue, 0, "a close with unread bytes is a reset");
}

#[test]
fn the_end_of_the_stream_goes_with_its_last_bytes() {
    let mut script = Script::open();
    let now = script.now;
    script.flow.handle_host(HostEvent::Readable, now);
    assert!(matches!(script.flow.poll_output(now), Some(Output::Peek { at: 0, .. })));
    let header = script.flow.handle_peeked(0, 100, PeekEnd::Eof, now).unwrap();
    assert_eq!((header.flags, header.seq), (TcpFlags(FIN.0 | TcpFlags::PSH.0), ISS + 1));
    (script.queue, script.eof) = (100, true);
    assert_eq!(script.drain(), []);
    // It was lost.
    script.jump();
    assert_eq!(script.sent(), [(ACK, 1, 1, 100), (FIN, 101, 1, 0)]);
    script.segment(&seg(FIN, IRS + 1, ISS + 102), 0).unwrap();
    assert_eq!((script.flow.state_name(), script.queue), ("TIME-WAIT", 0));
}

//! Ends of streams and flows.

use super::*;

#[test]
fn the_guest_ends_first() {
    let mut script = Script::open();
    script.segment(&seg(FIN, IRS + 1, ISS + 1), 10).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSE-WAIT");
    assert_eq!(script.ops, [Output::ShutdownHostWrite]);
    assert_eq!(script.sent().last(), Some(&(ACK, 1, 12, 0)));
    // The other half still works.
    script.host_sends(100);
    assert_eq!(script.sent(), [(ACK, 1, 12, 100)]);
    script.host_ends();
    assert_eq!(script.sent(), [(FIN, 101, 12, 0)]);
    assert_eq!(script.flow.state_name(), "LAST-ACK");
    script.segment(&seg(ACK, IRS + 12, ISS + 102), 0).unwrap();
    assert_eq!(script.ops[1..], [Output::CloseHost, Output::Closed(CloseReason::Finished)]);
    assert_eq!(script.queue, 0, "a close with unread bytes is a reset");
}

#[test]
fn the_host_ends_first_and_its_flow_waits_for_strays() {
    let mut script = Script::open();
    script.host_sends(100);
    script.host_ends();
    assert_eq!(script.sent(), [(ACK, 1, 1, 100), (FIN, 101, 1, 0)]);
    script.segment(&seg(ACK, IRS + 1, ISS + 102), 50).unwrap();
    assert_eq!(script.flow.state_name(), "FIN-WAIT-2");
    script.segment(&seg(FIN, IRS + 51, ISS + 102), 0).unwrap();
    assert_eq!(script.flow.state_name(), "TIME-WAIT");
    assert_eq!(script.ops, [Output::CloseHost]);
    assert_eq!(script.sent().last(), Some(&(ACK, 102, 52, 0)));
    // The last ACK was lost.
    script.now += Duration::from_secs(30);
    script.segment(&seg(FIN, IRS + 51, ISS + 102), 0).unwrap_err();
    assert_eq!(script.sent(), [(ACK, 102, 52, 0)]);
    // RFC 1337.
    assert_eq!(script.segment(&seg(RST, IRS + 52, ISS), 0), Err(DropReason::OutsideWindow));
    // A SYN begins anew only beyond the old stream.
    assert!(!script.flow.may_be_reused(&TcpHeader { seq: IRS + 51, ..syn() }));
    assert!(script.flow.may_be_reused(&TcpHeader { seq: IRS + 53, ..syn() }));
    assert_eq!(script.jump(), TIME_WAIT);
    assert_eq!(script.closed(), Some(CloseReason::Finished));
}

#[test]
fn both_end_at_once() {
    let mut script = Script::open();
    script.host_ends();
    script.segment(&seg(FIN, IRS + 1, ISS + 1), 0).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSING");
    assert_eq!(script.sent(), [(FIN, 1, 1, 0), (ACK, 2, 2, 0)]);
    script.segment(&seg(ACK, IRS + 2, ISS + 2), 0).unwrap();
    assert_eq!(script.flow.state_name(), "TIME-WAIT");
    assert_eq!(script.ops, [Output::ShutdownHostWrite, Output::CloseHost]);
}

#[test]
fn a_fin_that_is_lost_goes_again() {
    let mut script = Script::open();
    script.host_ends();
    script.sent();
    script.jump();
    assert_eq!(script.sent(), [(FIN, 1, 1, 0)]);
}

#[test]
fn resets_pass_both_ways() {
    let mut script = Script::open();
    script.host_sends(3000);
    script.sent();
    script.host(HostEvent::Failed(HostError::Reset));
    // Where the guest expects the next byte, had all of them arrived.
    assert_eq!(script.sent(), [(RST | ACK, 3001, 1, 0)]);
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::Host(HostError::Reset))]);

    let mut script = Script::open();
    script.host_sends(3000);
    script.jump();
    script.jump();
    script.sent();
    // Also after a timeout, when sending has begun again further back.
    script.host(HostEvent::Failed(HostError::Reset));
    assert_eq!(script.sent(), [(RST | ACK, 3001, 1, 0)]);

    let mut script = Script::open();
    script.segment(&seg(RST, IRS + 1, ISS), 0).unwrap();
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::GuestReset)]);
    assert_eq!(script.sent(), []);
}

#[test]
fn resets_and_syns_that_are_not_in_place_are_challenged() {
    // RFC 5961 §3.2 and §4.2.
    let mut script = Script::open();
    assert_eq!(script.segment(&seg(RST, IRS + 2, ISS), 0), Err(DropReason::Challenged));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.segment(&seg(RST, IRS - 5, ISS), 0), Err(DropReason::OutsideWindow));
    assert_eq!(script.sent(), []);
    assert_eq!(script.segment(&TcpHeader { seq: IRS + 90, ..syn() }, 0), Err(DropReason::Challenged));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
}

#[test]
fn an_ack_of_what_was_never_sent_is_answered_and_ignored() {
    let mut script = Script::open();
    assert_eq!(script.segment(&seg(ACK, IRS + 1, ISS + 2), 10), Err(DropReason::BadAck));
    assert_eq!(script.sent(), [(ACK, 1, 1, 0)]);
    assert_eq!(script.segment(&seg(TcpFlags::default(), IRS + 1, ISS + 1), 10), Err(DropReason::BadAck));
}

#[test]
fn a_fin_out_of_order_waits_for_its_bytes() {
    let mut script = Script::open();
    script.segment(&seg(FIN, IRS + 101, ISS + 1), 0).unwrap();
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 100).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSE-WAIT");
    assert_eq!(script.sent().last(), Some(&(ACK, 1, 102, 0)));
}

#[test]
fn a_fin_among_bytes_that_came_before_it_is_no_end() {
    let mut script = Script::open();
    script.segment(&seg(ACK, IRS + 101, ISS + 1), 100).unwrap();
    script.segment(&seg(FIN, IRS + 151, ISS + 1), 0).unwrap();
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 100).unwrap();
    assert_eq!(script.ops, [Output::WriteKept { at: IRS + 101, len: 100 }]);
    script.segment(&seg(FIN, IRS + 201, ISS + 1), 0).unwrap();
    assert_eq!(script.flow.state_name(), "CLOSE-WAIT");
}

//! The handshake.

use super::*;

#[test]
fn a_syn_is_answered_once_the_host_is_connected() {
    let mut script = Script::connecting(&syn());
    assert_eq!(script.segment(&syn(), 0), Err(DropReason::Duplicate));
    assert_eq!(script.sent(), []);
    script.host(HostEvent::SendSpace { free: ROOM });
    script.host(HostEvent::Connected);
    let syn_ack = script.only_segment();
    assert_eq!((syn_ack.flags, syn_ack.seq, syn_ack.ack), (TcpFlags::SYN | ACK, ISS, IRS + 1));
    assert_eq!((syn_ack.mss, syn_ack.window_scale, syn_ack.sack_permitted), (Some(MSS), Some(8), true));
    assert_eq!(syn_ack.window, 65535);
    // A lost SYN-ACK goes out again, when the guest asks and when the timer says.
    script.segment(&syn(), 0).unwrap_err();
    assert_eq!(script.sent(), [(TcpFlags::SYN | ACK, 0, 1, 0)]);
    assert_eq!(script.jump(), Duration::from_secs(1));
    assert_eq!(script.sent(), [(TcpFlags::SYN | ACK, 0, 1, 0)]);
}

#[test]
fn options_that_the_guest_does_not_name_are_not_used() {
    let plain = TcpHeader { mss: None, window_scale: None, sack_permitted: false, ..syn() };
    let mut script = Script::connecting(&plain);
    script.host(HostEvent::SendSpace { free: 10_000_000 });
    script.host(HostEvent::Connected);
    let syn_ack = script.only_segment();
    assert_eq!((syn_ack.window_scale, syn_ack.sack_permitted), (None, false));
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 0).unwrap();
    script.host_sends(10_000);
    // The window of 4000 is not scaled, and segments are of 536 bytes.
    assert_eq!(script.flow.segment(), 536);
    assert_eq!(script.segments.iter().map(|(_, len)| len).sum::<u32>(), 4000);
    script.sent();
    // Out of order: acknowledged at once, without SACK; the window is what 16 bits can say.
    script.segment(&seg(ACK, IRS + 101, ISS + 1), 100).unwrap();
    let ack = script.only_segment();
    assert_eq!((ack.sack, ack.window), ([None; 3], 65535));
    assert_eq!(script.segment(&seg(ACK, IRS + 1 + 65536, ISS + 1), 10), Err(DropReason::OutsideWindow));
}

#[test]
fn an_mss_of_zero_or_none_does_no_harm() {
    for (mss, our, expected) in
        [(Some(0), MSS, 48), (Some(1), MSS, 48), (Some(9000), MSS, MSS), (Some(500), 0, 48)]
    {
        let flow = TcpFlow::from_guest(&TcpHeader { mss, ..syn() }, ISS, our, us(0));
        assert_eq!(flow.segment(), expected, "{mss:?}");
    }
}

#[test]
fn a_refused_connect_resets_the_guest_and_an_unreachable_one_is_told_by_icmp() {
    for (error, unreachable) in [
        (HostError::Refused, false),
        (HostError::Exhausted, false),
        (HostError::NetUnreachable, true),
        (HostError::HostUnreachable, true),
        (HostError::Prohibited, true),
        (HostError::TimedOut, true),
    ] {
        let mut script = Script::connecting(&syn());
        let ops = script.host(HostEvent::Failed(error));
        assert_eq!(ops.contains(&Output::Unreachable(error)), unreachable);
        assert!(ops.ends_with(&[Output::ResetHost, Output::Closed(CloseReason::Host(error))]));
        let expected: &[_] = if unreachable { &[] } else { &[(RST | ACK, 0, 1, 0)] };
        // The RST's own position means nothing to a guest in SYN-SENT.
        let sent: Vec<_> = script.segments.iter().map(|(h, _)| (h.flags, 0, (h.ack - IRS), 0)).collect();
        assert_eq!(sent, expected);
    }
}

#[test]
fn a_pending_connect_ends_with_its_flow() {
    let mut script = Script::connecting(&syn());
    script.segment(&seg(RST, IRS + 1, ISS), 0).unwrap();
    assert_eq!(script.ops[1..], [Output::ResetHost, Output::Closed(CloseReason::GuestReset)]);

    let mut script = Script::connecting(&syn());
    script.flow.handle_guest_gone();
    assert_eq!(script.drain(), [Output::ResetHost, Output::Closed(CloseReason::GuestGone)]);

    let mut script = Script::connecting(&syn());
    assert_eq!(script.jump(), HALF_OPEN);
    assert_eq!(script.ops[1..], [Output::ResetHost, Output::Closed(CloseReason::GuestTimedOut)]);
}

#[test]
fn a_syn_ack_that_is_never_acknowledged_is_given_up_after_a_minute() {
    let mut script = Script::syn_received(&syn());
    // However often the guest asks again.
    for _ in 0..20 {
        script.segment(&syn(), 0).unwrap_err();
    }
    assert_eq!(script.closed(), None);
    let start = script.now;
    while script.closed().is_none() {
        script.jump();
    }
    assert_eq!(script.closed(), Some(CloseReason::GuestTimedOut));
    assert!(script.now - start < Duration::from_secs(130));
    assert!(script.ops.contains(&Output::ResetHost));
}

#[test]
fn a_syn_to_a_guest_backs_off_and_is_given_up_after_a_minute() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.drain();
    let mut times = Vec::new();
    while script.closed().is_none() {
        assert!(script.segments.len() <= 6);
        times.push(script.jump().as_secs());
    }
    assert_eq!(times, [1, 2, 4, 8, 16, 32]);
    assert_eq!(script.segments.len(), 7);
    assert_eq!(script.segments[6].0.flags, RST | ACK);
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::GuestTimedOut)]);
}

#[test]
fn a_forwarded_connection_opens_with_the_guests_syn_ack() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.host(HostEvent::SendSpace { free: ROOM });
    script.host_sends(100);
    let syn_out = script.only_segment();
    assert_eq!((syn_out.flags, syn_out.src_port, syn_out.dst_port), (TcpFlags::SYN, 50000, 22));
    assert!(syn_out.window_scale.is_some() && syn_out.sack_permitted);
    // An ACK of something else gets nothing (it is a stray), the right one opens.
    let syn_ack = TcpHeader { flags: TcpFlags::SYN | ACK, ack: ISS + 7, ..syn() };
    assert_eq!(script.segment(&syn_ack, 0), Err(DropReason::BadAck));
    script.segment(&TcpHeader { ack: ISS + 1, ..syn_ack }, 0).unwrap();
    assert_eq!(script.flow.state_name(), "ESTABLISHED");
    assert_eq!(script.sent(), [(ACK, 1, 1, 100)]);
}

#[test]
fn a_guest_that_refuses_resets_the_hosts_peer() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.drain();
    assert_eq!(script.segment(&seg(RST | ACK, SeqNumber(0), ISS), 0), Err(DropReason::BadAck));
    script.segment(&seg(RST | ACK, SeqNumber(0), ISS + 1), 0).unwrap();
    assert_eq!(script.ops, [Output::ResetHost, Output::Closed(CloseReason::GuestReset)]);
}

#[test]
fn both_sides_may_begin_at_once() {
    let mut script = Script::new(TcpFlow::to_guest(22, 50000, ISS, MSS, us(0)));
    script.host(HostEvent::SendSpace { free: ROOM });
    script.sent();
    script.segment(&TcpHeader { window: 3000, ..syn() }, 0).unwrap();
    assert_eq!(script.sent(), [(TcpFlags::SYN | ACK, 0, 1, 0)]);
    // The guest's SYN-ACK, with bytes behind the SYN: its window is not scaled.
    let syn_ack = TcpHeader { flags: TcpFlags::SYN | ACK, ack: ISS + 1, window: 3000, ..syn() };
    let accept = script.segment(&syn_ack, 10).unwrap();
    assert_eq!(accept, Accept::Deliver { payload: 0..10, at: IRS + 1 });
    assert_eq!(script.sent(), [(ACK, 1, 11, 0)]);
    script.host_sends(10_000);
    assert_eq!(script.segments.iter().map(|(_, len)| len).sum::<u32>(), 3000);
}

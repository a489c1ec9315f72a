//! The guest's stream.

use super::*;

#[test]
fn only_what_the_host_took_is_acknowledged() {
    let mut script = Script::open();
    let header = seg(ACK, IRS + 1, ISS + 1);
    assert_eq!(
        script.flow.handle_segment(&header, 1000, script.now),
        Ok(Accept::Deliver { payload: 0..1000, at: IRS + 1 })
    );
    // A second segment of the same batch.
    let next = seg(ACK, IRS + 1001, ISS + 1);
    assert_eq!(
        script.flow.handle_segment(&next, 1000, script.now),
        Ok(Accept::Deliver { payload: 0..1000, at: IRS + 1001 })
    );
    script.room = 0;
    script.host(HostEvent::Wrote { len: 1500, kept: 200 });
    assert_eq!(script.sent(), [(ACK, 1, 1501, 0)]);
    // Then the room comes: what was kept goes first, then what the guest sends again.
    script.room = ROOM;
    assert_eq!(
        script.host(HostEvent::SendSpace { free: ROOM }),
        [Output::WriteKept { at: IRS + 1501, len: 200 }]
    );
    assert_eq!(script.sent(), [(ACK, 1, 1701, 0)]);
    assert_eq!(script.segment(&next, 1000), Ok(Accept::Deliver { payload: 700..1000, at: IRS + 1701 }));
    assert_eq!(script.flow.bytes_out(), 2000);
}

#[test]
fn bytes_out_of_order_are_kept_and_told_by_sack() {
    let mut script = Script::open();
    assert_eq!(
        script.segment(&seg(ACK, IRS + 2001, ISS + 1), 1000),
        Ok(Accept::Keep { payload: 0..1000, at: IRS + 2001 })
    );
    let ack = script.only_segment();
    assert_eq!(ack.ack, IRS + 1);
    assert_eq!(ack.sack, [Some((IRS + 2001, IRS + 3001)), None, None]);
    // Also when host bytes have just gone out, which carry no SACK.
    script.flow.handle_segment(&seg(ACK, IRS + 4001, ISS + 1), 1000, script.now).unwrap();
    script.host_sends(500);
    assert_eq!(script.segments.len(), 2);
    assert_eq!(script.segments[0].1, 500);
    assert_eq!(script.segments[1].0.sack[1], Some((IRS + 4001, IRS + 5001)));
    script.segments.clear();
    // The hole is filled: what was kept behind it is written.
    script.segment(&seg(ACK, IRS + 1, ISS + 1), 2000).unwrap();
    assert_eq!(script.ops, [Output::WriteKept { at: IRS + 2001, len: 1000 }]);
    assert_eq!(script.segments.pop().unwrap().0.ack, IRS + 3001);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut script = Script::open();
    let mut kept = 0;
    script.host(HostEvent::SendSpace { free: 10 << 20 });
    for n in 0..400 {
        match script.segment(&seg(ACK, IRS + 2 + 1000 * n, ISS + 1), 1000) {
            Ok(Accept::Keep { payload, .. }) => kept += payload.len(),
            other => assert_eq!(other, Err(DropReason::OutOfOrderFull)),
        }
    }
    assert!(kept <= MAX_KEPT_LEN && kept > MAX_KEPT_LEN - 1000, "{kept}");
}

const MAX_KEPT_LEN: usize = crate::tcp::MAX_KEPT as usize;

#[test]
fn a_window_that_was_shut_is_announced_again() {
    let mut script = Script::open();
    script.flow.handle_segment(&seg(ACK, IRS + 1, ISS + 1), 2000, script.now).unwrap();
    script.flow.handle_host(HostEvent::Wrote { len: 2000, kept: 0 }, script.now);
    script.flow.handle_host(HostEvent::SendSpace { free: 0 }, script.now);
    let mut window = u32::MAX;
    let mut at = 2001;
    // The guest fills what it was promised.
    while window > 0 {
        while let Some(output) = script.flow.poll_output(script.now) {
            match output {
                Output::Segment(header) => window = u32::from(header.window) << 8,
                Output::WatchSendSpace => {
                    script.flow.handle_host(HostEvent::SendSpace { free: 0 }, script.now);
                }
                other => panic!("{other:?}"),
            }
        }
        if window > 0 {
            script.flow.handle_segment(&seg(ACK, IRS + at, ISS + 1), window as usize, script.now).unwrap();
            script.flow.handle_host(HostEvent::Wrote { len: window, kept: 0 }, script.now);
            at += window;
        }
    }
    script.host(HostEvent::SendSpace { free: ROOM });
    let update = script.segments.pop().unwrap().0;
    assert!(u32::from(update.window) << 8 > 90_000);
}

/// At an MTU of 65520 a guest with a window of 60 kB sends nothing.
#[test]
fn room_is_looked_for_when_a_full_segment_has_none() {
    let mut script = Script::open();
    script.host(HostEvent::SendSpace { free: 1 << 20 });
    let full = 65_480_u32;
    let mut at = 1;
    let mut watched = false;
    // The guest sends full segments as long as there is room for one.
    while !watched {
        script.flow.handle_segment(&seg(ACK, IRS + at, ISS + 1), full as usize, script.now).unwrap();
        script.flow.handle_host(HostEvent::Wrote { len: full, kept: 0 }, script.now);
        at += full;
        let free = (1_u32 << 20).saturating_sub(at);
        script.flow.handle_host(HostEvent::SendSpace { free }, script.now);
        while let Some(output) = script.flow.poll_output(script.now) {
            watched |= output == Output::WatchSendSpace;
        }
        assert!(watched || free >= full, "nobody looks for room, and there is none for a segment");
    }
    script.host(HostEvent::SendSpace { free: 1 << 20 });
    let update = script.segments.pop().unwrap().0;
    assert!(u32::from(update.window) << 8 > 1_000_000);
}

#[test]
fn room_is_looked_for_soon_though_no_edge_came() {
    let mut script = Script::open();
    script.flow.handle_segment(&seg(ACK, IRS + 1, ISS + 1), 99_000, script.now).unwrap();
    script.flow.handle_host(HostEvent::Wrote { len: 99_000, kept: 0 }, script.now);
    let mut watched = 0;
    let start = script.now;
    for _ in 0..3 {
        while let Some(output) = script.flow.poll_output(script.now) {
            if output == Output::WatchSendSpace {
                watched += 1;
                script.flow.handle_host(HostEvent::SendSpace { free: 0 }, script.now);
            }
        }
        script.now = script.flow.poll_timeout().unwrap();
        script.flow.handle_timeout(script.now);
    }
    assert_eq!(watched, 3);
    assert!(script.now - start <= Duration::from_millis(100));
}

#[test]
fn urgent_data_is_data() {
    let mut script = Script::open();
    let header = seg(TcpFlags::URG | ACK, IRS + 1, ISS + 1);
    assert_eq!(script.segment(&header, 10), Ok(Accept::Deliver { payload: 0..10, at: IRS + 1 }));
}

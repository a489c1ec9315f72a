//! Kicks and interrupts: none too few, and few enough.

use std::os::fd::AsFd;
use std::thread;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use usernet_link::LinkTx;

use super::*;

const SECONDS: i64 = 30;

fn is_readable(fd: impl AsFd, seconds: i64) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() > 0
}

#[test]
fn a_driver_without_event_indices_is_told_as_its_flags_say() {
    let mut guest = guest(8, feature::VERSION_1 | feature::MRG_RXBUF);
    let at = guest.heap();
    assert_eq!(guest.receive().unwrap(), None);
    let kicks = |guest: &mut RingGuest, head| {
        guest.memory.write(at + 12, &bytes(60));
        let driver = &mut guest.queues[TRANSMIT].driver;
        driver.chain(head, &[(at, 72)], 0);
        driver.offer(head);
        driver.publish(false)
    };
    assert!(kicks(&mut guest, 0), "the device waits for it");
    assert_eq!(guest.receive().unwrap(), Some(1));
    assert!(!kicks(&mut guest, 1), "the device is at work");
    assert_eq!(guest.receive().unwrap(), Some(1));
    assert!(guest.interrupted(TRANSMIT));
    guest.queues[TRANSMIT].driver.no_interrupt(true);
    assert_eq!(guest.receive().unwrap(), None);
    assert!(!guest.interrupted(TRANSMIT));
    assert!(kicks(&mut guest, 2));
}

#[test]
fn a_ring_that_is_full_has_room_again_when_the_guest_says_so() {
    for features in [ALL, feature::VERSION_1] {
        let mut guest = guest(4, features);
        let at = guest.heap();
        for head in 0..2 {
            offer(&mut guest, head, at, 2048);
        }
        assert!(guest.tx.flush().unwrap());
        assert!(send(&mut guest, &bytes(100)));
        assert!(send(&mut guest, &bytes(100)));
        assert!(!send(&mut guest, &bytes(100)));
        while !guest.tx.flush().unwrap() && is_readable(guest.tx.as_fd(), 0) {}
        assert!(!is_readable(guest.tx.as_fd(), 0), "nobody says so before");
        assert!(!guest.tx.flush().unwrap());
        offer(&mut guest, 2, at, 2048);
        assert!(is_readable(guest.tx.as_fd(), SECONDS), "the driver was asked to tell");
        assert!(guest.tx.flush().unwrap());
        assert!(send(&mut guest, &bytes(100)));
        assert!(guest.tx.flush().unwrap());
        assert_eq!(guest.queues[RECEIVE].driver.take_back().len(), 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whoever sleeps while there is something for them has been told: in whatever order they do what.
    #[test]
    fn no_wake_up_is_lost(
        steps in prop::collection::vec((0..4_u8, 1..4_u16), 1..60),
        event_idx in any::<bool>(),
        base in prop_oneof![Just(0), 65_530..=65_535_u16],
    ) {
        let features = if event_idx { ALL } else { ALL & !feature::EVENT_IDX };
        let mut guest = guest(16, features);
        guest.renew(TRANSMIT, base).unwrap();
        let at = guest.heap();
        let (mut device_sleeps, mut driver_sleeps) = (false, false);
        for (step, count) in steps {
            match step {
                // The driver sends, as far as it has room.
                0 => {
                    let driver = &mut guest.queues[TRANSMIT].driver;
                    for _ in 0..count.min(16 - (driver.next.wrapping_sub(driver.seen))) {
                        let head = driver.next % 16;
                        driver.chain(head, &[(at, 72)], 0);
                        driver.offer(head);
                    }
                    guest.publish(TRANSMIT);
                }
                // The worker has a turn, if it is awake or was woken.
                1 => {
                    if !device_sleeps || is_readable(guest.rx.as_ref().unwrap().as_fd(), 0) {
                        device_sleeps = guest.receive().unwrap().is_none();
                    }
                }
                // The driver takes back what there is, and sleeps until there are `count` more.
                2 => {
                    if driver_sleeps && !guest.interrupted(TRANSMIT) {
                        continue;
                    }
                    guest.queues[TRANSMIT].driver.take_back();
                    let driver = &mut guest.queues[TRANSMIT].driver;
                    driver.want_interrupt(driver.seen.wrapping_add(count - 1));
                    driver_sleeps = event_idx;
                }
                _ => {
                    // It polls, and wants no interrupts.
                    if !event_idx {
                        guest.queues[TRANSMIT].driver.no_interrupt(true);
                        guest.queues[TRANSMIT].driver.take_back();
                        guest.queues[TRANSMIT].driver.no_interrupt(false);
                    }
                }
            }
            let driver = &guest.queues[TRANSMIT].driver;
            let waiting = driver.next != driver.used_index();
            if device_sleeps && waiting {
                prop_assert!(is_readable(guest.rx.as_ref().unwrap().as_fd(), 0), "the device sleeps");
            }
            let event = driver.memory.u16(driver.available + 4 + 32);
            let passed = driver.used_index().wrapping_sub(driver.seen) > event.wrapping_sub(driver.seen);
            if driver_sleeps && passed {
                prop_assert!(guest.interrupted(TRANSMIT), "the driver sleeps");
                driver_sleeps = false;
            }
        }
    }
}

/// What little was sent is seen to be taken at once, and interrupts when the worker is to sleep.
#[test]
fn little_that_was_sent_interrupts_late() {
    let mut guest = guest(4, ALL);
    let at = guest.heap();
    guest.memory.write(at + 12, &bytes(60));
    let _ = guest.interrupted(TRANSMIT);
    let mut rx = guest.rx.take().unwrap();
    let driver = &mut guest.queues[TRANSMIT].driver;
    driver.want_interrupt(driver.seen);
    driver.chain(0, &[(at, 72)], 0);
    driver.offer(0);
    guest.publish(TRANSMIT);
    assert_eq!(rx.receive().unwrap(), Some(1));
    assert_eq!(rx.receive().unwrap(), None);
    assert_eq!(guest.queues[TRANSMIT].driver.take_back().len(), 1);
    assert!(!guest.interrupted(TRANSMIT));
    rx.settle();
    assert!(guest.interrupted(TRANSMIT));
}

/// Two threads that sleep whenever they can.
#[test]
fn two_that_sleep_wake_each_other() {
    const FRAMES: u16 = 20_000;
    for features in [ALL, ALL & !feature::EVENT_IDX] {
        let mut guest = guest(4, features);
        let at = guest.heap();
        let mut rx = guest.rx.take().unwrap();
        guest.memory.write(at + 12, &bytes(60));
        for index in [RECEIVE, TRANSMIT] {
            let _ = guest.interrupted(index);
        }
        let event_idx = features & feature::EVENT_IDX != 0;
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut frames = 0;
                while frames < usize::from(FRAMES) {
                    match rx.receive().unwrap() {
                        Some(count) => frames += count,
                        None => {
                            rx.settle();
                            assert!(is_readable(rx.as_fd(), SECONDS), "a kick is lost, {frames} frames");
                        }
                    }
                }
                let _ = rx.receive();
                rx.settle();
            });
            let call = guest.queues[TRANSMIT].interrupts();
            for _ in 0..FRAMES {
                let driver = &mut guest.queues[TRANSMIT].driver;
                driver.want_interrupt(driver.seen);
                while driver.next.wrapping_sub(driver.seen) == 4 && driver.take_back().is_empty() {
                    assert!(is_readable(&call, SECONDS), "an interrupt is lost");
                    let _ = rustix::io::read(&call, &mut [0; 8]);
                    driver.want_interrupt(driver.seen);
                }
                let head = driver.next % 4;
                driver.chain(head, &[(at, 72)], 0);
                driver.offer(head);
                if driver.publish(event_idx) {
                    guest.kick(TRANSMIT);
                }
            }
            worker.join().unwrap();
        });
    }
}

/// The same the other way: a full ring, and a driver that fills it.
#[test]
fn a_full_ring_and_a_driver_that_fills_it_wake_each_other() {
    const FRAMES: usize = 20_000;
    for features in [ALL, ALL & !feature::EVENT_IDX] {
        let mut guest = guest(4, features);
        let at = guest.heap();
        let event_idx = features & feature::EVENT_IDX != 0;
        let call = guest.queues[RECEIVE].interrupts();
        let RingGuest { tx, queues, .. } = &mut guest;
        let tx: &mut dyn LinkTx = &mut **tx;
        let [receive, _] = queues;
        let kick = receive.kick();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let mut frames = 0;
                while frames < FRAMES {
                    if tx.send(&[IoSlice::new(&[7; 100])], Offload::default()).unwrap() {
                        frames += 1;
                    } else if !tx.flush().unwrap() {
                        assert!(is_readable(tx.as_fd(), SECONDS), "a kick is lost, {frames} frames");
                    }
                }
                tx.flush().unwrap();
            });
            let driver = &mut receive.driver;
            let mut came = 0;
            while came < FRAMES {
                came += driver.take_back().len();
                let mut new = false;
                while driver.next.wrapping_sub(driver.seen) < 4 {
                    let head = driver.next % 4;
                    driver.chain(head, &[(at, 2048)], WRITE);
                    driver.offer(head);
                    new = true;
                }
                if new && driver.publish(event_idx) {
                    rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
                }
                driver.want_interrupt(driver.seen);
                if driver.seen == driver.used_index() && came < FRAMES {
                    assert!(is_readable(&call, SECONDS), "an interrupt is lost, {came} frames");
                    let _ = rustix::io::read(&call, &mut [0; 8]);
                }
            }
            worker.join().unwrap();
        });
    }
}

/// Nobody waits at a kick that others have made a blocking one, or whose other end is closed.
#[test]
fn strange_kicks_make_nobody_wait() {
    let mut guest = guest(8, ALL);
    rustix::io::ioctl_fionbio(guest.queues[TRANSMIT].kick(), false).unwrap();
    for _ in 0..3 {
        assert_works(&mut guest);
        assert_eq!(guest.receive().unwrap(), None);
    }
    for index in [RECEIVE, TRANSMIT] {
        guest.renew(index, 0).unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ring = guest.ring(index);
        guest.change(|device| device.start(index, ring, 0, ours.into())).unwrap();
        drop(theirs);
        for _ in 0..3 {
            assert_eq!(guest.receive().unwrap(), None);
            assert!(!send(&mut guest, &bytes(60)));
            assert!(!guest.tx.flush().unwrap());
        }
        assert!(guest.device.trouble().is_some());
        assert!(!is_readable(guest.rx.as_ref().unwrap().as_fd(), 0), "it is not ready for ever");
        assert!(!is_readable(guest.tx.as_fd(), 0), "it is not ready for ever");
    }
}

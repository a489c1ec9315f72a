//! The store for what came out of order, against a plain map of positions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::io::IoSlice;

use support::{Dice, stream_bytes};
use usernet_core::tcp::SeqNumber;
use usernet_host::kept::Kept;

/// The bytes that are held from `at` on.
fn held(kept: &Kept, at: SeqNumber) -> Vec<u8> {
    lent(kept, at, usize::MAX)
}

fn lent(kept: &Kept, at: SeqNumber, max: usize) -> Vec<u8> {
    let mut slices = Vec::new();
    let len = kept.slices(at, max, &mut slices);
    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
    assert_eq!(bytes.len(), len);
    bytes
}

#[test]
fn holds_what_a_map_of_positions_holds() {
    // The stream passes the end of the sequence space on the way.
    let start = SeqNumber(u32::MAX - 20_000);
    let stream = stream_bytes(0, 100_000);
    let mut kept = Kept::new(1 << 20);
    let mut map = BTreeMap::new();
    let mut dice = Dice::new(99);
    let mut front = 0;
    for _ in 0..4000 {
        let at = front + dice.roll(3000);
        let bytes = &stream[at..at + dice.roll(400)];
        let (one, two) = bytes.split_at(bytes.len() / 3);
        let len = kept.keep(start + u32::try_from(at).unwrap(), &[IoSlice::new(one), IoSlice::new(two)]);
        assert_eq!(len, bytes.len());
        map.extend((at..).zip(bytes.iter().copied()));
        if dice.roll(8) == 0 {
            front = (front + dice.roll(600)).min(stream.len() - 4000);
            kept.release(start + u32::try_from(front).unwrap());
            map = map.split_off(&front);
        }
        let look = front + dice.roll(3400);
        let expected: Vec<u8> = (look..).map_while(|at| map.get(&at).copied()).collect();
        assert!(held(&kept, start + u32::try_from(look).unwrap()) == expected, "at {look}");
        assert_eq!(kept.len(), map.len());
    }
    kept.release(start + 1_000_000);
    assert!(kept.is_empty());
}

#[test]
fn lends_no_more_than_it_is_asked_for() {
    let mut kept = Kept::new(100);
    kept.keep(SeqNumber(14), &[IoSlice::new(b"efgh")]);
    kept.keep(SeqNumber(10), &[IoSlice::new(b"abcd")]);
    assert_eq!(lent(&kept, SeqNumber(11), 5), b"bcdef");
}

#[test]
fn keeps_the_start_of_what_exceeds_the_bound() {
    let mut kept = Kept::new(10);
    assert_eq!(kept.keep(SeqNumber(5), &[IoSlice::new(b"12345678")]), 8);
    assert_eq!(kept.keep(SeqNumber(5), &[IoSlice::new(b"12345678"), IoSlice::new(b"abc")]), 8);
    assert_eq!(kept.keep(SeqNumber(20), &[IoSlice::new(b"ab")]), 2);
    assert_eq!((kept.len(), held(&kept, SeqNumber(5))), (10, b"12345678".to_vec()));
}

#[test]
fn single_bytes_with_gaps_are_bounded_and_those_without_are_not() {
    let mut kept = Kept::new(1 << 20);
    let scattered = (0..1000).filter(|n| kept.keep(SeqNumber(2 * n), &[IoSlice::new(b"x")]) == 1).count();
    assert!((4..=100).contains(&scattered), "{scattered}");
    kept.release(SeqNumber(10_000));
    // From the last to the first, so that none follows one that is held.
    for n in (0..1000).rev() {
        assert_eq!(kept.keep(SeqNumber(20_000 + n), &[IoSlice::new(b"x")]), 1);
    }
    assert_eq!(held(&kept, SeqNumber(20_000)).len(), 1000);
}

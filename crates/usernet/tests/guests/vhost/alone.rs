//! What is counted of a whole process: its descriptors, threads and time. Each of these tests runs itself in a
//! process of its own.

use std::net::SocketAddrV4;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use usernet::Network;
use usernet_testkit::driver::GuestMemory;
use usernet_testkit::nic::{NicConfig, feature};
use usernet_testkit::{App, digest_of};

use super::guest::{guest_with_address, run};
use super::raw::{self, Raw, bell, words64};
use super::source;
use crate::GATEWAY;
use crate::guest::{SOON, network};

const ALONE: &str = "USERNET_TEST_ALONE";

/// Whether this process runs nothing but the test of this name. If not, it runs one that does.
fn alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let name = format!("vhost::alone::{name}");
    let test = std::env::current_exe().unwrap();
    let run = Command::new(test).args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"), "there is no test {name}");
    false
}

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// How many threads and descriptors there are.
fn count() -> [usize; 2] {
    [entries("/proc/self/task"), entries("/proc/self/fd")]
}

/// Waits until there are so many again.
fn wait_for(before: [usize; 2]) {
    let deadline = Instant::now() + SOON;
    while count() != before {
        assert!(Instant::now() < deadline, "threads and descriptors: {:?}, and were {before:?}", count());
        std::thread::yield_now();
    }
}

/// Processor time of this process.
fn time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

fn ports(network: &Network) -> usize {
    network.handle().ports().unwrap().len()
}

#[test]
fn front_ends_that_come_and_go_leave_nothing() {
    if !alone("front_ends_that_come_and_go_leave_nothing") {
        return;
    }
    let network = network(2);
    let memory = GuestMemory::new(1 << 20, 1 << 16);
    let before = count();
    for n in 0..300 {
        let raw = Raw::with_pairs(&network, 1 + n % 2);
        match n % 5 {
            // It says nothing, or a part of a message.
            0 => {}
            1 => raw.send(&[1, 0, 0], &[memory.file().as_fd()]),
            // It has a device that works, and goes.
            2 => drop(raw.set_up(&memory)),
            // It makes a mistake.
            3 => {
                raw.set_up(&memory);
                raw.say(99, &[], &[bell().as_fd(), memory.file().as_fd()]);
            }
            // It is unplugged in the midst of whatever it says.
            _ => {
                raw.set_up(&memory);
                raw.send(&[1, 0, 0], &[memory.file().as_fd()]);
                network.handle().detach(raw.port).unwrap();
                assert_eq!(raw.end(), "detached");
            }
        }
    }
    wait_for(before);
    assert_eq!(ports(&network), 0);
}

#[test]
fn descriptors_do_not_gather() {
    if !alone("descriptors_do_not_gather") {
        return;
    }
    let network = network(1);
    let raw = Raw::plug_in(&network);
    let bell = bell();
    raw.say(raw::GET_FEATURES, &[], &[]);
    raw.answer();
    let [_, before] = count();
    for n in 0..20_000 {
        raw.say(raw::SET_VRING_CALL, &words64(&[n % 2]), &[bell.as_fd()]);
        let [_, now] = count();
        assert!(now < before + 20, "{now} descriptors after {n} messages, and were {before}");
    }
}

#[test]
fn a_guest_without_room_costs_nothing_and_loses_nothing() {
    const MUCH: u64 = 32 << 20;
    if !alone("a_guest_without_room_costs_nothing_and_loses_nothing") {
        return;
    }
    let network = network(1);
    for features in [0, feature::EVENT_IDX | feature::MRG_RXBUF | feature::OFFLOADS] {
        let mut guest = [guest_with_address(&network, NicConfig::new(features, 64), 1)];
        let app = App { buffer: 4 << 20, ..App::default() };
        let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, source(5, MUCH)), app);
        run(&mut guest, "the first bytes", |guest| guest[0].smol.received(stream) > 0);
        // It keeps its buffers until there are none left.
        guest[0].nic.hoarding = true;
        run(&mut guest, "the last buffer", |guest| guest[0].nic.outstanding() == 0);

        let (start, frames) = (Instant::now(), guest[0].info(&network).unwrap().traffic.tx_frames);
        let before = time();
        // Nothing happens, which is what is looked at. The guest itself looks at its rings 50 times a second.
        run(&mut guest, "some time", |_| start.elapsed() > Duration::from_secs(2));
        let spent = time() - before;
        assert!(spent < Duration::from_millis(400), "{spent:?} of work for a guest without room");
        assert_eq!(guest[0].info(&network).unwrap().traffic.tx_frames, frames);

        guest[0].nic.refill();
        run(&mut guest, "the rest", |guest| guest[0].smol.received(stream) == MUCH);
        assert_eq!(guest[0].smol.digest(stream), digest_of(5, MUCH));
        network.handle().detach(guest[0].port).unwrap();
    }
}

#[test]
fn what_notifies_for_ever_costs_nothing() {
    if !alone("what_notifies_for_ever_costs_nothing") {
        return;
    }
    let network = network(1);
    let memory = GuestMemory::new(1 << 20, 1 << 16);
    let raw = Raw::plug_in(&network);
    raw.set_up(&memory);
    // It works at first.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    for queue in 0..2 {
        raw.say(raw::SET_VRING_KICK, &words64(&[queue]), &[reader.as_fd()]);
    }
    raw.say(raw::GET_FEATURES, &[], &[]);
    raw.answer();
    assert_eq!(raw.trouble(), None);
    drop(writer);
    let deadline = Instant::now() + SOON;
    while raw.trouble().is_none() {
        assert!(Instant::now() < deadline, "nobody minds");
        std::thread::yield_now();
    }
    let trouble = raw.trouble().unwrap();
    assert!(trouble.contains("closed at its other end"), "{trouble}");
    // Nothing is to happen in this time.
    let (start, before) = (Instant::now(), time());
    std::thread::park_timeout(Duration::from_secs(1));
    let (spent, passed) = (time() - before, start.elapsed());
    assert!(spent < passed / 4, "{spent:?} of work in {passed:?} for a kick that is always readable");
}

//! Front ends that say what makes no sense lose their own guest, with a reason, and nothing else happens.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use usernet::Network;
use usernet_testkit::driver::{Descriptor, GuestMemory};
use usernet_testkit::{App, Close, digest_of};

use super::guest::RINGS;
use super::raw::{self, Raw, address, bell, table, words, words64};
use crate::GATEWAY;
use crate::guest::{self, SOON, echo_server, guest_with_address, network};

/// A guest on a stream that sends and receives all the time.
struct Bystander {
    transfers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Bystander {
    fn plug_in(network: &Network) -> Self {
        let (transfers, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut guest = [guest_with_address(network, 1, 200)];
        let (counter, over) = (Arc::clone(&transfers), Arc::clone(&stop));
        let transfer = move || {
            while !over.load(Ordering::Relaxed) {
                let app = App { seed: 3, send: 100_000, close: Close::Sent, ..App::default() };
                let stream = guest[0].smol.connect(SocketAddrV4::new(GATEWAY, echo_server()), app);
                guest::run(&mut guest, "the bystander's echo", |guest| {
                    guest[0].smol.received(stream) == app.send
                });
                assert_eq!(guest[0].smol.digest(stream), digest_of(3, app.send));
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        Self { transfers, stop, thread: thread::spawn(transfer) }
    }

    /// Waits until another whole transfer was made.
    fn goes_on(&self) {
        let before = self.transfers.load(Ordering::Relaxed);
        let deadline = Instant::now() + SOON;
        while self.transfers.load(Ordering::Relaxed) < before + 2 {
            assert!(!self.thread.is_finished() && Instant::now() < deadline, "the bystander is hurt");
            thread::yield_now();
        }
    }

    fn leave(self) {
        self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn memory() -> GuestMemory {
    GuestMemory::new(1 << 20, 1 << 16)
}

/// What a front end says, and how its guest's end is told.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Raw));

fn try_all(cases: &[Case<'_>]) {
    let network = network(1);
    let bystander = Bystander::plug_in(&network);
    for (why, say) in cases {
        let mut raw = Raw::plug_in(&network);
        say(&mut raw);
        let said = raw.end();
        assert!(said.contains(why), "{said:?} where {why:?} was expected");
        bystander.goes_on();
    }
    bystander.leave();
    assert!(network.handle().ports().unwrap().len() <= 1, "none of them is left");
}

#[test]
fn messages_that_are_none() {
    let file = memory();
    let file = file.file().as_fd();
    try_all(&[
        ("flags 0x0, where version 1", &|raw| raw.send(&words(&[1, 0, 0]), &[])),
        ("flags 0x5, where version 1", &|raw| raw.send(&words(&[1, 5, 0]), &[])),
        ("a message of 4097 bytes", &|raw| raw.send(&words(&[2, 1, 4097]), &[])),
        ("a message of 4294967295 bytes", &|raw| raw.send(&words(&[2, 1, u32::MAX]), &[])),
        ("message 0 makes no sense: it is not known here", &|raw| raw.say(0, &[], &[])),
        ("message 4294967295 makes no sense", &|raw| raw.say(u32::MAX, &[], &[])),
        ("message SET_FEATURES makes no sense: it has only 4 bytes", &|raw| {
            raw.say(raw::SET_FEATURES, &[0; 4], &[])
        }),
        ("message SET_FEATURES makes no sense: it has only 0 bytes", &|raw| {
            raw.say(raw::SET_FEATURES, &[], &[])
        }),
        ("features 0x8000000000000000 were not offered", &|raw| {
            raw.say(raw::SET_FEATURES, &words64(&[1 << 63]), &[]);
        }),
        ("more than 8 descriptors", &|raw| raw.say(raw::SET_FEATURES, &words64(&[0]), &[file; 9])),
        ("more than 8 descriptors", &|raw| raw.say(raw::SET_FEATURES, &words64(&[0]), &[file; 64])),
        ("more than 8 descriptors", &|raw| {
            let message = [words(&[raw::SET_FEATURES, 1, 4096]), vec![0; 4096]].concat();
            message.chunks(1).take(100).for_each(|byte| raw.send(byte, &[file; 4]));
        }),
        // It goes in the midst of one.
        ("the guest closed the link", &|raw| {
            raw.send(&[1, 0, 0, 0, 1], &[file]);
            raw.stream.shutdown(std::net::Shutdown::Both).unwrap();
        }),
        ("there is no queue 2", &|raw| raw.say(raw::SET_VRING_NUM, &words(&[2, 256]), &[])),
        ("there is no queue 4294967295", &|raw| raw.say(raw::SET_VRING_BASE, &words(&[u32::MAX, 0]), &[])),
        ("there is no queue 9", &|raw| raw.say(raw::GET_VRING_BASE, &words(&[9, 0]), &[])),
        ("there is no queue 255", &|raw| {
            raw.say(raw::SET_VRING_CALL, &words64(&[255]), &[bell().as_fd()]);
        }),
        ("beyond the configuration space", &|raw| {
            raw.say(raw::GET_CONFIG, &words(&[u32::MAX, u32::MAX, 0]), &[]);
        }),
        ("beyond the configuration space", &|raw| raw.say(raw::GET_CONFIG, &words(&[200, 100, 0]), &[])),
    ]);
}

#[test]
fn memory_that_is_none() {
    let memory = memory();
    let file = memory.file().as_fd();
    let directory = File::open("/").unwrap();
    let region = |guest: u64, len: u64, rings: u64, offset: u64| words64(&[guest, len, rings, offset]);
    let regions =
        |regions: &[Vec<u8>]| [words(&[u32::try_from(regions.len()).unwrap(), 0]), regions.concat()].concat();
    let first = region(0, 4096, 0, 0);
    let add = |raw: &mut Raw, region: Vec<u8>, files: &[BorrowedFd<'_>]| {
        raw.say(raw::ADD_MEM_REG, &[words64(&[0]), region].concat(), files);
    };
    try_all(&[
        ("1 regions and 0 descriptors", &|raw| raw.say(raw::SET_MEM_TABLE, &table(&memory), &[])),
        ("1 regions and 2 descriptors", &|raw| raw.say(raw::SET_MEM_TABLE, &table(&memory), &[file; 2])),
        ("4294967295 regions", &|raw| raw.say(raw::SET_MEM_TABLE, &words(&[u32::MAX, 0]), &[file])),
        ("only 36 bytes", &|raw| raw.say(raw::SET_MEM_TABLE, &table(&memory)[..36], &[file])),
        ("a region with 0 descriptors", &|raw| add(raw, first.clone(), &[])),
        ("a region with 2 descriptors", &|raw| add(raw, first.clone(), &[file; 2])),
        ("there is no such region", &|raw| {
            raw.say(raw::REM_MEM_REG, &[words64(&[0]), first.clone()].concat(), &[]);
        }),
        ("0x0 bytes at 0x0 is no region", &|raw| add(raw, region(0, 0, 0, 0), &[file])),
        ("is no region", &|raw| add(raw, region(u64::MAX, 4096, 0, 0), &[file])),
        ("is no region", &|raw| add(raw, region(0, 4096, u64::MAX - 4095, 0), &[file])),
        ("is no region", &|raw| add(raw, region(0, u64::MAX, 0, 1), &[file])),
        ("is no region", &|raw| add(raw, region(0, 4096, 0, u64::MAX), &[file])),
        ("is to be a memory file", &|raw| add(raw, first.clone(), &[directory.as_fd()])),
        ("is to be a memory file", &|raw| add(raw, first.clone(), &[bell().as_fd()])),
        ("the file has 65536 bytes only", &|raw| add(raw, region(0, 1 << 17, 0, 0), &[file])),
        ("the file has 65536 bytes only", &|raw| add(raw, region(0, 4096, 0, 1 << 16), &[file])),
        ("regions overlap", &|raw| {
            raw.say(
                raw::SET_MEM_TABLE,
                &regions(&[first.clone(), region(4095, 4096, 1 << 20, 0)]),
                &[file; 2],
            );
        }),
        ("regions overlap", &|raw| {
            raw.say(
                raw::SET_MEM_TABLE,
                &regions(&[first.clone(), region(1 << 20, 4096, 4095, 0)]),
                &[file; 2],
            );
        }),
        ("more than 509 regions", &|raw| (0..510).for_each(|_| add(raw, first.clone(), &[file]))),
        ("more memory than", &|raw| {
            let sparse = GuestMemory::new(0, 0);
            let sparse = sparse.file();
            sparse.set_len(1 << 45).unwrap();
            add(raw, region(0, 1 << 45, 0, 0), &[sparse.as_fd()]);
        }),
        ("more memory than", &|raw| {
            let sparse = GuestMemory::new(0, 0);
            let sparse = sparse.file();
            sparse.set_len(1 << 40).unwrap();
            (0..100).for_each(|n| add(raw, region(n << 40, 1 << 40, n << 40, 0), &[sparse.as_fd()]));
        }),
    ]);
}

#[test]
fn rings_that_are_none() {
    let memory = memory();
    let at = memory.start() + RINGS;
    // A queue that is started after something was said about it.
    let start = |raw: &mut Raw, request: u32, payload: Vec<u8>| {
        raw.say(raw::SET_FEATURES, &words64(&[1 << 32]), &[]);
        raw.say(raw::SET_MEM_TABLE, &table(&memory), &[memory.file().as_fd()]);
        raw.describe(1, &memory);
        raw.say(request, &payload, &[]);
        raw.say(raw::SET_VRING_KICK, &words64(&[1]), &[bell().as_fd()]);
    };
    let size = |raw: &mut Raw, size: u32| start(raw, raw::SET_VRING_NUM, words(&[1, size]));
    let place = |raw: &mut Raw, place: [u64; 3]| start(raw, raw::SET_VRING_ADDR, address(1, place));
    try_all(&[
        ("a ring of 0 descriptors", &|raw| size(raw, 0)),
        ("a ring of 3 descriptors", &|raw| size(raw, 3)),
        ("a ring of 65535 descriptors", &|raw| size(raw, 65_535)),
        ("a ring of 65536 descriptors", &|raw| size(raw, 65_536)),
        ("the descriptor ring is not in the guest's memory", &|raw| size(raw, 32_768)),
        ("a base of 65536", &|raw| start(raw, raw::SET_VRING_BASE, words(&[1, 65_536]))),
        ("the descriptor ring is not", &|raw| place(raw, [at + 8, at + 256, at + 512])),
        ("the descriptor ring is not", &|raw| place(raw, [0, at + 256, at + 512])),
        ("the descriptor ring is not", &|raw| place(raw, [at + 65_520, at + 256, at + 512])),
        ("the used ring is not", &|raw| place(raw, [at, at + 258, at + 512])),
        ("the used ring is not", &|raw| place(raw, [at, u64::MAX, at + 512])),
        ("the available ring is not", &|raw| place(raw, [at, at + 256, at + 513])),
        ("the available ring is not", &|raw| place(raw, [at, at + 256, at + 65_534])),
        ("dirty pages are not logged", &|raw| {
            let mut place = address(1, [at, at + 256, at + 512]);
            place[4] = 1;
            start(raw, raw::SET_VRING_ADDR, place);
        }),
        ("the guest shares no memory: QEMU needs", &|raw| {
            raw.say(raw::SET_VRING_NUM, &words(&[0, 4]), &[]);
            raw.say(raw::SET_VRING_KICK, &words64(&[0]), &[bell().as_fd()]);
        }),
        // Memory goes away under a ring that moves.
        ("ring is not in the guest's memory", &|raw| {
            raw.set_up(&memory);
            raw.say(raw::SET_MEM_TABLE, &words(&[0, 0]), &[]);
        }),
    ]);
}

#[test]
fn descriptors_that_are_none() {
    let memory = memory();
    let file = memory.file();
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap();
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let (directory, null) = (File::open("/").unwrap(), File::open("/dev/null").unwrap());
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(writer);
    let semaphore = eventfd(0, EventfdFlags::SEMAPHORE).unwrap();
    let kick = |raw: &mut Raw, fds: &[BorrowedFd<'_>], word: u64| {
        raw.say(raw::SET_VRING_KICK, &words64(&[word]), fds)
    };
    let call = |raw: &mut Raw, fds: &[BorrowedFd<'_>], word: u64| {
        raw.say(raw::SET_VRING_CALL, &words64(&[word]), fds)
    };
    try_all(&[
        ("it has a descriptor, or none, and says otherwise", &|raw| kick(raw, &[], 0)),
        ("it has a descriptor, or none, and says otherwise", &|raw| kick(raw, &[bell().as_fd()], 0x100)),
        ("it has a descriptor, or none, and says otherwise", &|raw| call(raw, &[], 1)),
        ("without a descriptor to kick", &|raw| kick(raw, &[], 0x100)),
        ("cannot notify", &|raw| kick(raw, &[file.as_fd()], 0)),
        ("cannot notify", &|raw| kick(raw, &[directory.as_fd()], 0)),
        ("cannot notify", &|raw| kick(raw, &[null.as_fd()], 0)),
        ("cannot notify", &|raw| kick(raw, &[timer.as_fd()], 0)),
        ("cannot notify", &|raw| kick(raw, &[poll.as_fd()], 0)),
        ("cannot notify", &|raw| call(raw, &[timer.as_fd()], 0)),
        ("cannot notify", &|raw| call(raw, &[file.as_fd()], 1)),
        ("closed at its other end", &|raw| kick(raw, &[reader.as_fd()], 1)),
        ("never quiet", &|raw| kick(raw, &[semaphore.as_fd()], 1)),
    ]);
}

#[test]
fn silence_in_the_midst_of_a_message() {
    let network = network(1);
    let bystander = Bystander::plug_in(&network);
    let raw = Raw::plug_in(&network);
    raw.send(&[1, 0, 0], &[]);
    bystander.goes_on();
    network.handle().detach(raw.port).unwrap();
    assert_eq!(raw.end(), "detached");
    bystander.leave();
}

#[test]
fn questions_whose_answers_are_not_read() {
    let network = network(1);
    let bystander = Bystander::plug_in(&network);
    let raw = Raw::plug_in(&network);
    raw.stream.set_nonblocking(true).unwrap();
    // More than the sockets hold in both directions.
    for _ in 0..20_000 {
        raw.say(raw::GET_FEATURES, &[], &[]);
    }
    bystander.goes_on();
    network.handle().detach(raw.port).unwrap();
    assert_eq!(raw.end(), "detached");
    bystander.leave();
}

#[test]
fn a_refusal_is_an_answer_where_one_is_wanted() {
    let network = network(1);
    let raw = Raw::plug_in(&network);
    raw.say(raw::SET_PROTOCOL_FEATURES, &words64(&[1 << 3]), &[]);
    for _ in 0..3 {
        raw.say_with(raw::SET_FEATURES, raw::VERSION | raw::NEED_REPLY, &words64(&[1 << 63]), &[]);
        assert_eq!(raw.answer(), words64(&[1]));
    }
    raw.say_with(raw::SET_FEATURES, raw::VERSION | raw::NEED_REPLY, &words64(&[1 << 32]), &[]);
    assert_eq!(raw.answer(), words64(&[0]), "it goes on after that");
}

#[test]
fn a_pipe_of_interrupts_that_nobody_reads() {
    let network = network(1);
    let bystander = Bystander::plug_in(&network);
    let memory = memory();
    let raw = Raw::plug_in(&network);
    let (reader, writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    let kicks = raw.set_up(&memory);
    raw.say(raw::SET_VRING_CALL, &words64(&[0]), &[writer.as_fd()]);
    raw.say(raw::SET_VRING_CALL, &words64(&[1]), &[writer.as_fd()]);
    // A frame, of which the guest is to be interrupted when it was taken.
    let ring = memory.start() + 1024;
    let frame = Descriptor { address: memory.start() + 8192, len: 72, flags: 0, next: 0 };
    memory.write(ring, &frame.bytes());
    memory.put_u16(ring + 256 + 2, 1);
    rustix::io::write(&kicks[1], &1_u64.to_ne_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while memory.u16(ring + 512 + 2) != 1 {
        assert!(Instant::now() < deadline, "the frame is not taken");
        thread::yield_now();
    }
    bystander.goes_on();
    assert_eq!(raw.trouble(), None);
    drop(reader);
    bystander.leave();
}

#[test]
fn descriptors_that_would_make_a_worker_wait() {
    let network = network(1);
    let bystander = Bystander::plug_in(&network);
    let memory = memory();
    let raw = Raw::plug_in(&network);
    for kick in raw.set_up(&memory) {
        // It was made not to, but others have it as well.
        rustix::io::ioctl_fionbio(&kick, false).unwrap();
    }
    // The worker looks at the queues, though nobody has notified it.
    raw.say(raw::SET_VRING_CALL, &words64(&[1]), &[bell().as_fd()]);
    raw.say(raw::GET_VRING_BASE, &words(&[0, 0]), &[]);
    assert_eq!(raw.answer(), words(&[0, 0]));
    bystander.leave();
    assert_eq!(raw.trouble(), None);
}

//! A front end that says whatever it likes.

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use usernet_core::offload::Offload;
use usernet_link::virtio::feature;
use usernet_link::{Link, vhost_user};
use usernet_testkit::driver::{Driver, GuestMemory, WRITE};

const START: u64 = 0x4000_0000;
const LEN: u64 = 0x2_0000;
/// What addresses of rings are higher by than guest addresses.
const RINGS: u64 = 0x1_0000_0000;
const SIZE: u16 = 16;
const QUEUES: u16 = 4;

const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 15;
const NEED_REPLY: u32 = 8;

/// What a front end has to hand over.
struct Files {
    memory: GuestMemory,
    small: GuestMemory,
    bell: OwnedFd,
    pipe: (OwnedFd, OwnedFd),
    socket: (UnixStream, UnixStream),
    /// The end of a pipe whose other end is closed.
    closed: OwnedFd,
    nothing: File,
}

/// Messages one after the other, to a device of two pairs whose links are served. The first byte says whether
/// a good conversation goes before. However it goes, it ends with the connection, and the links with it.
pub fn vhost_messages(data: &[u8]) {
    let mut data = Unstructured::new(data);
    let Ok(start) = data.arbitrary::<u8>() else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let pairs = NonZeroU16::new(QUEUES / 2).unwrap();
    let (links, session) = vhost_user::device(theirs, pairs, 1500).unwrap();
    let session = thread::spawn(move || session.run());
    let mut front = Front { socket: ours, files: Files::new(), links: links.into_iter().map(Some).collect() };
    if start & 1 != 0 {
        front.introduce(start);
    }
    while !data.is_empty() && !session.is_finished() {
        match front.step(&mut data) {
            Ok(true) => front.serve(),
            _ => break,
        }
    }
    // A front end that has gone ends all.
    let _ = front.socket.shutdown(Shutdown::Write);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !session.is_finished() {
        front.serve();
        thread::sleep(Duration::from_micros(20));
        assert!(Instant::now() < deadline, "the conversation has no end");
    }
    let _ = session.join().expect("no panic");
    for link in front.links.iter_mut().flatten() {
        assert!(link.rx.receive().is_err(), "a link without a device");
    }
}

impl Files {
    fn new() -> Self {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let memory = GuestMemory::new(START, LEN);
        for queue in 0..=QUEUES {
            let mut driver = Driver::new(&memory, ring(queue), SIZE, 0);
            // Buffers that overlap do no harm.
            for head in 0..SIZE {
                let at = START + LEN / 2 + u64::from(head) * 2048;
                let flags = if queue % 2 == 0 && queue < QUEUES { WRITE } else { 0 };
                driver.chain(head, &[(at, 2048)], flags);
                driver.offer(head);
            }
            driver.publish(false);
        }
        Self {
            memory,
            small: GuestMemory::new(START, 4096),
            bell: eventfd(0, EventfdFlags::empty()).unwrap(),
            pipe: pipe(),
            socket: UnixStream::pair().unwrap(),
            closed: pipe().1,
            nothing: File::open("/dev/null").unwrap(),
        }
    }

    fn get(&self, kind: u8) -> BorrowedFd<'_> {
        match kind & 15 {
            0..5 => self.memory.file().as_fd(),
            5..10 => self.bell.as_fd(),
            10 => self.pipe.1.as_fd(),
            11 => self.pipe.0.as_fd(),
            12 => self.closed.as_fd(),
            13 => self.small.file().as_fd(),
            14 => self.socket.0.as_fd(),
            _ => self.nothing.as_fd(),
        }
    }
}

/// The guest address of a queue's ring.
fn ring(queue: u16) -> u64 {
    START + u64::from(queue) * 0x400
}

/// The front end, and the worker at the other side.
struct Front {
    socket: UnixStream,
    files: Files,
    links: Vec<Option<Link>>,
}

impl Front {
    /// What any front end says at first, up to queues that move.
    fn introduce(&mut self, how: u8) {
        let pair = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
        let protocol = if how & 2 != 0 { PROTOCOL_FEATURES } else { 0 };
        let several = if how & 4 != 0 { feature::MQ | feature::CTRL_VQ } else { 0 };
        let rings = if how & 8 != 0 { feature::EVENT_IDX | feature::INDIRECT_DESC } else { 0 };
        let features = feature::VERSION_1 | feature::MRG_RXBUF | protocol | several | rings;
        self.say(2, 0, &[features], &[]);
        self.say(16, 0, &[PROTOCOL], &[]);
        self.say(3, 0, &[], &[]);
        self.say(5, 0, &[pair(1, 0), START, LEN, START + RINGS, 0], &[0]);
        for queue in 0..=QUEUES.min(if several == 0 { 1 } else { QUEUES }) {
            let index = u32::from(queue);
            let Driver { descriptors, available, used, .. } = Driver { ..self.driver(queue) };
            self.say(8, 0, &[pair(index, SIZE.into())], &[]);
            let [descriptors, available, used] = [descriptors, available, used].map(|at| at + RINGS);
            self.say(9, 0, &[index.into(), descriptors, used, available, 0], &[]);
            self.say(10, 0, &[pair(index, 0)], &[]);
            self.say(13, 0, &[index.into()], &[5]);
            self.say(12, 0, &[index.into()], &[5]);
            self.say(18, 0, &[pair(index, 1)], &[]);
        }
        self.serve();
    }

    fn driver(&self, queue: u16) -> Driver {
        let (at, size) = (ring(queue), u64::from(SIZE));
        let available = at + 16 * size;
        let used = (available + 6 + 2 * size).next_multiple_of(4);
        let memory = self.files.memory.clone();
        Driver { memory, size: SIZE, descriptors: at, available, used, next: SIZE, seen: 0 }
    }

    /// `false`: nobody listens any more.
    fn step(&mut self, data: &mut Unstructured<'_>) -> Result<bool> {
        let (request, flags) = data.arbitrary::<(u8, u8)>()?;
        match request & 0x3f {
            // Not a message, but something that happens.
            0x3c => {
                let (at, byte) = data.arbitrary::<(u16, u8)>()?;
                self.files.memory.write(START + u64::from(at), &[byte]);
            }
            0x3d => {
                let bytes = data.arbitrary::<[u8; 8]>()?;
                return Ok(send(&self.socket, &bytes, SendFlags::NOSIGNAL).is_ok());
            }
            0x3e if flags == 0xff => self.files.memory.file().set_len(4096).unwrap(),
            0x3e | 0x3f => {
                let _ = rustix::io::write(&self.files.bell, &1_u64.to_ne_bytes());
            }
            request => {
                let words = data.arbitrary::<u8>()? % 36;
                let payload: Vec<u64> = (0..words).map(|_| word(data)).collect::<Result<_>>()?;
                let files: Vec<u8> =
                    (0..(flags & 15) % 10).map(|_| data.arbitrary()).collect::<Result<_>>()?;
                let extra = if flags & 0x10 != 0 { NEED_REPLY } else { 0 };
                return Ok(self.say(request.into(), extra, &payload, &files));
            }
        }
        Ok(true)
    }

    /// Says something, with files that come with it; `false` when nobody listens.
    fn say(&mut self, request: u32, flags: u32, payload: &[u64], files: &[u8]) -> bool {
        let header = [request, 1 | flags, 8 * payload.len() as u32].map(u32::to_le_bytes).concat();
        let payload: Vec<u8> = payload.iter().flat_map(|word| word.to_le_bytes()).collect();
        let bytes = [header, payload].concat();
        let files: Vec<_> = files.iter().map(|kind| self.files.get(*kind)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        sent.is_ok()
    }

    /// What the worker does in a turn, and the front end with answers.
    fn serve(&mut self) {
        for place in &mut self.links {
            let Some(Link { rx, tx, .. }) = place else { continue };
            let ended = match rx.receive() {
                Ok(count) => {
                    for index in 0..count.unwrap_or(0) {
                        let mut slices = Vec::new();
                        rx.slices(index, 0..rx.frame_len(index), &mut slices);
                        assert!(slices.len() <= 1024);
                        assert_eq!(
                            slices.iter().map(|slice| slice.len()).sum::<usize>(),
                            rx.frame_len(index)
                        );
                    }
                    let sent = tx.send(&[IoSlice::new(&[7; 100])], Offload::default());
                    sent.is_err() || tx.flush().is_err()
                }
                Err(_) => true,
            };
            if ended {
                *place = None;
            }
        }
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// A word of a payload: a number, two of them, an address of the guest's or of its rings, or a strange one.
fn word(data: &mut Unstructured<'_>) -> Result<u64> {
    let (kind, a, b) = data.arbitrary::<(u8, u8, u8)>()?;
    let (a, b) = (u64::from(a), u64::from(b));
    Ok(match kind & 7 {
        0 => a | b << 8,
        1 | 2 => a | b << 32,
        3 => START + (a << 5) + (b << 12),
        4 => RINGS + START + (a << 5) + (b << 12),
        5 => LEN >> (a & 7),
        6 => 1 << (a & 63) | 1 << (b & 63),
        _ => u64::MAX - (a << (b & 63)),
    })
}

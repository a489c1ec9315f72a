//! Messages as bytes, for what no front end would say.

use std::future::Future;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Waker};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use usernet::Network;
use usernet_testkit::driver::GuestMemory;

use super::guest::RINGS;
use crate::guest::SOON;

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const ADD_MEM_REG: u32 = 37;
pub(super) const REM_MEM_REG: u32 = 38;
pub(super) const SET_STATUS: u32 = 39;
pub(super) const GET_STATUS: u32 = 40;

/// In the flags of a message: version 1, and that it wants an answer.
pub(super) const VERSION: u32 = 1;
pub(super) const NEED_REPLY: u32 = 8;

/// A front end that has said nothing yet.
pub(super) struct Raw {
    pub(super) stream: UnixStream,
    pub(super) port: u32,
    ended: Pin<Box<dyn Future<Output = String> + Send>>,
    network: usernet::Handle,
}

impl Raw {
    pub(super) fn plug_in(network: &Network) -> Self {
        Self::with_pairs(network, 1)
    }

    pub(super) fn with_pairs(network: &Network, pairs: u16) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let network = network.handle().clone();
        let port = network.attach_vhost_user(theirs, NonZeroU16::new(pairs).unwrap(), "raw").unwrap();
        Self { stream, port, ended: watch(&network, port), network }
    }

    /// Says a message.
    pub(super) fn say(&self, request: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
        self.say_with(request, VERSION, payload, files);
    }

    pub(super) fn say_with(&self, request: u32, flags: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
        say(&self.stream, request, flags, payload, files);
    }

    /// Sends bytes. The device may have gone meanwhile.
    pub(super) fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        send(&self.stream, bytes, files);
    }

    /// The payload of the next answer.
    pub(super) fn answer(&self) -> Vec<u8> {
        answer(&self.stream)
    }

    /// Waits until the guest is off the network; returns why.
    pub(super) fn end(self) -> String {
        wait(&self.network, self.ended)
    }

    /// What is wrong with the guest, as a table of guests says.
    pub(super) fn trouble(&self) -> Option<String> {
        let ports = self.network.ports().unwrap();
        ports.into_iter().find(|info| info.port == self.port)?.trouble
    }

    /// Says where two rings of 4 descriptors are in `memory`, up to when they move. They are made so that a
    /// kick tells of nothing new. Returns what notifies of them.
    pub(super) fn set_up(&self, memory: &GuestMemory) -> Vec<OwnedFd> {
        self.say(SET_FEATURES, &words64(&[1 << 32 | 1 << 30]), &[]);
        self.say(SET_MEM_TABLE, &table(memory), &[memory.file().as_fd()]);
        let start = |queue: u32| {
            let kick = bell();
            self.describe(queue, memory);
            self.say(SET_VRING_KICK, &words64(&[queue.into()]), &[kick.as_fd()]);
            self.say(SET_VRING_ENABLE, &words(&[queue, 1]), &[]);
            kick
        };
        (0..2).map(start).collect()
    }

    /// Says where a ring of 4 descriptors is.
    pub(super) fn describe(&self, queue: u32, memory: &GuestMemory) {
        let at = memory.start() + RINGS + 1024 * u64::from(queue);
        self.say(SET_VRING_NUM, &words(&[queue, 4]), &[]);
        self.say(SET_VRING_ADDR, &address(queue, [at, at + 512, at + 256]), &[]);
        self.say(SET_VRING_BASE, &words(&[queue, 0]), &[]);
    }
}

/// Has it told, from now on, when a guest is off the network.
pub(super) fn watch(network: &usernet::Handle, port: u32) -> Pin<Box<dyn Future<Output = String> + Send>> {
    let network = network.clone();
    let mut ended: Pin<Box<dyn Future<Output = String> + Send>> =
        Box::pin(async move { network.detached(port).await });
    // The question is asked when it is first looked for an answer.
    let pending = ended.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(pending.is_pending());
    ended
}

pub(super) fn wait(network: &usernet::Handle, ended: Pin<Box<dyn Future<Output = String> + Send>>) -> String {
    let timeout = async { tokio::time::timeout(SOON, ended).await };
    network.runtime().block_on(timeout).expect("it ends in time")
}

/// Says a message.
pub(super) fn say(stream: &UnixStream, request: u32, flags: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
    let size = u32::try_from(payload.len()).unwrap();
    send(stream, &[&words(&[request, flags, size]), payload].concat(), files);
}

/// The payload of the next answer.
pub(super) fn answer(mut stream: &UnixStream) -> Vec<u8> {
    let mut header = [0; 12];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let mut payload = vec![0; len.try_into().unwrap()];
    stream.read_exact(&mut payload).unwrap();
    payload
}

pub(super) fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    }
    let _ = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

/// What notifies or interrupts.
pub(super) fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// Where a ring is: its descriptors, the used and the available ring.
pub(super) fn address(queue: u32, [descriptors, used, available]: [u64; 3]) -> Vec<u8> {
    [words(&[queue, 0]), words64(&[descriptors, used, available, 0])].concat()
}

/// A table of one region: all of a guest's memory.
pub(super) fn table(memory: &GuestMemory) -> Vec<u8> {
    let start = memory.start();
    [words(&[1, 0]), words64(&[start, memory.len(), start + RINGS, 0])].concat()
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

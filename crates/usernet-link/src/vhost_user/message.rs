//! The messages of vhost-user, as they stand on the socket.
//!
//! ```text
//! 0         4       8      12
//! | request | flags | size | payload ...      little-endian; descriptors come with the first byte
//! ```

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};

const HEADER_LEN: usize = 12;
/// The longest payload: a page, as others have it. The largest that is defined is a tenth of that.
const MAX_PAYLOAD: usize = 4096;
/// Descriptors that come with one message at most: one for each region of a memory table.
const MAX_FILES: usize = 8;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// What a front end asks.
#[derive(Debug)]
pub(super) struct Message {
    /// What it is about.
    pub(super) request: u32,
    /// Whether it wants to know how that went.
    pub(super) need_reply: bool,
    /// What belongs to it.
    pub(super) payload: Vec<u8>,
    /// The files that came with it.
    pub(super) files: Vec<File>,
}

impl Message {
    /// The 64-bit number that is the payload's word `index`.
    pub(super) fn u64(&self, index: usize) -> Result<u64, String> {
        self.bytes(8 * index).map(u64::from_le_bytes)
    }

    /// The 32-bit number that is the payload's half-word `index`.
    pub(super) fn u32(&self, index: usize) -> Result<u32, String> {
        self.bytes(4 * index).map(u32::from_le_bytes)
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let bytes = self.payload.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or_else(|| format!("it has only {} bytes", self.payload.len()))
    }
}

/// A socket with a front end at its other end.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Waits for the rest of the next message; none when the front end has closed the connection, or `ended`
    /// is readable.
    ///
    /// # Errors
    /// What comes is no message, or the connection is broken.
    pub(super) fn receive(&self, ended: BorrowedFd<'_>) -> io::Result<Option<Message>> {
        let mut header = [0; HEADER_LEN];
        let mut files = Vec::new();
        if !self.fill(&mut header, &mut files, ended)? {
            return Ok(None);
        }
        let [request, flags, size] = words(&header);
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(unfit(format!(
                "a message with the flags {flags:#x}, where version 1 and no reply was expected"
            )));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > MAX_PAYLOAD {
            return Err(unfit(format!("a message of {size} bytes, where {MAX_PAYLOAD} are possible")));
        }
        let mut payload = vec![0; size];
        if size > 0 && !self.fill(&mut payload, &mut files, ended)? {
            return Ok(None);
        }
        Ok(Some(Message { request, need_reply: flags & NEED_REPLY != 0, payload, files }))
    }

    /// Reads until `buffer` is full; `false` when the stream, or all, has ended before.
    fn fill(&self, buffer: &mut [u8], files: &mut Vec<File>, ended: BorrowedFd<'_>) -> io::Result<bool> {
        let mut at = 0;
        while let Some(rest) = buffer.get_mut(at..).filter(|rest| !rest.is_empty()) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received =
                recvmsg(&self.stream, &mut [IoSliceMut::new(rest)], &mut control, RecvFlags::CMSG_CLOEXEC);
            let len = match received {
                Ok(message) => message.bytes,
                Err(Errno::AGAIN) if self.wait(PollFlags::IN, ended)? => continue,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    files.extend(descriptors.map(File::from));
                }
            }
            if files.len() > MAX_FILES {
                return Err(unfit(format!("a message with more than {MAX_FILES} descriptors")));
            }
            if len == 0 {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Answers a request.
    pub(super) fn reply(&self, request: u32, payload: &[u8], ended: BorrowedFd<'_>) -> io::Result<()> {
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header: Vec<u8> =
            [request, VERSION | REPLY, size].into_iter().flat_map(u32::to_le_bytes).collect();
        let mut bytes = [&header, payload].concat();
        while !bytes.is_empty() {
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(bytes.drain(..sent)),
                Err(Errno::AGAIN) if self.wait(PollFlags::OUT, ended)? => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready for something; `false` when all has ended.
    fn wait(&self, what: PollFlags, ended: BorrowedFd<'_>) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.stream, what), PollFd::from_borrowed_fd(ended, PollFlags::IN)];
        wait(&mut fds)?;
        let [_, ended] = fds;
        Ok(ended.revents().is_empty())
    }
}

/// Waits until one of some descriptors is ready.
pub(super) fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    loop {
        match poll(fds, None) {
            Err(Errno::INTR) => {}
            polled => return polled.map(drop).map_err(io::Error::from),
        }
    }
}

fn unfit(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = bytes.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes));
    std::array::from_fn(|_| words.next().unwrap_or_default())
}

//! How a guest's TAP device gets to the network: a descriptor for each of its queues and a line of JSON
//! one way, a line of JSON back. `exec` speaks it between its halves and, with `--join`, to a daemon's control socket,
//! where it is told from HTTP by its first byte, an opening brace. The guest stays for as long as the
//! connection does.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use usernet::GuestConfig;

/// A line that is longer than this many bytes is none of ours.
const MAX_LINE: usize = 4096;
/// Queues that a device may be offered with.
const MAX_QUEUES: usize = 16;

/// What comes with the descriptors of a TAP device.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// What to call the guest.
    pub(crate) name: String,
    /// Its MAC address.
    pub(crate) mac: [u8; 6],
    /// The host name to lease the address to.
    pub(crate) hostname: Option<String>,
}

/// What comes back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Welcome(GuestConfig),
    Refused { error: String },
}

/// Sends an offer with its descriptors, of which there may be up to [`MAX_QUEUES`].
pub(crate) fn send_offer(stream: &UnixStream, offer: &Offer, queues: &[BorrowedFd<'_>]) -> Result<()> {
    let line = line_of(offer)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(queues.len() <= MAX_QUEUES, "a device may have {MAX_QUEUES} queues, not {}", queues.len());
    ancillary.push(SendAncillaryMessage::ScmRights(queues));
    // It fits in any socket buffer, and the descriptors go with the first byte whatever follows.
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut stream = stream;
    stream.write_all(line.get(sent..).unwrap_or_default())?;
    Ok(())
}

/// Sends an answer.
pub(crate) fn send_answer(mut stream: &UnixStream, answer: &Answer) -> Result<()> {
    Ok(stream.write_all(&line_of(answer)?)?)
}

/// Waits for the answer; `None` when the other half has gone.
pub(crate) fn receive_answer(stream: &UnixStream) -> Result<Option<Answer>> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).context("the network's answer makes no sense")
}

/// Waits for an offer; `None` when the other half has gone.
pub(crate) fn receive_offer(stream: &UnixStream) -> Result<Option<(Offer, Vec<OwnedFd>)>> {
    let mut incoming = Incoming::default();
    loop {
        match incoming.receive(stream.as_fd()) {
            Ok(true) => return incoming.offer().map(Some),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A JSON value and the end of the line.
pub(crate) fn line_of(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// An offer of which a part has come.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    line: Vec<u8>,
    queues: Vec<OwnedFd>,
}

impl Incoming {
    /// Receives once; whether the line is whole.
    ///
    /// # Errors
    /// The other side has gone (`UnexpectedEof`), sends what is no line, or the socket says why not.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut bytes = [0; MAX_LINE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // More of them than a device may have are closed.
                self.queues.extend(descriptors.take(MAX_QUEUES.saturating_sub(self.queues.len())));
            }
        }
        self.line.extend_from_slice(bytes.get(..received.bytes).unwrap_or_default());
        match self.line.last() {
            Some(b'\n') => Ok(true),
            _ if received.bytes == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if self.line.len() > MAX_LINE => Err(io::ErrorKind::InvalidData.into()),
            _ => Ok(false),
        }
    }

    /// What has come, once it is whole.
    ///
    /// # Errors
    /// It is no offer, or came without a descriptor.
    pub(crate) fn offer(self) -> Result<(Offer, Vec<OwnedFd>)> {
        let offer = serde_json::from_slice(&self.line).context("the offer of a TAP device makes no sense")?;
        ensure!(!self.queues.is_empty(), "the offer of a TAP device came without its descriptor");
        Ok((offer, self.queues))
    }
}

/// A MAC address of our own making: under the prefix that QEMU uses, which is locally administered.
pub(crate) fn random_mac() -> Result<[u8; 6]> {
    let mut random = [0; 3];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let [a, b, c] = random;
    Ok([0x52, 0x54, 0x00, a, b, c])
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn offer() -> Offer {
        Offer { name: "sh".into(), mac: random_mac().unwrap(), hostname: None }
    }

    #[test]
    fn an_offer_arrives_with_its_descriptors_in_order() {
        for count in [1, 2, MAX_QUEUES] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let files: Vec<_> = (0..count)
                .map(|number| {
                    let mut file = tempfile::tempfile().unwrap();
                    file.write_all(format!("queue {number}").as_bytes()).unwrap();
                    file
                })
                .collect();
            let sent = offer();
            let queues: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            send_offer(&ours, &sent, &queues).unwrap();

            let (received, queues) = receive_offer(&theirs).unwrap().unwrap();
            assert_eq!(received, sent);
            assert_eq!(queues.len(), count);
            for (number, queue) in queues.into_iter().enumerate() {
                let mut queue = std::fs::File::from(queue);
                queue.rewind().unwrap();
                assert_eq!(io::read_to_string(queue).unwrap(), format!("queue {number}"));
            }
        }
    }

    #[test]
    fn too_many_queues_are_not_offered() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let why = send_offer(&ours, &offer(), &[ours.as_fd(); MAX_QUEUES + 1]).unwrap_err().to_string();
        assert!(why.contains("16 queues, not 17"), "{why}");
    }

    #[test]
    fn an_offer_without_a_descriptor_is_none() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&line_of(&offer()).unwrap()).unwrap();
        let why = receive_offer(&theirs).unwrap_err().to_string();
        assert!(why.contains("without its descriptor"), "{why}");
    }

    #[test]
    fn an_endless_line_ends() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[b'{'; 2 * MAX_LINE]).unwrap();
        assert!(receive_offer(&theirs).is_err());
    }

    #[test]
    fn a_side_that_goes_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(receive_offer(&theirs).unwrap().is_none());
        assert!(receive_answer(&theirs).unwrap().is_none());
    }

    #[test]
    fn answers_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let refused = Answer::Refused { error: "full".into() };
        send_answer(&ours, &refused).unwrap();
        assert_eq!(receive_answer(&theirs).unwrap(), Some(refused));
    }

    #[test]
    fn made_up_macs_are_local_and_unicast() {
        let [first, ..] = random_mac().unwrap();
        assert_eq!(first & 0b11, 0b10);
        assert_ne!(random_mac().unwrap(), random_mac().unwrap());
    }
}

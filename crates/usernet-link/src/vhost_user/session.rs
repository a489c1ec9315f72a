//! The conversation with a front end: features, memory, and where the rings are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::getpid;

use super::message::{Channel, Message, wait};
use crate::virtio::{ControlQueue, Device, Memory, Region, RegionLayout, RingLayout, feature, hear};

/// Requests of a front end, by their numbers.
mod request {
    macro_rules! requests {
        ($($name:ident = $number:literal,)*) => {
            $(pub(super) const $name: u32 = $number;)*

            /// What a request is called, for people to read.
            pub(super) fn name(request: u32) -> String {
                match request {
                    $($number => stringify!($name).to_owned(),)*
                    _ => request.to_string(),
                }
            }
        };
    }

    requests! {
        GET_FEATURES = 1,
        SET_FEATURES = 2,
        SET_OWNER = 3,
        RESET_OWNER = 4,
        SET_MEM_TABLE = 5,
        SET_VRING_NUM = 8,
        SET_VRING_ADDR = 9,
        SET_VRING_BASE = 10,
        GET_VRING_BASE = 11,
        SET_VRING_KICK = 12,
        SET_VRING_CALL = 13,
        SET_VRING_ERR = 14,
        GET_PROTOCOL_FEATURES = 15,
        SET_PROTOCOL_FEATURES = 16,
        GET_QUEUE_NUM = 17,
        SET_VRING_ENABLE = 18,
        SEND_RARP = 19,
        NET_SET_MTU = 20,
        SET_BACKEND_REQ_FD = 21,
        GET_CONFIG = 24,
        SET_CONFIG = 25,
        RESET_DEVICE = 34,
        GET_MAX_MEM_SLOTS = 36,
        ADD_MEM_REG = 37,
        REM_MEM_REG = 38,
        SET_STATUS = 39,
        GET_STATUS = 40,
    }
}

/// That there are protocol features: a bit beside those of the device.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features, as bits.
mod protocol {
    pub(super) const MQ: u64 = 1 << 0;
    pub(super) const RARP: u64 = 1 << 2;
    pub(super) const REPLY_ACK: u64 = 1 << 3;
    pub(super) const NET_MTU: u64 = 1 << 4;
    pub(super) const BACKEND_REQ: u64 = 1 << 5;
    pub(super) const CONFIG: u64 = 1 << 9;
    pub(super) const RESET_DEVICE: u64 = 1 << 13;
    pub(super) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;

    pub(super) const OFFERED: u64 =
        MQ | RARP | REPLY_ACK | NET_MTU | BACKEND_REQ | RESET_DEVICE | CONFIGURE_MEM_SLOTS | STATUS;
}

/// In the device's status (virtio 1.2 §2.1): the guest has to reset it.
const NEEDS_RESET: u64 = 64;

/// Parts of the guest's memory at most: more than QEMU has slots for.
const MAX_REGIONS: usize = 509;

/// Bytes of files that one guest's memory maps at most: a small part of what all of them can together.
const MAX_MEMORY: u64 = 1 << 40;

/// Why a conversation has ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// What the front end said made no sense.
    #[error("the front end's message {} makes no sense: {reason}", request::name(*request))]
    Message {
        /// The message's number.
        request: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// What the driver asks by the control queue cannot be done.
    #[error("the queues cannot be set up as the driver asks: {reason}")]
    Control {
        /// Why.
        reason: String,
    },
    /// The connection has failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A queue, as the front end describes it.
#[derive(Debug, Default)]
struct Described {
    layout: RingLayout,
    base: u16,
    kick: Option<OwnedFd>,
    enabled: bool,
    /// Whether it moves.
    runs: bool,
}

/// A conversation with a front end about one device.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    device: Device,
    mtu: u16,
    /// Those of the device, and a control queue.
    queues: Vec<Described>,
    control: ControlQueue,
    features: u64,
    protocol: u64,
    status: u64,
    memory: Memory,
    /// Whether the front end has said that it is our owner.
    owned: bool,
    /// What it was first told of protocol features.
    offered_protocol: Option<u64>,
    /// Whether a queue was ever started.
    started: bool,
    /// Whether it was logged what the driver has agreed on.
    told: bool,
    /// Whether something was refused.
    refused: bool,
    /// Where interrupts could be told of in other ways; kept open, since some front ends need it.
    back_channel: Option<File>,
}

/// The answer to a message that has one, or why it cannot be.
type Outcome = Result<Option<Vec<u8>>, String>;

impl Session {
    pub(super) fn new(stream: UnixStream, device: Device, mtu: u16) -> io::Result<Self> {
        let queues = (0..=device.queues()).map(|_| Described::default()).collect();
        Ok(Self {
            channel: Channel::new(stream)?,
            device,
            mtu,
            queues,
            control: ControlQueue::default(),
            features: 0,
            protocol: 0,
            status: 0,
            memory: Memory::default(),
            owned: false,
            offered_protocol: None,
            started: false,
            told: false,
            refused: false,
            back_channel: None,
        })
    }

    /// Answers the front end until it goes, or a link of the device does. The other links end with that.
    ///
    /// # Errors
    /// It said something that makes no sense, or the connection has failed.
    pub fn run(mut self) -> Result<(), SessionError> {
        let outcome = self.answer_all();
        if outcome.is_ok() && !self.started {
            let pairs = self.device.queues() / 2;
            tracing::info!(
                pairs,
                "a front end has left before its guest used a queue: it may ask for no more pairs than these"
            );
        }
        self.device.let_go();
        let outcome = match outcome {
            Err(SessionError::Io(error)) if is_hang_up(&error) => Ok(()),
            outcome => outcome,
        };
        self.device.end(outcome.as_ref().err().map(ToString::to_string).as_deref());
        outcome
    }

    fn answer_all(&mut self) -> Result<(), SessionError> {
        loop {
            let [said, kicked] = self.wait()?;
            if kicked {
                self.serve_control()?;
            }
            if said && !self.answer()? {
                return Ok(());
            }
        }
    }

    /// Waits for the front end to say something or to go, and for the guest to kick the control queue:
    /// returns which has happened.
    fn wait(&self) -> io::Result<[bool; 2]> {
        let kick = self.control.kick();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.device.ended(), PollFlags::IN),
        ];
        fds.extend(kick.map(|kick| PollFd::from_borrowed_fd(kick, PollFlags::IN)));
        wait(&mut fds)?;
        let ready = |index| fds.get(index).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
        Ok([ready(0) || ready(1), ready(2)])
    }

    /// Answers a message; `false` when there is none any more.
    fn answer(&mut self) -> Result<bool, SessionError> {
        let Some(mut message) = self.channel.receive(self.device.ended())? else { return Ok(false) };
        let request = message.request;
        let files = std::mem::take(&mut message.files);
        let outcome = self.handle(&message, files);
        tracing::trace!(request = request::name(request), ?outcome, "vhost-user");
        let acknowledged = message.need_reply && self.protocol & protocol::REPLY_ACK != 0;
        let answer = match outcome {
            Ok(Some(answer)) => answer,
            Ok(None) if acknowledged => 0_u64.to_le_bytes().into(),
            Ok(None) => return Ok(true),
            Err(reason) if acknowledged => {
                // Whoever goes on like that does not fill the log.
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(
                        request = request::name(request),
                        reason,
                        "refused what a vhost-user front end asks"
                    );
                }
                1_u64.to_le_bytes().into()
            }
            Err(reason) => return Err(SessionError::Message { request, reason }),
        };
        self.channel.reply(request, &answer, self.device.ended())?;
        Ok(true)
    }

    fn handle(&mut self, message: &Message, files: Vec<File>) -> Outcome {
        match message.request {
            request::GET_FEATURES => return word(self.offered()),
            request::SET_FEATURES => self.set_features(message.u64(0)?)?,
            // What the guest's MAC address is, we learn from its frames; and it has its MTU from us.
            request::SEND_RARP | request::SET_CONFIG | request::NET_SET_MTU => {}
            request::SET_OWNER => self.owned = true,
            request::RESET_OWNER | request::RESET_DEVICE => self.reset()?,
            request::GET_PROTOCOL_FEATURES => return word(self.offered_protocol()),
            request::SET_PROTOCOL_FEATURES => self.protocol = message.u64(0)? & self.offered_protocol(),
            request::GET_QUEUE_NUM => return word(self.device.queues() as u64 / 2),
            request::SET_MEM_TABLE => self.set_memory(message, &files)?,
            request::ADD_MEM_REG => self.add_region(message, &files)?,
            request::REM_MEM_REG => self.remove_region(message)?,
            request::GET_MAX_MEM_SLOTS => return word(MAX_REGIONS as u64),
            request::SET_VRING_NUM => {
                let size = message.u32(1)?;
                let size = u16::try_from(size).map_err(|_| format!("a ring of {size} descriptors"))?;
                self.queue(message)?.layout.size = size;
            }
            request::SET_VRING_ADDR => self.set_address(message)?,
            request::SET_VRING_BASE => {
                let base = message.u32(1)?;
                self.queue(message)?.base = u16::try_from(base).map_err(|_| format!("a base of {base}"))?;
            }
            request::GET_VRING_BASE => return self.get_base(message),
            request::SET_VRING_KICK => self.set_kick(message, files)?,
            request::SET_VRING_CALL => {
                let (index, call) = self.file(message, files)?;
                if self.is_control(index) {
                    self.control.set_call(call);
                } else {
                    self.device.set_call(index, call).map_err(text)?;
                }
            }
            request::SET_VRING_ERR => {
                let (index, err) = self.file(message, files)?;
                if !self.is_control(index) {
                    self.device.set_err(index, err).map_err(text)?;
                }
            }
            request::SET_VRING_ENABLE => {
                self.queue(message)?.enabled = message.u32(1)? != 0;
                self.apply()?;
            }
            request::SET_BACKEND_REQ_FD => {
                self.back_channel = files.into_iter().next().filter(|file| !peer_is_us(file));
            }
            request::GET_CONFIG => return self.config_space(message),
            request::SET_STATUS => {
                // Whether it is needed to reset the device, we know.
                self.status = message.u64(0)? & !NEEDS_RESET;
                if self.status == 0 {
                    self.reset()?;
                }
            }
            request::GET_STATUS => {
                let broken = if self.device.trouble().is_some() { NEEDS_RESET } else { 0 };
                return word(self.status | broken);
            }
            _ => return Err("it is not known here".into()),
        }
        Ok(None)
    }

    fn offered(&self) -> u64 {
        // One pair leaves nothing to control.
        let several = if self.device.queues() > 2 { feature::MQ | feature::CTRL_VQ } else { 0 };
        feature::DEVICE | feature::MTU | feature::STATUS | several | PROTOCOL_FEATURES
    }

    /// QEMU, which has the configuration space of a network device itself and warns of a back end that has it,
    /// asks before it says that it is our owner. Those who ask for it later need it.
    fn offered_protocol(&mut self) -> u64 {
        let config = if self.owned { protocol::CONFIG } else { 0 };
        *self.offered_protocol.get_or_insert(protocol::OFFERED | config)
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Which queue is the control queue, where the front end leaves that to us (virtio 1.2 §5.1.2).
    fn is_control(&self, index: usize) -> bool {
        let last = if self.has(feature::MQ) { self.device.queues() } else { 2 };
        self.has(feature::CTRL_VQ) && index == last
    }

    fn set_features(&mut self, features: u64) -> Result<(), String> {
        let strange = features & !self.offered();
        if strange != 0 {
            return Err(format!("features {strange:#x} were not offered"));
        }
        // Front ends say it again for each pair, and drivers with each start.
        if features != self.features && !std::mem::replace(&mut self.told, true) {
            tracing::info!(features = feature::names(features), "the guest's driver has agreed on features");
        }
        self.features = features;
        self.device.set_features(features).map_err(text)?;
        let (event_idx, indirect) = (self.has(feature::EVENT_IDX), self.has(feature::INDIRECT_DESC));
        for queue in &mut self.queues {
            (queue.layout.event_idx, queue.layout.indirect) = (event_idx, indirect);
        }
        Ok(())
    }

    /// All queues rest, as at the start.
    fn reset(&mut self) -> Result<(), String> {
        for queue in &mut self.queues {
            (queue.kick, queue.enabled) = (None, false);
        }
        self.apply()?;
        self.queues.iter_mut().for_each(|queue| queue.base = 0);
        self.status = 0;
        Ok(())
    }

    fn set_memory(&mut self, message: &Message, files: &[File]) -> Result<(), String> {
        let count = message.u32(0)? as usize;
        if count != files.len() {
            return Err(format!("{count} regions and {} descriptors", files.len()));
        }
        let mut memory = Memory::default();
        for (index, file) in files.iter().enumerate() {
            map(&mut memory, message, 1 + 4 * index, file)?;
        }
        self.memory = memory;
        self.remap()
    }

    fn add_region(&mut self, message: &Message, files: &[File]) -> Result<(), String> {
        let [file] = files else { return Err(format!("a region with {} descriptors", files.len())) };
        if self.memory.regions() >= MAX_REGIONS {
            return Err(format!("more than {MAX_REGIONS} regions"));
        }
        map(&mut self.memory, message, 1, file)?;
        self.remap()
    }

    fn remove_region(&mut self, message: &Message) -> Result<(), String> {
        self.memory.remove(layout(message, 1)?).ok_or("there is no such region")?;
        self.remap()
    }

    /// Hands changed memory to the queues, whose rings may lie elsewhere now.
    fn remap(&mut self) -> Result<(), String> {
        tracing::debug!(regions = self.memory.regions(), bytes = self.memory.mapped(), "the guest's memory");
        let control = self.control.remap(&self.memory).map_err(text);
        self.device.set_memory(&self.memory).map_err(text).and(control)
    }

    fn set_address(&mut self, message: &Message) -> Result<(), String> {
        if message.u32(1)? != 0 {
            return Err("dirty pages are not logged here".into());
        }
        let (descriptors, used, available) = (message.u64(1)?, message.u64(2)?, message.u64(3)?);
        let queue = self.queue(message)?;
        queue.layout = RingLayout { descriptors, used, available, ..queue.layout };
        Ok(())
    }

    fn set_kick(&mut self, message: &Message, files: Vec<File>) -> Result<(), String> {
        let (index, kick) = self.file(message, files)?;
        let kick = kick.ok_or("a queue without a descriptor to kick")?;
        check_kick(&kick)?;
        // Without protocol features, a queue is enabled from the start.
        let enabled = !self.has(PROTOCOL_FEATURES);
        self.stop(index)?;
        let queue = self.described(index)?;
        queue.kick = Some(kick);
        queue.enabled |= enabled;
        self.apply()
    }

    fn get_base(&mut self, message: &Message) -> Outcome {
        let index = message.u32(0)?;
        self.queue(message)?.kick = None;
        self.apply()?;
        let base = u32::from(self.queue(message)?.base);
        Ok(Some([index, base].into_iter().flat_map(u32::to_le_bytes).collect()))
    }

    /// Starts the queues that are to move, and has the others rest.
    fn apply(&mut self) -> Result<(), String> {
        for index in 0..self.queues.len() {
            let control = self.is_control(index);
            let used = control || (index < self.device.queues() && self.control.uses(index / 2));
            let Some(queue) = self.queues.get(index) else { break };
            let runs = used && queue.kick.is_some() && (queue.enabled || control);
            if runs && !queue.runs {
                self.start(index)?;
            } else if !runs {
                self.stop(index)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<(), String> {
        let control = self.is_control(index);
        let queue = self.described(index)?;
        let Some(kick) = &queue.kick else { return Ok(()) };
        let kick = kick.try_clone().map_err(text)?;
        let (layout, base) = (queue.layout, queue.base);
        if self.memory.regions() == 0 {
            return Err(
                "the guest shares no memory: QEMU needs -object memory-backend-memfd,share=on,... and \
                        -machine memory-backend="
                    .into(),
            );
        }
        if !self.has(feature::VERSION_1) {
            return Err("the guest's driver knows no virtio 1.0 (VERSION_1)".into());
        }
        self.started = true;
        tracing::debug!(index, ?layout, base, "a queue starts");
        if control {
            self.control.start(layout, &self.memory, base, kick).map_err(text)?;
            self.described(index)?.runs = true;
            // Until the driver says otherwise, only the first pair moves.
            return self.apply();
        }
        self.device.start(index, layout, base, kick).map_err(text)?;
        self.described(index)?.runs = true;
        Ok(())
    }

    fn stop(&mut self, index: usize) -> Result<(), String> {
        let control = self.is_control(index);
        if !self.queues.get_mut(index).is_some_and(|queue| std::mem::take(&mut queue.runs)) {
            return Ok(());
        }
        let base = if control { self.control.stop() } else { Some(self.device.stop(index).map_err(text)?) };
        let queue = self.described(index)?;
        queue.base = base.unwrap_or(queue.base);
        Ok(())
    }

    /// Does what the driver asks by the control queue.
    fn serve_control(&mut self) -> Result<(), SessionError> {
        let most = self.device.queues() / 2;
        if self.memory.is_lost() {
            return Err(SessionError::Control { reason: "the guest's memory was cut short".into() });
        }
        if let Err(error) = self.control.serve(&self.memory, most) {
            self.device.break_down(&error);
            return Ok(());
        }
        self.apply().map_err(|reason| SessionError::Control { reason })
    }

    fn config_space(&self, message: &Message) -> Outcome {
        let (offset, size) = (message.u32(0)? as usize, message.u32(1)? as usize);
        let mut space = [0; 256];
        let pairs = u16::try_from(self.device.queues() / 2).unwrap_or(u16::MAX);
        // mac (6), status (2): the cable is plugged in, max_virtqueue_pairs (2), mtu (2)
        let fields = [1, pairs, self.mtu].into_iter().flat_map(u16::to_le_bytes);
        space.iter_mut().skip(6).zip(fields).for_each(|(to, from)| *to = from);
        let bytes = space.get(offset..offset.saturating_add(size));
        let bytes = bytes.ok_or("it is beyond the configuration space")?;
        let head = message.payload.get(..12).ok_or("it is too short")?;
        Ok(Some([head, bytes].concat()))
    }

    /// The queue that a message is about.
    fn queue(&mut self, message: &Message) -> Result<&mut Described, String> {
        self.described(message.u32(0)? as usize)
    }

    fn described(&mut self, index: usize) -> Result<&mut Described, String> {
        let there = index < self.device.queues() || self.is_control(index);
        let queue = self.queues.get_mut(index).filter(|_| there);
        queue.ok_or_else(|| format!("there is no queue {index}"))
    }

    /// The queue that a message with a descriptor is about, and the descriptor.
    fn file(&self, message: &Message, files: Vec<File>) -> Result<(usize, Option<OwnedFd>), String> {
        let word = message.u64(0)?;
        // The number in the low byte; a bit says that no descriptor comes with it.
        let file = files.into_iter().next().map(OwnedFd::from);
        if file.is_none() != (word & 0x100 != 0) {
            return Err("it has a descriptor, or none, and says otherwise".into());
        }
        if let Some(file) = &file {
            check_bell(file)?;
        }
        Ok(((word & 0xff) as usize, file))
    }
}

/// Checks that a descriptor to notify or interrupt by is one that can, and cannot make us wait, whatever is at
/// its other end.
fn check_bell(file: &OwnedFd) -> Result<(), String> {
    let refused = |what| format!("{what} cannot notify: an eventfd, a pipe or a socket was expected");
    if peer_is_us(file) {
        return Err("a connection with us cannot notify: it would never end".to_owned());
    }
    rustix::io::ioctl_fionbio(file, true).map_err(text)?;
    match FileType::from_raw_mode(rustix::fs::fstat(file).map_err(text)?.st_mode) {
        FileType::Fifo | FileType::Socket => Ok(()),
        // Of those without a type, only an eventfd takes a number: 0 is nothing to it.
        FileType::Unknown => match rustix::io::write(file, &0_u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(_) => Err(refused("what is no eventfd".to_owned())),
        },
        kind => Err(refused(format!("{kind:?}"))),
    }
}

/// Whether a front end has just gone, with something that it had not read.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Whether a descriptor is the other end of a connection of ours. As long as we had that, the connection would
/// not end.
fn peer_is_us(file: impl AsFd) -> bool {
    sockopt::socket_peercred(file).is_ok_and(|peer| peer.pid == getpid())
}

/// Checks that what notifies us is quiet once it was read, as no eventfd is that counts down by one, and no pipe
/// whose other end is closed.
fn check_kick(kick: &OwnedFd) -> Result<(), String> {
    const READS: u64 = 4;
    // Nothing is lost: what it tells of is looked for when the queue starts. A pipe cannot be written to.
    let _ = rustix::io::write(kick, &READS.to_ne_bytes());
    for _ in 0..READS {
        if !hear(kick).map_err(text)? {
            return Ok(());
        }
    }
    Err("what notifies us is never quiet".to_owned())
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn word(word: u64) -> Outcome {
    Ok(Some(word.to_le_bytes().to_vec()))
}

/// The place of a region, from the payload's 64-bit word `at` on.
fn layout(message: &Message, at: usize) -> Result<RegionLayout, String> {
    let word = |index| message.u64(at + index);
    Ok(RegionLayout { guest: word(0)?, len: word(1)?, rings: word(2)?, offset: word(3)? })
}

fn map(memory: &mut Memory, message: &Message, at: usize, file: &File) -> Result<(), String> {
    let layout = layout(message, at)?;
    if layout.end().is_some_and(|end| memory.mapped().saturating_add(end) > MAX_MEMORY) {
        return Err(format!("more memory than {} TiB", MAX_MEMORY >> 40));
    }
    let region = Region::map(layout, file).map_err(text)?;
    memory.add(region).ok_or_else(|| "regions overlap".to_owned())
}

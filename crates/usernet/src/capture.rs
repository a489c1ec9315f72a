//! Packet capture to a pcapng file: a link that wraps another one and writes down what passes.
//!
//! The file is written by a thread of its own. When the disk is slower than the network, frames are
//! left out of the file, never out of the network, and how many is logged at the end.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, IoSlice, IoSliceMut, Write};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};
use usernet_core::offload::{Capabilities, Offload};
use usernet_link::{Link, LinkError, LinkRx, LinkTx, RoomTold};

/// Records on their way to the file: at most 64 MiB of super-frames.
const QUEUE: usize = 1024;
/// A super-frame with its headers.
const SNAPLEN: usize = 65_536 + 128;

enum Record {
    Interface(String),
    Frame { interface: u32, at: Duration, bytes: Vec<u8> },
}

/// An open capture file. The file is complete when all of its clones and links are gone.
#[derive(Clone)]
pub(crate) struct Capture {
    records: SyncSender<Record>,
    interfaces: Arc<AtomicU32>,
    missed: Arc<AtomicU64>,
}

impl Capture {
    /// Creates the file and the thread that writes it.
    pub(crate) fn create(path: &Path) -> io::Result<(Self, JoinHandle<()>)> {
        let file = BufWriter::new(File::create(path)?);
        let writer = PcapNgWriter::new(file).map_err(into_io)?;
        let (records, queue) = sync_channel(QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&missed);
        let thread = thread::Builder::new().name("usernet-capture".into()).spawn(move || {
            if let Err(error) = write(writer, &queue) {
                tracing::warn!(%error, "the capture file ends here: it cannot be written");
            }
            match counter.load(Relaxed) {
                0 => {}
                missed => tracing::warn!(missed, "frames are missing in the capture: the disk was too slow"),
            }
        })?;
        Ok((Self { records, interfaces: Arc::default(), missed }, thread))
    }

    fn add_interface(&self, name: &str) -> u32 {
        // Interfaces must not be missing in the file: frames refer to them.
        let _ = self.records.send(Record::Interface(name.to_owned()));
        self.interfaces.fetch_add(1, Relaxed)
    }

    fn record(&self, interface: u32, bytes: Vec<u8>) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.records.try_send(Record::Frame { interface, at, bytes }).is_err() {
            self.missed.fetch_add(1, Relaxed);
        }
    }
}

fn write(mut file: PcapNgWriter<BufWriter<File>>, queue: &Receiver<Record>) -> io::Result<()> {
    while let Ok(first) = queue.recv() {
        for record in std::iter::once(first).chain(queue.try_iter()) {
            match record {
                Record::Interface(name) => file.write_pcapng_block(InterfaceDescriptionBlock {
                    linktype: DataLink::ETHERNET,
                    snaplen: 0,
                    options: vec![
                        InterfaceDescriptionOption::IfName(Cow::Owned(name)),
                        // The library counts in nanoseconds.
                        InterfaceDescriptionOption::IfTsResol(9),
                    ],
                }),
                Record::Frame { interface, at, bytes } => file.write_pcapng_block(EnhancedPacketBlock {
                    interface_id: interface,
                    timestamp: at,
                    original_len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                    data: Cow::Owned(bytes),
                    options: Vec::new(),
                }),
            }
            .map_err(into_io)?;
        }
        // Nothing more for now: whoever looks at the file sees all of it.
        file.get_mut().flush()?;
    }
    Ok(())
}

fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

/// Wraps a link so that its frames are written down, under the name `name`.
pub(crate) fn wrap(link: Link, capture: &Capture, name: &str) -> Link {
    let interface = capture.add_interface(name);
    let Link { kind, rx, tx } = link;
    let rx = Box::new(CapturedRx { rx, capture: capture.clone(), interface });
    let tx = Box::new(CapturedTx { tx, capture: capture.clone(), interface, room: vec![0; SNAPLEN] });
    Link { kind, rx, tx }
}

struct CapturedRx {
    rx: Box<dyn LinkRx>,
    capture: Capture,
    interface: u32,
}

impl LinkRx for CapturedRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rx.as_fd()
    }

    fn receive(&mut self) -> Result<Option<usize>, LinkError> {
        let frames = self.rx.receive()?;
        for index in 0..frames.unwrap_or(0) {
            let mut bytes = vec![0; self.rx.frame_len(index)];
            self.rx.copy_to(index, 0, &mut bytes);
            self.capture.record(self.interface, bytes);
        }
        Ok(frames)
    }

    fn settle(&mut self) {
        self.rx.settle();
    }

    fn frame_len(&self, index: usize) -> usize {
        self.rx.frame_len(index)
    }

    fn offload(&self, index: usize) -> Offload {
        self.rx.offload(index)
    }

    fn copy_to(&self, index: usize, at: usize, to: &mut [u8]) -> usize {
        self.rx.copy_to(index, at, to)
    }

    fn slices<'a>(&'a self, index: usize, range: Range<usize>, out: &mut Vec<IoSlice<'a>>) {
        self.rx.slices(index, range, out);
    }

    fn dropped(&self) -> u64 {
        self.rx.dropped()
    }

    fn trouble(&self) -> Option<String> {
        self.rx.trouble()
    }
}

/// Lends room of its own and sends what was put there as whole frames, since it must see them.
struct CapturedTx {
    tx: Box<dyn LinkTx>,
    capture: Capture,
    interface: u32,
    room: Vec<u8>,
}

impl CapturedTx {
    fn send_recorded(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, LinkError> {
        let sent = self.tx.send(frame, offload)?;
        if sent {
            self.capture.record(self.interface, frame.iter().flat_map(|part| part.iter().copied()).collect());
        }
        Ok(sent)
    }
}

impl LinkTx for CapturedTx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tx.as_fd()
    }

    fn is_idle(&self) -> bool {
        self.tx.is_idle()
    }

    fn room_told_by(&self) -> RoomTold {
        self.tx.room_told_by()
    }

    fn capabilities(&self) -> Capabilities {
        self.tx.capabilities()
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> Result<bool, LinkError> {
        self.send_recorded(frame, offload)
    }

    fn reserve<'a>(
        &'a mut self,
        header_len: usize,
        segment: usize,
        max: usize,
        out: &mut Vec<IoSliceMut<'a>>,
    ) -> usize {
        // Only as much as the link behind has room for.
        let mut probe = Vec::new();
        let len = self.tx.reserve(header_len, segment, max, &mut probe);
        drop(probe);
        match self.room.get_mut(..len) {
            Some(room) if len > 0 => {
                out.push(IoSliceMut::new(room));
                len
            }
            _ => 0,
        }
    }

    fn commit(&mut self, header: &[u8], len: usize, offload: Offload) -> Result<(), LinkError> {
        let room = std::mem::take(&mut self.room);
        let payload = room.get(..len).unwrap_or_default();
        let sent = self.send_recorded(&[IoSlice::new(header), IoSlice::new(payload)], offload);
        self.room = room;
        sent.map(drop)
    }

    fn flush(&mut self) -> Result<bool, LinkError> {
        self.tx.flush()
    }

    fn dropped(&self) -> u64 {
        self.tx.dropped()
    }
}

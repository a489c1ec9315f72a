//! The store for what a guest sent out of order.

use std::io::IoSlice;

use usernet_core::tcp::SeqNumber;

/// Runs that do not touch, at most. A guest that sends every second byte is asked for the rest again.
const MAX_RUNS: usize = 64;

/// Bytes of one flow that wait for earlier ones, by sequence number; bounded, and nothing at all
/// while segments come in order.
///
/// What is held lies within 2³¹ of each other, as any receive window does.
#[derive(Debug)]
pub struct Kept {
    /// In order, without overlap.
    runs: Vec<Run>,
    len: usize,
    bound: usize,
}

#[derive(Debug)]
struct Run {
    at: SeqNumber,
    bytes: Vec<u8>,
}

impl Kept {
    /// A store that never holds more than `bound` bytes.
    pub const fn new(bound: usize) -> Self {
        Self { runs: Vec::new(), len: 0, bound }
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the bytes in `parts` to position `at`; where something is held already, that stays.
    /// Returns how many of them are held now, from the first on: all, unless a bound is reached.
    pub fn keep(&mut self, at: SeqNumber, parts: &[IoSlice<'_>]) -> usize {
        let mut kept = 0;
        for part in parts {
            let len = self.keep_part(at + wire_len(kept), part);
            kept += len;
            if len < part.len() {
                break;
            }
        }
        kept
    }

    /// Pushes the slices in which the bytes from `at` on lie, up to the first gap and at most `max`
    /// bytes; returns how many bytes they are.
    pub fn slices<'a>(&'a self, mut at: SeqNumber, max: usize, out: &mut Vec<IoSlice<'a>>) -> usize {
        let start = at;
        let mut len = 0;
        for run in self.runs.iter().skip_while(|run| run.end() <= start) {
            if run.at > at || len == max {
                break;
            }
            let skip = (at - run.at) as usize;
            let bytes = run.bytes.get(skip..).unwrap_or_default();
            let bytes = bytes.get(..max - len).unwrap_or(bytes);
            out.push(IoSlice::new(bytes));
            len += bytes.len();
            at = run.end();
        }
        len
    }

    /// Drops everything before position `before`.
    pub fn release(&mut self, before: SeqNumber) {
        let gone = self.runs.partition_point(|run| run.end() <= before);
        self.runs.drain(..gone);
        if let Some(run) = self.runs.first_mut().filter(|run| run.at < before) {
            run.bytes.drain(..(before - run.at) as usize);
            run.at = before;
        }
        self.len = self.runs.iter().map(|run| run.bytes.len()).sum();
        if self.runs.is_empty() {
            self.runs = Vec::new();
        }
    }

    fn keep_part(&mut self, at: SeqNumber, bytes: &[u8]) -> usize {
        let mut kept = 0;
        while kept < bytes.len() {
            let (at, rest) = (at + wire_len(kept), bytes.get(kept..).unwrap_or_default());
            let index = self.runs.partition_point(|run| run.end() <= at);
            let gap = match self.runs.get(index) {
                Some(run) if run.at <= at => {
                    kept += rest.len().min((run.end() - at) as usize);
                    continue;
                }
                Some(run) => rest.len().min((run.at - at) as usize),
                None => rest.len(),
            };
            let new = rest.get(..gap).unwrap_or(rest);
            if self.len + new.len() > self.bound || !self.insert(index, at, new) {
                break;
            }
            self.len += new.len();
            kept += new.len();
        }
        kept
    }

    /// Puts `bytes` into the gap before run `index`.
    fn insert(&mut self, index: usize, at: SeqNumber, bytes: &[u8]) -> bool {
        let previous = index.checked_sub(1).and_then(|index| self.runs.get_mut(index));
        if let Some(run) = previous.filter(|run| run.end() == at) {
            run.bytes.extend_from_slice(bytes);
            return true;
        }
        self.runs.insert(index, Run { at, bytes: bytes.to_vec() });
        if self.runs.len() > MAX_RUNS {
            // Runs that came to touch are joined only now, so that each byte is moved seldom.
            self.runs.dedup_by(|next, run| {
                let touch = run.end() == next.at;
                if touch {
                    run.bytes.append(&mut next.bytes);
                }
                touch
            });
        }
        if self.runs.len() > MAX_RUNS {
            self.runs.remove(index);
            return false;
        }
        true
    }
}

impl Run {
    fn end(&self) -> SeqNumber {
        self.at + wire_len(self.bytes.len())
    }
}

/// A length as a distance between sequence numbers. No frame, and no bound, comes near 4 GiB.
fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

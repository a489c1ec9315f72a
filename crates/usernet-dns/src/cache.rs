//! Answers that may be given again, within a bound of memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::answer::Answer;
use crate::query::Subject;

/// Least recently used out first.
pub(crate) struct Cache {
    entries: HashMap<Arc<Subject>, Entry>,
    /// Which entry was used when, in ticks.
    used: BTreeMap<u64, Arc<Subject>>,
    tick: u64,
    bytes: usize,
    max_bytes: usize,
}

struct Entry {
    answer: Arc<Answer>,
    stored: Instant,
    tick: u64,
    cost: usize,
}

impl Cache {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { entries: HashMap::new(), used: BTreeMap::new(), tick: 0, bytes: 0, max_bytes }
    }

    /// The answer to `subject` and its age in seconds, while it lives.
    pub(crate) fn get(&mut self, subject: &Subject, now: Instant) -> Option<(Arc<Answer>, u32)> {
        let entry = self.entries.get_mut(subject)?;
        let age = u32::try_from(now.saturating_duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        if age >= entry.answer.lifetime {
            self.remove(subject);
            return None;
        }
        let found = (entry.answer.clone(), age);
        self.tick += 1;
        if let Some(subject) = self.used.remove(&std::mem::replace(&mut entry.tick, self.tick)) {
            self.used.insert(self.tick, subject);
        }
        Some(found)
    }

    /// Keeps an answer that may be kept.
    pub(crate) fn insert(&mut self, subject: Subject, answer: Arc<Answer>, now: Instant) {
        // A name is held once, in the key; the rest of an entry's overhead is about a hundred bytes.
        let cost = answer.cost() + subject.question.len() + 128;
        if answer.lifetime == 0 || cost > self.max_bytes {
            return;
        }
        self.remove(&subject);
        while self.bytes + cost > self.max_bytes {
            let Some((_, oldest)) = self.used.pop_first() else { break };
            self.remove(&oldest);
        }
        self.tick += 1;
        self.bytes += cost;
        let subject = Arc::new(subject);
        self.used.insert(self.tick, subject.clone());
        self.entries.insert(subject, Entry { answer, stored: now, tick: self.tick, cost });
    }

    fn remove(&mut self, subject: &Subject) {
        if let Some(entry) = self.entries.remove(subject) {
            self.used.remove(&entry.tick);
            self.bytes -= entry.cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::query::Query;

    /// A query for a one-letter name, and an answer to it that lives for `lifetime` seconds.
    fn entry(letter: u8, lifetime: u32) -> (Subject, Arc<Answer>) {
        let query = [&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, letter, 0], [0, 1, 0, 1].as_slice()].concat();
        let subject = Query::parse(&query).unwrap().subject();
        let mut reply = query;
        reply[2] |= 0x80;
        reply[7] = 1;
        reply.extend([0xc0, 12, 0, 1, 0, 1]);
        reply.extend(lifetime.to_be_bytes());
        reply.extend([0, 4, 192, 0, 2, 1]);
        let answer = Answer::from_upstream(reply, &subject).unwrap();
        (subject, Arc::new(answer))
    }

    #[test]
    fn what_was_used_last_stays() {
        let now = Instant::now();
        let (a, answer) = entry(b'a', 60);
        let mut cache = Cache::new(usize::MAX);
        cache.insert(a.clone(), answer.clone(), now);
        let mut cache = Cache::new(cache.bytes * 2);
        let (b, c) = (entry(b'b', 60).0, entry(b'c', 60).0);
        cache.insert(a.clone(), answer.clone(), now);
        cache.insert(b.clone(), answer.clone(), now);
        assert!(cache.get(&a, now).is_some());
        cache.insert(c.clone(), answer, now);
        assert_eq!([&a, &b, &c].map(|subject| cache.get(subject, now).is_some()), [true, false, true]);
        assert_eq!((cache.entries.len(), cache.used.len()), (2, 2));
    }

    #[test]
    fn nothing_outlives_its_ttl_or_piles_up() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let (subject, answer) = entry(b'a', 60);
        let mut cache = Cache::new(10_000);
        for seconds in 0..1000 {
            cache.insert(subject.clone(), answer.clone(), after(seconds));
        }
        assert_eq!((cache.entries.len(), cache.used.len()), (1, 1));
        assert_eq!(cache.get(&subject, after(999 + 59)).map(|(_, age)| age), Some(59));
        assert!(cache.get(&subject, after(999 + 60)).is_none());
        assert_eq!((cache.bytes, cache.used.len()), (0, 0));

        // RFC 2181 §8: with the top bit set, as 0; and 0 is for once.
        for lifetime in [0, 1 << 31] {
            let (subject, answer) = entry(b'a', lifetime);
            cache.insert(subject.clone(), answer, now);
            assert!(cache.get(&subject, now).is_none());
        }
    }
}

//! Datagrams that are handled as one.

use std::net::{IpAddr, SocketAddr};

/// How many datagrams are joined at most: what every Linux takes in one `UDP_SEGMENT` send.
const MAX_JOINED: usize = 64;
/// The bytes that joined datagrams have at most: what an IPv4 header can count, less those of IP and UDP.
const MAX_LEN: usize = 65_507;

/// The shape of one datagram's payload, or of several in a row from one sender to one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams {
    /// Bytes in all.
    pub len: usize,
    /// Bytes of each datagram but the last, which may be shorter; 0: it is one datagram.
    pub segment: u16,
}

/// Where datagrams that came to a socket of the host are from, and how they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who sent them.
    pub from: SocketAddr,
    /// The local address that they came to, and that an answer should leave by, where that was asked for.
    pub to: Option<IpAddr>,
    /// DSCP and ECN, as they stood in the IP header.
    pub tos: u8,
}

impl Datagrams {
    /// One datagram.
    pub fn one(len: usize) -> Self {
        Self { len, segment: 0 }
    }

    /// How many there are.
    pub fn count(self) -> usize {
        if self.segment == 0 { 1 } else { self.len.div_ceil(self.segment.into()) }
    }

    /// Bytes of the longest.
    pub fn longest(self) -> usize {
        if self.segment == 0 { self.len } else { self.len.min(self.segment.into()) }
    }

    /// Puts `next` behind these, if they still are of one size then and within what systems take in
    /// one go. Returns whether it did.
    pub fn join(&mut self, next: Self) -> bool {
        let size = self.longest();
        let ends_short = size == 0 || !self.len.is_multiple_of(size);
        let follows = next.longest() == size || (next.count() == 1 && next.len < size && next.len > 0);
        let fits = self.len + next.len <= MAX_LEN && self.count() + next.count() <= MAX_JOINED;
        let segment = u16::try_from(size).ok().filter(|_| !ends_short && follows && fits);
        if let Some(segment) = segment {
            *self = Self { len: self.len + next.len, segment };
        }
        segment.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(datagrams: &[usize]) -> Vec<(usize, usize)> {
        let mut all: Vec<Datagrams> = Vec::new();
        for next in datagrams.iter().copied().map(Datagrams::one) {
            if !all.last_mut().is_some_and(|last| last.join(next)) {
                all.push(next);
            }
        }
        all.iter().map(|joined| (joined.count(), joined.len)).collect()
    }

    #[test]
    fn only_the_last_may_be_shorter() {
        assert_eq!(joined(&[1200, 1200, 700, 1200]), [(3, 3100), (1, 1200)]);
        assert_eq!(joined(&[700, 1200, 1200]), [(1, 700), (2, 2400)]);
        assert_eq!(joined(&[0, 0, 5, 0]), [(1, 0), (1, 0), (1, 5), (1, 0)]);
    }

    #[test]
    fn there_are_64_and_65507_bytes_at_most() {
        assert_eq!(joined(&[10; 130]), [(64, 640), (64, 640), (2, 20)]);
        assert_eq!(joined(&[1400; 50]), [(46, 64_400), (4, 5600)]);
        assert_eq!(joined(&[40_000, 30_000]), [(1, 40_000), (1, 30_000)]);
    }

    #[test]
    fn what_is_joined_already_is_joined_further() {
        let mut datagrams = Datagrams { len: 2400, segment: 1200 };
        assert!(!datagrams.join(Datagrams { len: 1500, segment: 1000 }));
        assert!(datagrams.join(Datagrams { len: 3000, segment: 1200 }));
        assert_eq!(datagrams, Datagrams { len: 5400, segment: 1200 });
        assert_eq!((datagrams.count(), datagrams.longest()), (5, 1200));
        assert!(!datagrams.join(Datagrams::one(1200)));
    }
}

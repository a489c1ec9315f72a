//! Randomness and streams of bytes that follow from a seed.

use sha2::{Digest as _, Sha256};

/// A small random number generator (SplitMix64): the same seed, the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number under `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n.max(1)
    }

    /// `true` this many times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Fills `to` with the bytes of the stream `seed` from position `at` on.
pub fn fill(seed: u64, at: u64, to: &mut [u8]) {
    let mut word = 0;
    for (i, byte) in (at..).zip(to.iter_mut()) {
        if i % 8 == 0 || i == at {
            word = mix(seed.wrapping_mul(0x517c_c1b7_2722_0a95).wrapping_add(i / 8));
        }
        *byte = (word >> (8 * (i % 8))) as u8;
    }
}

/// The SHA-256 of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Counts and hashes a stream as it comes.
#[derive(Clone, Debug, Default)]
pub struct Hasher {
    /// Bytes so far.
    pub len: u64,
    sha: Sha256,
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        self.sha.update(bytes);
    }

    /// The digest of all so far.
    pub fn digest(&self) -> Digest {
        Digest(self.sha.clone().finalize().into())
    }
}

/// The digest of the first `len` bytes of the stream `seed`.
pub fn digest_of(seed: u64, len: u64) -> Digest {
    let mut hasher = Hasher::default();
    let mut buffer = [0; 4096];
    while hasher.len < len {
        let n = (len - hasher.len).min(4096) as usize;
        fill(seed, hasher.len, &mut buffer[..n]);
        hasher.update(&buffer[..n]);
    }
    hasher.digest()
}

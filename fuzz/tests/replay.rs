//! The committed corpus, and some mutations of it, on the stable toolchain.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use usernet_fuzz::{TARGETS, Target};
use usernet_testkit::Rng;

/// Mutated inputs for each target.
const RUNS: u64 = 60_000;
/// The same where each run has threads and many system calls.
const SLOW_RUNS: u64 = 2_000;

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "{name}: a corpus of {} inputs", inputs.len());
    inputs
}

/// Changes some bytes, cuts, joins.
fn mutate(corpus: &[(String, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let any = |rng: &mut Rng| corpus[rng.below(corpus.len() as u64) as usize].1.clone();
    let mut input = any(rng);
    for _ in 0..=rng.below(6) {
        let at = rng.below(input.len() as u64 + 1) as usize;
        match rng.below(6) {
            0 => input.truncate(at),
            1 => input.insert(at, rng.draw() as u8),
            2 => {
                let other = any(rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            3 => {
                let bytes = input[at..].iter().take(16).copied().collect::<Vec<_>>();
                input.extend(bytes);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    let (flipped, other) = (*byte ^ (1 << rng.below(8)), rng.draw() as u8);
                    *byte = rng.pick(&[0, 1, 0x7f, 0x80, 0xff, flipped, other]);
                }
            }
        }
    }
    input.truncate(4096);
    input
}

fn run(name: &str, target: Target) {
    let corpus = corpus(name);
    for (path, input) in &corpus {
        catch_unwind(AssertUnwindSafe(|| target(input))).unwrap_or_else(|_| panic!("{path}"));
    }
    let rng = &mut Rng::new(1);
    let runs = if name.starts_with("vhost_") { SLOW_RUNS } else { RUNS };
    for n in 0..runs {
        let input = mutate(&corpus, rng);
        catch_unwind(AssertUnwindSafe(|| target(&input)))
            .unwrap_or_else(|_| panic!("{name}, mutation {n}: {}", hex(&input)));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_target_survives_its_corpus_and_mutations_of_it() {
    for (name, target) in TARGETS {
        run(name, *target);
    }
}

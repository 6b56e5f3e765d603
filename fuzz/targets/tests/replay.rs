//! Every file of the corpus, and mutations of it, through its target: what libFuzzer does, for a
//! moment, on any toolchain.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustmq_fuzz_targets::TARGETS;

/// Mutations of each file: enough to meet what a change breaks, in seconds for all targets.
const MUTATIONS: u64 = 2000;
/// Bytes of mutated input for each file, so that a long one does not take a hundred times as long
/// as a short one.
const MUTATED_BYTES: usize = 4 << 20;

/// The targets count what all threads allocate.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn frames_hold_for_the_corpus() {
    replay("frames");
}

#[test]
fn requests_hold_for_the_corpus() {
    replay("requests");
}

#[test]
fn batch_holds_for_the_corpus() {
    replay("batch");
}

#[test]
fn wal_block_holds_for_the_corpus() {
    replay("wal_block");
}

#[test]
fn footer_holds_for_the_corpus() {
    replay("footer");
}

#[test]
fn catalogue_holds_for_the_corpus() {
    replay("catalogue");
}

#[test]
fn every_target_is_replayed() {
    let source = include_str!("replay.rs");
    for (name, _) in TARGETS {
        assert!(source.contains(&format!("replay({name:?})")), "{name} is not replayed");
    }
}

fn replay(name: &str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, target) = TARGETS.iter().find(|(found, _)| *found == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("every target has a corpus")
        .map(|file| file.expect("the corpus can be read").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let mut executions = 0_u64;
    for path in &files {
        let file = fs::read(path).expect("the corpus can be read");
        holds(*target, &file, path, 0);
        let mutations = MUTATIONS.min((MUTATED_BYTES / file.len().max(1)) as u64);
        for seed in 1..=mutations {
            holds(*target, &mutated(&file, seed), path, seed);
        }
        executions += 1 + mutations;
    }
    println!("{name}: {} files, {executions} executions", files.len());
}

/// Names the file and the mutation that broke the target.
fn holds(target: fn(&[u8]), bytes: &[u8], path: &Path, seed: u64) {
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        let failed = std::env::temp_dir().join("rustmq-fuzz-failed");
        let kept = fs::write(&failed, bytes);
        panic!("{}, mutation {seed}; bytes in {}: {kept:?}", path.display(), failed.display());
    }
}

/// The bytes with a few changes that only the seed decides.
fn mutated(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            bytes.push(random.next() as u8);
        }
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.next() as u8),
            5 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let copied = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copied);
            }
            _ => {
                let number = [0, 1, u32::MAX, u32::MAX / 2, random.next() as u32][random.below(5)];
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
        }
    }
    bytes
}

/// SplitMix64: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

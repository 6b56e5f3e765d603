//! What came of some seeds, in numbers.

use rustmq_sys::sim::Happened;

/// What came of some seeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Seeds.
    pub seeds: u64,
    /// Images that count.
    pub images: u64,
    /// Batches acknowledged before a cut, over all images.
    pub acknowledged: u64,
    /// Simulated nanoseconds.
    pub simulated_ns: u64,
    /// Images of a lying disk that were refused at the start, with the file named.
    pub refused: u64,
    /// Images of a lying disk in which ranges were named as damaged.
    pub named: u64,
    /// Images of a lying disk in which the lie made no difference.
    pub harmless: u64,
    /// Images of a lying disk in which the last block before an idle mark is gone, and nothing says so.
    pub last_block: u64,
    /// How often a disk failed that did not lie.
    pub happened: Happened,
    /// Batches that were refused for want of space.
    pub refused_full: u64,
    /// Starts that were refused because the disk failed or was full, and made good once it was not.
    pub starts_refused: u64,
    /// A hash over everything that happened.
    pub hash: u64,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.images += other.images;
        self.acknowledged += other.acknowledged;
        self.simulated_ns += other.simulated_ns;
        self.refused += other.refused;
        self.named += other.named;
        self.harmless += other.harmless;
        self.last_block += other.last_block;
        self.count(other.happened);
        self.refused_full += other.refused_full;
        self.starts_refused += other.starts_refused;
        self.hash = self.hash.rotate_left(7) ^ other.hash;
    }

    /// Counts what the disk of a world did.
    pub(crate) fn count(&mut self, happened: Happened) {
        let sum = &mut self.happened;
        sum.write_errors += happened.write_errors;
        sum.flush_errors += happened.flush_errors;
        sum.read_errors += happened.read_errors;
        sum.short += happened.short;
        sum.full += happened.full;
    }

    /// Everything that may go wrong on an honest disk, and how often it did.
    pub fn troubles(&self) -> [(&'static str, u64); 7] {
        [
            ("writes failed", self.happened.write_errors),
            ("flushes failed", self.happened.flush_errors),
            ("reads failed", self.happened.read_errors),
            ("transfers ended early", self.happened.short),
            ("files found no space", self.happened.full),
            ("batches refused as STORAGE_FULL", self.refused_full),
            ("starts refused by name", self.starts_refused),
        ]
    }
}

//! What came of some seeds, in numbers.

use rustmq_sys::sim::{Happened, World};

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
    /// Batches that were sent again because the connection was gone before their answer came.
    pub unanswered: u64,
    /// Datagrams that were delivered, lost, and delivered twice.
    pub datagrams: [u64; 3],
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
        self.count_disk(other.happened);
        self.unanswered += other.unanswered;
        for (sum, more) in self.datagrams.iter_mut().zip(other.datagrams) {
            *sum += more;
        }
        self.refused_full += other.refused_full;
        self.starts_refused += other.starts_refused;
        self.hash = self.hash.rotate_left(7) ^ other.hash;
    }

    /// Counts what the disk and the network of a world did.
    pub(crate) fn count(&mut self, world: &World) {
        self.count_disk(world.happened());
        let network = world.network();
        let (lost, twice) = network.lost_and_twice();
        for (sum, more) in self.datagrams.iter_mut().zip([network.delivered(), lost, twice]) {
            *sum += more;
        }
    }

    fn count_disk(&mut self, happened: Happened) {
        let sum = &mut self.happened;
        sum.write_errors += happened.write_errors;
        sum.flush_errors += happened.flush_errors;
        sum.read_errors += happened.read_errors;
        sum.short += happened.short;
        sum.full += happened.full;
    }

    /// Everything that may go wrong with a disk that does not lie, and how often it did.
    pub fn disk_troubles(&self) -> [(&'static str, u64); 7] {
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

    /// Everything that may go wrong with a network, and how often it did.
    pub fn network_troubles(&self) -> [(&'static str, u64); 3] {
        let [_, lost, twice] = self.datagrams;
        [
            ("datagrams lost", lost),
            ("datagrams delivered twice", twice),
            ("batches sent again for want of an answer", self.unanswered),
        ]
    }
}

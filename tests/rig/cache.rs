//! What a disk with a volatile cache may have kept when its power goes.
//!
//! Pure: it is told of writes and flushes and answers what is read; a cut is a matter of a seed.
//! Nothing that was flushed is ever lost. Of each write since the last flush everything, nothing or
//! some sectors survive, whatever became of the writes before it.

use std::collections::{BTreeMap, VecDeque};

use crate::support::random::Random;

/// What a disk writes in one piece: no drive tears within it.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What most drives write in one piece.
const PAGE_BYTES: usize = 4096;

/// How likely, in percent, a piece is to survive a cut: the worst states are those in which nearly
/// everything survives, or nearly nothing.
const SURVIVAL: [u64; 6] = [0, 10, 50, 90, 99, 100];

/// The writes that are not flushed.
#[derive(Default)]
pub(crate) struct Cache {
    /// In the order in which they came, each at its position.
    writes: VecDeque<Write>,
    /// How many were flushed.
    flushed: u64,
    /// The newest bytes of each page that was written, and which of its sectors they are.
    newest: BTreeMap<u64, Page>,
}

/// Bytes for a position on the disk.
pub(crate) struct Write {
    pub(crate) position: u64,
    pub(crate) bytes: Vec<u8>,
}

struct Page {
    bytes: Box<[u8; PAGE_BYTES]>,
    /// One bit for each sector.
    written: u8,
}

/// What became of the cache in a cut.
pub(crate) struct Survivors {
    /// Whole sectors, to be written in this order.
    pub(crate) writes: Vec<Write>,
    /// Sectors that were in the cache.
    pub(crate) cached: usize,
    /// Sectors of them that survived.
    pub(crate) kept: usize,
}

impl Cache {
    /// Takes whole sectors.
    pub(crate) fn write(&mut self, position: u64, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(SECTOR_BYTES), "a disk takes whole sectors");
        assert!(position.is_multiple_of(SECTOR_BYTES as u64), "at the beginning of one");
        put_over(&mut self.newest, position, bytes);
        self.writes.push_back(Write { position, bytes: bytes.to_vec() });
    }

    /// Puts what is newer than the disk over what was read from there.
    pub(crate) fn read_over(&self, position: u64, bytes: &mut [u8]) {
        for (index, sector) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
            let at = position + (index * SECTOR_BYTES) as u64;
            let Some(page) = self.newest.get(&(at / PAGE_BYTES as u64)) else { continue };
            let within = (at % PAGE_BYTES as u64) as usize;
            if page.written & (1 << (within / SECTOR_BYTES)) != 0 {
                sector.copy_from_slice(&page.bytes[within..within + sector.len()]);
            }
        }
    }

    /// Where a flush that begins now has to come to.
    pub(crate) fn end(&self) -> u64 {
        self.flushed + self.writes.len() as u64
    }

    /// A flush that began at this end is done: what it has to write, in this order. What came later
    /// stays in the cache.
    pub(crate) fn flush(&mut self, end: u64) -> Vec<Write> {
        // Of two flushes at a time the later one may be done first.
        let count = end.saturating_sub(self.flushed);
        let flushed: Vec<Write> = self.writes.drain(..count as usize).collect();
        self.flushed += count;
        self.newest.clear();
        for write in &self.writes {
            put_over(&mut self.newest, write.position, &write.bytes);
        }
        flushed
    }

    /// The power goes: what of the cache is on the disk, for this seed. Twelve seeds in a row try
    /// each chance of survival with either size of a piece. The cache itself stays, so that who has
    /// not noticed yet can go on reading.
    pub(crate) fn survivors(&self, seed: u64) -> Survivors {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let piece_bytes = [SECTOR_BYTES, PAGE_BYTES][seed as usize % 2];
        let chance = SURVIVAL[seed as usize / 2 % SURVIVAL.len()];
        let mut survivors = Survivors { writes: Vec::new(), cached: 0, kept: 0 };
        for write in &self.writes {
            survivors.cached += write.bytes.len() / SECTOR_BYTES;
            for (index, piece) in write.bytes.chunks(piece_bytes).enumerate() {
                if random.below(100) < chance {
                    let position = write.position + (index * piece_bytes) as u64;
                    survivors.kept += piece.len() / SECTOR_BYTES;
                    survivors.writes.push(Write { position, bytes: piece.to_vec() });
                }
            }
        }
        survivors
    }
}

fn put_over(pages: &mut BTreeMap<u64, Page>, position: u64, bytes: &[u8]) {
    for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
        let at = position + (index * SECTOR_BYTES) as u64;
        let page = pages
            .entry(at / PAGE_BYTES as u64)
            .or_insert_with(|| Page { bytes: Box::new([0; PAGE_BYTES]), written: 0 });
        let within = (at % PAGE_BYTES as u64) as usize;
        page.bytes[within..within + SECTOR_BYTES].copy_from_slice(sector);
        page.written |= 1 << (within / SECTOR_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A disk of three sectors that all hold a zero.
    #[derive(Default)]
    struct Disk {
        cache: Cache,
        bytes: [u8; 3],
    }

    impl Disk {
        fn write(&mut self, sector: u64, bytes: &[u8]) {
            let bytes: Vec<u8> = bytes.iter().flat_map(|byte| [*byte; SECTOR_BYTES]).collect();
            self.cache.write(sector * SECTOR_BYTES as u64, &bytes);
        }

        fn flush(&mut self) {
            let writes = self.cache.flush(self.cache.end());
            self.apply(&writes);
        }

        fn apply(&mut self, writes: &[Write]) {
            for write in writes {
                let first = write.position as usize / SECTOR_BYTES;
                for (index, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
                    self.bytes[first + index] = sector[0];
                }
            }
        }

        /// Every state in which a cut may leave it.
        fn after_a_cut(&self) -> BTreeSet<[u8; 3]> {
            let states = (0..1000).map(|seed| {
                let mut disk = Disk { cache: Cache::default(), bytes: self.bytes };
                disk.apply(&self.cache.survivors(seed).writes);
                disk.bytes
            });
            states.collect()
        }
    }

    #[test]
    fn what_was_flushed_survives_every_cut() {
        let mut disk = Disk::default();
        disk.write(0, &[1, 2, 3]);
        disk.flush();
        assert_eq!(disk.after_a_cut(), BTreeSet::from([[1, 2, 3]]));
    }

    #[test]
    fn a_write_that_comes_during_a_flush_is_not_flushed_by_it() {
        let mut disk = Disk::default();
        disk.write(0, &[1]);
        let end = disk.cache.end();
        disk.write(1, &[2]);
        let writes = disk.cache.flush(end);
        disk.apply(&writes);
        assert_eq!(disk.after_a_cut(), BTreeSet::from([[1, 0, 0], [1, 2, 0]]));
        // Another flush, which began earlier and comes later, has nothing to do.
        assert!(disk.cache.flush(end).is_empty());
        disk.flush();
        assert_eq!(disk.after_a_cut(), BTreeSet::from([[1, 2, 0]]));
    }

    #[test]
    fn a_write_that_was_not_flushed_survives_in_any_part() {
        let mut disk = Disk::default();
        disk.write(0, &[1, 1, 1]);
        assert_eq!(disk.after_a_cut().len(), 8, "each sector or not");
    }

    #[test]
    fn a_later_write_may_survive_without_an_earlier_one() {
        let mut disk = Disk::default();
        disk.write(0, &[1]);
        disk.write(2, &[2]);
        assert_eq!(disk.after_a_cut(), BTreeSet::from([[0; 3], [1, 0, 0], [0, 0, 2], [1, 0, 2]]));
    }

    #[test]
    fn of_two_writes_to_a_sector_either_or_none_survives() {
        let mut disk = Disk::default();
        disk.write(1, &[1]);
        disk.write(1, &[2]);
        assert_eq!(disk.after_a_cut(), BTreeSet::from([[0; 3], [0, 1, 0], [0, 2, 0]]));
    }

    #[test]
    fn the_newest_bytes_are_read_until_the_power_goes() {
        let mut disk = Disk::default();
        disk.write(1, &[1]);
        disk.write(1, &[2]);
        disk.cache.survivors(0);
        let mut read = [9; 3 * SECTOR_BYTES];
        disk.cache.read_over(0, &mut read);
        let sectors: Vec<u8> = read.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
        assert_eq!(sectors, [9, 2, 9]);
        assert!(read.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|b| *b == sector[0])));
    }
}

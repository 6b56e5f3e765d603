//! Which partition a record goes to. Pure.

/// Chooses partitions for records that name none.
///
/// A record with a key goes where its key hashes to, by the hash that Kafka's clients use, so that
/// a program moved from there finds its keys where they were. Records without a key stay together
/// on one partition until its batch is sent, then move on to the next: few large batches instead of
/// many small ones, and all partitions in turn.
#[derive(Debug)]
pub(super) struct Partitioner {
    count: u32,
    sticky: u32,
    /// True once a batch was begun on the sticky partition.
    begun: bool,
}

impl Partitioner {
    /// `start` is where records without a key begin: it differs between producers, so that they do
    /// not move in step.
    pub(super) fn new(count: u32, start: u32) -> Partitioner {
        assert!(0 < count, "a topic has partitions");
        Partitioner { count, sticky: start % count, begun: false }
    }

    pub(super) fn with_key(&self, key: &[u8]) -> u32 {
        (murmur2(key) & 0x7fff_ffff) % self.count
    }

    /// `is_empty` says whether a partition has no batch that a record could join.
    pub(super) fn without_key(&mut self, is_empty: impl Fn(u32) -> bool) -> u32 {
        if self.begun && is_empty(self.sticky) {
            self.sticky = (self.sticky + 1) % self.count;
        }
        self.begun = true;
        self.sticky
    }
}

/// MurmurHash2, 32 bits, with the seed that Kafka's clients use.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = word.iter().rev().fold(0u32, |k, byte| k << 8 | u32::from(*byte));
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0u32, |k, byte| k << 8 | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_kafkas_clients_hash_them() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_key_keeps_to_its_partition_and_keys_spread() {
        let partitioner = Partitioner::new(4, 0);
        let mut seen = [0; 4];
        for key in 0..1000u32 {
            let partition = partitioner.with_key(&key.to_le_bytes());
            assert_eq!(partition, partitioner.with_key(&key.to_le_bytes()));
            seen[partition as usize] += 1;
        }
        assert!(seen.iter().all(|count| (150..350).contains(count)), "{seen:?}");
    }

    #[test]
    fn without_a_key_a_partition_is_kept_until_its_batch_has_gone() {
        let mut partitioner = Partitioner::new(3, 5);
        assert_eq!(partitioner.without_key(|_| true), 2);
        assert_eq!(partitioner.without_key(|_| false), 2);
        assert_eq!(partitioner.without_key(|_| true), 0);
        assert_eq!(partitioner.without_key(|_| true), 1);
        assert_eq!(partitioner.without_key(|_| true), 2);
    }
}

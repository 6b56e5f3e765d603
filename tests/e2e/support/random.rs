//! Numbers from a seed: a failure prints it, and `RUSTMQ_SEED` repeats it.

/// A small generator (xorshift64*). Good enough to choose moments and sizes.
pub(crate) struct Random(u64);

impl Random {
    /// Begins with the seed in `RUSTMQ_SEED`, or else with one made of the time and `salt`. Says
    /// which on the test's output, which is shown when it fails.
    pub(crate) fn for_test(salt: u64) -> Random {
        let given = std::env::var("RUSTMQ_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            since.as_nanos() as u64 ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        println!("RUSTMQ_SEED={seed}");
        Random::new(seed)
    }

    /// Begins with this seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// That many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

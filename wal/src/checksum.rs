//! CRC32C, seeded: the generation (and where it helps the block sequence) goes in before the bytes,
//! so bytes of an older use of a file, or bytes made by a client, do not validate.

use crate::ids::{BlockSequence, Generation};

/// A seeded CRC32C that takes its input in parts.
#[derive(Clone, Copy)]
pub(crate) struct Checksum(u32);

impl Checksum {
    pub(crate) fn new(generation: Generation) -> Self {
        Self(crc32c::crc32c(&generation.0.to_le_bytes()))
    }

    pub(crate) fn for_block(generation: Generation, sequence: BlockSequence) -> Self {
        Self::new(generation).add(&sequence.0.to_le_bytes())
    }

    #[must_use]
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }

    pub(crate) fn value(self) -> u32 {
        self.0
    }
}

//! Why bytes are not the block that was looked for.

use core::fmt;

use crate::entry::EntryError;
use crate::ids::{BlockSequence, Incarnation, WalId};

/// Why bytes are not the block that was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockError {
    /// The bytes end before the block does: read more and decode again.
    Short {
        /// Bytes of the whole block, as far as known.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// The bytes do not begin like a block.
    NotABlock,
    /// A block of another use of the file.
    Generation,
    /// The header is damaged.
    HeaderCrc {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the header's bytes.
        computed: u32,
    },
    /// A whole header of a later version.
    NewerVersion {
        /// Its version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// A block of another WAL.
    Foreign {
        /// That WAL.
        wal: WalId,
    },
    /// A block that was meant for another place.
    Misplaced {
        /// The place it names.
        found: u64,
        /// Where it is.
        expected: u64,
    },
    /// Lengths in the header or directory contradict each other.
    Extents,
    /// A good header of an opening that no other could follow: nobody counts that far.
    Uncountable,
    /// A good header of another place in the chain.
    Sequence {
        /// Its sequence.
        found: BlockSequence,
        /// The one that comes next.
        expected: BlockSequence,
    },
    /// A good header that follows another block than the one before.
    PrevCrc {
        /// The checksum it follows.
        found: u32,
        /// The checksum of the block before.
        expected: u32,
    },
    /// A good header that an earlier opening of the WAL left behind.
    Incarnation {
        /// Its incarnation.
        found: Incarnation,
        /// That of the block before.
        at_least: Incarnation,
    },
    /// The directory is damaged.
    DirectoryCrc,
    /// Each entry header is good, together they are not the block's.
    EntriesCrc,
    /// An entry is damaged.
    Entry {
        /// Its place in the block.
        index: usize,
        /// What is wrong with it.
        error: EntryError,
    },
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, available } => {
                write!(f, "block needs {needed} bytes, {available} are there")
            }
            Self::NotABlock => f.write_str("no block begins here"),
            Self::Generation => f.write_str("block of another use of the file"),
            Self::HeaderCrc { found, computed } => {
                write!(
                    f,
                    "block header says checksum {found:#010x}, its bytes have {computed:#010x}"
                )
            }
            Self::NewerVersion { found, supported } => {
                write!(f, "block has version {found}, this program reads up to {supported}")
            }
            Self::Foreign { wal } => write!(f, "block belongs to WAL {wal}"),
            Self::Misplaced { found, expected } => {
                write!(f, "block was written for position {found} and is at {expected}")
            }
            Self::Extents => f.write_str("lengths in the block contradict each other"),
            Self::Uncountable => {
                write!(f, "block of incarnation {}, which none has", Incarnation::NEVER)
            }
            Self::Sequence { found, expected } => {
                write!(f, "block has sequence {found}, {expected} comes next")
            }
            Self::PrevCrc { found, expected } => {
                write!(
                    f,
                    "block follows checksum {found:#010x}, the one before has {expected:#010x}"
                )
            }
            Self::Incarnation { found, at_least } => {
                write!(f, "block of incarnation {found} after one of {at_least}")
            }
            Self::DirectoryCrc => f.write_str("block directory is damaged"),
            Self::EntriesCrc => f.write_str("entry headers are not the block's"),
            Self::Entry { index, error } => write!(f, "entry {index} of the block: {error}"),
        }
    }
}

impl std::error::Error for BlockError {}

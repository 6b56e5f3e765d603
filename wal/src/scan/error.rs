//! Why a segment cannot be believed.

use core::fmt;

use rustmq_protocol::{Offset, TopicPartition};

use super::Corruption;

/// Why a segment cannot be believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanError {
    /// A block that was flushed is damaged. Nothing is cut.
    Corruption(Box<Corruption>),
    /// A good entry of a kind this version does not know. Opening ends here.
    UnknownEntryKind {
        /// Where in the segment its block begins.
        position: u64,
        /// Number of the kind.
        kind: u8,
    },
    /// A good block of a later version. Opening ends here.
    NewerVersion {
        /// Where in the segment it begins.
        position: u64,
        /// Its version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// A good entry at an offset its partition had passed. Opening ends here.
    OffsetsFall {
        /// Where in the segment it begins.
        position: u64,
        /// The partition.
        partition: TopicPartition,
        /// The entry's offset.
        base_offset: Offset,
    },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corruption(bad) => {
                write!(
                    f,
                    "block {} at position {} was flushed and is damaged: {}",
                    bad.sequence, bad.position, bad.why
                )
            }
            Self::UnknownEntryKind { position, kind } => write!(
                f,
                "entry of unknown kind {kind} in the block at position {position}; this version \
                 knows 1, 2, 3 and 5"
            ),
            Self::NewerVersion { position, found, supported } => write!(
                f,
                "block at position {position} has version {found}, this program reads up to \
                 {supported}"
            ),
            Self::OffsetsFall { position, partition, base_offset } => write!(
                f,
                "entry at position {position} has offset {base_offset}, which partition \
                 {partition} had passed"
            ),
        }
    }
}

impl std::error::Error for ScanError {}

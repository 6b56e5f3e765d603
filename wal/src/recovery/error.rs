//! Why a WAL is not opened.

use core::fmt;

use crate::ids::{NextSegment, SegmentSequence, Slot, WalId};
use rustmq_protocol::{Offset, TopicPartition};

/// Why a WAL is not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// A file of a later version.
    NewerVersion {
        /// The file.
        slot: Slot,
        /// Its version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// A file of another WAL.
    ForeignSegment {
        /// The file.
        slot: Slot,
        /// The WAL it belongs to.
        wal: WalId,
    },
    /// A file under another's name.
    MisplacedSegment {
        /// The slot of its name.
        slot: Slot,
        /// The slot in it.
        found: Slot,
    },
    /// A file of another size than configured. A WAL keeps the size it began with.
    SegmentBytes {
        /// The file.
        slot: Slot,
        /// Its size.
        found: u64,
        /// The size that is configured.
        expected: u64,
    },
    /// Two files say they are the same segment.
    TwoSegments {
        /// The segment.
        sequence: SegmentSequence,
        /// Both files.
        slots: [Slot; 2],
    },
    /// There are used files and none is in use.
    NoSegment,
    /// A sealed segment names one that is not there.
    LostSegment {
        /// That segment.
        next: NextSegment,
    },
    /// The checkpoint of the newest segment is damaged, and no older segment makes up for it.
    MissingCheckpoint {
        /// The file.
        slot: Slot,
        /// The segment.
        sequence: SegmentSequence,
    },
    /// A segment holds offsets again that an older one holds.
    OffsetsFall {
        /// The newer segment.
        sequence: SegmentSequence,
        /// The partition.
        partition: TopicPartition,
        /// Where the older one ends.
        end: Offset,
        /// Where the newer one begins.
        first: Offset,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewerVersion { slot, found, supported } => write!(
                f,
                "{} has version {found}, this program reads up to {supported}",
                slot.file_name()
            ),
            Self::ForeignSegment { slot, wal } => {
                write!(f, "{} belongs to WAL {wal}", slot.file_name())
            }
            Self::MisplacedSegment { slot, found } => {
                write!(f, "{} was written as {}", slot.file_name(), found.file_name())
            }
            Self::SegmentBytes { slot, found, expected } => write!(
                f,
                "{} has segments of {found} bytes, {expected} are configured",
                slot.file_name()
            ),
            Self::TwoSegments { sequence, slots: [one, other] } => write!(
                f,
                "{} and {} both say they are segment {sequence}",
                one.file_name(),
                other.file_name()
            ),
            Self::NoSegment => f.write_str("there are used segment files and none is in use"),
            Self::LostSegment { next } => write!(
                f,
                "segment {} in {} is named by the one before it and is not there",
                next.sequence,
                next.slot.file_name()
            ),
            Self::MissingCheckpoint { slot, sequence } => write!(
                f,
                "the checkpoint at the beginning of {} (segment {sequence}) is damaged, and no older \
                 segment is left to make up for it",
                slot.file_name()
            ),
            Self::OffsetsFall { sequence, partition, end, first } => write!(
                f,
                "segment {sequence} has partition {partition} from offset {first}, an older one \
                 has it to {end}"
            ),
        }
    }
}

impl std::error::Error for OpenError {}

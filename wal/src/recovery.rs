//! What a start may believe of a directory of segment files.
//!
//! The shell's steps, each decided here or in [`scan`](crate::scan):
//!
//! 1. Read the header page of every file; [`plan`] puts them in order or refuses.
//! 2. Scan the newest segment without believing it yet: it may never have been activated.
//! 3. Every older one: its footer says what it holds and how it ended; without a valid footer it is
//!    scanned. What `durable_end` to scan with, [`Scan::new`](crate::Scan::new) says. Each must join the next
//!    ([`check_join`]).
//! 4. [`judge_newest`]: activated, or a preparation that a crash cut off. The latter is freed
//!    before anything else is written, and the segment before it is the tail.
//! 5. The tail's checkpoint and entries, in order, are the state of every partition; no partition may
//!    miss records behind its log start ([`missing_records`]).
//! 6. Rewrite the `undurable` range of each scanned segment, write a start block, flush. Then serve.

use core::fmt;
use core::ops::Range;

use crate::footer::SegmentEnd;
use crate::ids::{NextSegment, SegmentSequence, Slot, WalId};
use crate::scan::ScanEnd;
use crate::segment::{SegmentHeader, SegmentHeaderError, SegmentState};
use rustmq_protocol::{Offset, TopicPartition};

/// The files of a WAL, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryPlan {
    /// Segments in use, oldest first, without a gap. Empty: the WAL was never written.
    pub segments: Vec<SegmentHeader>,
    /// Files that are ready to be used.
    pub spares: Vec<Slot>,
    /// Files that were not made to the end: neither zeroed nor known to be whole. To be made anew.
    pub blank: Vec<Slot>,
    /// Files whose header says nothing, and why. If the segments join and no records are missing,
    /// they held nothing that is needed and may be made anew; the shell logs them.
    pub unreadable: Vec<(Slot, SegmentHeaderError)>,
}

/// Puts the files of a WAL in order.
///
/// # Errors
/// The files are not those of one whole WAL, or not of this version.
pub fn plan(
    wal: WalId,
    segment_bytes: u64,
    headers: impl IntoIterator<Item = (Slot, Result<SegmentHeader, SegmentHeaderError>)>,
) -> Result<RecoveryPlan, OpenError> {
    let mut plan = RecoveryPlan::default();
    let mut was_used = false;
    for (slot, header) in headers {
        match header {
            Ok(header) => {
                check_header(wal, segment_bytes, slot, &header)?;
                match header.state {
                    SegmentState::Spare => {
                        was_used |= SegmentSequence::FIRST < header.sequence;
                        plan.spares.push(slot);
                    }
                    SegmentState::Active => plan.segments.push(header),
                }
            }
            Err(SegmentHeaderError::Blank) => plan.blank.push(slot),
            Err(SegmentHeaderError::NewerVersion { found, supported }) => {
                return Err(OpenError::NewerVersion { slot, found, supported });
            }
            Err(error) => {
                was_used = true;
                plan.unreadable.push((slot, error));
            }
        }
    }
    plan.segments.sort_by_key(|header| header.sequence);
    for pair in plan.segments.windows(2) {
        let [older, newer] = pair else { continue };
        if older.sequence == newer.sequence {
            return Err(OpenError::TwoSegments {
                sequence: older.sequence,
                slots: [older.slot, newer.slot],
            });
        }
        if older.sequence.next() != newer.sequence {
            return Err(OpenError::MissingSegment { sequence: older.sequence.next() });
        }
    }
    // A WAL that got past its first segment always has an active one. Before that, a crash may
    // leave its first file a spare: never used, or given back by the start after.
    if plan.segments.is_empty() && was_used {
        return Err(OpenError::NoSegment);
    }
    Ok(plan)
}

fn check_header(
    wal: WalId,
    segment_bytes: u64,
    slot: Slot,
    header: &SegmentHeader,
) -> Result<(), OpenError> {
    if header.wal != wal {
        return Err(OpenError::ForeignSegment { slot, wal: header.wal });
    }
    if header.slot != slot {
        return Err(OpenError::MisplacedSegment { slot, found: header.slot });
    }
    if header.segment_bytes != segment_bytes {
        return Err(OpenError::SegmentBytes {
            slot,
            found: header.segment_bytes,
            expected: segment_bytes,
        });
    }
    Ok(())
}

/// Whether the newest segment was ever part of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// It is the tail.
    Activated,
    /// A crash came between its preparation and the seal before it. Nothing in it was acknowledged:
    /// it is freed, and the segment before it (if any) is the tail.
    Never,
}

/// Judges the newest segment by its scan and by how the segment before it ended: `None` if there is
/// none, `Some(None)` if that one is not sealed (its scan knew the newest one's durable end).
///
/// # Errors
/// A segment, or the checkpoint in one, is missing.
pub fn judge_newest(
    before: Option<Option<SegmentEnd>>,
    newest: &SegmentHeader,
    scan: &ScanEnd,
) -> Result<Activation, OpenError> {
    match before {
        Some(None) => return Ok(Activation::Never),
        Some(Some(end)) => check_join(&end, newest)?,
        // Making a WAL was cut off before its first checkpoint was written.
        None if newest.sequence == SegmentSequence::FIRST && !scan.checkpoint_complete => {
            return Ok(Activation::Never);
        }
        None => {}
    }
    if !scan.checkpoint_complete {
        return Err(OpenError::MissingCheckpoint { sequence: newest.sequence });
    }
    match scan.sealed {
        None => Ok(Activation::Activated),
        Some(next) => Err(OpenError::LostSegment { next }),
    }
}

/// Checks that a sealed segment is followed by `header`.
///
/// # Errors
/// It names another segment, or one that ended differently.
pub fn check_join(end: &SegmentEnd, header: &SegmentHeader) -> Result<(), OpenError> {
    if end.joins(header) { Ok(()) } else { Err(OpenError::LostSegment { next: end.next }) }
}

/// Offsets that a partition should have by its log start and end, and that no segment holds;
/// `first` is the first offset any segment holds. Lost by whatever made a header unreadable.
#[must_use]
pub fn missing_records(
    log_start: Offset,
    log_end: Offset,
    first: Option<Offset>,
) -> Option<Range<Offset>> {
    let held_from = first.unwrap_or(log_end).min(log_end);
    (log_start < held_from).then_some(log_start..held_from)
}

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
    /// A segment between others has no file.
    MissingSegment {
        /// The segment.
        sequence: SegmentSequence,
    },
    /// There are used files and none is in use.
    NoSegment,
    /// A sealed segment names one that is not there.
    LostSegment {
        /// That segment.
        next: NextSegment,
    },
    /// A segment that was activated does not begin with a whole checkpoint.
    MissingCheckpoint {
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
            Self::MissingSegment { sequence } => write!(f, "segment {sequence} has no file"),
            Self::NoSegment => f.write_str("there are used segment files and none is in use"),
            Self::LostSegment { next } => write!(
                f,
                "segment {} in {} is named by the one before it and is not there",
                next.sequence,
                next.slot.file_name()
            ),
            Self::MissingCheckpoint { sequence } => {
                write!(f, "segment {sequence} does not begin with a whole checkpoint")
            }
            Self::OffsetsFall { sequence, partition, end, first } => write!(
                f,
                "segment {sequence} has partition {partition} from offset {first}, an older one \
                 has it to {end}"
            ),
        }
    }
}

impl std::error::Error for OpenError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BlockSequence, Generation};
    use crate::segment::SEGMENT_BYTES_MIN;

    const WAL: WalId = WalId([1; 16]);

    type Read = (Slot, Result<SegmentHeader, SegmentHeaderError>);

    fn header(sequence: u64, slot: u32) -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Active,
            slot: Slot(slot),
            wal: WAL,
            sequence: SegmentSequence(sequence),
            generation: Generation(sequence),
            segment_bytes: SEGMENT_BYTES_MIN,
            first_block: BlockSequence(sequence),
            prev_crc: 0,
        }
    }

    fn active(sequence: u64, slot: u32) -> Read {
        (Slot(slot), Ok(header(sequence, slot)))
    }

    fn spare(sequence: u64, slot: u32) -> Read {
        (Slot(slot), Ok(header(sequence, slot).freed()))
    }

    fn plan_of(read: &[Read]) -> Result<RecoveryPlan, OpenError> {
        plan(WAL, SEGMENT_BYTES_MIN, read.iter().copied())
    }

    #[test]
    fn segments_are_put_in_order_whatever_slots_they_are_in() {
        let read = [
            active(7, 0),
            spare(3, 1),
            active(5, 2),
            (Slot(3), Err(SegmentHeaderError::Blank)),
            active(6, 4),
            (Slot(5), Err(SegmentHeaderError::NotASegment)),
        ];
        let plan = plan_of(&read).unwrap();
        let sequences: Vec<_> = plan.segments.iter().map(|header| header.sequence.0).collect();
        assert_eq!(sequences, [5, 6, 7]);
        assert_eq!(plan.spares, [Slot(1)]);
        assert_eq!(plan.blank, [Slot(3)]);
        assert_eq!(plan.unreadable, [(Slot(5), SegmentHeaderError::NotASegment)]);
    }

    #[test]
    fn files_that_are_not_one_whole_wal_are_refused() {
        assert_eq!(
            plan_of(&[active(5, 0), active(7, 1)]),
            Err(OpenError::MissingSegment { sequence: SegmentSequence(6) })
        );
        assert_eq!(
            plan_of(&[active(5, 0), active(5, 1)]),
            Err(OpenError::TwoSegments { sequence: SegmentSequence(5), slots: [Slot(0), Slot(1)] })
        );
        let other = WalId([2; 16]);
        let foreign = SegmentHeader { wal: other, ..header(1, 0) };
        assert_eq!(
            plan_of(&[(Slot(0), Ok(foreign))]),
            Err(OpenError::ForeignSegment { slot: Slot(0), wal: other })
        );
        assert_eq!(
            plan_of(&[(Slot(3), Ok(header(1, 0)))]),
            Err(OpenError::MisplacedSegment { slot: Slot(3), found: Slot(0) })
        );
        let larger = SegmentHeader { segment_bytes: 2 * SEGMENT_BYTES_MIN, ..header(1, 0) };
        assert_eq!(
            plan_of(&[(Slot(0), Ok(larger))]),
            Err(OpenError::SegmentBytes {
                slot: Slot(0),
                found: 2 * SEGMENT_BYTES_MIN,
                expected: SEGMENT_BYTES_MIN
            })
        );
        let newer = SegmentHeaderError::NewerVersion { found: 2, supported: 1 };
        assert_eq!(
            plan_of(&[active(1, 0), (Slot(1), Err(newer))]),
            Err(OpenError::NewerVersion { slot: Slot(1), found: 2, supported: 1 })
        );
    }

    #[test]
    fn no_segment_in_use_is_a_new_wal_only_if_none_was_used_before() {
        let blank = (Slot(0), Err(SegmentHeaderError::Blank));
        let unused = (Slot(1), Ok(SegmentHeader::spare(WAL, Slot(1), SEGMENT_BYTES_MIN)));
        assert_eq!(plan_of(&[]).unwrap().segments, []);
        assert_eq!(plan_of(&[blank, unused]).unwrap().segments, []);
        // A start that cut its making short gave the first segment back.
        assert_eq!(plan_of(&[spare(1, 0)]).unwrap().segments, []);
        assert_eq!(plan_of(&[spare(2, 0)]), Err(OpenError::NoSegment));
        let crc = SegmentHeaderError::Crc { found: 1, computed: 2 };
        assert_eq!(plan_of(&[unused, (Slot(0), Err(crc))]), Err(OpenError::NoSegment));
    }

    #[test]
    fn records_behind_the_log_start_that_no_segment_holds_are_missing() {
        let missing = |log_start: u64, log_end: u64, first: Option<u64>| {
            missing_records(Offset(log_start), Offset(log_end), first.map(Offset))
                .map(|range| range.start.0..range.end.0)
        };
        assert_eq!(missing(5, 5, None), None, "empty");
        assert_eq!(missing(5, 9, Some(5)), None);
        assert_eq!(missing(5, 9, Some(0)), None, "more than needed");
        assert_eq!(missing(5, 9, Some(7)), Some(5..7));
        assert_eq!(missing(5, 9, None), Some(5..9));
    }
}

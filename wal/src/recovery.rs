//! What a start may believe of a directory of segment files.
//!
//! The shell's steps, each decided here or in [`scan`](crate::scan):
//!
//! 1. Read the header page of every file, and of each that is not in use by it the last page and
//!    the first block; [`rebuild`] makes up the headers that can be known from the others, [`plan`] puts
//!    them in order or refuses.
//! 2. Scan the newest segment without believing it yet: it may never have been activated. If it is
//!    not sealed, the one behind it may have lost its header page ([`headless`]).
//! 3. Every older one: its footer says what it holds and how it ended; without a valid footer it is
//!    scanned. What `durable_end` to scan with, [`Scan::new`](crate::Scan::new) says. Each must join the next
//!    ([`check_join`]).
//! 4. [`judge_newest`]: activated, or a preparation that a crash cut off. The latter is freed
//!    before anything else is written, and the segment before it is the tail.
//! 5. The tail's checkpoint and entries, in order, are the state of every partition. If the
//!    checkpoint is damaged, an older segment's and everything behind it are. Records that should be
//!    there and that no segment holds are named ([`missing_records`]).
//! 6. Rewrite the `undurable` range of each scanned segment, write a start block, flush. Then serve.

mod error;

use core::ops::Range;

use std::collections::BTreeMap;

use crate::block::{BlockHeader, ChainPoint};
use crate::footer::{FooterTrailer, SegmentEnd};
use crate::ids::{SegmentSequence, Slot, WalId};
use crate::scan::ScanEnd;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError, SegmentState};
use rustmq_protocol::Offset;

pub use self::error::OpenError;

/// The files of a WAL, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryPlan {
    /// Segments in use, oldest first. Empty: the WAL was never written.
    pub segments: Vec<SegmentHeader>,
    /// Segments between those, which no file holds. What is missing with them is told by the
    /// offsets around them.
    pub lost: Vec<SegmentSequence>,
    /// Files that are ready to be used.
    pub spares: Vec<SegmentHeader>,
    /// Files that were not made to the end: neither zeroed nor known to be whole. To be made anew.
    pub blank: Vec<Slot>,
    /// Files whose header says nothing, and why. If the segments join and no records are missing,
    /// they held nothing that is needed and may be made anew; the shell logs them.
    pub unreadable: Vec<(Slot, SegmentHeaderError)>,
}

/// The pages of one file that say which segment it holds.
#[derive(Clone, Debug)]
pub struct FileClues {
    /// The slot in the file's name.
    pub slot: Slot,
    /// What its header page says.
    pub header: Result<SegmentHeader, SegmentHeaderError>,
    /// The page behind the header, where the first block begins; read unless the header says that
    /// the file is in use.
    pub first_page: Vec<u8>,
    /// The last page of the file, where a sealed segment has its footer's trailer; empty if the
    /// file has another size than it should.
    pub last_page: Vec<u8>,
    /// The header that the page was before one bit of it turned.
    pub corrected: Option<SegmentHeader>,
}

impl FileClues {
    /// What the pages of a file say.
    #[must_use]
    pub fn new(slot: Slot, header_page: &[u8], first_page: &[u8], last_page: &[u8]) -> Self {
        let header = SegmentHeader::decode(header_page);
        let corrected = match header {
            Err(SegmentHeaderError::Crc { .. } | SegmentHeaderError::NotASegment) => {
                SegmentHeader::correct(header_page)
            }
            _ => None,
        };
        let (first_page, last_page) = (first_page.to_vec(), last_page.to_vec());
        Self { slot, header, first_page, last_page, corrected }
    }
}

/// Makes up the headers that are damaged and can be known: the footer of the segment before says
/// all that a header does, and of the oldest its own footer and first block do. Gives the slots
/// whose header has to be written again once the start has believed it.
///
/// A made-up header is taken only where it joins segments in use, or stands between them; so a file
/// that was given back stays what it is, or at worst is given back once more.
pub fn rebuild(wal: WalId, segment_bytes: u64, files: &mut [FileClues]) -> Vec<Slot> {
    let mut rebuilt = Vec::new();
    for file in files.iter_mut().filter(|file| is_damaged(&file.header)) {
        if let Some(header) = file.corrected.take() {
            file.header = Ok(header);
            rebuilt.push(file.slot);
        }
    }
    let candidates = candidates(wal, segment_bytes, files);
    loop {
        let in_use = || {
            let headers = files.iter().filter_map(|file| file.header.ok());
            headers.filter(|header| header.state == SegmentState::Active)
        };
        let oldest = in_use().map(|header| header.sequence).min();
        let newest = in_use().map(|header| header.sequence).max();
        let fits = |sequence: SegmentSequence| match (oldest, newest) {
            (Some(oldest), Some(newest)) => {
                oldest.0 <= sequence.0 + 1
                    && sequence.0 <= newest.0 + 1
                    && in_use().all(|header| header.sequence != sequence)
            }
            _ => true,
        };
        let best = candidates
            .iter()
            .filter(|(slot, header)| {
                let of_slot = files.iter().find(|file| file.slot == *slot);
                of_slot.is_some_and(|file| file.header.is_err()) && fits(header.sequence)
            })
            .max_by_key(|(_, header)| header.sequence);
        let Some((slot, header)) = best else { return rebuilt };
        let (slot, header) = (*slot, *header);
        if let Some(file) = files.iter_mut().find(|file| file.slot == slot) {
            file.header = Ok(header);
        }
        rebuilt.push(slot);
    }
}

/// What the damaged headers may have said.
fn candidates(wal: WalId, segment_bytes: u64, files: &[FileClues]) -> Vec<(Slot, SegmentHeader)> {
    let footers: BTreeMap<Slot, (SegmentHeader, FooterTrailer)> = files
        .iter()
        .filter_map(|file| {
            let footer =
                FooterTrailer::decode_alone(&file.last_page, wal, file.slot, segment_bytes)?;
            Some((file.slot, footer))
        })
        .collect();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| is_damaged(&file.header)) {
        let first = BlockHeader::decode_alone(&file.first_page, wal, SEGMENT_HEADER_BYTES as u64);
        for (of, (_, trailer)) in &footers {
            let header = trailer.end.next_header(wal, segment_bytes);
            // The segment that names it must be in use, or the first block must agree.
            let named_by = files.iter().find(|other| other.slot == *of);
            let is_live = named_by.and_then(|other| other.header.ok()).is_some_and(|before| {
                before.state == SegmentState::Active && before.sequence.next() == header.sequence
            });
            let agrees = first.is_some_and(|first| {
                first.generation == header.generation
                    && first.sequence == header.first_block
                    && first.prev_crc == header.prev_crc
            });
            if header.slot == file.slot && (is_live || agrees) {
                found.push((file.slot, header));
            }
        }
        let Some(first) = first else { continue };
        if let Some((header, _)) = footers.get(&file.slot)
            && header.generation == first.generation
        {
            let header =
                SegmentHeader { first_block: first.sequence, prev_crc: first.prev_crc, ..*header };
            found.push((file.slot, header));
        }
        if first.sequence == crate::ids::BlockSequence::FIRST && first.prev_crc == 0 {
            let header = SegmentHeader {
                state: SegmentState::Active,
                slot: file.slot,
                wal,
                sequence: SegmentSequence::FIRST,
                generation: first.generation,
                segment_bytes,
                first_block: first.sequence,
                prev_crc: 0,
            };
            found.push((file.slot, header));
        }
    }
    found
}

/// The segments that may follow the newest one, whose chain goes on at `point` and is not sealed as
/// far as it can be read: files whose header page never reached them. The first block of such a file
/// is of another generation than its header, and of a later sequence than the seal that is missing.
///
/// That alone is also what a crash leaves of a segment that was being prepared. One that was in use
/// holds a block that says so: the shell scans each, and [`was_in_use`] judges. In any case what its
/// blocks say is flushed was flushed: they are of an incarnation that is not over.
pub fn headless(
    newest: &SegmentHeader,
    point: &ChainPoint,
    files: &[FileClues],
) -> Vec<SegmentHeader> {
    let follows = |file: &FileClues| {
        let position = SEGMENT_HEADER_BYTES as u64;
        let first = BlockHeader::decode_alone(&file.first_page, newest.wal, position)?;
        let is_of_header = match file.header {
            Ok(header) if header.state == SegmentState::Active => return None,
            Ok(header) => header.generation == first.generation,
            Err(_) => false,
        };
        let is_later = point.sequence < first.sequence && point.incarnation <= first.incarnation;
        (is_later && !is_of_header).then_some(SegmentHeader {
            state: SegmentState::Active,
            slot: file.slot,
            wal: newest.wal,
            sequence: newest.sequence.next(),
            generation: first.generation,
            segment_bytes: newest.segment_bytes,
            first_block: first.sequence,
            prev_crc: first.prev_crc,
        })
    };
    files.iter().filter_map(follows).collect()
}

/// Was a segment that [`headless`] made up in use? Then a block in it says that the seal before it
/// was flushed, which comes after the header was.
#[must_use]
pub fn was_in_use(header: &SegmentHeader, scan: &ScanEnd) -> bool {
    header.first_block <= scan.durable_end
}

fn is_damaged(header: &Result<SegmentHeader, SegmentHeaderError>) -> bool {
    header.is_err_and(|error| !matches!(error, SegmentHeaderError::NewerVersion { .. }))
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
                        plan.spares.push(header);
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
        let between = older.sequence.next().0..newer.sequence.0;
        plan.lost.extend(between.take(LOST_SEGMENTS_NAMED).map(SegmentSequence));
    }
    // A WAL that got past its first segment always has an active one. Before that, a crash may
    // leave its first file a spare: never used, or given back by the start after.
    if plan.segments.is_empty() && was_used {
        return Err(OpenError::NoSegment);
    }
    Ok(plan)
}

/// Lost segments between two others that are named one by one: no pool is larger.
const LOST_SEGMENTS_NAMED: usize = crate::segments::SEGMENTS_MAX;

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
/// none or it is lost, `Some(None)` if that one is not sealed (its scan knew the newest one's durable
/// end).
///
/// # Errors
/// A segment is missing.
pub fn judge_newest(
    before: Option<Option<SegmentEnd>>,
    newest: &SegmentHeader,
    scan: &ScanEnd,
) -> Result<Activation, OpenError> {
    match before {
        // The seal may be damaged: it was flushed if the newest segment's blocks say so.
        Some(None) if was_in_use(newest, scan) => {}
        Some(None) => return Ok(Activation::Never),
        Some(Some(end)) => check_join(&end, newest)?,
        // Making a WAL was cut off before its first checkpoint was written.
        None if newest.sequence == SegmentSequence::FIRST
            && !scan.checkpoint_complete
            && !scan.corrupt =>
        {
            return Ok(Activation::Never);
        }
        None => {}
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

/// Offsets that a partition should have by its log start and end, and that none of the ranges holds,
/// which are given in order. They were in blocks that are damaged, or in a file that is lost.
#[must_use]
pub fn missing_records(
    log_start: Offset,
    log_end: Offset,
    held: impl IntoIterator<Item = Range<Offset>>,
) -> Vec<Range<Offset>> {
    let mut missing = Vec::new();
    let mut next = log_start;
    for range in held {
        if next < range.start {
            missing.push(next..range.start.min(log_end));
        }
        next = next.max(range.end);
    }
    if next < log_end {
        missing.push(next..log_end);
    }
    missing.retain(|range| range.start < range.end);
    missing
}

#[cfg(test)]
mod tests;

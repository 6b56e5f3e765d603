//! Checks a whole segment for people: every checksum, the chain, and the footer against the blocks.
//!
//! The shell reads what [`Verify::next_read`] asks for, in order, gives the footer's bytes, and gets
//! a list of [`Finding`]s. Over a directory, [`Coverage`] tells which offsets no segment holds.

use core::fmt;
use core::ops::Range;
use std::collections::BTreeMap;

use crate::block::{BlockError, BlockHeader, Entry};
use crate::entry::{EntryKind, WAL_ITSELF};
use crate::footer::{FooterError, FooterTrailer};
use crate::ids::BlockSequence;
use crate::index::{IndexPoint, SegmentIndex};
use crate::recovery::missing_records;
use crate::scan::{Corruption, Scan, ScanEnd, ScanError};
use crate::segment::{SegmentHeader, SegmentHeaderError};
use crate::{CheckpointError, PartitionCheckpoint};
use rustmq_protocol::{Offset, TopicPartition};

/// Something that is wrong, and what it costs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Where in the file it begins.
    pub position: u64,
    /// One past where it ends.
    pub end: u64,
    /// What is wrong.
    pub what: What,
    /// What is lost by it.
    pub lost: Lost,
}

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// The header page. Given by whoever read it.
    Header(SegmentHeaderError),
    /// A block that was flushed.
    Block(BlockError),
    /// The footer, or a part of it.
    Footer(FooterError),
    /// The footer is whole and says other things than the blocks.
    FooterDiffers,
    /// The file has fewer bytes than it was made with.
    Cut {
        /// Bytes that it has.
        bytes: u64,
    },
    /// A checkpoint that is whole and makes no sense.
    Checkpoint(CheckpointError),
    /// Whole entries that contradict each other, or that this version does not know.
    Contents(ScanError),
}

/// What is lost by damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lost {
    /// Nothing: a start makes it good, or never reads it.
    Nothing,
    /// The state of partitions, which older segments have too.
    State,
    /// These records.
    Records(Vec<(TopicPartition, Range<Offset>)>),
    /// Records that only the offsets around them tell: see [`Coverage`].
    Unknown,
}

/// Walks one segment like a [`Scan`], and keeps what it finds.
#[derive(Debug)]
pub struct Verify {
    scan: Scan,
    header: SegmentHeader,
    file_bytes: u64,
    findings: Vec<Finding>,
    checkpoints: Vec<PartitionCheckpoint>,
    log_starts: BTreeMap<TopicPartition, Offset>,
    rescued: Vec<(TopicPartition, Range<Offset>)>,
    /// Data entries that are whole.
    pub entries: u64,
}

/// What a segment turned out to be.
#[derive(Debug)]
pub struct Verified {
    /// Everything that is wrong with it.
    pub findings: Vec<Finding>,
    /// How it ended, and the index of its entries.
    pub end: ScanEnd,
    /// The partitions of its checkpoint.
    pub checkpoints: Vec<PartitionCheckpoint>,
    /// The last log start that its entries say of each partition.
    pub log_starts: BTreeMap<TopicPartition, Offset>,
    /// Records of damaged blocks that the footer's index led to.
    pub rescued: Vec<(TopicPartition, Range<Offset>)>,
    /// Data entries that are whole.
    pub entries: u64,
}

impl Verify {
    /// Begins with a segment; `durable_end` as for [`Scan::new`].
    #[must_use]
    pub fn new(header: &SegmentHeader, durable_end: BlockSequence, file_bytes: u64) -> Self {
        Self {
            scan: Scan::new(header, durable_end).of_file(file_bytes),
            header: *header,
            file_bytes,
            findings: Vec::new(),
            checkpoints: Vec::new(),
            log_starts: BTreeMap::new(),
            rescued: Vec::new(),
            entries: 0,
        }
    }

    /// What to read and feed next; `None` at the end.
    #[must_use]
    pub fn next_read(&self) -> Option<Range<u64>> {
        self.scan.next_read()
    }

    /// Takes the bytes of the last [`next_read`](Self::next_read), and hands out what is whole.
    pub fn feed(
        &mut self,
        position: u64,
        bytes: &[u8],
        mut on_entry: impl FnMut(&BlockHeader, &Entry<'_>),
    ) {
        let (entries, checkpoints) = (&mut self.entries, &mut self.checkpoints);
        let log_starts = &mut self.log_starts;
        let mut senseless = None;
        let fed = self.scan.feed(position, bytes, |block, entry| {
            *entries += u64::from(entry.header.kind == EntryKind::Data);
            if entry.header.kind == EntryKind::Checkpoint && entry.header.partition != WAL_ITSELF {
                match PartitionCheckpoint::decode(entry.payload) {
                    Ok(checkpoint) => checkpoints.push(checkpoint),
                    Err(error) => senseless = Some((entry.position, error)),
                }
            }
            if entry.header.kind == EntryKind::LogStart {
                raise(log_starts, entry.header.partition, entry.header.base_offset);
            }
            on_entry(block, entry);
        });
        if let Some((at, error)) = senseless {
            let what = What::Checkpoint(error);
            self.findings.push(Finding { position: at, end: at, what, lost: Lost::State });
        }
        match fed {
            Ok(()) => {}
            Err(ScanError::Corruption(bad)) => {
                let lines = bad.named.iter().flatten();
                for line in lines.filter(|line| line.kind == EntryKind::LogStart as u8) {
                    raise(&mut self.log_starts, line.partition, line.base_offset);
                }
                self.findings.push(finding(&bad));
                self.scan.skip_corruption();
            }
            Err(error) => {
                let what = What::Contents(error);
                let end = self.header.segment_bytes;
                self.findings.push(Finding { position, end, what, lost: Lost::Unknown });
                self.scan.stop();
            }
        }
    }

    /// The findings so far, in the order of the segment. After a [`feed`](Self::feed) that found one, entries of
    /// the damaged part that the footer's index leads to may be given to
    /// [`rescue`](Self::rescue).
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Takes what the footer's index says of the part that the last finding is about: the entries
    /// there, each whole or not. Gives those that were not handed out before.
    pub fn rescue(
        &mut self,
        entries: impl IntoIterator<Item = (TopicPartition, IndexPoint, bool)>,
    ) -> Vec<(TopicPartition, IndexPoint)> {
        let Some(finding) = self.findings.last_mut() else { return Vec::new() };
        let handed_out = |partition: TopicPartition, point: &IndexPoint| match &finding.lost {
            Lost::Records(lost) => !lost
                .iter()
                .any(|(of, range)| *of == partition && range.contains(&point.base_offset)),
            Lost::Nothing | Lost::State => true,
            Lost::Unknown => false,
        };
        let (mut lost, mut new) = (Vec::new(), Vec::new());
        for (partition, point, is_whole) in entries {
            let range = point.base_offset..point.end_offset();
            if handed_out(partition, &point) {
                continue;
            }
            if is_whole {
                self.entries += 1;
                self.rescued.push((partition, range));
                new.push((partition, point));
            } else {
                lost.push((partition, range));
            }
        }
        finding.lost = match (&finding.lost, lost.is_empty()) {
            (Lost::State, true) => Lost::State,
            (_, true) => Lost::Nothing,
            (_, false) => Lost::Records(lost),
        };
        new
    }

    /// The verdict. `footer` has the bytes of the file from the position on that
    /// [`footer_start`] gave; `must_have` says that the segment is followed by another, long enough
    /// ago that its footer was written.
    #[must_use]
    pub fn finish(mut self, footer: Option<(u64, &[u8])>, must_have: bool) -> Verified {
        let is_whole = self.file_bytes == self.header.segment_bytes;
        if self.file_bytes < self.header.segment_bytes {
            self.findings.push(Finding {
                position: self.file_bytes,
                end: self.header.segment_bytes,
                what: What::Cut { bytes: self.file_bytes },
                lost: Lost::Unknown,
            });
        }
        // A scan that could not go on is taken as it is.
        let end = self.scan.finish();
        if (end.sealed.is_some() || must_have) && is_whole {
            let (position, checked) = match footer {
                Some((position, bytes)) => {
                    (position, check_footer(&self.header, position, bytes, &end))
                }
                None => (self.header.segment_bytes, Some(What::Footer(FooterError::Absent))),
            };
            // The newest sealed segment may have been left without one by a crash.
            if let Some(what) = checked
                && (must_have || footer.is_some())
            {
                let end = self.header.segment_bytes;
                self.findings.push(Finding { position, end, what, lost: Lost::Nothing });
            }
        }
        Verified {
            findings: self.findings,
            end,
            checkpoints: self.checkpoints,
            log_starts: self.log_starts,
            rescued: self.rescued,
            entries: self.entries,
        }
    }
}

fn raise(log_starts: &mut BTreeMap<TopicPartition, Offset>, of: TopicPartition, to: Offset) {
    let start = log_starts.entry(of).or_insert(to);
    *start = to.max(*start);
}

fn finding(bad: &Corruption) -> Finding {
    let lost = match &bad.named {
        None => Lost::Unknown,
        Some(lines) if lines.is_empty() => Lost::Nothing,
        Some(lines) => {
            let data = lines.iter().filter(|line| line.kind == EntryKind::Data as u8);
            let records: Vec<_> = data
                .map(|line| {
                    let end = line.base_offset.0.saturating_add(u64::from(line.record_count));
                    (line.partition, line.base_offset..Offset(end))
                })
                .collect();
            if records.is_empty() { Lost::State } else { Lost::Records(records) }
        }
    };
    Finding { position: bad.position, end: bad.end, what: What::Block(bad.why), lost }
}

/// Where the footer of a segment begins, by its last page; `None` without a whole trailer.
#[must_use]
pub fn footer_start(header: &SegmentHeader, last_page: &[u8]) -> Option<u64> {
    Some(FooterTrailer::decode(last_page, header).ok()?.footer_start)
}

/// The entries that a whole footer says begin in `range` of the file, in their order. `bytes` are the
/// file's from `position` on. `None`: the footer is not whole.
#[must_use]
pub fn points_in(
    header: &SegmentHeader,
    position: u64,
    bytes: &[u8],
    range: Range<u64>,
) -> Option<Vec<(TopicPartition, IndexPoint)>> {
    let (_, lines) = read_footer(header, position, bytes).ok()?;
    let all = lines.into_iter().flat_map(|(of, points)| points.into_iter().map(move |p| (of, p)));
    let mut points: Vec<_> =
        all.filter(|(_, point)| range.contains(&u64::from(point.position))).collect();
    points.sort_by_key(|(_, point)| point.position);
    Some(points)
}

/// Holds a footer against the blocks: `bytes` are the file's from `position` on.
fn check_footer(
    header: &SegmentHeader,
    position: u64,
    bytes: &[u8],
    end: &ScanEnd,
) -> Option<What> {
    match read_footer(header, position, bytes) {
        Err(error) => Some(What::Footer(error)),
        // Of damaged blocks the footer may know more.
        Ok((trailer, index)) if !end.corrupt => {
            let differs = index != index_lines(&end.index)
                || end.segment_end().is_some_and(|sealed| sealed != trailer.end);
            differs.then_some(What::FooterDiffers)
        }
        Ok(_) => None,
    }
}

type Lines = BTreeMap<TopicPartition, Vec<IndexPoint>>;

fn index_lines(index: &SegmentIndex) -> Lines {
    let partitions = index.partitions();
    partitions.map(|of| (of.partition, index.points(of.partition).to_vec())).collect()
}

fn read_footer(
    header: &SegmentHeader,
    position: u64,
    bytes: &[u8],
) -> Result<(FooterTrailer, Lines), FooterError> {
    let short = FooterError::Short { needed: 0, available: bytes.len() };
    let part = |range: Range<u64>| {
        let start = range.start.checked_sub(position).ok_or(short)? as usize;
        bytes.get(start..start + (range.end - range.start) as usize).ok_or(short)
    };
    let last = header.segment_bytes - crate::footer::FOOTER_TRAILER_BYTES as u64;
    let trailer = FooterTrailer::decode(part(last..header.segment_bytes)?, header)?;
    let mut lines = Lines::new();
    for line in trailer.decode_table(part(trailer.table_range())?, header.generation)? {
        let points = part(trailer.points_range(&line))?;
        lines.insert(line.summary.partition, line.decode_points(points, header.generation)?);
    }
    Ok((trailer, lines))
}

/// Which offsets of each partition the segments of a WAL hold.
#[derive(Debug, Default)]
pub struct Coverage {
    held: BTreeMap<TopicPartition, Vec<Range<Offset>>>,
    /// Log start and end by the newest checkpoint, the start also by what follows it.
    bounds: BTreeMap<TopicPartition, (Offset, Offset)>,
}

impl Coverage {
    /// Adds a segment, in order.
    pub fn add(&mut self, verified: &Verified) {
        // What a whole checkpoint leaves out is deleted, or comes behind it.
        if verified.end.checkpoint_complete {
            self.bounds.clear();
        }
        for checkpoint in &verified.checkpoints {
            let bounds = (checkpoint.log_start, checkpoint.log_end);
            self.bounds.insert(checkpoint.partition, bounds);
        }
        for (partition, log_start) in &verified.log_starts {
            let (start, end) = self.bounds.entry(*partition).or_insert((*log_start, *log_start));
            (*start, *end) = ((*start).max(*log_start), (*end).max(*log_start));
        }
        for of in verified.end.index.partitions() {
            for point in verified.end.index.points(of.partition) {
                self.hold(of.partition, point.base_offset..point.end_offset());
            }
        }
        for (partition, range) in &verified.rescued {
            self.hold(*partition, range.clone());
        }
        for held in self.held.values_mut() {
            held.sort_by_key(|range| range.start);
        }
    }

    fn hold(&mut self, partition: TopicPartition, range: Range<Offset>) {
        let held = self.held.entry(partition).or_default();
        match held.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => held.push(range),
        }
    }

    /// Offsets that should be there and that no segment holds. The WAL does not say which topics were
    /// deleted behind its newest checkpoint.
    #[must_use]
    pub fn missing(&self) -> Vec<(TopicPartition, Range<Offset>)> {
        let mut missing = Vec::new();
        for (partition, held) in &self.held {
            let last = held.last().map_or(Offset(0), |range| range.end);
            let first = held.first().map_or(Offset(0), |range| range.start);
            let (start, end) = self.bounds.get(partition).copied().unwrap_or((first, last));
            let ranges = missing_records(start, end.max(last), held.iter().cloned());
            missing.extend(ranges.into_iter().map(|range| (*partition, range)));
        }
        for (partition, (start, end)) in &self.bounds {
            if !self.held.contains_key(partition) && start < end {
                missing.push((*partition, *start..*end));
            }
        }
        missing
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => write!(f, "{error}"),
            Self::Block(error) => write!(f, "{error}"),
            Self::Footer(error) => write!(f, "{error}"),
            Self::FooterDiffers => f.write_str("the footer says other things than the blocks"),
            Self::Cut { bytes } => write!(f, "the file was cut to {bytes} bytes"),
            Self::Checkpoint(error) => write!(f, "{error}"),
            Self::Contents(error) => write!(f, "{error}"),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing is lost"),
            Self::State => f.write_str("state that older segments have too, if there are any"),
            Self::Unknown => f.write_str("what it held is told only by the offsets around it"),
            Self::Records(records) => {
                f.write_str("lost:")?;
                for (index, (partition, range)) in records.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma} {partition} offsets {}..{}", range.start, range.end)?;
                }
                Ok(())
            }
        }
    }
}

//! Recovery of one segment: follows the chain of blocks, and judges where it ends.
//!
//! A bad block is *corruption* if anything says that it was once flushed: a later valid block of
//! the same generation whose durable end lies beyond it (a clean or seal block's always does), or
//! what the caller knows from elsewhere. Otherwise it is the torn tail of the last writes and is cut.
//! Valid blocks after the cut belong to the same unflushed tail, or to one cut earlier: ignored.

use core::fmt;
use std::collections::VecDeque;

use crate::block::{
    BLOCK_ALIGN, BLOCK_HEADER_BYTES, BlockError, BlockFlags, BlockHeader, BlockView, ChainPoint,
    DirectoryLine, Entry, decode_block,
};
use crate::entry::EntryError;
use crate::footer::SegmentEnd;
use crate::ids::{BlockSequence, NextSegment};
use crate::index::SegmentIndex;
use crate::segment::SegmentHeader;
use rustmq_protocol::{Offset, TopicPartition};

/// Bytes of a read, unless one block is longer: 1 MiB keeps an NVMe device at its full rate.
pub const SCAN_READ_BYTES: usize = 1 << 20;

/// Walks one segment. The shell reads what [`next_read`](Self::next_read) asks for and feeds it,
/// until there is nothing to read; then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Scan {
    segment_bytes: u64,
    /// The block that comes next.
    point: ChainPoint,
    read_bytes: usize,
    mode: Mode,
    durable_end: BlockSequence,
    /// Sequence and position of blocks at or past the durable end.
    undurable: VecDeque<(BlockSequence, u64)>,
    index: SegmentIndex,
    last: Option<BlockHeader>,
    checkpoint_complete: bool,
    torn: Option<Torn>,
}

#[derive(Debug)]
enum Mode {
    /// Following the chain.
    Chain,
    /// Behind a bad block, looking for proof that it was flushed.
    LookOn { bad: Box<Corruption>, position: u64 },
    /// Told the caller of corruption; may go on behind it.
    Corrupt { resume: Option<ChainPoint> },
    /// At the end.
    Done,
}

/// A block that was flushed once and is damaged now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// Where in the segment it begins.
    pub position: u64,
    /// Its sequence.
    pub sequence: BlockSequence,
    /// What is wrong with it.
    pub why: BlockError,
    /// The entries in it, if header and directory survived: exactly these are in doubt. `None`:
    /// anything may be, in this segment from `position` on.
    pub named: Option<Vec<DirectoryLine>>,
    /// What comes after it, if that is known: [`Scan::skip_corruption`] goes on there.
    pub resume: Option<ChainPoint>,
}

/// The last write, not whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Torn {
    /// Where in the segment it begins.
    pub position: u64,
    /// What is wrong with it.
    pub why: BlockError,
}

/// What a segment turned out to be.
#[derive(Clone, Debug)]
pub struct ScanEnd {
    /// What comes after the last good block: where writing goes on.
    pub next: ChainPoint,
    /// First block that no block says is flushed.
    pub durable_end: BlockSequence,
    /// Where the blocks from there on lie in this segment. They were read but may not be durable:
    /// recovery writes them again and flushes before it believes them.
    pub undurable: core::ops::Range<u64>,
    /// The next segment, if this one is sealed.
    pub sealed: Option<NextSegment>,
    /// Whether the last block is the mark of a clean shutdown.
    pub clean: bool,
    /// The tail that was cut, if there are remains of one.
    pub torn: Option<Torn>,
    /// Whether the segment's checkpoint is whole.
    pub checkpoint_complete: bool,
    /// Index of the entries handed out.
    pub index: SegmentIndex,
}

impl ScanEnd {
    /// How the segment ended, if it is sealed.
    #[must_use]
    pub fn segment_end(&self) -> Option<SegmentEnd> {
        Some(SegmentEnd::of(&self.next, self.sealed?))
    }
}

impl Scan {
    /// Begins at a segment's first block. `durable_end` is what is known from elsewhere: the first
    /// block of the next segment if that one was activated, else the durable end that a scan of
    /// the next segment found, else [`BlockSequence::FIRST`].
    #[must_use]
    pub fn new(header: &SegmentHeader, durable_end: BlockSequence) -> Self {
        Self {
            segment_bytes: header.segment_bytes,
            point: header.chain_start(),
            read_bytes: SCAN_READ_BYTES,
            mode: Mode::Chain,
            durable_end,
            undurable: VecDeque::new(),
            index: SegmentIndex::new(),
            last: None,
            checkpoint_complete: false,
            torn: None,
        }
    }

    /// What to read and feed next, in whole pages; `None` at the end.
    #[must_use]
    pub fn next_read(&self) -> Option<core::ops::Range<u64>> {
        let (start, bytes) = match &self.mode {
            Mode::Chain => (self.point.position, self.read_bytes),
            Mode::LookOn { position, .. } => (*position, SCAN_READ_BYTES),
            Mode::Corrupt { .. } | Mode::Done => return None,
        };
        let end = (start + bytes as u64).min(self.segment_bytes);
        (start < end).then_some(start..end)
    }

    /// Takes the bytes of the last [`next_read`](Self::next_read); hands out the entries of every
    /// good block in order.
    ///
    /// # Errors
    /// The segment cannot be believed, or not by this version. After
    /// [`ScanError::Corruption`] the scan may go on with [`skip_corruption`](Self::skip_corruption).
    pub fn feed(
        &mut self,
        position: u64,
        bytes: &[u8],
        mut on_entry: impl FnMut(&BlockHeader, &Entry<'_>),
    ) -> Result<(), ScanError> {
        let asked = self.next_read().expect("bytes are fed while there is something to read");
        assert!(asked.start == position, "the read that was asked for");
        assert!(asked.end - asked.start == bytes.len() as u64, "the whole read");
        match self.mode {
            Mode::Chain => self.follow(bytes, &mut on_entry)?,
            Mode::LookOn { .. } => self.look_on(bytes)?,
            Mode::Corrupt { .. } | Mode::Done => {}
        }
        if self.next_read().is_none() && !matches!(self.mode, Mode::Corrupt { .. }) {
            self.end();
        }
        Ok(())
    }

    /// Goes on behind a corrupt block of known extent. `false`: its extent is not known and the
    /// rest of the segment cannot be told.
    pub fn skip_corruption(&mut self) -> bool {
        let Mode::Corrupt { resume: Some(resume) } = self.mode else { return false };
        self.point = resume;
        self.mode = Mode::Chain;
        true
    }

    /// The verdict, after everything asked for was fed.
    #[must_use]
    pub fn finish(self) -> ScanEnd {
        assert!(self.next_read().is_none(), "a scan reads to its end");
        let undurable_start = self.undurable.front().map(|(_, position)| *position);
        let last_has = |flag| self.last.is_some_and(|last| last.flags.has(flag));
        ScanEnd {
            next: self.point,
            durable_end: self.durable_end,
            undurable: undurable_start.unwrap_or(self.point.position)..self.point.position,
            sealed: self.last.and_then(|last| last.next),
            clean: last_has(BlockFlags::CLEAN),
            torn: self.torn,
            checkpoint_complete: self.checkpoint_complete,
            index: self.index,
        }
    }

    fn follow(
        &mut self,
        bytes: &[u8],
        on_entry: &mut impl FnMut(&BlockHeader, &Entry<'_>),
    ) -> Result<(), ScanError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match decode_block(rest, &self.point) {
                Ok(block) => {
                    rest = rest.get(block.header.length as usize..).unwrap_or_default();
                    self.accept(&block, on_entry)?;
                    if matches!(self.mode, Mode::Done) {
                        return Ok(());
                    }
                }
                Err(BlockError::Short { needed, .. })
                    if self.point.position + needed as u64 <= self.segment_bytes =>
                {
                    // The block goes on behind this read: ask for all of it, from its beginning.
                    self.read_bytes = needed.max(SCAN_READ_BYTES);
                    return Ok(());
                }
                Err(why) => return self.meet_bad_block(rest, why),
            }
        }
        self.read_bytes = SCAN_READ_BYTES;
        Ok(())
    }

    fn accept(
        &mut self,
        block: &BlockView<'_>,
        on_entry: &mut impl FnMut(&BlockHeader, &Entry<'_>),
    ) -> Result<(), ScanError> {
        let header = block.header;
        for entry in block.entries() {
            if !self.index.continues(&entry.header) {
                return Err(ScanError::OffsetsFall {
                    position: entry.position,
                    partition: entry.header.partition,
                    base_offset: entry.header.base_offset,
                });
            }
            self.index.add(&entry.header, entry.position);
            on_entry(&header, &entry);
        }
        self.durable_end = self.durable_end.max(header.durable_end);
        self.undurable.push_back((header.sequence, header.position));
        while self.undurable.front().is_some_and(|(sequence, _)| *sequence < self.durable_end) {
            self.undurable.pop_front();
        }
        self.checkpoint_complete |= header.flags.has(BlockFlags::CHECKPOINT_END);
        self.last = Some(header);
        self.point = header.chain_after();
        if header.next.is_some() {
            self.mode = Mode::Done;
        }
        Ok(())
    }

    fn meet_bad_block(&mut self, bytes: &[u8], why: BlockError) -> Result<(), ScanError> {
        let position = self.point.position;
        if let BlockError::NewerVersion { found, supported } = why {
            return Err(ScanError::NewerVersion { position, found, supported });
        }
        if let BlockError::Entry { error: EntryError::UnknownKind { kind }, .. } = why {
            return Err(ScanError::UnknownEntryKind { position, kind });
        }
        // Only a header that is good and joins the chain may say what the block held.
        let joined = match why {
            BlockError::DirectoryCrc | BlockError::EntriesCrc | BlockError::Entry { .. } => {
                let point = &self.point;
                BlockHeader::decode(bytes, point.wal, point.generation, position).ok()
            }
            _ => None,
        };
        let named = joined.and_then(|header| header.directory(bytes));
        let resume = joined.map(|header| header.chain_after());
        let bad =
            Box::new(Corruption { position, sequence: self.point.sequence, why, named, resume });
        if bad.sequence < self.durable_end {
            return Err(self.corrupt(bad));
        }
        self.mode = Mode::LookOn { bad, position: position + BLOCK_ALIGN as u64 };
        // The rest of this read is looked at too.
        self.look_on(bytes.get(BLOCK_ALIGN..).unwrap_or_default())
    }

    fn look_on(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let Mode::LookOn { bad, position } = &mut self.mode else { return Ok(()) };
        let (wal, generation) = (self.point.wal, self.point.generation);
        for page in bytes.chunks(BLOCK_ALIGN) {
            let at = *position;
            *position += BLOCK_ALIGN as u64;
            let header = page.get(..BLOCK_HEADER_BYTES).unwrap_or_default();
            match BlockHeader::decode(header, wal, generation, at) {
                Ok(later) if bad.sequence < later.durable_end => {
                    let bad = bad.clone();
                    return Err(self.corrupt(bad));
                }
                Err(BlockError::NewerVersion { found, supported }) => {
                    return Err(ScanError::NewerVersion { position: at, found, supported });
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn corrupt(&mut self, bad: Box<Corruption>) -> ScanError {
        self.mode = Mode::Corrupt { resume: bad.resume };
        ScanError::Corruption(bad)
    }

    fn end(&mut self) {
        if let Mode::LookOn { bad, .. } = &self.mode {
            self.torn = begun(&bad.why).then_some(Torn { position: bad.position, why: bad.why });
        }
        self.mode = Mode::Done;
    }
}

/// Whether a bad block is the beginning of a write. Otherwise the bytes are of an older use of the
/// file or of a tail that was cut before, and the chain simply ends.
fn begun(why: &BlockError) -> bool {
    match why {
        BlockError::Short { .. }
        | BlockError::HeaderCrc { .. }
        | BlockError::Extents
        | BlockError::DirectoryCrc
        | BlockError::EntriesCrc
        | BlockError::Entry { .. } => true,
        BlockError::NotABlock
        | BlockError::Generation
        | BlockError::NewerVersion { .. }
        | BlockError::Foreign { .. }
        | BlockError::Misplaced { .. }
        | BlockError::Sequence { .. }
        | BlockError::PrevCrc { .. }
        | BlockError::Incarnation { .. } => false,
    }
}

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

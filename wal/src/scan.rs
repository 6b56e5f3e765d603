//! Recovery of one segment: follows the chain of blocks, and judges where it ends.
//!
//! A bad block is *corruption* if anything says that it was once flushed: a later valid block of
//! the same generation whose durable end lies beyond it (a clean or seal block's always does), or
//! what the caller knows from elsewhere. Otherwise it is the torn tail of the last writes and is cut.
//! Valid blocks after the cut belong to the same unflushed tail, or to one cut earlier: ignored.
//!
//! Of a corrupt block everything is handed out that proves itself, and the rest is named as closely
//! as what survived allows. Valid blocks between it and the block that proves it flushed are live:
//! whatever was cut before lies behind the live end, or was overwritten. So the scan goes on there.

mod error;

use std::collections::VecDeque;

use crate::block::{
    BLOCK_ALIGN, BLOCK_HEADER_BYTES, BlockError, BlockFlags, BlockHeader, ChainPoint,
    DirectoryLine, Entry, decode_block, rescue_block,
};
use crate::checkpoint::WalCheckpoint;
use crate::entry::{EntryError, EntryKind, WAL_ITSELF};
use crate::footer::SegmentEnd;
use crate::ids::{BlockSequence, NextSegment};
use crate::index::SegmentIndex;
use crate::segment::SegmentHeader;
use rustmq_planted::{Bug, planted};

pub use self::error::ScanError;

/// Bytes of a read, unless one block is longer: 1 MiB keeps an NVMe device at its full rate.
pub const SCAN_READ_BYTES: usize = 1 << 20;

/// Walks one segment. The shell reads what [`next_read`](Self::next_read) asks for and feeds it,
/// until there is nothing to read; then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Scan {
    /// Where the file ends: what lies behind is not there.
    end: u64,
    /// What the segment's mark says: no block ends behind it.
    reach: Option<u64>,
    /// The block that comes next.
    point: ChainPoint,
    read_bytes: usize,
    mode: Mode,
    durable_end: BlockSequence,
    /// Sequence and position of blocks at or past the durable end.
    undurable: VecDeque<(BlockSequence, u64)>,
    index: SegmentIndex,
    last: Option<BlockHeader>,
    checkpoint: Checkpoint,
    corrupt: bool,
    torn: Option<Torn>,
}

#[derive(Debug)]
enum Mode {
    /// Following the chain.
    Chain,
    /// Behind a bad block, looking for proof that it was flushed, and for the next good one.
    LookOn {
        bad: Box<Corruption>,
        /// The bad block's header, if that is good.
        header: Option<BlockHeader>,
        position: u64,
        next: Option<ChainPoint>,
    },
    /// Reading a corrupt block again, for what in it is whole.
    Rescue { bad: Box<Corruption>, header: BlockHeader },
    /// Told the caller of corruption; may go on behind it.
    Corrupt { resume: Option<ChainPoint> },
    /// At the end.
    Done,
}

/// What was seen of the segment's checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Checkpoint {
    /// Partitions that it says it has.
    expected: Option<u32>,
    seen: u32,
    /// Its last block was good.
    ended: bool,
    /// A partition of it is damaged, or may be.
    lost: bool,
}

impl Checkpoint {
    fn is_complete(&self) -> bool {
        self.expected == Some(self.seen) || self.ended && !self.lost
    }

    fn take(&mut self, entry: &Entry<'_>) {
        if entry.header.kind != EntryKind::Checkpoint {
            return;
        }
        if entry.header.partition == WAL_ITSELF {
            let decoded = WalCheckpoint::decode(entry.payload).ok();
            self.expected = decoded.map(|checkpoint| checkpoint.partition_count);
        } else {
            self.seen += 1;
        }
    }

    fn lose(&mut self, named: Option<&[DirectoryLine]>) {
        let is_partition = |line: &DirectoryLine| {
            line.kind == EntryKind::Checkpoint as u8 && line.partition != WAL_ITSELF
        };
        self.lost |= match named {
            Some(lines) => lines.iter().any(is_partition),
            None => !self.ended,
        };
    }
}

/// A block that was flushed once and is damaged now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// Where in the segment it begins.
    pub position: u64,
    /// Where what is in doubt ends: the next good block, or the end of the segment.
    pub end: u64,
    /// Its sequence.
    pub sequence: BlockSequence,
    /// What is wrong with it.
    pub why: BlockError,
    /// The damaged entries in it, if enough survived to tell: exactly these are lost, the others of
    /// the block were handed out. Empty: nothing is lost. `None`: anything may be that lay between
    /// `position` and `end`.
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
    /// Whether the state of every partition in the segment's checkpoint was handed out.
    pub checkpoint_complete: bool,
    /// Whether corruption was told of, or the file ends before a first block that was flushed.
    pub corrupt: bool,
    /// The segment's mark, if there is one and no block lies behind it.
    pub reach: Option<u64>,
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
            end: header.segment_bytes,
            reach: None,
            point: header.chain_start(),
            read_bytes: SCAN_READ_BYTES,
            mode: Mode::Chain,
            durable_end,
            undurable: VecDeque::new(),
            index: SegmentIndex::new(),
            last: None,
            checkpoint: Checkpoint::default(),
            corrupt: false,
            torn: None,
        }
    }

    /// The same in a file that ends early: it was cut to `bytes`.
    #[must_use]
    pub fn of_file(mut self, bytes: u64) -> Self {
        self.end = self.end.min(bytes - bytes % BLOCK_ALIGN as u64);
        self
    }

    /// The same in a segment with a mark, see [`reach`](crate::reach).
    #[must_use]
    pub fn within(mut self, reach: Option<u64>) -> Self {
        self.reach = reach;
        self
    }

    /// Where reading will end, unless there is more than the mark says.
    #[must_use]
    pub fn look_end(&self) -> u64 {
        // One page more shows whether the mark is true.
        self.reach.map_or(self.end, |reach| self.end.min(reach + BLOCK_ALIGN as u64))
    }

    /// What to read and feed next, in whole pages; `None` at the end.
    #[must_use]
    pub fn next_read(&self) -> Option<core::ops::Range<u64>> {
        let (start, bytes, end) = match &self.mode {
            Mode::Chain => (self.point.position, self.read_bytes, self.end),
            Mode::LookOn { position, .. } => (*position, SCAN_READ_BYTES, self.look_end()),
            Mode::Rescue { header, .. } => (header.position, header.length as usize, self.end),
            Mode::Corrupt { .. } | Mode::Done => return None,
        };
        let end = (start + bytes as u64).min(end);
        (start < end).then_some(start..end)
    }

    /// Takes the bytes of the last [`next_read`](Self::next_read), or the pages it begins with; hands
    /// out the entries of every good block in order. If those pages do not do, the same is asked for
    /// again, and then all of it is needed.
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
        let asked = (asked.end - asked.start) as usize;
        assert!(bytes.len() <= asked, "not more than was asked for");
        assert!(bytes.len() == asked || bytes.len().is_multiple_of(BLOCK_ALIGN), "whole pages");
        match self.mode {
            Mode::Chain => self.follow(bytes, &mut on_entry)?,
            Mode::LookOn { .. } => self.look_on(bytes)?,
            Mode::Rescue { .. } if bytes.len() < asked => {}
            Mode::Rescue { .. } => self.rescue(bytes, &mut on_entry)?,
            Mode::Corrupt { .. } | Mode::Done => {}
        }
        if self.next_read().is_none() && !matches!(self.mode, Mode::Corrupt { .. }) {
            self.end()?;
        }
        Ok(())
    }

    /// Goes on behind a corrupt block. `false`: no good block of this segment follows it.
    pub fn skip_corruption(&mut self) -> bool {
        let Mode::Corrupt { resume: Some(resume) } = self.mode else { return false };
        self.point = resume;
        self.read_bytes = SCAN_READ_BYTES;
        let is_sealed = self
            .last
            .is_some_and(|last| last.next.is_some() && last.sequence.next() == resume.sequence);
        self.mode = if is_sealed || self.end <= resume.position { Mode::Done } else { Mode::Chain };
        true
    }

    /// Ends here, behind an error: what follows cannot be told.
    pub fn stop(&mut self) {
        self.mode = Mode::Done;
    }

    /// The verdict, after everything asked for was fed.
    #[must_use]
    pub fn finish(self) -> ScanEnd {
        assert!(self.next_read().is_none(), "a scan reads to its end");
        let undurable_start = self.undurable.front().map(|(_, position)| *position);
        let last_has = |flag| self.last.is_some_and(|last| last.flags.has(flag));
        // A file without a page to feed ends before its first block.
        let lacks_first =
            matches!(self.mode, Mode::Chain) && self.point.sequence < self.durable_end;
        ScanEnd {
            next: self.point,
            durable_end: self.durable_end,
            undurable: undurable_start.unwrap_or(self.point.position)..self.point.position,
            sealed: self.last.and_then(|last| last.next),
            clean: last_has(BlockFlags::CLEAN),
            torn: self.torn,
            checkpoint_complete: self.checkpoint.is_complete(),
            corrupt: self.corrupt || lacks_first,
            reach: self.reach,
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
                    self.accept(&block.header, block.entries(), on_entry)?;
                    if matches!(self.mode, Mode::Done) {
                        return Ok(());
                    }
                }
                Err(BlockError::Short { needed, .. })
                    if self.point.position + needed as u64 <= self.end =>
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

    fn accept<'a>(
        &mut self,
        header: &BlockHeader,
        entries: impl Iterator<Item = Entry<'a>>,
        on_entry: &mut impl FnMut(&BlockHeader, &Entry<'_>),
    ) -> Result<(), ScanError> {
        for entry in entries {
            if !self.index.continues(&entry.header) {
                return Err(ScanError::OffsetsFall {
                    position: entry.position,
                    partition: entry.header.partition,
                    base_offset: entry.header.base_offset,
                });
            }
            self.index.add(&entry.header, entry.position);
            self.checkpoint.take(&entry);
            on_entry(header, &entry);
        }
        self.durable_end = self.durable_end.max(header.durable_end);
        self.undurable.push_back((header.sequence, header.position));
        while self.undurable.front().is_some_and(|(sequence, _)| *sequence < self.durable_end) {
            self.undurable.pop_front();
        }
        self.checkpoint.ended |= header.flags.has(BlockFlags::CHECKPOINT_END);
        self.last = Some(*header);
        self.point = header.chain_after();
        let end = self.point.position;
        self.reach = self.reach.filter(|reach| end <= *reach);
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
        if planted(Bug::TailCutBelowDurableEnd) {
            self.torn = Some(Torn { position, why });
            self.mode = Mode::Done;
            return Ok(());
        }
        // A block that was to begin behind the mark was none that it knew of.
        self.reach = self.reach.filter(|reach| position < *reach);
        // Only a header that joins the chain may say what the block held.
        let header = match why {
            BlockError::HeaderCrc { .. } | BlockError::NotABlock | BlockError::Generation => {
                BlockHeader::correct(bytes, &self.point)
            }
            _ => BlockHeader::decode_next(bytes, &self.point).ok(),
        };
        // No block passes the end of its segment, whatever its header says.
        let header = header.filter(|header| position + u64::from(header.length) <= self.end);
        let bad = Box::new(Corruption {
            position,
            end: header.map_or(self.end, |header| position + u64::from(header.length)),
            sequence: self.point.sequence,
            why,
            named: None,
            resume: header.map(|header| header.chain_after()),
        });
        if bad.sequence < self.durable_end
            && let Some(header) = header
        {
            self.mode = Mode::Rescue { bad, header };
            return Ok(());
        }
        self.mode =
            Mode::LookOn { bad, header, position: position + BLOCK_ALIGN as u64, next: None };
        // The rest of this read is looked at too.
        self.look_on(bytes.get(BLOCK_ALIGN..).unwrap_or_default())
    }

    fn look_on(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let Mode::LookOn { bad, header, position, next } = &mut self.mode else { return Ok(()) };
        let (wal, generation) = (self.point.wal, self.point.generation);
        for page in bytes.chunks(BLOCK_ALIGN) {
            let at = *position;
            *position += BLOCK_ALIGN as u64;
            let found = page.get(..BLOCK_HEADER_BYTES).unwrap_or_default();
            match BlockHeader::decode(found, wal, generation, at) {
                Ok(later) => {
                    let end = at + u64::from(later.length);
                    self.reach = self.reach.filter(|reach| end <= *reach);
                    if bad.sequence < later.sequence && self.point.incarnation <= later.incarnation
                    {
                        next.get_or_insert(later.chain_at());
                    }
                    if bad.sequence < later.durable_end {
                        let (bad, header, next) = (bad.clone(), *header, *next);
                        return self.convict(bad, header, next);
                    }
                }
                Err(BlockError::NewerVersion { found, supported }) => {
                    return Err(ScanError::NewerVersion { position: at, found, supported });
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The bad block is known to have been flushed.
    fn convict(
        &mut self,
        mut bad: Box<Corruption>,
        header: Option<BlockHeader>,
        next: Option<ChainPoint>,
    ) -> Result<(), ScanError> {
        if let Some(header) = header {
            self.mode = Mode::Rescue { bad, header };
            return Ok(());
        }
        self.checkpoint.lose(None);
        bad.resume = next;
        bad.end = next.map_or(self.end, |next| next.position);
        Err(self.corrupt(bad))
    }

    fn rescue(
        &mut self,
        bytes: &[u8],
        on_entry: &mut impl FnMut(&BlockHeader, &Entry<'_>),
    ) -> Result<(), ScanError> {
        let Mode::Rescue { bad, header } = &self.mode else { return Ok(()) };
        let (mut bad, header) = (bad.clone(), *header);
        let rescued = rescue_block(&header, bytes);
        if let Some(kind) = rescued.unknown_kind {
            return Err(ScanError::UnknownEntryKind { position: bad.position, kind });
        }
        bad.named = rescued.lost;
        self.checkpoint.lose(bad.named.as_deref());
        self.accept(&header, rescued.entries.into_iter(), on_entry)?;
        Err(self.corrupt(bad))
    }

    fn corrupt(&mut self, bad: Box<Corruption>) -> ScanError {
        self.mode = Mode::Corrupt { resume: bad.resume };
        self.corrupt = true;
        ScanError::Corruption(bad)
    }

    fn end(&mut self) -> Result<(), ScanError> {
        match &self.mode {
            Mode::LookOn { bad, .. } if bad.sequence < self.durable_end => {
                // No block of this segment proves it, but the caller did; what still looks valid
                // behind it may be of a tail that was cut before.
                let bad = bad.clone();
                self.checkpoint.lose(None);
                return Err(self.corrupt(bad));
            }
            Mode::Chain if self.point.sequence < self.durable_end => {
                // The file ends where another block was.
                self.checkpoint.lose(None);
                let why = BlockError::Short { needed: BLOCK_HEADER_BYTES, available: 0 };
                return Err(self.corrupt(Box::new(Corruption {
                    position: self.point.position,
                    end: self.end,
                    sequence: self.point.sequence,
                    why,
                    named: None,
                    resume: None,
                })));
            }
            Mode::LookOn { bad, .. } => {
                self.torn =
                    begun(&bad.why).then_some(Torn { position: bad.position, why: bad.why });
            }
            Mode::Chain | Mode::Rescue { .. } | Mode::Corrupt { .. } | Mode::Done => {}
        }
        self.mode = Mode::Done;
        Ok(())
    }
}

/// Whether a bad block is the beginning of a write. Otherwise the bytes are of an older use of the
/// file or of a tail that was cut before, and the chain simply ends.
fn begun(why: &BlockError) -> bool {
    match why {
        BlockError::Short { .. }
        | BlockError::HeaderCrc { .. }
        | BlockError::Extents
        | BlockError::Uncountable
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

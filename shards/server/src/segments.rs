//! The segment files of one WAL: written, sealed, freed and used again.
//!
//! Which segment comes next and when one may go is decided by `wal::Segments`; this file does it, in
//! the order that recovery relies on: new header and checkpoint, flushed; then the seal block in
//! the old segment, flushed; then the old one's footer, some time.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use rustmq_planted::{Bug, planted};
use rustmq_protocol::TopicPartition;
use rustmq_sys::buffer::{Buffer, BufferPool, Slice};
use rustmq_sys::clock;
use rustmq_sys::file::File;
use rustmq_sys::runtime::{self, Class};
use rustmq_wal::footer;
use rustmq_wal::reach::next_reach;
use rustmq_wal::read_plan::Piece;
use rustmq_wal::{
    BlockBuilder, BlockFlags, BlockSequence, Chain, DIRECTORY_CAPACITY_MIN, EntryMeta,
    FooterTrailer, Generation, IndexPoint, NextSegment, NextSlot, SEGMENT_HEADER_BYTES, Scan,
    ScanError, SealedBlock, SegmentEnd, SegmentHeader, SegmentIndex, SegmentSequence, SegmentState,
    Segments, Slot, WalId,
};

use crate::checkpoint::CheckpointBlocks;
use crate::error::ShardError;
use crate::index_cache::{IndexCache, Table};
use crate::limits::FLUSH_STALL_MS;
use crate::notify::{Notify, WaitList};
use crate::random;
use crate::segment_io::{
    create_segment, header_page, reach_page, read_pieces, read_range, store_footer, take_buffer,
    write_both_durable, write_header, write_reach,
};
use crate::shard::Shard;

/// A checkpoint takes at most a quarter of a segment: an eighth for partitions, one for producers.
pub(crate) const CHECKPOINT_PART: usize = 8;

/// Kept free at the end of the last segment of a full WAL, a sixteenth of it within these bounds: for
/// the log starts that make room again, and a page for each restart meanwhile. A start that finds no
/// page left is refused, and says that the capacity has to be raised. A quarter of a tiny segment.
const RESERVED_BYTES_MIN: usize = 128 * 1024;
const RESERVED_BYTES_MAX: usize = 1024 * 1024;

/// May another block be written?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Yes.
    Fits,
    /// Soon: a segment is being made or freed.
    Wait,
    /// Not until retention frees a segment or the disk has space again.
    Full,
}

/// When a write counts as done, and what a full WAL does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Flush with every block; else a task flushes at intervals.
    pub(crate) flush_always: bool,
    /// A full WAL drops its oldest records instead of refusing new ones.
    pub(crate) delete_oldest: bool,
}

/// The files of one WAL and where its chain of blocks stands.
///
/// Owned by the WAL's writer. Invariants: `chain`, `segments` and `index` change together, when a
/// block is sealed or durable; a file in `files` has the size of a segment and stays open.
pub(crate) struct SegmentFiles {
    id: WalId,
    dir: PathBuf,
    policy: Policy,
    /// For headers, checkpoints and footers; consumers cannot use it up.
    pool: BufferPool,
    /// For what consumers read.
    read_pool: BufferPool,
    files: RefCell<BTreeMap<Slot, File>>,
    segments: RefCell<Segments>,
    chain: RefCell<Chain>,
    /// The active segment's entries.
    index: RefCell<SegmentIndex>,
    /// Blocks of the active segment end below this: its durable mark. 0: it has none.
    reach: Cell<u64>,
    /// Sealed segments whose footer is not written yet.
    unfooted: RefCell<BTreeMap<SegmentSequence, Rc<SegmentIndex>>>,
    /// Sealed segments whose footer is being written: their files are not to be used again yet.
    footing: RefCell<BTreeSet<SegmentSequence>>,
    /// Footers of sealed segments, as far as they were used lately.
    footers: RefCell<IndexCache>,
    reserved_bytes: usize,
    /// The last attempt to make a segment failed, because the disk is full.
    create_failed: Cell<bool>,
    /// Bytes and entries of the block that is sealed and not yet noted as written.
    in_flight: Cell<(usize, usize)>,
    /// From this segment on none is freed before the next checkpoint: the tail's is damaged.
    checkpoint_from: Cell<Option<SegmentSequence>>,
    /// A segment is being changed: its checkpoint may name topics that `segments` does not.
    rotating: Cell<bool>,
    /// Since when the device has been asked for a write or flush.
    busy_since: Cell<Option<Instant>>,
    /// Files whose name is gone: what is written to them is lost with this process.
    lost: RefCell<BTreeSet<Slot>>,
    /// The index of a segment is being made anew: one at a time, since it reads all of it.
    indexing: Cell<bool>,
    /// A request found no room.
    starved: Cell<bool>,
    /// Bytes read for consumers.
    read_bytes: Cell<u64>,
    /// Housekeeping should look now: a spare or space is missing.
    pub(crate) wanted: Notify,
    spare_ready: WaitList,
}

/// What recovery knows of a WAL when it hands it over.
pub(crate) struct Recovered {
    pub(crate) files: BTreeMap<Slot, File>,
    pub(crate) segments: Segments,
    pub(crate) chain: Chain,
    pub(crate) index: SegmentIndex,
    /// The tail's mark: how far blocks may lie in it.
    pub(crate) reach: Option<u64>,
    /// Indexes of sealed segments whose footer could not be written.
    pub(crate) unfooted: BTreeMap<SegmentSequence, Rc<SegmentIndex>>,
    /// The tail's checkpoint is damaged, and this segment and those behind it make up for it.
    pub(crate) checkpoint_from: Option<SegmentSequence>,
}

impl SegmentFiles {
    /// Takes over what recovery found.
    pub(crate) fn new(
        id: WalId,
        dir: PathBuf,
        policy: Policy,
        pool: BufferPool,
        read_pool: BufferPool,
        index_bytes_max: usize,
        recovered: Recovered,
    ) -> Self {
        let reserved_bytes = Self::reserved(recovered.segments.segment_bytes());
        Self {
            reserved_bytes,
            id,
            dir,
            policy,
            pool,
            read_pool,
            files: RefCell::new(recovered.files),
            segments: RefCell::new(recovered.segments),
            chain: RefCell::new(recovered.chain),
            index: RefCell::new(recovered.index),
            reach: Cell::new(recovered.reach.unwrap_or(0)),
            unfooted: RefCell::new(recovered.unfooted),
            footing: RefCell::default(),
            footers: RefCell::new(IndexCache::new(index_bytes_max)),
            create_failed: Cell::new(false),
            in_flight: Cell::new((0, 0)),
            checkpoint_from: Cell::new(recovered.checkpoint_from),
            rotating: Cell::new(false),
            busy_since: Cell::new(None),
            lost: RefCell::default(),
            indexing: Cell::new(false),
            starved: Cell::new(false),
            read_bytes: Cell::new(0),
            wanted: Notify::default(),
            spare_ready: WaitList::default(),
        }
    }

    /// The WAL.
    pub(crate) fn id(&self) -> WalId {
        self.id
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The pool of segments, to read.
    pub(crate) fn segments(&self) -> Ref<'_, Segments> {
        self.segments.borrow()
    }

    /// Bytes that live segments take on disk.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.segments.borrow().live().map(|segment| segment.header.segment_bytes).sum()
    }

    /// Bytes that the producers, and as many that the partitions, may take of a segment's checkpoint.
    pub(crate) fn checkpoint_bytes_max(&self) -> usize {
        self.segments.borrow().segment_bytes() as usize / CHECKPOINT_PART
    }

    /// What a full WAL does.
    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// May a block of this size be written, now or after one change of segment?
    pub(crate) fn admits(&self, block_bytes: usize, entry_count: usize) -> Admission {
        let segments = self.segments.borrow();
        let (block_bytes, entry_count) = self.with_in_flight(block_bytes, entry_count);
        // Without a spare, the end of the active segment is kept for what a full WAL must still say.
        if segments.fits(block_bytes + self.reserved_bytes, entry_count) {
            return Admission::Fits;
        }
        let next = segments.next_slot();
        if matches!(next, NextSlot::Spare(_)) {
            return Admission::Fits;
        }
        self.wanted.notify();
        match next {
            NextSlot::Create(_) if !self.create_failed.get() => Admission::Wait,
            _ if self.policy.delete_oldest => {
                self.starved.set(true);
                Admission::Wait
            }
            _ => Admission::Full,
        }
    }

    /// The block that is being written takes its place before the one that is asked about.
    fn with_in_flight(&self, block_bytes: usize, entry_count: usize) -> (usize, usize) {
        let (bytes, entries) = self.in_flight.get();
        (block_bytes + bytes, entry_count + entries)
    }

    /// How long the device has not answered, if that is longer than it may take; else 0.
    pub(crate) fn stalled_ms(&self) -> u64 {
        let since = self.busy_since.get();
        let ms = since.map_or(0, |since| (clock::now() - since).as_millis() as u64);
        if FLUSH_STALL_MS <= ms { ms } else { 0 }
    }

    /// The files that there are.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.files.borrow().keys().copied().collect()
    }

    /// Takes note of which of these files still had their names in a later look at the directory;
    /// gives those that lost theirs just now.
    pub(crate) fn handle_names(&self, slots: &[Slot], names: &[String]) -> Vec<PathBuf> {
        let mut lost = self.lost.borrow_mut();
        let mut found = Vec::new();
        for slot in slots {
            let name = slot.file_name();
            if names.binary_search(&name).is_err() && lost.insert(*slot) {
                found.push(self.dir.join(name));
            }
        }
        found
    }

    /// How many files lost their names.
    pub(crate) fn lost_files(&self) -> usize {
        self.lost.borrow().len()
    }

    /// Why nothing may be appended, if files are lost.
    pub(crate) fn refusal(&self) -> Option<String> {
        let lost = self.lost.borrow();
        let names: Vec<String> = lost.iter().map(|slot| slot.file_name()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "{} of {} was deleted beneath the broker: nothing more is written; see \
                 docs/operations/recovery.md",
                names.join(", "),
                self.dir.display()
            )
        })
    }

    /// Marks the time that a write or flush takes.
    fn busy(&self) -> Busy<'_> {
        self.busy_since.set(Some(clock::now()));
        Busy(&self.busy_since)
    }

    /// Has a full WAL refused or kept a request waiting since this was asked last?
    pub(crate) fn take_starved(&self) -> bool {
        self.starved.take()
    }

    /// Makes sure that the next segment is there, before anything else runs that could make room. The
    /// reason why it cannot be is for the operator.
    pub(crate) async fn ensure_spare(&self) -> Result<Result<(), String>, ShardError> {
        if !matches!(self.segments().next_slot(), NextSlot::Spare(_)) {
            self.make_spare().await?;
        }
        let why = match self.segments().next_slot() {
            NextSlot::Spare(_) => return Ok(Ok(())),
            NextSlot::Full => {
                "the WAL is full to its last page and cannot take note of this start: raise \
                 wal.capacity_bytes by at least one segment for each WAL"
            }
            NextSlot::Create(_) => {
                "the WAL is full to its last page, and the disk has no space for another segment: \
                 free some, or move other files away"
            }
        };
        Ok(Err(why.to_owned()))
    }

    /// Is there no spare, and none to be made?
    pub(crate) fn is_full(&self) -> bool {
        match self.segments.borrow().next_slot() {
            NextSlot::Spare(_) => false,
            NextSlot::Create(_) => self.create_failed.get(),
            NextSlot::Full => true,
        }
    }

    /// Is the WAL so full that only log starts may still be written?
    pub(crate) fn uses_reserve(&self) -> bool {
        self.is_full() && self.is_at_reserve()
    }

    /// Is no more of the active segment left than a full WAL keeps back?
    pub(crate) fn is_at_reserve(&self) -> bool {
        !self.segments.borrow().fits(self.reserved_bytes, 1)
    }

    fn reserved(segment_bytes: u64) -> usize {
        let segment_bytes = segment_bytes as usize;
        let least = RESERVED_BYTES_MIN.min(segment_bytes / 4);
        (segment_bytes / 16).clamp(least, RESERVED_BYTES_MAX)
    }

    /// Could a block of this size be written now, with what is kept back for log starts and marks?
    pub(crate) fn can_write(&self, block_bytes: usize, entry_count: usize) -> bool {
        let segments = self.segments.borrow();
        let (block_bytes, entry_count) = self.with_in_flight(block_bytes, entry_count);
        segments.fits(block_bytes, entry_count)
            || matches!(segments.next_slot(), NextSlot::Spare(_))
    }

    /// Does a block of this size fit into the active segment?
    pub(crate) fn fits(&self, block_bytes: usize, entry_count: usize) -> bool {
        self.segments.borrow().fits(block_bytes, entry_count)
    }

    /// Gives a block its place in the chain and its checksums.
    pub(crate) fn seal(
        &self,
        builder: &mut BlockBuilder,
        buffer: &mut Buffer,
        flags: BlockFlags,
    ) -> SealedBlock {
        let mut chain = self.chain.borrow_mut();
        let sealed = builder.seal(buffer, &chain.context(flags, None));
        chain.advance(&sealed);
        self.in_flight.set((sealed.bytes(), builder.entries().len()));
        sealed
    }

    /// Writes a sealed block to the active segment; and says whether it is durable: it is, unless blocks
    /// are flushed at intervals and this one is not a mark of its own.
    pub(crate) async fn write(
        &self,
        memory: Slice,
        sealed: &SealedBlock,
        flags: BlockFlags,
    ) -> Result<bool, ShardError> {
        let _busy = self.busy();
        let file = self.active_file();
        let marks = flags != BlockFlags::NONE;
        let mark = self.mark_before(&file, sealed).await?;
        if !self.policy.flush_always && !marks {
            let written = file.write(memory, sealed.position).await;
            written.map_err(|error| self.device_error("writing to", &error))?;
            return Ok(false);
        }
        let unflushed = planted(Bug::NoFlush)
            || planted(Bug::NoFlushAfterRecovery) && flags == BlockFlags::START;
        let written = match unflushed {
            true => file.write(memory, sealed.position).await,
            false => match mark {
                None => file.write_durable(memory, sealed.position).await,
                Some(mark) => self.write_with_mark(&file, memory, sealed, mark).await,
            },
        };
        written.map_err(|error| self.device_error("making durable in", &error))?;
        self.chain.borrow_mut().handle_flushed(sealed.sequence);
        Ok(true)
    }

    /// Sees to it that a block may be written where it is to go: below a durable mark. The mark that is
    /// due after this block is given back.
    async fn mark_before(
        &self,
        file: &File,
        sealed: &SealedBlock,
    ) -> Result<Option<u64>, ShardError> {
        let segment_bytes = self.segments.borrow().segment_bytes();
        let end = sealed.position + sealed.bytes() as u64;
        let next = next_reach(segment_bytes, self.reach.get(), end);
        if self.reach.get() < end
            && let Some(next) = next
        {
            let header = self.active_header();
            let failed = |error: io::Error| self.device_error("writing a mark in", &error);
            write_reach(file, &header, next, &self.pool).await.map_err(failed)?;
            self.reach.set(next);
            return Ok(None);
        }
        Ok(next)
    }

    /// Writes a block and, beside it, the next mark: both durable.
    async fn write_with_mark(
        &self,
        file: &File,
        memory: Slice,
        sealed: &SealedBlock,
        reach: u64,
    ) -> io::Result<()> {
        let mark = reach_page(&self.active_header(), reach, &self.pool)?;
        write_both_durable(file, [(memory, sealed.position), mark]).await?;
        self.reach.set(reach);
        Ok(())
    }

    /// Flushes everything that was written, if anything was not.
    pub(crate) async fn flush(&self) -> Result<(), ShardError> {
        let Some(last) = self.last_sealed() else {
            return Ok(());
        };
        if last < self.chain.borrow().durable_end() {
            return Ok(());
        }
        let _busy = self.busy();
        let flushed = self.active_file().flush().await;
        flushed.map_err(|error| self.device_error("flushing", &error))?;
        self.chain.borrow_mut().handle_flushed(last);
        Ok(())
    }

    /// Takes note of a block that was written.
    pub(crate) fn handle_written(&self, entries: &[EntryMeta], sealed: &SealedBlock) {
        self.in_flight.set((0, 0));
        self.segments.borrow_mut().handle_block(entries, sealed.bytes());
        self.index.borrow_mut().add_block(entries, sealed);
    }

    /// Seals the active segment and goes on in a spare.
    pub(crate) async fn rotate(&self, shard: &Rc<Shard>) -> Result<(), ShardError> {
        self.rotating.set(true);
        let rotated = self.change_segment(shard).await;
        self.in_flight.set((0, 0));
        self.rotating.set(false);
        rotated
    }

    /// Must the file of a segment not be used again yet? Its footer is on its way to it, or it makes
    /// up for a damaged checkpoint.
    pub(crate) fn is_held(&self, sequence: SegmentSequence) -> bool {
        let makes_up = self.checkpoint_from.get().is_some_and(|from| from <= sequence);
        makes_up || self.footing.borrow().contains(&sequence)
    }

    /// Is the checkpoint of the active segment damaged?
    pub(crate) fn lacks_checkpoint(&self) -> bool {
        self.checkpoint_from.get().is_some()
    }

    /// Is the active segment being changed?
    pub(crate) fn is_rotating(&self) -> bool {
        self.rotating.get()
    }

    async fn change_segment(&self, shard: &Rc<Shard>) -> Result<(), ShardError> {
        let slot = self.next_spare().await?;
        // A seal block says that everything before it is flushed.
        self.flush().await?;
        let old = *self.segments.borrow().active().expect("a WAL has an active segment");
        let generation = Generation(random::number());
        let next = NextSegment { sequence: old.header.sequence.next(), slot, generation };

        let _busy = self.busy();
        let (seal, seal_memory, end, header) = self.seal_segment(next, old.header.segment_bytes)?;
        let first_segment = self.first_live();
        let blocks = CheckpointBlocks::of(shard, self, first_segment);
        let (checkpoint, reach) = self.write_header_and_checkpoint(&header, blocks).await?;

        let old_file = self.file(old.header.slot);
        self.mark_before(&old_file, &seal).await?;
        let sealed = old_file.write_durable(seal_memory, seal.position).await;
        sealed.map_err(|error| self.device_error("sealing a segment in", &error))?;
        let last = self.last_sealed().expect("the seal block is behind us");
        self.chain.borrow_mut().handle_flushed(last);

        let old_index = {
            let mut segments = self.segments.borrow_mut();
            segments.handle_block(&[], seal.bytes());
            segments.handle_activated(&header);
            let mut index = self.index.borrow_mut();
            let old_index = std::mem::take(&mut *index);
            for (entries, sealed) in &checkpoint {
                segments.handle_block(entries, sealed.bytes());
                index.add_block(entries, sealed);
            }
            Rc::new(old_index)
        };
        self.reach.set(reach);
        self.checkpoint_from.set(None);
        shard.metrics.borrow_mut().counters.segments_sealed += 1;
        self.unfooted.borrow_mut().insert(old.header.sequence, Rc::clone(&old_index));
        self.footing.borrow_mut().insert(old.header.sequence);
        runtime::spawn(Class::Background, {
            let (shard, index) = (Rc::clone(shard), shard.wal_index(self.id));
            async move { write_footer(&shard, index, old.header, old_index, end).await }
        });
        self.wanted.notify();
        Ok(())
    }

    /// Makes one more spare, zeroed and flushed. A full disk is not an error: it is noted, and
    /// tried again later.
    pub(crate) async fn make_spare(&self) -> Result<(), ShardError> {
        let Some(slot) = self.segments.borrow().want_spare() else {
            return Ok(());
        };
        self.segments.borrow_mut().handle_create_begun(slot);
        let bytes = self.segments.borrow().segment_bytes();
        match create_segment(&self.dir, self.id, slot, bytes, &self.pool, true).await {
            Ok(file) => {
                self.create_failed.set(false);
                self.files.borrow_mut().insert(slot, file);
                self.segments.borrow_mut().handle_spare(slot);
                self.spare_ready.wake_all();
                Ok(())
            }
            Err(error) if is_full(&error) => {
                if !self.create_failed.replace(true) {
                    let dir = self.dir.display();
                    tracing::warn!(%dir, %error, "no space for another segment: produce is refused \
                         when the current one is full, and goes on when there is space");
                }
                self.segments.borrow_mut().handle_create_failed(slot);
                Ok(())
            }
            Err(error) => Err(self.device_error("making a segment in", &error)),
        }
    }

    /// Frees the oldest segment: its header says so, flushed, before its file is used again.
    pub(crate) async fn free(&self, sequence: SegmentSequence) -> Result<(), ShardError> {
        if !self.policy.flush_always {
            // The log starts that free it were written, and must not come back.
            let flushed = self.active_file().flush().await;
            flushed.map_err(|error| self.device_error("flushing", &error))?;
        }
        let segment = *self.segments.borrow().segment(sequence).expect("a live segment");
        let header = segment.header.freed();
        let file = self.file(header.slot);
        let freed = write_header(&file, &header, &self.pool).await;
        freed.map_err(|error| self.device_error("freeing a segment in", &error))?;
        self.segments.borrow_mut().handle_freed(sequence);
        self.unfooted.borrow_mut().remove(&sequence);
        self.footers.borrow_mut().forget(sequence);
        self.spare_ready.wake_all();
        Ok(())
    }

    /// Picks from the data entries of one partition in one live segment, which are in memory or in
    /// its footer. `None` when the segment is gone or its footer cannot be read now.
    pub(crate) async fn pick_points<R>(
        &self,
        sequence: SegmentSequence,
        partition: TopicPartition,
        pick: impl FnOnce(&[IndexPoint]) -> R,
    ) -> io::Result<Option<R>> {
        let header = {
            let segments = self.segments.borrow();
            let Some(segment) = segments.segment(sequence) else { return Ok(None) };
            let active = segments.active().expect("there is a live segment").header.sequence;
            if sequence == active {
                return Ok(Some(pick(self.index.borrow().points(partition))));
            }
            segment.header
        };
        if let Some(index) = self.unfooted.borrow().get(&sequence) {
            return Ok(Some(pick(index.points(partition))));
        }
        if let Some(points) = self.footer_points(&header, partition).await? {
            return Ok(Some(pick(&points)));
        }
        let index = self.index_anew(sequence).await?;
        Ok(index.map(|index| pick(index.points(partition))))
    }

    /// Makes the index of a sealed segment whose footer is damaged from its blocks, and writes the
    /// footer again. `None`: the segment is gone.
    async fn index_anew(&self, sequence: SegmentSequence) -> io::Result<Option<Rc<SegmentIndex>>> {
        let (header, next) = {
            let segments = self.segments.borrow();
            let Some(segment) = segments.segment(sequence) else { return Ok(None) };
            (segment.header, segments.segment(sequence.next()).map(|next| next.header))
        };
        if self.indexing.replace(true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let made = self.index_of_blocks(&header, next).await;
        self.indexing.set(false);
        let Some(index) = made? else { return Ok(None) };
        self.unfooted.borrow_mut().insert(sequence, Rc::clone(&index));
        Ok(Some(index))
    }

    async fn index_of_blocks(
        &self,
        header: &SegmentHeader,
        next: Option<SegmentHeader>,
    ) -> io::Result<Option<Rc<SegmentIndex>>> {
        let file = self.file(header.slot);
        let path = self.dir.join(header.slot.file_name());
        tracing::warn!(
            file = %path.display(),
            "the footer of a segment is damaged: its index is made anew from its blocks"
        );
        let durable_end = next.map_or(BlockSequence::FIRST, |next| next.first_block);
        let mut scan = Scan::new(header, durable_end);
        while let Some(range) = scan.next_read() {
            let position = range.start;
            let (bytes, at) = read_range(&file, range, &self.read_pool).await?;
            match scan.feed(position, &bytes[at..], |_, _| {}) {
                Ok(()) => {}
                // What is lost is named when it is asked for.
                Err(ScanError::Corruption(_)) => {
                    if !scan.skip_corruption() {
                        break;
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        let end = scan.finish();
        let is_live = {
            let segments = self.segments.borrow();
            let now = segments.segment(header.sequence);
            now.is_some_and(|now| now.header.generation == header.generation)
        };
        if !is_live {
            return Ok(None);
        }
        if let Some(segment_end) = end.segment_end() {
            self.footing.borrow_mut().insert(header.sequence);
            let stored = store_footer(&file, header, &end.index, &segment_end, &self.pool).await;
            self.footing.borrow_mut().remove(&header.sequence);
            stored?;
        }
        Ok(Some(Rc::new(end.index)))
    }

    /// Reads pieces of one live segment, side by side. When most of the memory for reading is pinned
    /// by slow consumers, the answer is a copy outside of it.
    pub(crate) async fn read(&self, slot: Slot, pieces: &[Piece]) -> io::Result<Vec<Bytes>> {
        let file = self.file(slot);
        let pages = read_pieces(&file, pieces, &self.read_pool).await?;
        self.count_read(pages.iter().map(|pages| pages.len()).sum());
        let pressed = self.reading_is_pressed();
        let out = |pages: Slice| match pressed {
            true => Bytes::copy_from_slice(&pages),
            false => pages.into_bytes(),
        };
        Ok(pages.into_iter().map(out).collect())
    }

    /// Is most of the memory for reading in use?
    pub(crate) fn reading_is_pressed(&self) -> bool {
        self.read_pool.budget_bytes() / 2 < self.read_pool.used_bytes()
    }

    /// Bytes that one buffer for reading holds; larger ones are made as needed.
    pub(crate) fn read_buffer_bytes(&self) -> usize {
        self.read_pool.buffer_bytes()
    }

    /// Bytes that were read for consumers, footers included.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    fn count_read(&self, bytes: usize) {
        self.read_bytes.set(self.read_bytes.get() + bytes as u64);
    }

    async fn footer_points(
        &self,
        header: &SegmentHeader,
        partition: TopicPartition,
    ) -> io::Result<Option<Rc<[IndexPoint]>>> {
        if let Some(points) = self.footers.borrow_mut().points(header.sequence, partition) {
            return Ok(Some(points));
        }
        let Some(table) = self.footer_table(header).await? else { return Ok(None) };
        let Some(line) = footer::find_line(&table.lines, partition) else {
            return Ok(Some(Rc::from([])));
        };
        let file = self.file(header.slot);
        let points = table.trailer.points_range(line);
        let (bytes, at) = self.read_footer(&file, points).await?;
        let Ok(points) = line.decode_points(&bytes[at..], header.generation) else {
            return Ok(None);
        };
        let points: Rc<[IndexPoint]> = points.into();
        self.footers.borrow_mut().put_points(header.sequence, partition, &points);
        Ok(Some(points))
    }

    async fn footer_table(&self, header: &SegmentHeader) -> io::Result<Option<Rc<Table>>> {
        if let Some(table) = self.footers.borrow_mut().table(header.sequence) {
            return Ok(Some(table));
        }
        let file = self.file(header.slot);
        let trailer_at = header.segment_bytes - rustmq_wal::FOOTER_TRAILER_BYTES as u64;
        let page = trailer_at..header.segment_bytes;
        let (page, at) = self.read_footer(&file, page).await?;
        let Ok(trailer) = FooterTrailer::decode(&page[at..], header) else {
            return Ok(None);
        };
        let (bytes, at) = self.read_footer(&file, trailer.table_range()).await?;
        let Ok(lines) = trailer.decode_table(&bytes[at..], header.generation) else {
            return Ok(None);
        };
        let table = Rc::new(Table { trailer, lines });
        self.footers.borrow_mut().put_table(header.sequence, &table);
        Ok(Some(table))
    }

    async fn read_footer(&self, file: &File, range: Range<u64>) -> io::Result<(Slice, usize)> {
        let (pages, at) = read_range(file, range, &self.read_pool).await?;
        self.count_read(pages.len());
        Ok((pages, at))
    }

    /// Seals the chain's end in the active segment, and moves it into the next one.
    fn seal_segment(
        &self,
        next: NextSegment,
        segment_bytes: u64,
    ) -> Result<(SealedBlock, Slice, SegmentEnd, SegmentHeader), ShardError> {
        let mut buffer = self.buffer(BlockBuilder::region_bytes_for(0, DIRECTORY_CAPACITY_MIN))?;
        let mut builder = BlockBuilder::open(buffer.len(), DIRECTORY_CAPACITY_MIN);
        let mut chain = self.chain.borrow_mut();
        let seal = builder.seal(&mut buffer, &chain.context(BlockFlags::SEAL, Some(next)));
        chain.advance(&seal);
        let end = SegmentEnd::of(&chain.point(), next);
        let header = SegmentHeader {
            state: SegmentState::Active,
            slot: next.slot,
            wal: self.id,
            sequence: next.sequence,
            generation: next.generation,
            segment_bytes,
            first_block: end.next_block,
            prev_crc: end.prev_crc,
        };
        chain.enter(next.generation, SEGMENT_HEADER_BYTES as u64);
        let memory = buffer.freeze().slice(seal.range.clone());
        Ok((seal, memory, end, header))
    }

    async fn write_header_and_checkpoint(
        &self,
        header: &SegmentHeader,
        mut blocks: CheckpointBlocks,
    ) -> Result<(Vec<(Vec<EntryMeta>, SealedBlock)>, u64), ShardError> {
        let file = self.file(header.slot);
        let failed = |error: io::Error| self.device_error("beginning a segment in", &error);
        let mut reach = next_reach(header.segment_bytes, 0, SEGMENT_HEADER_BYTES as u64)
            .expect("a segment has no mark at first");
        let page = header_page(header, &self.pool).map_err(failed)?;
        let mark = reach_page(header, reach, &self.pool).map_err(failed)?;
        write_both_durable(&file, [(page, 0), mark]).await.map_err(failed)?;
        let mut written = Vec::new();
        while let Some((mut builder, mut buffer, flags)) = blocks.next(&self.pool)? {
            let sealed = self.seal(&mut builder, &mut buffer, flags);
            let memory = buffer.freeze().slice(sealed.range.clone());
            file.write_durable(memory, sealed.position).await.map_err(failed)?;
            written.push((builder.entries().to_vec(), sealed));
        }
        // Nothing of it counts before the seal block that leads to it, so here a mark may come after blocks.
        let end = self.chain.borrow().point().position;
        if let Some(next) = next_reach(header.segment_bytes, reach, end) {
            write_reach(&file, header, next, &self.pool).await.map_err(failed)?;
            reach = next;
        }
        Ok((written, reach))
    }

    /// A segment to go on in: a spare, or one made now if nobody makes one already.
    async fn next_spare(&self) -> Result<Slot, ShardError> {
        if !matches!(self.segments().next_slot(), NextSlot::Spare(_)) {
            self.make_spare().await?;
        }
        let slot = self.spare_ready.until(|| match self.segments.borrow().next_slot() {
            NextSlot::Spare(slot) => Some(slot),
            NextSlot::Create(_) | NextSlot::Full => {
                self.wanted.notify();
                None
            }
        });
        Ok(slot.await)
    }

    fn active_file(&self) -> File {
        let slot =
            self.segments.borrow().active().expect("a WAL has an active segment").header.slot;
        self.file(slot)
    }

    fn active_header(&self) -> SegmentHeader {
        self.segments.borrow().active().expect("a WAL has an active segment").header
    }

    fn file(&self, slot: Slot) -> File {
        self.files.borrow().get(&slot).expect("a file for each slot in use").clone()
    }

    fn first_live(&self) -> SegmentSequence {
        let segments = self.segments.borrow();
        segments.live().next().expect("a WAL has an active segment").header.sequence
    }

    /// The block that was sealed last.
    fn last_sealed(&self) -> Option<BlockSequence> {
        let next = self.chain.borrow().point().sequence;
        next.0.checked_sub(1).filter(|last| 0 < *last).map(BlockSequence)
    }

    fn buffer(&self, bytes: usize) -> Result<Buffer, ShardError> {
        take_buffer(&self.pool, bytes).map_err(|error| self.device_error("preparing", &error))
    }

    fn device_error(&self, doing: &'static str, error: &io::Error) -> ShardError {
        ShardError::Device { doing, dir: self.dir.clone(), error: error.to_string() }
    }
}

/// Clears the mark when the write is done, or nobody waits for it any more.
struct Busy<'a>(&'a Cell<Option<Instant>>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

async fn write_footer(
    shard: &Rc<Shard>,
    wal: usize,
    header: SegmentHeader,
    index: Rc<SegmentIndex>,
    end: SegmentEnd,
) {
    let wal = shard.wal(wal);
    let files = &wal.files;
    if files.segments.borrow().segment(header.sequence).is_none() {
        return;
    }
    let file = files.file(header.slot);
    let stored = store_footer(&file, &header, &index, &end, &files.pool).await;
    files.footing.borrow_mut().remove(&header.sequence);
    match stored {
        Ok(()) => {
            files.unfooted.borrow_mut().remove(&header.sequence);
            files.wanted.notify();
        }
        Err(error) => {
            let error = files.device_error("writing a footer in", &error);
            shard.fail(error);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

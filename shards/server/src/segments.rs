//! The segment files of one WAL: written, sealed, freed and used again.
//!
//! Which segment comes next and when one may go is decided by `wal::Segments`; this and the files below
//! it do it.

mod append;
mod change;
mod read;

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use rustmq_engine::limits::EPOCHS_MAX;
use rustmq_sys::buffer::{Buffer, BufferPool};
use rustmq_sys::clock;
use rustmq_sys::file::File;
use rustmq_wal::checkpoint::partition_checkpoint_bytes;
use rustmq_wal::footer::{FOOTER_LINE_BYTES, FOOTER_POINT_BYTES};
use rustmq_wal::{
    BlockSequence, Chain, DIRECTORY_LINE_BYTES, ENTRY_HEADER_BYTES, NextSlot, SegmentHeader,
    SegmentIndex, SegmentSequence, Segments, Slot, WalId,
};

use crate::error::ShardError;
use crate::index_cache::IndexCache;
use crate::limits::FLUSH_STALL_MS;
use crate::notify::{Notify, WaitList};
use crate::segment_io::take_buffer;

/// A checkpoint takes at most a quarter of a segment: an eighth for partitions, one for producers.
pub(crate) const CHECKPOINT_PART: usize = 8;

/// What a partition takes in a checkpoint: its entry, its state and its leader epochs, with what blocks
/// take around them.
pub(crate) const PARTITION_CHECKPOINT_BYTES: usize = 512;

/// Kept free at the end of the last segment of a full WAL, a sixteenth of it: for the log starts of all
/// its partitions, which make room again, and a page for each restart meanwhile. A start that finds no
/// page left is refused, and says that the capacity has to be raised.
const RESERVED_PART: usize = 16;

/// At least so much is kept free, or a quarter of a tiny segment.
const RESERVED_BYTES_MIN: usize = 128 * 1024;

/// What the log start of a partition takes: its entry, and its place in the footer.
const LOG_START_BYTES: usize =
    DIRECTORY_LINE_BYTES + ENTRY_HEADER_BYTES + FOOTER_LINE_BYTES + FOOTER_POINT_BYTES;

// The most partitions that a WAL may have all find room for their log starts in what is kept free.
const _: () =
    assert!(RESERVED_PART * LOG_START_BYTES <= CHECKPOINT_PART * PARTITION_CHECKPOINT_BYTES);

// An eighth more for the headers of blocks and what is left over of their pages.
const _: () = assert!(
    9 * (DIRECTORY_LINE_BYTES + ENTRY_HEADER_BYTES + partition_checkpoint_bytes(EPOCHS_MAX))
        <= 8 * PARTITION_CHECKPOINT_BYTES
);

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
        if matches!(next, NextSlot::Create(_)) && !self.create_failed.get() {
            return Admission::Wait;
        }
        self.starved.set(true);
        // On a full disk there may be nothing but the segment in use, of which nothing can be deleted.
        match self.policy.delete_oldest && segments.oldest_sealed().is_some() {
            true => Admission::Wait,
            false => Admission::Full,
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
        (segment_bytes / RESERVED_PART).max(RESERVED_BYTES_MIN.min(segment_bytes / 4))
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

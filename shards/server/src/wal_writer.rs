//! Group commit: one write and one flush make every batch that waits durable.
//!
//! Batches are copied into the open block as they arrive. When the write before has ended, the
//! block is sealed, written and flushed, and what arrives meanwhile forms the next one. The rules
//! (when to close, what a block looks like, where it goes) are the `wal` crate's; this file holds
//! the buffers and waits for the device.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustmq_engine::limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;
use rustmq_planted::{Bug, planted};
use rustmq_sys::buffer::{Buffer, BufferPool, Slice};
use rustmq_sys::clock;
use rustmq_wal::{
    BLOCK_ALIGN, BlockBuilder, BlockFlags, Commit, DIRECTORY_CAPACITY_MIN, ENTRY_HEADER_BYTES,
    EntryMeta, GroupCommit, SealedBlock,
};

use crate::error::ShardError;
use crate::flushed;
use crate::limits::RETRY_AFTER_ROOM_MS;
use crate::metrics::Stage;
use crate::notify::{Notify, WaitList, before};
use crate::reply::RequestError;
use crate::segments::{Admission, SegmentFiles};
use crate::shard::Shard;

/// Names the block that an entry is in, in the order in which blocks become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// A block that was durable before this process started.
    pub(crate) const DURABLE: Self = Self(0);
}

/// What one producer takes in a checkpoint, with all batches that are remembered of it.
const PRODUCER_CHECKPOINT_BYTES: usize = 24 + 16 * PRODUCER_BATCHES_IN_FLIGHT_MAX;

/// A new buffer is begun when less than this is left of the old one.
const REGION_BYTES_MIN: usize = 256 * 1024;

/// The writing end of one WAL.
///
/// Driven by its shard: requests call [`Self::room`], [`Self::put`] and [`Self::durable`]; one task
/// runs [`write_loop`] from recovery to shutdown. At most one block is being written.
///
/// Invariants: tickets become durable in order; once a write or flush has failed nothing becomes
/// durable any more and the shard ends.
pub(crate) struct WalWriter {
    pub(crate) files: SegmentFiles,
    open: RefCell<OpenBlock>,
    /// A builder that no block uses at the moment.
    spare: RefCell<Option<BlockBuilder>>,
    commit: RefCell<GroupCommit>,
    /// This block and everything before it is durable.
    durable: Cell<Ticket>,
    /// Who waits for which block, in the order in which blocks become durable.
    waiting: RefCell<VecDeque<(Ticket, Waker)>>,
    /// Places in the queue for room: the next to give out, the one that is served, and who waits. The
    /// first alone is woken: under overload there are thousands.
    next_place: Cell<u64>,
    served_place: Cell<u64>,
    queue: RefCell<BTreeMap<u64, Waker>>,
    /// Notes wait apart: they may use what a full WAL keeps back.
    note_room: WaitList,
    changed: Notify,
    /// Where the nanoseconds of `commit` count from.
    epoch: Instant,
    block_bytes_max: usize,
    pool: BufferPool,
    /// Producers that the WAL's partitions remember: each takes room in every checkpoint.
    producers: Cell<usize>,
    closing: Cell<bool>,
    closed: Cell<bool>,
    ended: WaitList,
}

/// The block that gathers entries.
struct OpenBlock {
    /// Memory for this block and those after it, until it is used up.
    buffer: Buffer,
    builder: BlockBuilder,
    ticket: Ticket,
    first_put: Option<Instant>,
}

impl WalWriter {
    /// A writer that goes on where recovery ended. The pool must have a buffer left.
    pub(crate) fn new(
        files: SegmentFiles,
        pool: BufferPool,
        block_bytes_max: usize,
        commit: GroupCommit,
    ) -> Self {
        let buffer = pool.try_get(pool.buffer_bytes()).expect("the pool is larger than one buffer");
        let region = region_bytes(&buffer, block_bytes_max);
        let open = OpenBlock {
            buffer,
            builder: BlockBuilder::open(region, DIRECTORY_CAPACITY_MIN),
            ticket: Ticket(1),
            first_put: None,
        };
        Self {
            files,
            open: RefCell::new(open),
            spare: RefCell::default(),
            commit: RefCell::new(commit),
            durable: Cell::new(Ticket::DURABLE),
            waiting: RefCell::default(),
            next_place: Cell::new(0),
            served_place: Cell::new(0),
            queue: RefCell::default(),
            note_room: WaitList::default(),
            changed: Notify::default(),
            epoch: clock::now(),
            block_bytes_max,
            pool,
            producers: Cell::new(0),
            closing: Cell::new(false),
            closed: Cell::new(false),
            ended: WaitList::default(),
        }
    }

    /// Waits until an entry with this payload fits into the open block. Requests are let in in the
    /// order in which they came, so a producer's batches keep theirs. Who has not got any by
    /// `deadline` is told to come again: nothing was done.
    pub(crate) async fn room(
        &self,
        shard: &Shard,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        let place = self.next_place.get();
        if place == self.served_place.get() && self.try_room(shard, bytes)? {
            return Ok(());
        }
        self.next_place.set(place + 1);
        let outcome = poll_fn(|cx| {
            if place == self.served_place.get() {
                match self.try_room(shard, bytes) {
                    Ok(true) => return Poll::Ready(Ok(())),
                    Ok(false) if deadline <= clock::now() => {
                        let what = "no room in the log in time";
                        let retry_after_ms = RETRY_AFTER_ROOM_MS;
                        return Poll::Ready(Err(RequestError::Throttled { what, retry_after_ms }));
                    }
                    Ok(false) => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            self.queue.borrow_mut().insert(place, cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.served_place.set(place + 1);
        self.wake_room();
        outcome
    }

    /// Waits until an entry without a payload fits, which may use what a full WAL keeps back.
    pub(crate) async fn room_for_log_start(&self, shard: &Shard) {
        self.note_room.until(|| self.has_room_for_log_start(shard).then_some(())).await;
    }

    /// Does an entry without a payload fit, also into what a full WAL keeps back?
    pub(crate) fn has_room_for_log_start(&self, shard: &Shard) -> bool {
        let (block_bytes, entry_count) = {
            let open = self.open.borrow();
            let block_bytes = open.builder.sealed_bytes() + ENTRY_HEADER_BYTES;
            (block_bytes, open.builder.entries().len() + 2)
        };
        self.files.can_write(block_bytes, entry_count)
            && self.find_memory(shard, ENTRY_HEADER_BYTES)
    }

    /// Puts an entry into the open block: `fill` writes the payload and describes it, or takes it
    /// back with `None`. Gives `None` when the room is gone or the entry was taken back. `producer`
    /// tells those who append apart, for the group commit's sake.
    pub(crate) fn put<E>(
        &self,
        bytes: usize,
        producer: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<Option<EntryMeta>, E>,
    ) -> Result<Option<(Ticket, EntryMeta)>, E> {
        let put = self.push(bytes, fill)?;
        if put.is_some() {
            self.ask_for_writing(producer);
        }
        Ok(put)
    }

    /// Puts an entry into the open block, which nobody is asked to write.
    fn push<E>(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<Option<EntryMeta>, E>,
    ) -> Result<Option<(Ticket, EntryMeta)>, E> {
        let mut open = self.open.borrow_mut();
        let OpenBlock { buffer, builder, .. } = &mut *open;
        let Some(range) = builder.reserve(bytes) else {
            return Ok(None);
        };
        let Some(mut entry) = fill(&mut buffer[range.clone()])? else {
            return Ok(None);
        };
        entry.payload = range.start as u32..range.end as u32;
        builder.push(entry.clone());
        open.first_put.get_or_insert_with(clock::now);
        Ok(Some((open.ticket, entry)))
    }

    /// Puts an entry without a payload into the open block; `None` when there is no room.
    pub(crate) fn put_note(&self, note: EntryMeta) -> Option<Ticket> {
        let key = u64::from(note.tag);
        let ticket = self.push_note(note)?;
        self.ask_for_writing(key);
        Some(ticket)
    }

    /// Puts an entry without a payload into the first block, which the start itself writes. There is
    /// room for it.
    pub(crate) fn put_first(&self, note: EntryMeta) {
        assert!(self.push_note(note).is_some(), "room was asked for");
    }

    fn push_note(&self, note: EntryMeta) -> Option<Ticket> {
        let Ok(put) = self.push(0, |_| Ok::<_, Infallible>(Some(note)));
        put.map(|(ticket, _)| ticket)
    }

    /// The open block has an entry more, of this producer.
    fn ask_for_writing(&self, producer: u64) {
        self.commit.borrow_mut().handle_append(self.now_ns(), producer);
        self.changed.notify();
    }

    /// Waits until the block of `ticket` is durable, or until `deadline`.
    pub(crate) async fn durable(
        &self,
        ticket: Ticket,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        poll_fn(|cx| {
            if ticket <= self.durable.get() {
                return Poll::Ready(Ok(()));
            }
            if deadline <= clock::now() {
                return Poll::Ready(Err(RequestError::Timeout));
            }
            self.waiting.borrow_mut().push_back((ticket, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// The block that gathers entries now: everything put so far is durable when it is.
    pub(crate) fn last_ticket(&self) -> Ticket {
        let open = self.open.borrow();
        match open.builder.is_empty() {
            true => Ticket(open.ticket.0 - 1),
            false => open.ticket,
        }
    }

    /// Is this block durable?
    pub(crate) fn is_durable(&self, ticket: Ticket) -> bool {
        ticket <= self.durable.get()
    }

    /// May one more producer be remembered? A checkpoint must not outgrow its segment.
    pub(crate) fn admits_producer(&self) -> Result<(), RequestError> {
        let max = self.files.checkpoint_bytes_max() / PRODUCER_CHECKPOINT_BYTES;
        match self.producers.get() < max {
            true => Ok(()),
            false => Err(RequestError::LimitExceeded { what: "producers of one WAL", max }),
        }
    }

    /// So many producers are remembered more, or fewer, than before.
    pub(crate) fn count_producers(&self, before: usize, now: usize) {
        self.producers.set(self.producers.get() + now - before);
    }

    /// Lets requests that wait for room look again: space came free, or it never will.
    pub(crate) fn wake_room(&self) {
        let first = self.queue.borrow_mut().remove(&self.served_place.get());
        if let Some(first) = first {
            first.wake();
        }
        self.note_room.wake_all();
    }

    /// Lets everybody who waits look at the clock again.
    pub(crate) fn expire(&self) {
        let waiting = self.waiting.borrow().len();
        for _ in 0..waiting {
            let waiter = self.waiting.borrow_mut().pop_front();
            if let Some((_, waker)) = waiter {
                waker.wake();
            }
        }
    }

    /// Asks the writer to write what is there, a clean end, and to stop.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.changed.notify();
        self.wake_room();
    }

    /// Waits until the writer has written its clean end.
    pub(crate) async fn closed(&self) {
        self.ended.until(|| self.closed.get().then_some(())).await;
    }

    /// Is so much block memory in use that consumers should not pin more of it?
    pub(crate) fn is_pressed(&self) -> bool {
        self.pool.budget_bytes() - self.pool.budget_bytes() / 8 < self.pool.used_bytes()
    }

    /// Bytes of block memory in use.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.pool.used_bytes()
    }

    fn now_ns(&self) -> u64 {
        (clock::now() - self.epoch).as_nanos() as u64
    }

    /// Can an entry with this payload be put now? Finds memory for it if need be.
    fn try_room(&self, shard: &Shard, bytes: usize) -> Result<bool, RequestError> {
        if self.closing.get() {
            return Err(RequestError::ShuttingDown);
        }
        if let Some(why) = self.files.refusal() {
            return Err(RequestError::StorageCorrupt { why });
        }
        // Room for the entry itself and for one that begins a leader epoch.
        let wanted = bytes + 2 * ENTRY_HEADER_BYTES;
        let (block_bytes, entry_count) = {
            let open = self.open.borrow();
            (open.builder.sealed_bytes() + wanted, open.builder.entries().len() + 2)
        };
        match self.files.admits(block_bytes, entry_count) {
            Admission::Fits => Ok(self.find_memory(shard, wanted)),
            Admission::Wait => Ok(false),
            Admission::Full => Err(RequestError::StorageFull),
        }
    }

    /// Does a payload of this size fit into the open block? An empty block gets other memory if that
    /// helps; a block with entries has to be written first.
    fn find_memory(&self, shard: &Shard, wanted: usize) -> bool {
        let mut open = self.open.borrow_mut();
        if open.builder.fits(wanted) {
            return true;
        }
        if !open.builder.is_empty() {
            self.commit.borrow_mut().handle_crowded();
            self.changed.notify();
            return false;
        }
        let region = BlockBuilder::region_bytes_for(wanted, DIRECTORY_CAPACITY_MIN);
        let Some(buffer) = shard.block_buffer(&self.pool, region) else {
            return false;
        };
        open.buffer = buffer;
        let region = region_bytes(&open.buffer, self.block_bytes_max.max(region));
        open.builder.reset(region, DIRECTORY_CAPACITY_MIN);
        open.builder.fits(wanted)
    }

    /// Closes the open block for writing and opens the next one.
    fn seal(&self, shard: &Shard, flags: BlockFlags) -> Sealed {
        let mut open = self.open.borrow_mut();
        let ticket = open.ticket;
        let OpenBlock { buffer, builder, .. } = &mut *open;
        let sealed = self.files.seal(builder, buffer, flags);
        let memory = buffer.split_to(builder.region_used());
        let mut capacity = builder.next_directory_capacity();
        let wanted = BlockBuilder::region_bytes_for(0, capacity).max(REGION_BYTES_MIN);
        if buffer.len() < wanted {
            match shard.block_buffer(&self.pool, self.pool.buffer_bytes()) {
                Some(fresh) => *buffer = fresh,
                None => {
                    // Slow consumers hold it all: this much is kept aside, for marks.
                    capacity = DIRECTORY_CAPACITY_MIN;
                    if buffer.len() < BlockBuilder::region_bytes_for(0, capacity) {
                        *buffer = shard.mark_buffer();
                    }
                }
            }
        }
        let region = region_bytes(buffer, self.block_bytes_max);
        let spare = self.spare.borrow_mut().take();
        let mut next = spare.unwrap_or_else(|| BlockBuilder::open(region, capacity));
        next.reset(region, capacity);
        let builder = std::mem::replace(builder, next);
        open.ticket = Ticket(ticket.0 + 1);
        let first_put = open.first_put.take();
        Sealed { block: sealed, memory, builder, ticket, first_put }
    }

    /// Writes the open block, empty or not, and tells everybody who waited for it. Gives the time
    /// that the flush took, or `None` when the block was only written.
    pub(crate) async fn write_block(
        &self,
        shard: &Rc<Shard>,
        flags: BlockFlags,
    ) -> Result<Option<u64>, ShardError> {
        // Entries arrive while a segment is changed, so the size is asked again.
        while !self.fits_segment() {
            self.files.rotate(shard).await?;
        }
        let begun = clock::refresh();
        let sealed = self.seal(shard, flags);
        let handed_over = clock::refresh();
        if planted(Bug::AckBeforeFlush) {
            self.durable.set(sealed.ticket);
            self.wake_durable();
        }
        let block = sealed.memory.slice(sealed.block.range.clone());
        let flushed = self.files.write(block, &sealed.block, flags).await?;
        let ended = clock::refresh();
        {
            let mut metrics = shard.metrics.borrow_mut();
            if let Some(first_put) = sealed.first_put {
                metrics.record(Stage::ProduceQueue, begun.saturating_duration_since(first_put));
            }
            if flushed {
                metrics.record(Stage::WalWrite, handed_over - begun);
                metrics.record(Stage::WalFlush, ended - handed_over);
                metrics.counters.blocks_flushed += 1;
            } else {
                metrics.record(Stage::WalWrite, ended - begun);
            }
            metrics.counters.blocks_written += 1;
            metrics.counters.entries_written += sealed.builder.entries().len() as u64;
            metrics.counters.wal_bytes_written += sealed.block.bytes() as u64;
        }
        flushed::apply(shard, self, &sealed.builder, &sealed.block, &sealed.memory);
        *self.spare.borrow_mut() = Some(sealed.builder);
        self.durable.set(sealed.ticket);
        self.wake_durable();
        self.wake_room();
        Ok(flushed.then(|| (ended - handed_over).as_nanos() as u64))
    }

    /// Marks are left out of a WAL that is full: its last pages are for log starts and restarts.
    fn has_room_for_mark(&self) -> bool {
        let open = self.open.borrow();
        !self.files.uses_reserve()
            && self.files.can_write(open.builder.sealed_bytes(), open.builder.entries().len())
    }

    /// Finds room for the block that says that this start happened, or says why there is none.
    pub(crate) async fn room_for_start(&self) -> Result<Result<(), String>, ShardError> {
        match self.fits_segment() {
            true => Ok(Ok(())),
            false => self.files.ensure_spare().await,
        }
    }

    fn fits_segment(&self) -> bool {
        let open = self.open.borrow();
        self.files.fits(open.builder.sealed_bytes(), open.builder.entries().len())
    }

    fn wake_durable(&self) {
        loop {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.front() {
                Some((ticket, _)) if *ticket <= self.durable.get() => {
                    let (_, waker) = waiting.pop_front().expect("just seen");
                    drop(waiting);
                    waker.wake();
                }
                _ => return,
            }
        }
    }
}

/// A block on its way to the device.
struct Sealed {
    block: SealedBlock,
    memory: Slice,
    builder: BlockBuilder,
    ticket: Ticket,
    first_put: Option<Instant>,
}

/// Writes blocks until the writer is asked to close. An error ends the shard: a write or flush
/// that failed is never tried again, because the device may have forgotten what it held.
pub(crate) async fn write_loop(shard: Rc<Shard>, wal: Rc<WalWriter>) -> Result<(), ShardError> {
    loop {
        let next = wal.commit.borrow_mut().poll(wal.now_ns());
        let flush_ns = match next {
            Commit::Close => wal.write_block(&shard, BlockFlags::NONE).await?,
            Commit::IdleMark if !wal.has_room_for_mark() => None,
            Commit::IdleMark => wal.write_block(&shard, BlockFlags::IDLE).await?,
            Commit::Flush => {
                let begun = clock::refresh();
                wal.files.flush().await?;
                Some((clock::refresh() - begun).as_nanos() as u64)
            }
            Commit::Idle | Commit::WaitUntil(_) if wal.closing.get() => {
                wal.files.flush().await?;
                if wal.has_room_for_mark() {
                    wal.write_block(&shard, BlockFlags::CLEAN).await?;
                }
                wal.closed.set(true);
                wal.ended.wake_all();
                return Ok(());
            }
            Commit::Idle => {
                wal.changed.notified().await;
                continue;
            }
            Commit::WaitUntil(ns) => {
                let until = wal.epoch + Duration::from_nanos(ns);
                before(until, wal.changed.notified()).await;
                continue;
            }
        };
        wal.commit.borrow_mut().handle_written(wal.now_ns(), flush_ns);
    }
}

/// The part of a buffer that one block may use: whole pages.
fn region_bytes(buffer: &Buffer, block_bytes_max: usize) -> usize {
    let bytes = buffer.len().min(block_bytes_max);
    bytes - bytes % BLOCK_ALIGN
}

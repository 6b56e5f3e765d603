//! One segment after another: made, begun, sealed and freed, in the order that recovery relies on.
//!
//! New header and checkpoint, flushed; then the seal block in the old segment, flushed; then the old
//! one's footer, some time.

use std::io;
use std::rc::Rc;

use rustmq_sys::buffer::Slice;
use rustmq_sys::runtime::{self, Class};
use rustmq_wal::reach::next_reach;
use rustmq_wal::{
    BlockBuilder, BlockFlags, DIRECTORY_CAPACITY_MIN, EntryMeta, Generation, NextSegment, NextSlot,
    SEGMENT_HEADER_BYTES, SealedBlock, SegmentEnd, SegmentHeader, SegmentIndex, SegmentSequence,
    SegmentState, Slot,
};

use super::SegmentFiles;
use crate::checkpoint::CheckpointBlocks;
use crate::error::ShardError;
use crate::random;
use crate::segment_io::{
    create_segment, header_page, reach_page, store_footer, write_both_durable, write_header,
    write_reach,
};
use crate::shard::Shard;

impl SegmentFiles {
    /// Seals the active segment and goes on in a spare.
    pub(crate) async fn rotate(&self, shard: &Rc<Shard>) -> Result<(), ShardError> {
        self.rotating.set(true);
        let rotated = self.change_segment(shard).await;
        self.in_flight.set((0, 0));
        self.rotating.set(false);
        rotated
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

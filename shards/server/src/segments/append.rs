//! Blocks on their way into the active segment: each below a durable mark, in the order of the chain.

use std::io;

use rustmq_planted::{Bug, planted};
use rustmq_sys::buffer::{Buffer, Slice};
use rustmq_sys::file::File;
use rustmq_wal::reach::next_reach;
use rustmq_wal::{BlockBuilder, BlockFlags, EntryMeta, SealedBlock};

use super::SegmentFiles;
use crate::error::ShardError;
use crate::segment_io::{reach_page, write_both_durable, write_reach};

impl SegmentFiles {
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
    pub(super) async fn mark_before(
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
}

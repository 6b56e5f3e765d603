//! The blocks of one segment: followed, and written again where they may not be durable.

use std::io;

use rustmq_planted::{Bug, planted};
use rustmq_wal::{BlockSequence, Scan, ScanEnd, ScanError, SegmentHeader};

use super::Recovery;
use crate::error::ShardError;
use crate::read_through::ReadThrough;
use crate::replay::Replayed;
use crate::segment_io::{reach_page, read_reach};

/// Bytes rewritten at once.
const REWRITE_BYTES: u64 = 1 << 20;

impl Recovery<'_> {
    /// Follows the blocks of a segment and keeps what its entries say.
    pub(super) async fn scan(
        &self,
        header: &SegmentHeader,
        durable_end: BlockSequence,
    ) -> Result<(ScanEnd, Replayed), ShardError> {
        let mut replayed = Replayed::default();
        let end = self.scan_into(header, durable_end, &mut replayed).await?;
        Ok((end, replayed))
    }

    /// The same behind what was replayed before. Damage is named and left out.
    pub(super) async fn scan_into(
        &self,
        header: &SegmentHeader,
        durable_end: BlockSequence,
        replayed: &mut Replayed,
    ) -> Result<ScanEnd, ShardError> {
        let file = self.file(header.slot);
        let path = self.path(header.slot);
        let reach = read_reach(&file, header, self.pool).await;
        let reach = reach.map_err(|error| self.device("reading", &error))?;
        let mut scan = Scan::new(header, durable_end).of_file(file.bytes()).within(reach);
        let mut through = ReadThrough::new(&file, self.pool, scan.look_end());
        while let Some(range) = scan.next_read() {
            let position = range.start;
            let read = through.read(range).await;
            let bytes = read.map_err(|error| self.device("reading", &error))?;
            let mut wrong = None;
            let fed = scan.feed(position, &bytes, |_, entry| {
                if wrong.is_none() {
                    wrong = replayed.replay(&entry.header, entry.payload).err();
                }
            });
            if let Some(why) = wrong {
                return Err(self.refuse_entry(&path, &why));
            }
            match fed {
                Ok(()) => {}
                Err(ScanError::Corruption(corruption)) => {
                    if corruption.named.is_none() {
                        let part = corruption.position..corruption.end;
                        self.take_by_footer(header, &file, part, replayed).await?;
                    }
                    replayed.leave_out(&corruption, &path);
                    if !scan.skip_corruption() {
                        break;
                    }
                }
                Err(error) => return Err(self.refuse(format!("{}: {error}", path.display()))),
            }
        }
        let end = scan.finish();
        if let Some(torn) = &end.torn {
            tracing::info!(
                file = %path.display(), position = torn.position, why = %torn.why,
                "the last write before the crash was cut off; nothing in it was acknowledged"
            );
        }
        Ok(end)
    }

    /// Recovered is not yet durable: what lies past the durable end, and the mark, are written again
    /// and flushed. A flush alone does not do: one that failed before may have been for them.
    pub(super) async fn rewrite(
        &self,
        header: &SegmentHeader,
        end: &ScanEnd,
    ) -> Result<(), ShardError> {
        if planted(Bug::NoFlushAfterRecovery) {
            return Ok(());
        }
        let file = self.file(header.slot);
        let mut range = end.undurable.clone();
        while range.start < range.end {
            let chunk = range.start..range.end.min(range.start + REWRITE_BYTES);
            let (bytes, at) = self.read(&file, chunk.clone()).await?;
            let bytes = bytes.slice(at..at + (chunk.end - chunk.start) as usize);
            let written = file.write(bytes, chunk.start).await;
            written.map_err(|error| self.device("rewriting", &error))?;
            range.start = chunk.end;
        }
        if let Some(reach) = end.reach {
            let failed = |error: io::Error| self.device("rewriting a mark in", &error);
            let (mark, position) = reach_page(header, reach, self.pool).map_err(failed)?;
            file.write(mark, position).await.map_err(failed)?;
        }
        file.flush().await.map_err(|error| self.device("flushing", &error))
    }
}

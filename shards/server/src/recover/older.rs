//! Segments before the newest: what their footers say, or their blocks where a footer is missing.

use std::rc::Rc;

use rustmq_wal::recovery::OpenError;
use rustmq_wal::{
    BlockSequence, FOOTER_TRAILER_BYTES, FooterError, FooterTrailer, PartitionSummary, ScanEnd,
    SegmentEnd, SegmentHeader, SegmentSequence,
};

use super::{FILES_AT_ONCE, Recovery};
use crate::error::ShardError;
use crate::notify::all;
use crate::replay::Replayed;
use crate::segment_io::store_footer;

/// One segment, as its footer or a scan shows it.
pub(super) struct Seen {
    pub(super) header: SegmentHeader,
    pub(super) held: Vec<PartitionSummary>,
    pub(super) points: usize,
    pub(super) blocks_end: u64,
    pub(super) end: Option<SegmentEnd>,
}

impl Recovery<'_> {
    /// What an older segment holds: from its footer, or, if a crash left that out or it is damaged,
    /// from a scan, and then the footer is made up for.
    pub(super) async fn see(
        &mut self,
        header: &SegmentHeader,
        next: &SegmentHeader,
        durable_end: BlockSequence,
    ) -> Result<(Seen, Option<(ScanEnd, Replayed)>), ShardError> {
        match self.read_footer(header).await? {
            Some(seen) => Ok((seen, None)),
            None => self.see_blocks(header, next, durable_end).await,
        }
    }

    pub(super) async fn see_blocks(
        &mut self,
        header: &SegmentHeader,
        next: &SegmentHeader,
        durable_end: BlockSequence,
    ) -> Result<(Seen, Option<(ScanEnd, Replayed)>), ShardError> {
        let (end, replayed) = self.scan(header, durable_end).await?;
        // When the seal itself is damaged the next segment says how this one ended.
        let known = SegmentEnd {
            blocks_end: end.next.position,
            next_block: next.first_block,
            prev_crc: next.prev_crc,
            incarnation: end.next.incarnation,
            next: next.as_next(),
        };
        let segment_end = end.segment_end().or_else(|| {
            let joined = header.sequence.next() == next.sequence;
            (joined && end.corrupt && next.first_block <= durable_end).then_some(known)
        });
        let seen = Seen {
            header: *header,
            held: end.index.partitions().collect(),
            points: end.index.point_count(),
            blocks_end: end.next.position,
            end: segment_end,
        };
        let file = self.file(header.slot);
        match segment_end {
            Some(segment_end) if file.bytes() == header.segment_bytes => {
                self.rewrite(header, &end).await?;
                let stored = store_footer(&file, header, &end.index, &segment_end, self.pool).await;
                stored.map_err(|error| self.device("writing a footer in", &error))?;
                tracing::info!(
                    file = %self.path(header.slot).display(),
                    "a segment had no whole footer, and has one now"
                );
            }
            // A file that was cut stays as it is.
            _ => {
                self.unfooted.insert(header.sequence, Rc::new(end.index.clone()));
            }
        }
        Ok((seen, Some((end, replayed))))
    }

    /// What the footers of these segments say, in their order.
    pub(super) async fn read_footers(
        &self,
        headers: &[SegmentHeader],
    ) -> Vec<Result<Option<Seen>, ShardError>> {
        let mut read = Vec::with_capacity(headers.len());
        for headers in headers.chunks(FILES_AT_ONCE) {
            read.extend(all(headers.iter().map(|header| self.read_footer(header))).await);
        }
        read
    }

    async fn read_footer(&self, header: &SegmentHeader) -> Result<Option<Seen>, ShardError> {
        let file = self.file(header.slot);
        if file.bytes() < header.segment_bytes {
            return Ok(None);
        }
        let trailer_at = header.segment_bytes - FOOTER_TRAILER_BYTES as u64;
        let (page, at) = self.read(&file, trailer_at..header.segment_bytes).await?;
        let trailer = match FooterTrailer::decode(&page[at..], header) {
            Ok(trailer) => trailer,
            Err(error @ FooterError::NewerVersion { .. }) => {
                let file = self.setup.dir.join(header.slot.file_name());
                return Err(self.refuse(format!("{}: {error}", file.display())));
            }
            Err(_) => return Ok(None),
        };
        let (table, at) = self.read(&file, trailer.table_range()).await?;
        let Ok(table) = trailer.decode_table(&table[at..], header.generation) else {
            return Ok(None);
        };
        Ok(Some(Seen {
            header: *header,
            held: table.iter().map(|line| line.summary).collect(),
            points: trailer.point_count as usize,
            blocks_end: trailer.end.blocks_end,
            end: Some(trailer.end),
        }))
    }

    /// The state of the partitions when the tail's checkpoint is damaged: that of the newest older
    /// segment with a whole one, and everything behind it.
    pub(super) async fn replay_from_older(
        &self,
        older: &[Seen],
        tail: &SegmentHeader,
        tail_end: &ScanEnd,
    ) -> Result<(Replayed, Option<SegmentSequence>), ShardError> {
        let missing = OpenError::MissingCheckpoint { slot: tail.slot, sequence: tail.sequence };
        let mut next = *tail;
        let mut from = Vec::new();
        for seen in older {
            if seen.header.sequence.next() != next.sequence {
                break;
            }
            from.push((seen.header, next.first_block));
            let (end, _) = self.scan(&seen.header, next.first_block).await?;
            if end.checkpoint_complete {
                tracing::warn!(
                    file = %self.path(tail.slot).display(),
                    from = %self.path(seen.header.slot).display(),
                    "a checkpoint is damaged, and is made up from an older segment"
                );
                let mut replayed = Replayed::default();
                for (header, durable_end) in from.iter().rev() {
                    self.scan_into(header, *durable_end, &mut replayed).await?;
                }
                self.scan_into(tail, tail_end.durable_end, &mut replayed).await?;
                return Ok((replayed, Some(seen.header.sequence)));
            }
            next = seen.header;
        }
        Err(self.refuse_open(&missing))
    }
}

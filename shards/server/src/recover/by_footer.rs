//! A damaged part of a sealed segment whose blocks no longer say what they held: its footer may.

use std::ops::Range;
use std::path::Path;

use rustmq_protocol::TopicPartition;
use rustmq_sys::file::File;
use rustmq_wal::verify::{footer_start, points_in};
use rustmq_wal::{EntryExpect, FOOTER_TRAILER_BYTES, IndexPoint, SegmentHeader, decode_entry};

use super::Recovery;
use crate::error::ShardError;
use crate::replay::{ReplayError, Replayed};

impl Recovery<'_> {
    /// Replays the entries in a part of a segment that its footer leads to and that are whole: a fetch will
    /// find them. There may have been others, as a footer that was made up later has only what was left.
    pub(super) async fn take_by_footer(
        &self,
        header: &SegmentHeader,
        file: &File,
        part: Range<u64>,
        replayed: &mut Replayed,
    ) -> Result<(), ShardError> {
        for (partition, point) in self.points(header, file, part).await? {
            let (generation, base_offset) = (header.generation, point.base_offset);
            let expect = EntryExpect { generation, partition, base_offset };
            let start = u64::from(point.position);
            let (bytes, at) = self.read(file, start..start + u64::from(point.length)).await?;
            if let Ok((entry, payload)) = decode_entry(&bytes[at..], &expect) {
                let taken = replayed.replay(&entry, payload);
                taken.map_err(|why| self.refuse_entry(&self.path(header.slot), &why))?;
            }
        }
        Ok(())
    }

    /// The entries that begin in a part of a segment, by its footer; none if that is not whole.
    async fn points(
        &self,
        header: &SegmentHeader,
        file: &File,
        part: Range<u64>,
    ) -> Result<Vec<(TopicPartition, IndexPoint)>, ShardError> {
        let end = header.segment_bytes;
        if file.bytes() < end {
            return Ok(Vec::new());
        }
        let (last, at) = self.read(file, end - FOOTER_TRAILER_BYTES as u64..end).await?;
        let Some(start) = footer_start(header, &last[at..]) else { return Ok(Vec::new()) };
        let (footer, at) = self.read(file, start..end).await?;
        let bytes = &footer[at..][..(end - start) as usize];
        Ok(points_in(header, start, bytes, part).unwrap_or_default())
    }

    pub(super) fn refuse_entry(&self, path: &Path, why: &ReplayError) -> ShardError {
        self.refuse(format!("{}: {why}", path.display()))
    }
}

//! Reading records: from the hot cache, else from the WAL by O_DIRECT.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use rustmq_protocol::{Offset, TimestampMs, TopicPartition, records};
use rustmq_wal::index::{find_timestamp, points_from};
use rustmq_wal::read_plan::{Want, plan};
use rustmq_wal::segments::LiveSegment;
use rustmq_wal::{ENTRY_HEADER_BYTES, EntryExpect, IndexPoint, decode_entry};

use crate::body::Body;
use crate::limits::{READ_RETRIES_MAX, RETRY_AFTER_MEMORY_MS};
use crate::reply::RequestError;
use crate::shard::Shard;
use crate::wal_writer::WalWriter;

/// Bytes of memory that one answer is read to at most, but for a single larger batch: an eighth of
/// the memory for reads.
const READ_BYTES_MAX: usize = 8 << 20;

/// Batches that were found, as they go to the consumer.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) body: Body,
    pub(crate) records: u64,
    /// One past the last record.
    pub(crate) end_offset: Offset,
}

impl Found {
    /// Nothing yet, in a recycled list.
    pub(crate) fn new() -> Self {
        Self { body: Body::new(), ..Self::default() }
    }

    /// May one more batch be added? The first always may, whatever its size.
    pub(crate) fn takes(&self, bytes: usize, bytes_max: usize) -> bool {
        self.body.is_empty() || self.bytes() + bytes <= bytes_max
    }

    /// Adds a batch.
    pub(crate) fn push(&mut self, batch: Batch) {
        self.records += batch.offsets.end.0 - batch.offsets.start.0;
        self.end_offset = batch.offsets.end;
        self.body.push(batch.bytes);
    }

    /// Bytes of the batches.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Is there none?
    pub(crate) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }
}

/// One batch that was read, and its offsets.
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) offsets: Range<Offset>,
}

/// The batches from the one that holds `offset` on, `bytes_max` of them or one batch. The caller has
/// checked that `offset` may be read.
pub(crate) async fn batches(
    shard: &Rc<Shard>,
    tag: u32,
    offset: Offset,
    bytes_max: usize,
) -> Result<Found, RequestError> {
    if let Some(found) = cached(shard, tag, offset, bytes_max) {
        return Ok(found);
    }
    shard.metrics.borrow_mut().counters.cache_misses += 1;
    for _ in 0..READ_RETRIES_MAX {
        // Apart from the task, which may have to wait for records before it reads, or after.
        let read = Box::pin(from_wal(shard, tag, offset, bytes_max)).await?;
        if let Some(batches) = read {
            let mut found = Found::new();
            batches.into_iter().for_each(|batch| found.push(batch));
            return Ok(found);
        }
        // The segment was recycled meanwhile: what is asked for may be gone, and that is said.
        let partitions = shard.partitions.borrow();
        let partition = partitions.get(tag).ok_or(RequestError::UnknownTopicId)?;
        partition.check_fetch(partition.engine.leader_epoch(), offset)?;
    }
    Err(not_found(shard, tag, offset))
}

/// What will be asked for next, from the disk, for a consumer that is not there yet. Empty if it
/// cannot be read now: why is said once the consumer asks for it.
pub(crate) async fn ahead(
    shard: &Rc<Shard>,
    tag: u32,
    offset: Offset,
    bytes_max: usize,
) -> Vec<Batch> {
    shard.metrics.borrow_mut().counters.cache_misses += 1;
    from_wal(shard, tag, offset, bytes_max).await.ok().flatten().unwrap_or_default()
}

/// The same as [`batches`], if the first of them is in the hot cache.
pub(crate) fn cached(shard: &Shard, tag: u32, offset: Offset, bytes_max: usize) -> Option<Found> {
    let found = from_cache(shard, tag, offset, bytes_max)?;
    shard.metrics.borrow_mut().counters.cache_hits += 1;
    Some(found)
}

/// The first record at or after a time, and when it is from.
pub(crate) async fn first_at_or_after(
    shard: &Rc<Shard>,
    tag: u32,
    at: TimestampMs,
) -> Result<Option<(Offset, TimestampMs)>, RequestError> {
    let wal = shard.wal_of(tag)?;
    let (id, log_start, high_watermark) = {
        let partitions = shard.partitions.borrow();
        let engine = &partitions.get(tag).ok_or(RequestError::UnknownTopicId)?.engine;
        (engine.id(), engine.log_start_offset(), engine.high_watermark())
    };
    let segments: Vec<_> = {
        let segments = wal.files.segments();
        let may_hold = segments.ranges(id).filter(|(_, range)| {
            at <= range.timestamp_max && log_start < range.end && range.first < high_watermark
        });
        may_hold.map(|(sequence, _)| sequence).collect()
    };
    for sequence in segments {
        let pick =
            |points: &[IndexPoint]| find_timestamp(points_from(points, log_start), at).copied();
        let point = wal.files.pick_points(sequence, id, pick).await.map_err(unreadable)?;
        let Some(point) = point.flatten() else { continue };
        if high_watermark <= point.base_offset {
            return Ok(None);
        }
        let found = batches(shard, tag, point.base_offset.max(log_start), 1).await?;
        for chunk in found.body.chunks() {
            let found = records(chunk)?
                .flatten()
                .find(|record| at <= record.timestamp && log_start <= record.offset);
            if let Some(record) = found {
                return Ok(Some((record.offset, record.timestamp)));
            }
        }
    }
    Ok(None)
}

fn from_cache(shard: &Shard, tag: u32, offset: Offset, bytes_max: usize) -> Option<Found> {
    let cache = shard.cache.borrow();
    // When slow consumers pin most of the block memory, what they get is a copy outside of it.
    let pressed = shard.wal_of(tag).is_ok_and(|wal| wal.is_pressed());
    let mut found = Found::new();
    let mut next = None;
    for batch in cache.from(tag, offset)? {
        // Offsets may have a hole where recovery found damage: the reader is told at its edge.
        let joins = next.is_none_or(|next| next == batch.base_offset);
        if !joins || !found.takes(batch.bytes.slice().len(), bytes_max) {
            break;
        }
        next = Some(batch.end_offset);
        let bytes = match pressed {
            true => Bytes::copy_from_slice(batch.bytes.slice()),
            false => batch.bytes.share(),
        };
        found.push(Batch { bytes, offsets: batch.base_offset..batch.end_offset });
    }
    Some(found)
}

/// Reads one segment once. `None`: the segment is not what it was when the read was planned.
async fn from_wal(
    shard: &Rc<Shard>,
    tag: u32,
    offset: Offset,
    bytes_max: usize,
) -> Result<Option<Vec<Batch>>, RequestError> {
    let wal = shard.wal_of(tag)?;
    let (id, high_watermark) = {
        let partitions = shard.partitions.borrow();
        let engine = &partitions.get(tag).ok_or(RequestError::UnknownTopicId)?.engine;
        (engine.id(), engine.high_watermark())
    };
    let segment = {
        let segments = wal.files.segments();
        let located = segments.locate(id, offset);
        match located.and_then(|sequence| segments.segment(sequence).copied()) {
            Some(segment) => segment,
            None => return Ok(None),
        }
    };
    let memory_bytes_max = bytes_max.min(READ_BYTES_MAX).max(wal.files.read_buffer_bytes());
    let want = Want { until: high_watermark, bytes_max, memory_bytes_max };
    let pick = |points: &[IndexPoint]| {
        let points = points_from(points, offset);
        let pieces = plan(points, &want);
        let count = pieces.last().map_or(0, |piece| piece.points.end);
        (points.is_empty(), points[..count].to_vec(), pieces)
    };
    let picked = wal.files.pick_points(segment.header.sequence, id, pick).await;
    let Some((is_behind_all, points, pieces)) = picked.map_err(unreadable)? else {
        return Ok(None);
    };
    if is_behind_all && let Some(end) = end_in(&wal, &segment, id) {
        // Its end is a hole, and neither footer nor blocks tell of it.
        let range = offset..end;
        let file = wal.files.dir().join(segment.header.slot.file_name());
        tracing::error!(
            partition = %id, first = %range.start, %end, file = %file.display(),
            "records are damaged on disk and will not be served; restore the file from a copy"
        );
        return Err(mark_damaged(shard, tag, range, &file));
    }
    let Some(first) = points.first() else { return Ok(None) };
    if offset < first.base_offset {
        // A hole: what was there is damaged, and that is said rather than stepped over.
        let range = offset..first.base_offset;
        let file = wal.files.dir().join(segment.header.slot.file_name());
        return Err(mark_damaged(shard, tag, range, &file));
    }
    let read = wal.files.read(segment.header.slot, &pieces).await.map_err(unreadable)?;
    let mut batches = Vec::with_capacity(points.len());
    for (piece, bytes) in pieces.iter().zip(&read) {
        for point in &points[piece.points.clone()] {
            let entry_at = (u64::from(point.position) - piece.pages.start) as usize;
            let expect = EntryExpect {
                generation: segment.header.generation,
                partition: id,
                base_offset: point.base_offset,
            };
            match decode_entry(&bytes[entry_at..], &expect) {
                Ok((_, payload)) => {
                    let payload_at = entry_at + ENTRY_HEADER_BYTES;
                    let bytes = bytes.slice(payload_at..payload_at + payload.len());
                    batches.push(Batch { bytes, offsets: point.base_offset..point.end_offset() });
                }
                Err(_) if !batches.is_empty() => return Ok(Some(batches)),
                Err(error) if is_live(&wal, &segment) => {
                    return Err(damaged(shard, tag, id, point, &segment, &wal, error));
                }
                Err(_) => return Ok(None),
            }
        }
    }
    Ok(Some(batches))
}

/// Where what a segment holds of a partition ends, if it is still in use.
fn end_in(wal: &WalWriter, segment: &LiveSegment, id: TopicPartition) -> Option<Offset> {
    if !is_live(wal, segment) {
        return None;
    }
    let segments = wal.files.segments();
    let held = segments.ranges(id).find(|(sequence, _)| *sequence == segment.header.sequence);
    held.map(|(_, range)| range.end)
}

fn is_live(wal: &WalWriter, segment: &LiveSegment) -> bool {
    let segments = wal.files.segments();
    let now = segments.segment(segment.header.sequence);
    now.is_some_and(|now| now.header.generation == segment.header.generation)
}

/// Nothing holds these records, although the log should: they are named up to where it goes on.
fn not_found(shard: &Shard, tag: u32, offset: Offset) -> RequestError {
    let (wal, id, end) = {
        let partitions = shard.partitions.borrow();
        let Some(partition) = partitions.get(tag) else { return RequestError::UnknownTopicId };
        let wal = shard.wal(partition.wal);
        let id = partition.engine.id();
        let next = wal.files.segments().ranges(id).find(|(_, range)| offset < range.first);
        let end = next.map_or_else(|| partition.engine.high_watermark(), |(_, range)| range.first);
        (wal, id, end)
    };
    let held = wal.files.segments().locate(id, offset);
    if held.is_some() {
        let dir = wal.files.dir().display();
        let why = format!("the index of the records at offset {offset} cannot be read in {dir}");
        return RequestError::StorageCorrupt { why };
    }
    tracing::error!(
        %offset, %end, dir = %wal.files.dir().display(),
        "records cannot be found on disk and will not be served"
    );
    mark_damaged(shard, tag, offset..end, wal.files.dir())
}

fn mark_damaged(shard: &Shard, tag: u32, range: Range<Offset>, file: &Path) -> RequestError {
    let mut partitions = shard.partitions.borrow_mut();
    let Some(partition) = partitions.get_mut(tag) else { return RequestError::UnknownTopicId };
    partition.mark_damaged(range.clone(), Rc::from(file.display().to_string()));
    partition.damaged(range)
}

/// A live entry that does not check is damage: it is named, and never served.
fn damaged(
    shard: &Shard,
    tag: u32,
    id: TopicPartition,
    point: &IndexPoint,
    segment: &LiveSegment,
    wal: &WalWriter,
    error: rustmq_wal::EntryError,
) -> RequestError {
    let range = point.base_offset..point.end_offset();
    let file = wal.files.dir().join(segment.header.slot.file_name());
    tracing::error!(
        partition = %id, first = %range.start, end = %range.end, file = %file.display(),
        position = point.position, %error,
        "records are damaged on disk and will not be served; restore the file from a copy"
    );
    mark_damaged(shard, tag, range, &file)
}

fn unreadable(error: io::Error) -> RequestError {
    let throttled = match error.kind() {
        io::ErrorKind::OutOfMemory => Some("the read buffers are in use"),
        io::ErrorKind::WouldBlock => Some("the index of a segment is made anew"),
        _ => None,
    };
    if let Some(what) = throttled {
        return RequestError::Throttled { what, retry_after_ms: RETRY_AFTER_MEMORY_MS };
    }
    tracing::error!(%error, "reading the WAL failed");
    RequestError::StorageCorrupt { why: "the disk refused to read these records".to_owned() }
}

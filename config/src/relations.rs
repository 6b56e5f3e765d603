//! Rules across options: values that are fine each by itself, and not together.

use crate::kind::size_text;
use crate::options::BrokerConfig;

/// Segments of one WAL. Eight: retention frees whole segments, so with fewer a WAL is full or
/// nearly empty; a smaller capacity is refused.
const SEGMENTS_MIN: u64 = 8;

/// Segments of one WAL in tests, where rare paths are to be common.
const SEGMENTS_MIN_IN_TESTS: u64 = 4;

/// Blocks and batches are at most this part of a segment, so that the space that is left at the
/// end of one stays small.
const BLOCKS_PER_SEGMENT_MIN: u64 = 4;

/// Blocks that a shard's buffers hold: one on its way to the disk, one that gathers, and two that
/// replies still read from.
const BLOCKS_BUFFERED_MIN: u64 = 4;

/// What surrounds the largest record in its batch and block.
const BATCH_OVERHEAD_BYTES: u64 = 64 << 10;

/// The first broken rule: an option, and what it may be beside the others.
pub(crate) fn broken(config: &BrokerConfig) -> Option<(&'static str, String)> {
    let (broker, wal, network) = (&config.broker, &config.wal, &config.network);
    if broker.listen.is_unspecified() && broker.advertised_host.is_empty() {
        let allowed =
            format!("a host that clients reach: broker.listen = {} is none", broker.listen);
        return Some(("broker.advertised_host", allowed));
    }
    let segment = format!("wal.segment_bytes = {}", size_text(wal.segment_bytes));
    let segments_min = if config.test.enabled { SEGMENTS_MIN_IN_TESTS } else { SEGMENTS_MIN };
    let capacity_min = segments_min * wal.segment_bytes;
    if wal.capacity_bytes < capacity_min {
        let min = size_text(capacity_min);
        return Some(("wal.capacity_bytes", format!("at least {min}: {segments_min} × {segment}")));
    }
    let block_max = wal.segment_bytes / BLOCKS_PER_SEGMENT_MIN;
    if block_max < wal.block_bytes_max {
        let max = size_text(block_max);
        return Some(("wal.block_bytes_max", format!("at most {max}: a quarter of {segment}")));
    }
    let batch_max = config.topics.record_bytes_max + BATCH_OVERHEAD_BYTES;
    if block_max < batch_max {
        let (max, overhead) =
            (size_text(block_max - BATCH_OVERHEAD_BYTES), size_text(BATCH_OVERHEAD_BYTES));
        let allowed = format!("at most {max}: with {overhead} around it a quarter of {segment}");
        return Some(("topics.record_bytes_max", allowed));
    }
    let buffer_min = BLOCKS_BUFFERED_MIN * wal.block_bytes_max.max(batch_max);
    if wal.buffer_bytes < buffer_min {
        let min = size_text(buffer_min);
        let allowed = format!(
            "at least {min}: {BLOCKS_BUFFERED_MIN} blocks of wal.block_bytes_max = {} or of one \
             batch with topics.record_bytes_max = {}",
            size_text(wal.block_bytes_max),
            size_text(config.topics.record_bytes_max)
        );
        return Some(("wal.buffer_bytes", allowed));
    }
    if network.connection_window_bytes < network.stream_window_bytes {
        let min = size_text(network.stream_window_bytes);
        let allowed = format!("at least network.stream_window_bytes = {min}");
        return Some(("network.connection_window_bytes", allowed));
    }
    None
}

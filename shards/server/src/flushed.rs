//! What changes when a block is durable: its records can be read, and their producers answered.

use std::rc::Rc;

use rustmq_engine::cache::CachedBatch;
use rustmq_sys::buffer::Slice;
use rustmq_wal::{BlockBuilder, EntryKind, EntryMeta, SealedBlock};

use crate::shard::Shard;
use crate::wal_writer::WalWriter;

/// Takes note of a durable block: index, hot cache, high watermarks, and fetches and
/// subscriptions that wait.
pub(crate) fn apply(
    shard: &Shard,
    wal: &WalWriter,
    builder: &BlockBuilder,
    sealed: &SealedBlock,
    memory: &Slice,
) {
    let entries = builder.entries();
    wal.files.handle_written(entries, sealed);
    let is_data = |entry: &&EntryMeta| entry.kind == EntryKind::Data;
    if !entries.iter().any(|entry| is_data(&entry)) {
        return;
    }
    // Each batch is a slice of the block and costs no allocation.
    let batches = entries.iter().filter(is_data).map(|entry| {
        let payload = entry.payload.start as usize..entry.payload.end as usize;
        let batch = CachedBatch {
            base_offset: entry.base_offset,
            end_offset: entry.end_offset(),
            bytes: memory.slice(payload),
        };
        (entry.tag, batch)
    });
    shard.cache.borrow_mut().push_block(memory.len(), batches);
    for entry in entries.iter().filter(is_data) {
        let mut partitions = shard.partitions.borrow_mut();
        // A topic deleted meanwhile has nobody left to tell.
        let Some(partition) = partitions.get_mut(entry.tag) else {
            continue;
        };
        partition.engine.handle_flushed(entry.end_offset());
        let arrivals = Rc::clone(&partition.arrivals);
        let subscribers = Rc::clone(&partition.subscribers);
        drop(partitions);
        arrivals.wake_all();
        subscribers.wake_all();
    }
}

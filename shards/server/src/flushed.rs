//! What changes when a block is durable: its records can be read, and their producers answered.

use std::cell::OnceCell;
use std::rc::Rc;

use bytes::Bytes;
use rustmq_engine::cache::CachedBatch;
use rustmq_sys::buffer::Slice;
use rustmq_wal::{BlockBuilder, EntryKind, EntryMeta, SealedBlock};

use crate::shard::Shard;
use crate::wal_writer::WalWriter;

/// A batch in the hot cache.
///
/// The first consumer that is sent it pays for counting those who hold it, and all share that.
pub(crate) struct Cached {
    slice: Slice,
    shared: OnceCell<Bytes>,
}

impl Cached {
    fn new(slice: Slice) -> Self {
        Self { slice, shared: OnceCell::new() }
    }

    /// The bytes, where they are.
    pub(crate) fn slice(&self) -> &Slice {
        &self.slice
    }

    /// A handle to the bytes for one more consumer.
    pub(crate) fn share(&self) -> Bytes {
        self.shared.get_or_init(|| self.slice.clone().into_bytes()).clone()
    }
}

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
            bytes: Cached::new(memory.slice(payload)),
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

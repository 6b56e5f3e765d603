//! The WALs of a shard, opened at its start: their memory, their recovery, and what each writes
//! before anybody is served.

use std::rc::Rc;

use rustmq_config::BrokerConfig;
use rustmq_config::choice::{FlushPolicy as FlushOption, WhenFull};
use rustmq_metadata::WalUuid;
use rustmq_sys::buffer::BufferPool;
use rustmq_sys::runtime::{self, Class};
use rustmq_wal::{BLOCK_ALIGN, BlockFlags, FlushPolicy, GroupCommit, WalId};

use super::Shard;
use crate::error::ShardError;
use crate::housekeeping;
use crate::mesh::Boot;
use crate::recover::{self, WalSetup};
use crate::segments::{Policy, SegmentFiles};
use crate::wal_writer::{WalWriter, write_loop};

/// Memory that one buffer of the block pool holds at most: blocks lie in it one after another. Of a
/// small pool it is a sixteenth, so that slow consumers of a few blocks do not pin most of it.
const BLOCK_BUFFER_BYTES: usize = 4 << 20;

/// And at least, so that the largest block fits whatever the pool.
const BLOCK_BUFFER_BYTES_MIN: usize = 256 << 10;

/// Memory of a WAL for what consumers read from the disk, beside blocks and the hot cache.
const READ_BUFFER_BYTES: usize = 64 << 20;

/// Memory of a WAL for its own headers, checkpoints and footers, and for recovery.
const UPKEEP_BUFFER_BYTES: usize = 64 << 20;

/// One buffer of the two pools above, or a segment if that is smaller; larger ones are made as needed.
const SMALL_BUFFER_BYTES: usize = 1 << 20;

impl Shard {
    /// Opens the shard's WALs and takes over their partitions.
    pub(super) async fn recover(self: &Rc<Self>, boot: Boot) -> Result<(), ShardError> {
        *self.image.borrow_mut() = boot.image;
        let mine = boot.owners.iter().filter(|(_, owner)| **owner == self.id);
        let mine: Vec<WalUuid> = mine.map(|(wal, _)| *wal).collect();
        let wals_total = boot.owners.len();
        *self.owners.borrow_mut() = boot.owners;
        for wal in mine {
            self.open_wal(wal, wals_total).await?;
        }
        Ok(())
    }

    async fn open_wal(self: &Rc<Self>, id: WalUuid, wals_total: usize) -> Result<(), ShardError> {
        let config = &self.config.wal;
        let setup = WalSetup {
            id: WalId(id.0),
            dir: self.config.broker.data_dir.join(format!("wal-{}", WalId(id.0))),
            segment_bytes: config.segment_bytes,
            may_create: !self.holds_partitions(id),
            segments_max: segments_per_wal(&self.config, wals_total)
                .map_err(|why| self.refused(why))?,
        };
        let memory = self.config.cache.hot_bytes + config.buffer_bytes;
        let block_buffer = (config.buffer_bytes as usize / 16).next_multiple_of(BLOCK_ALIGN);
        let least = BLOCK_BUFFER_BYTES_MIN.max(2 * config.block_bytes_max as usize);
        let pool = BufferPool::new(
            memory as usize,
            block_buffer.clamp(least.min(BLOCK_BUFFER_BYTES), BLOCK_BUFFER_BYTES),
        );
        let small_buffer = SMALL_BUFFER_BYTES.min(config.segment_bytes as usize);
        let read_pool = BufferPool::new(READ_BUFFER_BYTES, small_buffer);
        // A footer takes less than a quarter of its segment.
        let upkeep_bytes = UPKEEP_BUFFER_BYTES + config.segment_bytes as usize / 4;
        let upkeep_pool = BufferPool::new(upkeep_bytes, small_buffer);
        let opened = recover::open(&setup, &upkeep_pool).await?;
        let policy = Policy {
            flush_always: config.flush == FlushOption::Always,
            delete_oldest: config.when_full == WhenFull::DeleteOldest,
        };
        let commit = GroupCommit::new(match config.flush {
            FlushOption::Always => FlushPolicy::Always,
            FlushOption::Interval => {
                FlushPolicy::Interval { ns: config.flush_interval_ms * 1_000_000 }
            }
        });
        let dir = setup.dir.clone();
        let index_bytes_max = self.config.cache.index_bytes_max as usize / wals_total;
        let files = SegmentFiles::new(
            setup.id,
            setup.dir,
            policy,
            upkeep_pool,
            read_pool,
            index_bytes_max,
            opened.recovered,
        );
        let block_bytes_max = config.block_bytes_max as usize;
        let wal = Rc::new(WalWriter::new(files, pool, block_bytes_max, commit));
        let index = self.wals.borrow().len();
        self.wals.borrow_mut().push(Rc::clone(&wal));
        self.adopt(id, index, opened.replayed).map_err(|why| ShardError::Refused { dir, why })?;
        housekeeping::drop_oldest_at_start(self, &wal).await?;
        if let Err(why) = wal.room_for_start().await? {
            return Err(ShardError::Refused { dir: wal.files.dir().to_owned(), why });
        }
        // Only now is what was recovered part of the log again, and durable.
        wal.write_block(self, BlockFlags::START).await?;
        if wal.files.lacks_checkpoint() && wal.files.ensure_spare().await?.is_ok() {
            wal.files.rotate(self).await?;
        }
        let shard = Rc::clone(self);
        runtime::spawn(Class::Foreground, async move {
            if let Err(error) = write_loop(Rc::clone(&shard), wal).await {
                shard.fail(error);
            }
        });
        Ok(())
    }

    /// Do topics have partitions in this WAL?
    fn holds_partitions(&self, wal: WalUuid) -> bool {
        let image = self.image.borrow();
        let mut partitions = image.topics().flat_map(|topic| &topic.partitions);
        partitions.any(|partition| partition.append_wal() == Some(wal))
    }

    fn refused(&self, why: String) -> ShardError {
        ShardError::Refused { dir: self.config.broker.data_dir.clone(), why }
    }
}

/// How many segments each WAL may have, when the broker's space is shared by all of them.
fn segments_per_wal(config: &BrokerConfig, wals: usize) -> Result<usize, String> {
    let per_wal = config.wal.capacity_bytes / wals as u64 / config.wal.segment_bytes;
    let fewest = match config.test.enabled {
        true => SEGMENTS_MIN_TEST,
        false => rustmq_wal::segments::SEGMENTS_MIN as u64,
    };
    if per_wal < fewest {
        return Err(format!(
            "wal.capacity_bytes = {} is room for {per_wal} segments in each of {wals} WALs; at \
             least {fewest} are needed: raise it, or lower wal.segment_bytes or broker.shards",
            config.wal.capacity_bytes
        ));
    }
    Ok((per_wal as usize).min(rustmq_wal::segments::SEGMENTS_MAX))
}

/// Fewest segments of a WAL under test settings, where a full pool must be reached in seconds.
const SEGMENTS_MIN_TEST: u64 = 4;

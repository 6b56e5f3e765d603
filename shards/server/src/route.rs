//! Which shard owns a partition.

use rustmq_metadata::{Partition, WalUuid};
use rustmq_protocol::{ShardId, TopicPartition};

use crate::reply::RequestError;
use crate::shard::Shard;

/// Where a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// On this shard, by the partition with this number.
    Here(u32),
    /// On another shard of this broker.
    Shard(ShardId),
}

impl Shard {
    /// Finds the owner of a partition: this shard, another one, or nobody.
    pub(crate) fn route(&self, id: TopicPartition) -> Result<Route, RequestError> {
        if let Some(tag) = self.partitions.borrow().tag(id) {
            return Ok(Route::Here(tag));
        }
        let image = self.image.borrow();
        let topic = image.topic(id.topic).ok_or(RequestError::UnknownTopicId)?;
        let partitions = topic.partitions.len() as u32;
        let unknown = RequestError::UnknownPartition { partitions };
        let partition = topic.partition(id.partition).ok_or(unknown)?;
        match self.shard_of(partition) {
            owner if owner == self.id => Err(RequestError::UnknownTopicId),
            owner => Ok(Route::Shard(owner)),
        }
    }

    /// The shard that owns the WAL to which a partition appends.
    pub(crate) fn shard_of(&self, partition: &Partition) -> ShardId {
        let wal: Option<WalUuid> = partition.append_wal();
        let owners = self.owners.borrow();
        let owner = wal.and_then(|wal| owners.get(&wal));
        *owner.expect("every WAL of this broker was dealt to a shard at start")
    }
}

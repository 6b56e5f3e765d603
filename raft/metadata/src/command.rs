//! The commands: every way in which the image changes.

use rustmq_protocol::ids::{BrokerId, TopicId};

use crate::image::WalUuid;
use crate::topic_config::TopicConfig;

/// A change that the cluster agrees on, in the order of the log that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The first command of a cluster; no other is accepted before it.
    FormatCluster {
        /// 16 random bytes; not all zero.
        cluster_id: [u8; 16],
    },
    /// A broker starts, for the first time or again: its epoch and the leader epoch of every
    /// partition that it leads grow by one.
    StartBroker {
        /// The broker.
        broker: BrokerId,
        /// Shards that it runs; at least one.
        shard_count: u16,
        /// All WALs that it owns. One that it no longer names must hold no live partition.
        wals: Vec<WalUuid>,
    },
    /// A running broker has created another WAL.
    AddWal {
        /// Its owner.
        broker: BrokerId,
        /// The new WAL.
        wal: WalUuid,
    },
    /// A new topic.
    CreateTopic {
        /// A fresh random id; it was never used before.
        id: TopicId,
        /// Its name, unique among live topics.
        name: String,
        /// Copies of each partition.
        replication_factor: u16,
        /// Its configuration, checked.
        config: TopicConfig,
        /// Who leads each partition and where its records go; one entry for each partition.
        partitions: Vec<PartitionAssignment>,
    },
    /// A topic ends; its tombstone stays.
    DeleteTopic {
        /// The topic.
        id: TopicId,
    },
    /// No segment names a deleted topic any more: its tombstone goes.
    ForgetTopic {
        /// The topic.
        id: TopicId,
    },
    /// A broker takes a block of producer ids, durably, before it hands out the first.
    AllocateProducerIds {
        /// The broker.
        broker: BrokerId,
        /// How many; see [`PRODUCER_ID_BLOCK`](crate::limits::PRODUCER_ID_BLOCK).
        count: u32,
    },
}

/// Who leads a new partition and where its records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionAssignment {
    /// The leader.
    pub broker: BrokerId,
    /// A WAL of that broker.
    pub wal: WalUuid,
}

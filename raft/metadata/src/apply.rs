//! The rules: `check` decides whether a command is accepted, `apply` makes the change.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use rustmq_protocol::ids::{BrokerId, LeaderEpoch, Offset, ProducerId, TopicId};
use rustmq_protocol::topic_name::{TopicNameError, validate_topic_name};

use crate::command::{Command, PartitionAssignment};
use crate::image::{Broker, Image, Partition, Placement, Tombstone, Topic, WalUuid};
use crate::limits;
use crate::topic_config::TopicConfig;

/// What a command changed: all that the shards need to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// The cluster has an id.
    ClusterFormatted {
        /// The id.
        cluster_id: [u8; 16],
    },
    /// A broker runs in a new epoch, and so do all partitions that it leads.
    BrokerStarted {
        /// The broker.
        broker: BrokerId,
        /// Its new epoch.
        epoch: u64,
    },
    /// A broker may place partitions on one more WAL.
    WalAdded {
        /// The broker.
        broker: BrokerId,
        /// The WAL.
        wal: WalUuid,
    },
    /// A topic is there; the image has it.
    TopicCreated(TopicId),
    /// A topic is gone from the image; this is what it was.
    TopicDeleted(Topic),
    /// A deleted topic's tombstone is gone.
    TopicForgotten(TopicId),
    /// Producer ids that this broker, and no other ever, may hand out.
    ProducerIds {
        /// The broker.
        broker: BrokerId,
        /// The ids, half-open.
        range: Range<ProducerId>,
    },
}

/// Why a command is refused. The image is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// Any command before the cluster is formatted.
    NotFormatted,
    /// A second format.
    AlreadyFormatted {
        /// The id that the cluster has.
        cluster_id: [u8; 16],
    },
    /// An id of zeroes where a random one belongs.
    ZeroId,
    /// The broker was never started.
    UnknownBroker {
        /// The broker.
        broker: BrokerId,
    },
    /// A number that stands for "no broker".
    NoBroker,
    /// A broker with no shard or no WAL cannot start.
    NothingToRun {
        /// The broker.
        broker: BrokerId,
    },
    /// The WAL has an owner, or is named twice in one command.
    WalTaken {
        /// The WAL.
        wal: WalUuid,
        /// Whose it is.
        owner: BrokerId,
    },
    /// The broker no longer names a WAL that holds records of a live topic.
    WalInUse {
        /// The WAL.
        wal: WalUuid,
        /// A topic with records in it.
        topic: TopicId,
    },
    /// A partition is assigned to a WAL that its broker does not own.
    UnknownWal {
        /// The broker.
        broker: BrokerId,
        /// The WAL.
        wal: WalUuid,
    },
    /// An epoch has no next value.
    EpochExhausted {
        /// The broker that starts.
        broker: BrokerId,
    },
    /// The name is not one of a topic.
    TopicName(TopicNameError),
    /// A live topic bears the name.
    TopicExists {
        /// That topic.
        id: TopicId,
    },
    /// The id was used before, by a live or a deleted topic.
    TopicIdUsed {
        /// The id.
        id: TopicId,
    },
    /// No live topic has the id.
    UnknownTopic {
        /// The id.
        id: TopicId,
    },
    /// No tombstone has the id.
    UnknownTombstone {
        /// The id.
        id: TopicId,
    },
    /// A topic has at least one partition and at most so many.
    PartitionCount {
        /// How many were asked for.
        count: usize,
        /// [`PARTITIONS_PER_TOPIC_MAX`](limits::PARTITIONS_PER_TOPIC_MAX).
        max: u32,
    },
    /// So many copies cannot be kept.
    ReplicationFactor {
        /// How many were asked for.
        asked: u16,
        /// [`REPLICATION_FACTOR_MAX`](limits::REPLICATION_FACTOR_MAX).
        max: u16,
    },
    /// A configuration that no text could have set.
    TopicConfig {
        /// The configuration.
        config: TopicConfig,
    },
    /// A block of producer ids has at least one id and at most so many.
    ProducerIdCount {
        /// How many were asked for.
        count: u32,
        /// [`PRODUCER_IDS_PER_COMMAND_MAX`](limits::PRODUCER_IDS_PER_COMMAND_MAX).
        max: u32,
    },
    /// There are not so many producer ids left.
    ProducerIdsExhausted {
        /// The first that is left.
        next: ProducerId,
    },
    /// The image is full.
    LimitExceeded {
        /// The name of the limit in [`limits`].
        limit: &'static str,
        /// Its value.
        max: u64,
    },
}

/// Says whether [`apply()`] would accept the command, and changes nothing: decide, make the command
/// durable, then apply.
pub fn check(image: &Image, command: &Command) -> Result<(), ApplyError> {
    if let Command::FormatCluster { cluster_id } = command {
        return check_format(image, *cluster_id);
    }
    if image.cluster_id.is_none() {
        return Err(ApplyError::NotFormatted);
    }
    match command {
        Command::FormatCluster { .. } => Ok(()),
        Command::StartBroker { broker, shard_count, wals } => {
            check_start(image, *broker, *shard_count, wals)
        }
        Command::AddWal { broker, wal } => check_add_wal(image, *broker, *wal),
        Command::CreateTopic { id, name, replication_factor, config, partitions } => {
            check_create(image, *id, name, *replication_factor, config)?;
            check_assignments(image, partitions)
        }
        Command::DeleteTopic { id } => match image.topic(*id) {
            Some(_) => Ok(()),
            None => Err(ApplyError::UnknownTopic { id: *id }),
        },
        Command::ForgetTopic { id } => match image.tombstone(*id) {
            Some(_) => Ok(()),
            None => Err(ApplyError::UnknownTombstone { id: *id }),
        },
        Command::AllocateProducerIds { broker, count } => {
            check_producer_ids(image, *broker, *count)
        }
    }
}

/// Applies a command: all of it, or on `Err` nothing. The same on every node.
pub fn apply(image: &mut Image, command: &Command) -> Result<Delta, ApplyError> {
    check(image, command)?;
    let delta = change(image, command);
    if cfg!(any(test, feature = "verify")) {
        image.invariants();
    }
    Ok(delta)
}

/// Makes the change of a command that `check` has accepted. Nothing here can fail.
fn change(image: &mut Image, command: &Command) -> Delta {
    match command {
        Command::FormatCluster { cluster_id } => {
            image.cluster_id = Some(*cluster_id);
            Delta::ClusterFormatted { cluster_id: *cluster_id }
        }
        Command::StartBroker { broker, shard_count, wals } => {
            start_broker(image, *broker, *shard_count, wals)
        }
        Command::AddWal { broker, wal } => {
            let owner = image.brokers.get_mut(broker).expect("check found the broker");
            owner.wals.push(*wal);
            Delta::WalAdded { broker: *broker, wal: *wal }
        }
        Command::CreateTopic { id, name, replication_factor, config, partitions } => {
            let topic = Topic {
                id: *id,
                name: name.clone(),
                replication_factor: *replication_factor,
                config: *config,
                partitions: partitions.iter().map(new_partition).collect(),
            };
            image.partition_count += topic.partitions.len();
            image.names.insert(topic.name.clone(), *id);
            image.topics.insert(*id, topic);
            Delta::TopicCreated(*id)
        }
        Command::DeleteTopic { id } => {
            let topic = image.topics.remove(id).expect("check found the topic");
            image.partition_count -= topic.partitions.len();
            image.names.remove(&topic.name);
            image.tombstones.insert(*id, Tombstone { name: topic.name.clone() });
            Delta::TopicDeleted(topic)
        }
        Command::ForgetTopic { id } => {
            image.tombstones.remove(id);
            Delta::TopicForgotten(*id)
        }
        Command::AllocateProducerIds { broker, count } => {
            let start = image.next_producer_id;
            image.next_producer_id += u64::from(*count);
            let range = ProducerId(start)..ProducerId(image.next_producer_id);
            Delta::ProducerIds { broker: *broker, range }
        }
    }
}

fn check_format(image: &Image, cluster_id: [u8; 16]) -> Result<(), ApplyError> {
    match image.cluster_id {
        Some(cluster_id) => Err(ApplyError::AlreadyFormatted { cluster_id }),
        None if cluster_id == [0; 16] => Err(ApplyError::ZeroId),
        None => Ok(()),
    }
}

fn check_start(
    image: &Image,
    broker: BrokerId,
    shard_count: u16,
    wals: &[WalUuid],
) -> Result<(), ApplyError> {
    if broker == BrokerId::NONE {
        return Err(ApplyError::NoBroker);
    }
    if shard_count == 0 || wals.is_empty() {
        return Err(ApplyError::NothingToRun { broker });
    }
    limit("WALS_PER_BROKER_MAX", wals.len(), limits::WALS_PER_BROKER_MAX)?;
    let mut named = BTreeSet::new();
    for wal in wals {
        check_wal_id(*wal)?;
        if !named.insert(*wal) {
            return Err(ApplyError::WalTaken { wal: *wal, owner: broker });
        }
    }
    for (other, state) in image.brokers().filter(|(id, _)| *id != broker) {
        if let Some(wal) = state.wals.iter().find(|wal| named.contains(wal)) {
            return Err(ApplyError::WalTaken { wal: *wal, owner: other });
        }
    }
    let Some(earlier) = image.broker(broker) else {
        return limit("BROKERS_MAX", image.brokers.len() + 1, limits::BROKERS_MAX);
    };
    let exhausted = ApplyError::EpochExhausted { broker };
    if earlier.epoch == u64::MAX {
        return Err(exhausted);
    }
    let lost: BTreeSet<_> = earlier.wals.iter().filter(|wal| !named.contains(wal)).collect();
    for topic in image.topics() {
        for partition in &topic.partitions {
            if partition.leader == broker && partition.leader_epoch.0 == u32::MAX {
                return Err(exhausted);
            }
            let used = partition.placements.iter().find(|place| lost.contains(&place.wal));
            if let Some(Placement { wal, .. }) = used {
                return Err(ApplyError::WalInUse { wal: *wal, topic: topic.id });
            }
        }
    }
    Ok(())
}

fn start_broker(image: &mut Image, broker: BrokerId, shard_count: u16, wals: &[WalUuid]) -> Delta {
    let epoch = image.broker(broker).map_or(0, |earlier| earlier.epoch) + 1;
    image.brokers.insert(broker, Broker { epoch, wals: wals.to_vec(), shard_count });
    // A record of this start can then never be mistaken for one of the same offset that an
    // earlier start has lost.
    for partition in image.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
        if partition.leader == broker {
            partition.leader_epoch = LeaderEpoch(partition.leader_epoch.0 + 1);
        }
    }
    Delta::BrokerStarted { broker, epoch }
}

fn check_add_wal(image: &Image, broker: BrokerId, wal: WalUuid) -> Result<(), ApplyError> {
    check_wal_id(wal)?;
    let state = image.broker(broker).ok_or(ApplyError::UnknownBroker { broker })?;
    if let Some(owner) = image.wal_owner(wal) {
        return Err(ApplyError::WalTaken { wal, owner });
    }
    limit("WALS_PER_BROKER_MAX", state.wals.len() + 1, limits::WALS_PER_BROKER_MAX)
}

fn check_create(
    image: &Image,
    id: TopicId,
    name: &str,
    replication_factor: u16,
    config: &TopicConfig,
) -> Result<(), ApplyError> {
    if id == TopicId::ZERO {
        return Err(ApplyError::ZeroId);
    }
    validate_topic_name(name).map_err(ApplyError::TopicName)?;
    if let Some(topic) = image.topic_by_name(name) {
        return Err(ApplyError::TopicExists { id: topic.id });
    }
    if image.topic(id).is_some() || image.tombstone(id).is_some() {
        return Err(ApplyError::TopicIdUsed { id });
    }
    if !(1..=limits::REPLICATION_FACTOR_MAX).contains(&replication_factor) {
        let max = limits::REPLICATION_FACTOR_MAX;
        return Err(ApplyError::ReplicationFactor { asked: replication_factor, max });
    }
    if !config.is_valid() {
        return Err(ApplyError::TopicConfig { config: *config });
    }
    limit("TOPICS_MAX", image.topics.len() + 1, limits::TOPICS_MAX)?;
    let dead_or_alive = image.topics.len() + image.tombstones.len();
    limit("TOMBSTONES_MAX", dead_or_alive + 1, limits::TOMBSTONES_MAX)
}

fn check_assignments(image: &Image, partitions: &[PartitionAssignment]) -> Result<(), ApplyError> {
    let (count, max) = (partitions.len(), limits::PARTITIONS_PER_TOPIC_MAX);
    if count == 0 || count > max as usize {
        return Err(ApplyError::PartitionCount { count, max });
    }
    limit("PARTITIONS_MAX", image.partition_count + count, limits::PARTITIONS_MAX)?;
    for PartitionAssignment { broker, wal } in partitions {
        let (broker, wal) = (*broker, *wal);
        let state = image.broker(broker).ok_or(ApplyError::UnknownBroker { broker })?;
        if !state.wals.contains(&wal) {
            return Err(ApplyError::UnknownWal { broker, wal });
        }
    }
    Ok(())
}

fn new_partition(assignment: &PartitionAssignment) -> Partition {
    Partition {
        leader: assignment.broker,
        leader_epoch: LeaderEpoch(0),
        placements: vec![Placement { first_offset: Offset(0), wal: assignment.wal }],
    }
}

fn check_producer_ids(image: &Image, broker: BrokerId, count: u32) -> Result<(), ApplyError> {
    image.broker(broker).ok_or(ApplyError::UnknownBroker { broker })?;
    let max = limits::PRODUCER_IDS_PER_COMMAND_MAX;
    if count == 0 || max < count {
        return Err(ApplyError::ProducerIdCount { count, max });
    }
    // The end is not handed out, so it may be the greatest number, which means "none".
    match image.next_producer_id.checked_add(u64::from(count)) {
        Some(_) => Ok(()),
        None => Err(ApplyError::ProducerIdsExhausted { next: image.next_producer_id() }),
    }
}

fn check_wal_id(wal: WalUuid) -> Result<(), ApplyError> {
    if wal == WalUuid([0; 16]) { Err(ApplyError::ZeroId) } else { Ok(()) }
}

fn limit(limit: &'static str, count: usize, max: usize) -> Result<(), ApplyError> {
    if count <= max { Ok(()) } else { Err(ApplyError::LimitExceeded { limit, max: max as u64 }) }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFormatted => write!(f, "the cluster is not formatted yet"),
            Self::AlreadyFormatted { cluster_id } => {
                write!(f, "the cluster is already formatted as {}", WalUuid(*cluster_id))
            }
            Self::ZeroId => write!(f, "an id of zeroes is not valid: allowed are random ids"),
            Self::UnknownBroker { broker } => write!(f, "broker {} is not known", broker.0),
            Self::NoBroker => write!(f, "broker {} is not valid: it means none", BrokerId::NONE.0),
            Self::NothingToRun { broker } => {
                write!(f, "broker {} starts without a shard or a WAL: one each at least", broker.0)
            }
            Self::WalTaken { wal, owner } => {
                write!(f, "WAL {wal} already belongs to broker {}", owner.0)
            }
            Self::WalInUse { wal, topic } => {
                write!(f, "WAL {wal} is missing, and topic {topic} has records in it")
            }
            Self::UnknownWal { broker, wal } => {
                write!(f, "WAL {wal} does not belong to broker {}", broker.0)
            }
            Self::EpochExhausted { broker } => {
                write!(f, "broker {} has no next epoch", broker.0)
            }
            Self::TopicName(error) => write!(f, "{error}"),
            Self::TopicExists { id } => write!(f, "a topic of that name exists: {id}"),
            Self::TopicIdUsed { id } => write!(f, "the topic id {id} was used before"),
            Self::UnknownTopic { id } => write!(f, "no topic has the id {id}"),
            Self::UnknownTombstone { id } => write!(f, "no deleted topic has the id {id}"),
            Self::PartitionCount { count, max } => {
                write!(f, "{count} partitions are not valid: allowed is 1..={max}")
            }
            Self::ReplicationFactor { asked, max } => {
                write!(f, "replication factor {asked} is not valid: allowed is 1..={max}")
            }
            Self::TopicConfig { config } => {
                write!(f, "the topic configuration is out of bounds: {config:?}")
            }
            Self::ProducerIdCount { count, max } => {
                write!(f, "{count} producer ids are not valid: allowed is 1..={max}")
            }
            Self::ProducerIdsExhausted { next } => {
                write!(f, "too few producer ids are left after {}", next.0)
            }
            Self::LimitExceeded { limit, max } => {
                write!(f, "the limit {limit} is reached: allowed are {max}")
            }
        }
    }
}

impl std::error::Error for ApplyError {}

#[cfg(test)]
mod tests;

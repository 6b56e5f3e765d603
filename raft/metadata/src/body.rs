//! The bodies inside the envelopes: one private struct with numbered fields for each kind.
//!
//! These structs are the stored form and change only by new optional fields with new numbers; the
//! public types are free to change, and the conversions here keep the two apart.

use std::fmt;

use minicbor::bytes::ByteArray;
use minicbor::decode::Error as CborError;
use minicbor::encode::Write;
use minicbor::{Decode, Decoder, Encode, Encoder};
use rustmq_protocol::ids::{BrokerId, LeaderEpoch, Offset, TopicId};

use crate::command::{Command, PartitionAssignment};
use crate::decode_error::DecodeError;
use crate::image::{Broker, Image, Partition, Placement, Tombstone, Topic, WalUuid};
use crate::limits::{
    BROKERS_MAX, PARTITIONS_MAX, PARTITIONS_PER_TOPIC_MAX, PLACEMENTS_PER_PARTITION_MAX,
    TOMBSTONES_MAX, TOPICS_MAX, WALS_PER_BROKER_MAX,
};
use crate::topic_config::{CleanupPolicy, CompressionType, TopicConfig};

pub(crate) const KIND_IMAGE: u16 = 0x100;
const KIND_FORMAT_CLUSTER: u16 = 1;
const KIND_START_BROKER: u16 = 2;
const KIND_ADD_WAL: u16 = 3;
const KIND_CREATE_TOPIC: u16 = 4;
const KIND_DELETE_TOPIC: u16 = 5;
const KIND_FORGET_TOPIC: u16 = 6;
const KIND_ALLOCATE_PRODUCER_IDS: u16 = 7;

const PARTITIONS: usize = PARTITIONS_PER_TOPIC_MAX as usize;

type Bytes16 = ByteArray<16>;

/// A list that is never decoded past its limit, whatever length the bytes claim.
struct List<T, const MAX: usize>(Vec<T>);

#[derive(Encode, Decode)]
struct FormatClusterBody {
    #[n(0)]
    cluster_id: Bytes16,
}

#[derive(Encode, Decode)]
struct StartBrokerBody {
    #[n(0)]
    broker: u32,
    #[n(1)]
    shard_count: u16,
    #[n(2)]
    wals: List<Bytes16, WALS_PER_BROKER_MAX>,
}

#[derive(Encode, Decode)]
struct AddWalBody {
    #[n(0)]
    broker: u32,
    #[n(1)]
    wal: Bytes16,
}

#[derive(Encode, Decode)]
struct CreateTopicBody<'a> {
    #[n(0)]
    id: Bytes16,
    #[b(1)]
    name: &'a str,
    #[n(2)]
    replication_factor: u16,
    #[n(3)]
    config: TopicConfigBody,
    #[n(4)]
    partitions: List<AssignmentBody, PARTITIONS>,
}

#[derive(Encode, Decode)]
struct AssignmentBody {
    #[n(0)]
    broker: u32,
    #[n(1)]
    wal: Bytes16,
}

#[derive(Encode, Decode)]
struct TopicConfigBody {
    #[n(0)]
    retention_ms: Option<u64>,
    #[n(1)]
    retention_bytes: Option<u64>,
    #[n(2)]
    max_message_bytes: u32,
    #[n(3)]
    cleanup_policy: u8,
    #[n(4)]
    compression_type: u8,
}

/// `DeleteTopic` and `ForgetTopic`.
#[derive(Encode, Decode)]
struct TopicIdBody {
    #[n(0)]
    id: Bytes16,
}

#[derive(Encode, Decode)]
struct AllocateProducerIdsBody {
    #[n(0)]
    broker: u32,
    #[n(1)]
    count: u32,
}

#[derive(Encode, Decode)]
struct ImageBody<'a> {
    #[n(0)]
    cluster_id: Option<Bytes16>,
    #[n(1)]
    brokers: List<BrokerBody, BROKERS_MAX>,
    #[b(2)]
    topics: List<TopicBody<'a>, TOPICS_MAX>,
    #[b(3)]
    tombstones: List<TombstoneBody<'a>, TOMBSTONES_MAX>,
    #[n(4)]
    next_producer_id: u64,
}

#[derive(Encode, Decode)]
struct BrokerBody {
    #[n(0)]
    id: u32,
    #[n(1)]
    epoch: u64,
    #[n(2)]
    shard_count: u16,
    #[n(3)]
    wals: List<Bytes16, WALS_PER_BROKER_MAX>,
}

#[derive(Encode, Decode)]
struct TopicBody<'a> {
    #[n(0)]
    id: Bytes16,
    #[b(1)]
    name: &'a str,
    #[n(2)]
    replication_factor: u16,
    #[n(3)]
    config: TopicConfigBody,
    #[n(4)]
    partitions: List<PartitionBody, PARTITIONS>,
}

#[derive(Encode, Decode)]
struct PartitionBody {
    #[n(0)]
    leader: u32,
    #[n(1)]
    leader_epoch: u32,
    #[n(2)]
    placements: List<PlacementBody, PLACEMENTS_PER_PARTITION_MAX>,
}

#[derive(Encode, Decode)]
struct PlacementBody {
    #[n(0)]
    first_offset: u64,
    #[n(1)]
    wal: Bytes16,
}

#[derive(Encode, Decode)]
struct TombstoneBody<'a> {
    #[n(0)]
    id: Bytes16,
    #[b(1)]
    name: &'a str,
}

pub(crate) fn command_kind(command: &Command) -> u16 {
    match command {
        Command::FormatCluster { .. } => KIND_FORMAT_CLUSTER,
        Command::StartBroker { .. } => KIND_START_BROKER,
        Command::AddWal { .. } => KIND_ADD_WAL,
        Command::CreateTopic { .. } => KIND_CREATE_TOPIC,
        Command::DeleteTopic { .. } => KIND_DELETE_TOPIC,
        Command::ForgetTopic { .. } => KIND_FORGET_TOPIC,
        Command::AllocateProducerIds { .. } => KIND_ALLOCATE_PRODUCER_IDS,
    }
}

pub(crate) fn encode_command(command: &Command, out: &mut Vec<u8>) {
    match command {
        Command::FormatCluster { cluster_id } => {
            write(&FormatClusterBody { cluster_id: Bytes16::from(*cluster_id) }, out);
        }
        Command::StartBroker { broker, shard_count, wals } => {
            let (shard_count, wals) = (*shard_count, wal_list(wals));
            write(&StartBrokerBody { broker: broker.0, shard_count, wals }, out);
        }
        Command::AddWal { broker, wal } => {
            write(&AddWalBody { broker: broker.0, wal: wal_bytes(*wal) }, out);
        }
        Command::CreateTopic { id, name, replication_factor, config, partitions } => {
            let assignment = |to: &PartitionAssignment| AssignmentBody {
                broker: to.broker.0,
                wal: wal_bytes(to.wal),
            };
            let body = CreateTopicBody {
                id: topic_bytes(*id),
                name,
                replication_factor: *replication_factor,
                config: TopicConfigBody::from(config),
                partitions: List(partitions.iter().map(assignment).collect()),
            };
            write(&body, out);
        }
        Command::DeleteTopic { id } | Command::ForgetTopic { id } => {
            write(&TopicIdBody { id: topic_bytes(*id) }, out);
        }
        Command::AllocateProducerIds { broker, count } => {
            write(&AllocateProducerIdsBody { broker: broker.0, count: *count }, out);
        }
    }
}

pub(crate) fn decode_command(kind: u16, bytes: &[u8]) -> Result<Command, DecodeError> {
    Ok(match kind {
        KIND_FORMAT_CLUSTER => {
            let body: FormatClusterBody = read(kind, bytes)?;
            Command::FormatCluster { cluster_id: *body.cluster_id }
        }
        KIND_START_BROKER => {
            let body: StartBrokerBody = read(kind, bytes)?;
            Command::StartBroker {
                broker: BrokerId(body.broker),
                shard_count: body.shard_count,
                wals: wals(&body.wals),
            }
        }
        KIND_ADD_WAL => {
            let body: AddWalBody = read(kind, bytes)?;
            Command::AddWal { broker: BrokerId(body.broker), wal: WalUuid(*body.wal) }
        }
        KIND_CREATE_TOPIC => {
            let body: CreateTopicBody<'_> = read(kind, bytes)?;
            let assignment = |to: &AssignmentBody| PartitionAssignment {
                broker: BrokerId(to.broker),
                wal: WalUuid(*to.wal),
            };
            Command::CreateTopic {
                id: TopicId::from_bytes(*body.id),
                name: body.name.to_owned(),
                replication_factor: body.replication_factor,
                config: TopicConfig::try_from(body.config)?,
                partitions: body.partitions.0.iter().map(assignment).collect(),
            }
        }
        KIND_DELETE_TOPIC => {
            let body: TopicIdBody = read(kind, bytes)?;
            Command::DeleteTopic { id: TopicId::from_bytes(*body.id) }
        }
        KIND_FORGET_TOPIC => {
            let body: TopicIdBody = read(kind, bytes)?;
            Command::ForgetTopic { id: TopicId::from_bytes(*body.id) }
        }
        KIND_ALLOCATE_PRODUCER_IDS => {
            let body: AllocateProducerIdsBody = read(kind, bytes)?;
            Command::AllocateProducerIds { broker: BrokerId(body.broker), count: body.count }
        }
        found => return Err(DecodeError::UnknownKind { found }),
    })
}

pub(crate) fn encode_image(image: &Image, out: &mut Vec<u8>) {
    let broker = |(id, broker): (BrokerId, &Broker)| BrokerBody {
        id: id.0,
        epoch: broker.epoch,
        shard_count: broker.shard_count,
        wals: wal_list(&broker.wals),
    };
    let body = ImageBody {
        cluster_id: image.cluster_id.map(Bytes16::from),
        brokers: List(image.brokers().map(broker).collect()),
        topics: List(image.topics().map(TopicBody::from).collect()),
        tombstones: List(
            image
                .tombstones()
                .map(|(id, tombstone)| TombstoneBody { id: topic_bytes(id), name: &tombstone.name })
                .collect(),
        ),
        next_producer_id: image.next_producer_id,
    };
    write(&body, out);
}

/// Reads an image whose lists are within their limits; its invariants are the caller's to check.
pub(crate) fn decode_image(bytes: &[u8]) -> Result<Image, DecodeError> {
    let body: ImageBody<'_> = read(KIND_IMAGE, bytes)?;
    let mut image = Image {
        cluster_id: body.cluster_id.map(|id| *id),
        next_producer_id: body.next_producer_id,
        ..Image::default()
    };
    for BrokerBody { id, epoch, shard_count, wals: list } in body.brokers.0 {
        let broker = Broker { epoch, wals: wals(&list), shard_count };
        if image.brokers.insert(BrokerId(id), broker).is_some() {
            return Err(DecodeError::Value { field: "brokers" });
        }
    }
    for topic in body.topics.0 {
        image.partition_count += topic.partitions.0.len();
        if PARTITIONS_MAX < image.partition_count {
            return Err(DecodeError::TooMany { max: PARTITIONS_MAX });
        }
        let topic = Topic::try_from(topic)?;
        image.names.insert(topic.name.clone(), topic.id);
        if image.topics.insert(topic.id, topic).is_some() {
            return Err(DecodeError::Value { field: "topics" });
        }
    }
    for TombstoneBody { id, name } in body.tombstones.0 {
        let tombstone = Tombstone { name: name.to_owned() };
        if image.tombstones.insert(TopicId::from_bytes(*id), tombstone).is_some() {
            return Err(DecodeError::Value { field: "tombstones" });
        }
    }
    Ok(image)
}

impl From<&TopicConfig> for TopicConfigBody {
    fn from(config: &TopicConfig) -> Self {
        Self {
            retention_ms: config.retention_ms,
            retention_bytes: config.retention_bytes,
            max_message_bytes: config.max_message_bytes,
            cleanup_policy: match config.cleanup_policy {
                CleanupPolicy::Delete => 0,
            },
            compression_type: match config.compression_type {
                CompressionType::Producer => 0,
            },
        }
    }
}

impl TryFrom<TopicConfigBody> for TopicConfig {
    type Error = DecodeError;

    fn try_from(body: TopicConfigBody) -> Result<Self, DecodeError> {
        Ok(Self {
            retention_ms: body.retention_ms,
            retention_bytes: body.retention_bytes,
            max_message_bytes: body.max_message_bytes,
            cleanup_policy: match body.cleanup_policy {
                0 => CleanupPolicy::Delete,
                _ => {
                    return Err(DecodeError::Value { field: "cleanup_policy" });
                }
            },
            compression_type: match body.compression_type {
                0 => CompressionType::Producer,
                _ => {
                    return Err(DecodeError::Value { field: "compression_type" });
                }
            },
        })
    }
}

impl<'a> From<&'a Topic> for TopicBody<'a> {
    fn from(topic: &'a Topic) -> Self {
        let placement = |placement: &Placement| PlacementBody {
            first_offset: placement.first_offset.0,
            wal: wal_bytes(placement.wal),
        };
        let partition = |partition: &Partition| PartitionBody {
            leader: partition.leader.0,
            leader_epoch: partition.leader_epoch.0,
            placements: List(partition.placements.iter().map(placement).collect()),
        };
        Self {
            id: topic_bytes(topic.id),
            name: &topic.name,
            replication_factor: topic.replication_factor,
            config: TopicConfigBody::from(&topic.config),
            partitions: List(topic.partitions.iter().map(partition).collect()),
        }
    }
}

impl TryFrom<TopicBody<'_>> for Topic {
    type Error = DecodeError;

    fn try_from(body: TopicBody<'_>) -> Result<Self, DecodeError> {
        let placement = |placement: &PlacementBody| Placement {
            first_offset: Offset(placement.first_offset),
            wal: WalUuid(*placement.wal),
        };
        let partition = |partition: &PartitionBody| Partition {
            leader: BrokerId(partition.leader),
            leader_epoch: LeaderEpoch(partition.leader_epoch),
            placements: partition.placements.0.iter().map(placement).collect(),
        };
        Ok(Self {
            id: TopicId::from_bytes(*body.id),
            name: body.name.to_owned(),
            replication_factor: body.replication_factor,
            config: TopicConfig::try_from(body.config)?,
            partitions: body.partitions.0.iter().map(partition).collect(),
        })
    }
}

fn wal_bytes(wal: WalUuid) -> Bytes16 {
    Bytes16::from(wal.0)
}

fn topic_bytes(topic: TopicId) -> Bytes16 {
    Bytes16::from(*topic.as_bytes())
}

fn wal_list(wals: &[WalUuid]) -> List<Bytes16, WALS_PER_BROKER_MAX> {
    List(wals.iter().copied().map(wal_bytes).collect())
}

fn wals(list: &List<Bytes16, WALS_PER_BROKER_MAX>) -> Vec<WalUuid> {
    list.0.iter().map(|wal| WalUuid(**wal)).collect()
}

fn write<T: Encode<()>>(body: &T, out: &mut Vec<u8>) {
    minicbor::encode(body, out).expect("a Vec takes every write");
}

/// Reads a body that takes up all of `bytes`.
fn read<'b, T: Decode<'b, ()>>(kind: u16, bytes: &'b [u8]) -> Result<T, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let body = decoder.decode().map_err(|error: CborError| {
        let too_long = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<TooLong>());
        match too_long {
            Some(TooLong { max }) => DecodeError::TooMany { max: *max },
            None => {
                let position = error.position().unwrap_or_else(|| decoder.position());
                DecodeError::Body { kind, position }
            }
        }
    })?;
    if decoder.position() != bytes.len() {
        return Err(DecodeError::Body { kind, position: decoder.position() });
    }
    Ok(body)
}

/// How a list past its limit passes through the CBOR decoder.
#[derive(Debug)]
struct TooLong {
    max: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} entries", self.max)
    }
}

impl std::error::Error for TooLong {}

impl<C, T: Encode<C>, const MAX: usize> Encode<C> for List<T, MAX> {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        self.0.encode(encoder, context)
    }
}

impl<'b, C, T: Decode<'b, C>, const MAX: usize> Decode<'b, C> for List<T, MAX> {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, CborError> {
        let mut list = Vec::new();
        for entry in decoder.array_iter_with(context)? {
            if list.len() == MAX {
                return Err(CborError::custom(TooLong { max: MAX }));
            }
            list.push(entry?);
        }
        Ok(Self(list))
    }
}

//! Bodies of any fields, made from bytes: they read back as they were made.

use std::fmt::Debug;

use rustmq_protocol::{
    Acks, BrokerId, BrokerInfo, CreateTopic, CreateTopicResponse, Credit, DecodeError, DeleteTopic,
    DeleteTopicResponse, ErrorBody, ErrorCode, Fetch, FetchResponse, FetchResponseHead, FlushMode,
    Hello, HelloResponse, InitProducer, InitProducerResponse, LeaderEpoch, ListOffsets,
    ListOffsetsResponse, ListTopics, ListTopicsResponse, ListedTopic, Metadata, MetadataResponse,
    Offset, OffsetAt, PartitionId, PartitionInfo, Produce, ProduceHead, ProduceResponse,
    ProducerEpoch, ProducerId, RETRY_AFTER_MS_MAX, ShardEndpoint, ShardId, Subscribe,
    SubscriptionEnd, ThrottledBody, TimestampMs, TopicId, TopicInfo, TopicSelection,
    UnsupportedVersionBody, VersionRange,
};

use crate::source::Source;

/// Makes the body with this number from `bytes`, encodes and decodes it.
pub(super) fn reads_back(body: u8, bytes: &[u8]) {
    let source = &mut Source::new(bytes);
    match body {
        0 => same(&hello(source), Hello::encode, Hello::decode),
        1 => same(&hello_response(source), HelloResponse::encode, HelloResponse::decode),
        2 => same(&metadata(source), Metadata::encode, Metadata::decode),
        3 => same(&metadata_response(source), MetadataResponse::encode, MetadataResponse::decode),
        4 => same(&create_topic(source), CreateTopic::encode, CreateTopic::decode),
        5 => same(
            &CreateTopicResponse { id: topic_id(source), partitions: source.u32() },
            CreateTopicResponse::encode,
            CreateTopicResponse::decode,
        ),
        6 => same(&DeleteTopic { name: source.text() }, DeleteTopic::encode, DeleteTopic::decode),
        7 => same(
            &DeleteTopicResponse { id: topic_id(source) },
            DeleteTopicResponse::encode,
            DeleteTopicResponse::decode,
        ),
        8 => same(&ListTopics {}, ListTopics::encode, ListTopics::decode),
        9 => same(
            &ListTopicsResponse { topics: source.list(listed_topic) },
            ListTopicsResponse::encode,
            ListTopicsResponse::decode,
        ),
        10 => same(&InitProducer {}, InitProducer::encode, InitProducer::decode),
        11 => same(
            &InitProducerResponse {
                producer_id: ProducerId(source.u64()),
                producer_epoch: ProducerEpoch(source.u16()),
            },
            InitProducerResponse::encode,
            InitProducerResponse::decode,
        ),
        12 => produce(source),
        13 => same(&produce_response(source), ProduceResponse::encode, ProduceResponse::decode),
        14 => same(&fetch(source), Fetch::encode, Fetch::decode),
        15 => fetch_response(source),
        16 => same(&list_offsets(source), ListOffsets::encode, ListOffsets::decode),
        17 => same(
            &list_offsets_response(source),
            ListOffsetsResponse::encode,
            ListOffsetsResponse::decode,
        ),
        18 => same(&ErrorBody { message: source.text() }, ErrorBody::encode, ErrorBody::decode),
        19 => same(
            &ThrottledBody {
                message: source.text(),
                retry_after_ms: source.u32() % (RETRY_AFTER_MS_MAX + 1),
            },
            ThrottledBody::encode,
            ThrottledBody::decode,
        ),
        21 => same(&subscribe(source), Subscribe::encode, Subscribe::decode),
        22 => fetch_response(source),
        23 => same(
            &SubscriptionEnd { message: source.text(), offset: Offset(source.u64()) },
            SubscriptionEnd::encode,
            SubscriptionEnd::decode,
        ),
        24 => same(
            &match source.u8() % 4 {
                0 => Credit::End,
                _ => Credit::More { bytes: source.u32() },
            },
            Credit::encode,
            Credit::decode,
        ),
        _ => same(
            &unsupported_version(source),
            UnsupportedVersionBody::encode,
            UnsupportedVersionBody::decode,
        ),
    }
}

fn same<T: Debug + PartialEq>(
    value: &T,
    encode: impl FnOnce(&T, &mut Vec<u8>),
    decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) {
    let mut out = Vec::new();
    encode(value, &mut out);
    assert_eq!(decode(&out).as_ref(), Ok(value));
}

fn topic_id(source: &mut Source<'_>) -> TopicId {
    TopicId::from_bytes(source.array())
}

fn flush(source: &mut Source<'_>) -> FlushMode {
    match source.u8() % 2 {
        0 => FlushMode::Always,
        _ => FlushMode::Interval { ms: source.u32() },
    }
}

fn hello(source: &mut Source<'_>) -> Hello {
    Hello { version_min: source.u8(), version_max: source.u8(), client_name: source.text() }
}

fn hello_response(source: &mut Source<'_>) -> HelloResponse {
    HelloResponse {
        version: source.u8(),
        cluster_id: source.array(),
        broker_id: BrokerId(source.u32()),
        shard: ShardId(source.u16()),
        shard_count: source.u16(),
        flush: flush(source),
        frame_bytes_max: source.u32(),
        record_bytes_max: source.u32(),
        producer_batches_in_flight_max: source.u32(),
        idle_timeout_ms: source.u32(),
    }
}

fn metadata(source: &mut Source<'_>) -> Metadata {
    let topics = match source.u8() % 4 {
        0 => TopicSelection::All,
        _ => TopicSelection::ByName(source.list(Source::text)),
    };
    Metadata { topics }
}

fn metadata_response(source: &mut Source<'_>) -> MetadataResponse {
    MetadataResponse {
        cluster_id: source.array(),
        brokers: source.list(|source| BrokerInfo {
            id: BrokerId(source.u32()),
            host: source.text(),
            port: source.u16(),
            shards: source
                .list(|source| ShardEndpoint { shard: ShardId(source.u16()), port: source.u16() }),
        }),
        topics: source.list(|source| TopicInfo {
            name: source.text(),
            id: topic_id(source),
            error: ErrorCode::ALL[usize::from(source.u8()) % ErrorCode::ALL.len()],
            config: config(source),
            partitions: source.list(|source| PartitionInfo {
                partition: PartitionId(source.u32()),
                leader: BrokerId(source.u32()),
                shard: ShardId(source.u16()),
                leader_epoch: LeaderEpoch(source.u32()),
            }),
        }),
    }
}

fn config(source: &mut Source<'_>) -> Vec<(String, String)> {
    source.list(|source| (source.text(), source.text()))
}

fn create_topic(source: &mut Source<'_>) -> CreateTopic {
    CreateTopic {
        name: source.text(),
        partitions: source.u32(),
        replication_factor: source.u16(),
        config: config(source),
    }
}

fn listed_topic(source: &mut Source<'_>) -> ListedTopic {
    ListedTopic { name: source.text(), id: topic_id(source), partitions: source.u32() }
}

fn produce(source: &mut Source<'_>) {
    let head = ProduceHead {
        topic: topic_id(source),
        partition: PartitionId(source.u32()),
        leader_epoch: LeaderEpoch(source.u32()),
        acks: [Acks::None, Acks::Leader, Acks::All][usize::from(source.u8() % 3)],
        timeout_ms: source.u32(),
    };
    let produce = Produce { head, batch: source.bytes() };
    let mut out = Vec::new();
    produce.encode(&mut out);
    assert_eq!(Produce::decode(&out), Ok(produce));
}

fn produce_response(source: &mut Source<'_>) -> ProduceResponse {
    ProduceResponse {
        base_offset: Offset(source.u64()),
        log_start_offset: Offset(source.u64()),
        append_time: TimestampMs(source.i64()),
        flush: flush(source),
    }
}

fn fetch(source: &mut Source<'_>) -> Fetch {
    Fetch {
        topic: topic_id(source),
        partition: PartitionId(source.u32()),
        leader_epoch: LeaderEpoch(source.u32()),
        offset: Offset(source.u64()),
        wait_ms_max: source.u32(),
        bytes_min: source.u32(),
        bytes_max: source.u32(),
    }
}

fn subscribe(source: &mut Source<'_>) -> Subscribe {
    Subscribe {
        topic: topic_id(source),
        partition: PartitionId(source.u32()),
        leader_epoch: LeaderEpoch(source.u32()),
        offset: Offset(source.u64()),
        credit: source.u32(),
        bytes_max: source.u32(),
    }
}

fn fetch_response(source: &mut Source<'_>) {
    let head = FetchResponseHead {
        high_watermark: Offset(source.u64()),
        log_start_offset: Offset(source.u64()),
        log_end_offset: Offset(source.u64()),
    };
    let response = FetchResponse { head, batches: source.bytes() };
    let mut out = Vec::new();
    response.encode(&mut out);
    assert_eq!(FetchResponse::decode(&out), Ok(response));
}

fn list_offsets(source: &mut Source<'_>) -> ListOffsets {
    ListOffsets {
        topic: topic_id(source),
        partition: PartitionId(source.u32()),
        leader_epoch: LeaderEpoch(source.u32()),
        at: match source.u8() % 3 {
            0 => OffsetAt::Earliest,
            1 => OffsetAt::Latest,
            _ => OffsetAt::Timestamp(TimestampMs(source.i64())),
        },
    }
}

fn list_offsets_response(source: &mut Source<'_>) -> ListOffsetsResponse {
    ListOffsetsResponse {
        offset: Offset(source.u64()),
        timestamp: TimestampMs(source.i64()),
        leader_epoch: LeaderEpoch(source.u32()),
    }
}

fn unsupported_version(source: &mut Source<'_>) -> UnsupportedVersionBody {
    UnsupportedVersionBody {
        message: source.text(),
        supported: VersionRange { min: source.u8(), max: source.u8() },
    }
}

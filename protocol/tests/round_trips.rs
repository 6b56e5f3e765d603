//! What is encoded decodes to itself, and no bytes make a decoder panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rustmq_protocol::*;

fn text() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn topic_id() -> impl Strategy<Value = TopicId> {
    any::<[u8; 16]>().prop_map(TopicId::from_bytes)
}

fn config() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((text(), text()), 0..4)
}

fn flush() -> impl Strategy<Value = FlushMode> {
    prop_oneof![Just(FlushMode::Always), any::<u32>().prop_map(|ms| FlushMode::Interval { ms })]
}

fn error_code() -> impl Strategy<Value = ErrorCode> {
    proptest::sample::select(ErrorCode::ALL)
}

fn broker() -> impl Strategy<Value = BrokerInfo> {
    (any::<u32>(), text(), any::<u16>(), vec(any::<(u16, u16)>(), 0..4)).prop_map(
        |(id, host, port, shards)| BrokerInfo {
            id: BrokerId(id),
            host,
            port,
            shards: shards
                .into_iter()
                .map(|(shard, port)| ShardEndpoint { shard: ShardId(shard), port })
                .collect(),
        },
    )
}

fn topic() -> impl Strategy<Value = TopicInfo> {
    let partitions = vec(any::<(u32, u32, u16, u32)>(), 0..4);
    (text(), topic_id(), error_code(), config(), partitions).prop_map(
        |(name, id, error, config, partitions)| TopicInfo {
            name,
            id,
            error,
            config,
            partitions: partitions
                .into_iter()
                .map(|(partition, leader, shard, leader_epoch)| PartitionInfo {
                    partition: PartitionId(partition),
                    leader: BrokerId(leader),
                    shard: ShardId(shard),
                    leader_epoch: LeaderEpoch(leader_epoch),
                })
                .collect(),
        },
    )
}

macro_rules! reads_back {
    ($type:ident, $value:expr) => {{
        let value: $type = $value;
        let mut out = Vec::new();
        value.encode(&mut out);
        prop_assert_eq!($type::decode(&out), Ok(value));
        // Every field is needed: no shorter body is taken for the same kind.
        for end in 0..out.len() {
            prop_assert!($type::decode(&out[..end]).is_err());
        }
        out.push(0);
        prop_assert!($type::decode(&out).is_err());
    }};
}

proptest! {
    #[test]
    fn hello_reads_back(version_min: u8, version_max: u8, client_name in text()) {
        reads_back!(Hello, Hello { version_min, version_max, client_name });
    }

    #[test]
    fn hello_response_reads_back(
        version: u8, cluster_id: [u8; 16], ids: (u32, u16, u16), flush in flush(), limits: [u32; 4],
    ) {
        reads_back!(HelloResponse, HelloResponse {
            version,
            cluster_id,
            broker_id: BrokerId(ids.0),
            shard: ShardId(ids.1),
            shard_count: ids.2,
            flush,
            frame_bytes_max: limits[0],
            record_bytes_max: limits[1],
            producer_batches_in_flight_max: limits[2],
            idle_timeout_ms: limits[3],
        });
    }

    #[test]
    fn metadata_reads_back(names in option::of(vec(text(), 0..4))) {
        let topics = names.map_or(TopicSelection::All, TopicSelection::ByName);
        reads_back!(Metadata, Metadata { topics });
    }

    #[test]
    fn metadata_response_reads_back(
        cluster_id: [u8; 16], brokers in vec(broker(), 0..3), topics in vec(topic(), 0..3),
    ) {
        reads_back!(MetadataResponse, MetadataResponse { cluster_id, brokers, topics });
    }

    #[test]
    fn topic_requests_read_back(
        name in text(), partitions: u32, replication_factor: u16, config in config(),
        id in topic_id(),
        listed in vec((text(), topic_id(), any::<u32>()), 0..4),
    ) {
        reads_back!(DeleteTopic, DeleteTopic { name: name.clone() });
        reads_back!(DeleteTopicResponse, DeleteTopicResponse { id });
        reads_back!(CreateTopic, CreateTopic { name, partitions, replication_factor, config });
        reads_back!(CreateTopicResponse, CreateTopicResponse { id, partitions });
        reads_back!(ListTopics, ListTopics {});
        let topics = listed
            .into_iter()
            .map(|(name, id, partitions)| ListedTopic { name, id, partitions })
            .collect();
        reads_back!(ListTopicsResponse, ListTopicsResponse { topics });
    }

    #[test]
    fn produce_bodies_read_back(
        topic in topic_id(), numbers: [u32; 3], offsets: [u64; 2], time: i64, flush in flush(),
        acks in proptest::sample::select(&[Acks::None, Acks::Leader, Acks::All][..]),
        producer: (u64, u16), batch: Vec<u8>,
    ) {
        let head = ProduceHead {
            topic,
            partition: PartitionId(numbers[0]),
            leader_epoch: LeaderEpoch(numbers[1]),
            acks,
            timeout_ms: numbers[2],
        };
        let mut out = Vec::new();
        Produce { head, batch: &batch }.encode(&mut out);
        prop_assert_eq!(Produce::decode(&out), Ok(Produce { head, batch: &batch }));
        reads_back!(ProduceResponse, ProduceResponse {
            base_offset: Offset(offsets[0]),
            log_start_offset: Offset(offsets[1]),
            append_time: TimestampMs(time),
            flush,
        });
        reads_back!(InitProducer, InitProducer {});
        reads_back!(InitProducerResponse, InitProducerResponse {
            producer_id: ProducerId(producer.0),
            producer_epoch: ProducerEpoch(producer.1),
        });
    }

    #[test]
    fn fetch_bodies_read_back(
        topic in topic_id(), numbers: [u32; 5], offsets: [u64; 3], time: i64, at in 0..3,
        batches: Vec<u8>,
    ) {
        let (partition, leader_epoch) = (PartitionId(numbers[0]), LeaderEpoch(numbers[1]));
        reads_back!(Fetch, Fetch {
            topic,
            partition,
            leader_epoch,
            offset: Offset(offsets[0]),
            wait_ms_max: numbers[2],
            bytes_min: numbers[3],
            bytes_max: numbers[4],
        });
        let head = FetchResponseHead {
            high_watermark: Offset(offsets[0]),
            log_start_offset: Offset(offsets[1]),
            log_end_offset: Offset(offsets[2]),
        };
        let mut out = Vec::new();
        FetchResponse { head, batches: &batches }.encode(&mut out);
        prop_assert_eq!(FetchResponse::decode(&out), Ok(FetchResponse { head, batches: &batches }));
        let at = match at {
            0 => OffsetAt::Earliest,
            1 => OffsetAt::Latest,
            _ => OffsetAt::Timestamp(TimestampMs(time)),
        };
        reads_back!(ListOffsets, ListOffsets { topic, partition, leader_epoch, at });
        reads_back!(ListOffsetsResponse, ListOffsetsResponse {
            offset: Offset(offsets[0]),
            timestamp: TimestampMs(time),
            leader_epoch,
        });
    }

    #[test]
    fn subscription_bodies_read_back(
        topic in topic_id(), numbers: [u32; 4], offset: u64, message in text(), end: bool,
    ) {
        reads_back!(Subscribe, Subscribe {
            topic,
            partition: PartitionId(numbers[0]),
            leader_epoch: LeaderEpoch(numbers[1]),
            offset: Offset(offset),
            credit: numbers[2],
            bytes_max: numbers[3],
        });
        reads_back!(Credit, if end { Credit::End } else { Credit::More { bytes: numbers[2] } });
        reads_back!(SubscriptionEnd, SubscriptionEnd { message, offset: Offset(offset) });
    }

    #[test]
    fn frame_headers_read_back(
        kind: u16, version: u8, flags in 0u8..8, numbers: (u32, u16, u16), body in 0usize..100,
    ) {
        let header = FrameHeader {
            length: 16,
            kind,
            version,
            flags: FrameFlags::from_bits(flags).unwrap(),
            correlation: CorrelationId(numbers.0),
            status: numbers.1,
            shard: ShardId(numbers.2),
        }
        .with_body_bytes(body);
        prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn batches_read_back(
        written in vec(
            (any::<i64>(), option::of(any::<Vec<u8>>()), option::of(any::<Vec<u8>>()),
             vec((text(), option::of(any::<Vec<u8>>())), 0..3)),
            1..8,
        ),
        producer: (u64, u16, u32),
        offset in 0..u64::MAX / 2,
        epoch: u32,
    ) {
        let producer = ProducerStamp {
            id: ProducerId(producer.0),
            epoch: ProducerEpoch(producer.1),
            base_sequence: Sequence(producer.2),
        };
        let mut builder = BatchBuilder::new(BATCH_BYTES_MAX);
        for (timestamp, key, value, headers) in &written {
            let headers: Vec<_> = headers
                .iter()
                .map(|(key, value)| RecordHeader { key, value: value.as_deref() })
                .collect();
            let record = Record {
                timestamp: TimestampMs(*timestamp),
                key: key.as_deref(),
                value: value.as_deref(),
                headers: &headers,
            };
            prop_assert_eq!(builder.try_push(&record), Ok(()));
        }
        let mut batch = builder.finish(producer).to_vec();
        stamp(&mut batch, Offset(offset), LeaderEpoch(epoch));
        let header = verify(&batch, RECORD_BYTES_MAX);
        let seen = header.map(|header| (header.producer(), header.record_count as usize));
        prop_assert_eq!(seen, Ok((producer, written.len())));
        for (read, (timestamp, key, value, headers)) in records(&batch).unwrap().zip(&written) {
            let read = read.unwrap();
            prop_assert_eq!(read.timestamp, TimestampMs(*timestamp));
            prop_assert_eq!(read.key, key.as_deref());
            prop_assert_eq!(read.value, value.as_deref());
            let expected: Vec<_> = headers
                .iter()
                .map(|(key, value)| RecordHeader { key, value: value.as_deref() })
                .collect();
            prop_assert_eq!(read.headers().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn records_of_any_bytes_are_refused_or_read_but_never_panic(
        count in 0u32..5, body in vec(prop_oneof![0u8..4, any::<u8>()], 0..60), offset: u64,
    ) {
        // A header that passes, so that the walk over the records is what meets the bytes.
        let header = BatchHeader {
            base_offset: Offset(offset),
            length: (BATCH_HEADER_BYTES + body.len()) as u32,
            leader_epoch: LeaderEpoch(0),
            crc: 0,
            attributes: Attributes::default(),
            base_timestamp: TimestampMs(0),
            max_timestamp: TimestampMs(0),
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch(0),
            base_sequence: Sequence(0),
            record_count: count,
            records_bytes: body.len() as u32,
        };
        let mut batch = vec![0; BATCH_HEADER_BYTES];
        header.encode(batch.first_chunk_mut().unwrap());
        batch.extend_from_slice(&body);
        stamp_producer(&mut batch, ProducerStamp::NONE);
        let verified = verify(&batch, RECORD_BYTES_MAX);
        let read = records(&batch).map(|records| records.filter(Result::is_ok).count());
        if let Ok(header) = verified {
            prop_assert_eq!(read, Ok(header.record_count as usize));
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read_but_never_panic(
        bytes in vec(prop_oneof![Just(0u8), 0u8..3, any::<u8>()], 0..200),
    ) {
        let _ = Hello::decode(&bytes);
        let _ = HelloResponse::decode(&bytes);
        let _ = Metadata::decode(&bytes);
        let _ = MetadataResponse::decode(&bytes);
        let _ = CreateTopic::decode(&bytes);
        let _ = CreateTopicResponse::decode(&bytes);
        let _ = DeleteTopic::decode(&bytes);
        let _ = DeleteTopicResponse::decode(&bytes);
        let _ = ListTopics::decode(&bytes);
        let _ = ListTopicsResponse::decode(&bytes);
        let _ = InitProducer::decode(&bytes);
        let _ = InitProducerResponse::decode(&bytes);
        let _ = Produce::decode(&bytes);
        let _ = ProduceResponse::decode(&bytes);
        let _ = Fetch::decode(&bytes);
        let _ = FetchResponse::decode(&bytes);
        let _ = ListOffsets::decode(&bytes);
        let _ = Subscribe::decode(&bytes);
        let _ = SubscriptionEnd::decode(&bytes);
        let _ = Credit::decode(&bytes);
        let _ = ListOffsetsResponse::decode(&bytes);
        let _ = ErrorBody::decode(&bytes);
        let _ = UnsupportedVersionBody::decode(&bytes);
        let _ = ThrottledBody::decode(&bytes);
        let _ = verify(&bytes, RECORD_BYTES_MAX);
        let _ = records(&bytes).map(Iterator::count);
        let _ = batches(&bytes).count();
        if let Some(header) = bytes.first_chunk() {
            let _ = FrameHeader::decode(header);
        }
    }
}

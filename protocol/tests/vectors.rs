//! The bytes in `vectors/` are what the documents say; every encoder writes them and every decoder
//! reads them.

use rustmq_protocol::*;

const FRAMES: &str = include_str!("../vectors/frames.hex");
const BATCHES: &str = include_str!("../vectors/batches.hex");
const BATCHES_REFUSED: &str = include_str!("../vectors/batches_refused.hex");

const TOPIC: TopicId = TopicId::from_bytes([
    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
]);
const CLUSTER: [u8; 16] = [0xc0; 16];

/// A name in the first column, then its bytes in hex on indented lines; `#` begins a comment.
fn vectors(file: &str) -> Vec<(&str, Vec<u8>)> {
    let mut vectors: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in file.lines() {
        let (text, _comment) = line.split_once('#').unwrap_or((line, ""));
        if !text.starts_with(' ') {
            if !text.trim().is_empty() {
                vectors.push((text.trim(), Vec::new()));
            }
            continue;
        }
        let (_name, bytes) = vectors.last_mut().expect("a name stands before its bytes");
        for pair in text.trim().as_bytes().chunks(2) {
            bytes.push(hex_byte(pair));
        }
    }
    vectors
}

fn hex_byte(digits: &[u8]) -> u8 {
    let digits = std::str::from_utf8(digits).expect("hex is ASCII");
    u8::from_str_radix(digits, 16).expect("two hex digits")
}

fn vector(file: &'static str, name: &str) -> Vec<u8> {
    let found = vectors(file).into_iter().find(|(candidate, _)| *candidate == name);
    found.unwrap_or_else(|| panic!("{name} is not in the file")).1
}

/// Checks that the frame of this name has this header, and that body and value are each other's
/// encoding.
macro_rules! frame {
    ($name:literal, $header:expr, $type:ident, $value:expr) => {{
        let bytes = vector(FRAMES, $name);
        let (header, body) = bytes.split_first_chunk().unwrap();
        let expected: FrameHeader = $header;
        assert_eq!(FrameHeader::decode(header), Ok(expected.with_body_bytes(body.len())), $name);
        let value = $value;
        assert_eq!($type::decode(body).as_ref(), Ok(&value), $name);
        let mut out = Vec::new();
        expected.encode_frame(&mut out, |out| value.encode(out));
        assert_eq!(out, bytes, $name);
        for end in 0..body.len() {
            let _ = $type::decode(&body[..end]);
        }
        $name
    }};
}

fn request(kind: RequestKind, correlation: u32) -> FrameHeader {
    FrameHeader::request(kind, CorrelationId(correlation))
}

fn response(kind: RequestKind, correlation: u32) -> FrameHeader {
    request(kind, correlation).response(ErrorCode::Ok)
}

#[test]
fn frames_encode_and_decode_to_their_vectors() {
    use RequestKind as Kind;
    let config = vec![("retention_ms".to_owned(), "1000".to_owned())];
    let partition = PartitionId(1);
    let leader_epoch = LeaderEpoch(5);
    let head = FetchResponseHead {
        high_watermark: Offset(43),
        log_start_offset: Offset(10),
        log_end_offset: Offset(43),
    };
    let list = |at| ListOffsets { topic: TOPIC, partition, leader_epoch, at };
    let info = |partition, shard| PartitionInfo {
        partition: PartitionId(partition),
        leader: BrokerId(3),
        shard: ShardId(shard),
        leader_epoch,
    };
    let checked = [
        frame!(
            "hello_request",
            request(Kind::Hello, 7),
            Hello,
            Hello { version_min: 1, version_max: 1, client_name: "demo".to_owned() }
        ),
        frame!(
            "hello_response",
            response(Kind::Hello, 7),
            HelloResponse,
            HelloResponse {
                version: 1,
                cluster_id: CLUSTER,
                broker_id: BrokerId(3),
                shard: ShardId(1),
                shard_count: 2,
                flush: FlushMode::Always,
                frame_bytes_max: FRAME_BYTES_MAX as u32,
                record_bytes_max: RECORD_BYTES_DEFAULT as u32,
                producer_batches_in_flight_max: PRODUCER_BATCHES_IN_FLIGHT_MAX,
                idle_timeout_ms: 30_000,
            }
        ),
        frame!(
            "metadata_all_request",
            request(Kind::Metadata, 8),
            Metadata,
            Metadata { topics: TopicSelection::All }
        ),
        frame!(
            "metadata_request",
            request(Kind::Metadata, 8),
            Metadata,
            Metadata {
                topics: TopicSelection::ByName(vec!["orders".to_owned(), "gone".to_owned()])
            }
        ),
        frame!(
            "metadata_response",
            response(Kind::Metadata, 8),
            MetadataResponse,
            MetadataResponse {
                cluster_id: CLUSTER,
                brokers: vec![BrokerInfo {
                    id: BrokerId(3),
                    host: "127.0.0.1".to_owned(),
                    port: 9092,
                    shards: vec![
                        ShardEndpoint { shard: ShardId(0), port: 9192 },
                        ShardEndpoint { shard: ShardId(1), port: 9193 },
                    ],
                }],
                topics: vec![
                    TopicInfo {
                        name: "orders".to_owned(),
                        id: TOPIC,
                        error: ErrorCode::Ok,
                        config: config.clone(),
                        partitions: vec![info(0, 0), info(1, 1)],
                    },
                    TopicInfo {
                        name: "gone".to_owned(),
                        id: TopicId::ZERO,
                        error: ErrorCode::UnknownTopic,
                        config: vec![],
                        partitions: vec![],
                    },
                ],
            }
        ),
        frame!(
            "create_topic_request",
            request(Kind::CreateTopic, 9),
            CreateTopic,
            CreateTopic { name: "orders".to_owned(), partitions: 2, replication_factor: 1, config }
        ),
        frame!(
            "create_topic_response",
            response(Kind::CreateTopic, 9),
            CreateTopicResponse,
            CreateTopicResponse { id: TOPIC, partitions: 2 }
        ),
        frame!(
            "delete_topic_request",
            request(Kind::DeleteTopic, 10),
            DeleteTopic,
            DeleteTopic { name: "orders".to_owned() }
        ),
        frame!(
            "delete_topic_response",
            response(Kind::DeleteTopic, 10),
            DeleteTopicResponse,
            DeleteTopicResponse { id: TOPIC }
        ),
        frame!("list_topics_request", request(Kind::ListTopics, 11), ListTopics, ListTopics {}),
        frame!(
            "list_topics_response",
            response(Kind::ListTopics, 11),
            ListTopicsResponse,
            ListTopicsResponse {
                topics: vec![ListedTopic { name: "orders".to_owned(), id: TOPIC, partitions: 2 }]
            }
        ),
        frame!(
            "init_producer_request",
            request(Kind::InitProducer, 12),
            InitProducer,
            InitProducer {}
        ),
        frame!(
            "init_producer_response",
            response(Kind::InitProducer, 12),
            InitProducerResponse,
            InitProducerResponse {
                producer_id: ProducerId(4097),
                producer_epoch: ProducerEpoch(0)
            }
        ),
        frame!(
            "produce_request",
            request(Kind::Produce, 13),
            Produce,
            Produce {
                head: ProduceHead {
                    topic: TOPIC,
                    partition,
                    leader_epoch,
                    acks: Acks::All,
                    timeout_ms: 10_000
                },
                batch: &one_record(Offset(0), LeaderEpoch(0)),
            }
        ),
        frame!(
            "produce_response",
            response(Kind::Produce, 13).moved_to(ShardId(1)),
            ProduceResponse,
            ProduceResponse {
                base_offset: Offset(42),
                log_start_offset: Offset(10),
                append_time: TimestampMs(1_700_000_000_123),
                flush: FlushMode::Interval { ms: 200 },
            }
        ),
        frame!(
            "fetch_request",
            request(Kind::Fetch, 14),
            Fetch,
            Fetch {
                topic: TOPIC,
                partition,
                leader_epoch,
                offset: Offset(42),
                wait_ms_max: 500,
                bytes_min: 1,
                bytes_max: 1 << 20,
            }
        ),
        frame!(
            "fetch_response",
            response(Kind::Fetch, 14),
            FetchResponse,
            FetchResponse { head, batches: &one_record(Offset(42), LeaderEpoch(5)) }
        ),
        frame!(
            "list_offsets_request",
            request(Kind::ListOffsets, 15),
            ListOffsets,
            list(OffsetAt::Timestamp(TimestampMs(1_700_000_000_000)))
        ),
        frame!(
            "list_offsets_earliest_request",
            request(Kind::ListOffsets, 15),
            ListOffsets,
            list(OffsetAt::Earliest)
        ),
        frame!(
            "list_offsets_latest_request",
            request(Kind::ListOffsets, 15),
            ListOffsets,
            list(OffsetAt::Latest)
        ),
        frame!(
            "list_offsets_response",
            response(Kind::ListOffsets, 15),
            ListOffsetsResponse,
            ListOffsetsResponse {
                offset: Offset(42),
                timestamp: TimestampMs(1_700_000_000_000),
                leader_epoch,
            }
        ),
        frame!(
            "error_response",
            request(Kind::Produce, 16).response(ErrorCode::NotLeader),
            ErrorBody,
            ErrorBody { message: "partition 1 is led by broker 4".to_owned() }
        ),
        frame!(
            "unsupported_version_response",
            request(Kind::Hello, 17).response(ErrorCode::UnsupportedVersion),
            UnsupportedVersionBody,
            UnsupportedVersionBody {
                message: "version 9".to_owned(),
                supported: VersionRange::SUPPORTED,
            }
        ),
        frame!(
            "throttled_response",
            request(Kind::Produce, 18).response(ErrorCode::Throttled),
            ThrottledBody,
            ThrottledBody { message: "the disk is slow".to_owned(), retry_after_ms: 250 }
        ),
        frame!(
            "subscribe_request",
            request(Kind::Subscribe, 19),
            Subscribe,
            Subscribe {
                topic: TOPIC,
                partition,
                leader_epoch,
                offset: Offset(42),
                credit: 8 << 20,
                bytes_max: 1 << 20,
            }
        ),
        frame!(
            "subscribe_opened",
            response(Kind::Subscribe, 19).with_more(),
            FetchResponse,
            FetchResponse { head, batches: &[] }
        ),
        frame!(
            "subscribe_answer",
            response(Kind::Subscribe, 19).with_more(),
            FetchResponse,
            FetchResponse { head, batches: &one_record(Offset(42), LeaderEpoch(5)) }
        ),
        frame!(
            "subscribe_end",
            response(Kind::Subscribe, 19),
            SubscriptionEnd,
            SubscriptionEnd { message: String::new(), offset: Offset(43) }
        ),
        frame!(
            "subscribe_end_error",
            request(Kind::Subscribe, 19).response(ErrorCode::UnknownTopicId),
            SubscriptionEnd,
            SubscriptionEnd { message: "the topic was deleted".to_owned(), offset: Offset(43) }
        ),
        frame!(
            "subscribe_moved",
            request(Kind::Subscribe, 20).response(ErrorCode::NotLeader).moved_to(ShardId(1)),
            ErrorBody,
            ErrorBody { message: "shard 1 has it".to_owned() }
        ),
        frame!(
            "credit_request",
            request(Kind::Credit, 19),
            Credit,
            Credit::More { bytes: 4 << 20 }
        ),
        frame!("credit_end_request", request(Kind::Credit, 19), Credit, Credit::End),
    ];
    let names: Vec<&str> = vectors(FRAMES).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, checked, "every vector is checked");
}

fn one_record(base_offset: Offset, leader_epoch: LeaderEpoch) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1024);
    builder
        .try_push(&Record {
            timestamp: TimestampMs(1_700_000_000_000),
            key: None,
            value: Some(b"hello"),
            headers: &[],
        })
        .expect("one small record fits");
    let mut batch = builder.finish(ProducerStamp::NONE).to_vec();
    stamp(&mut batch, base_offset, leader_epoch);
    batch
}

#[test]
fn batches_build_to_their_vectors_and_read_back() {
    assert_eq!(one_record(Offset(42), LeaderEpoch(5)), vector(BATCHES, "one_record"));

    let headers = [
        RecordHeader { key: "trace", value: Some(b"\x01\x02") },
        RecordHeader { key: "empty", value: Some(b"") },
        RecordHeader { key: "none", value: None },
        RecordHeader { key: "é", value: Some(b"x") },
    ];
    let record = |delta: i64, key, value, headers| Record {
        timestamp: TimestampMs(1_700_000_000_000 + delta),
        key,
        value,
        headers,
    };
    let written = [
        record(0, Some(&b"k1"[..]), Some(&b"v1"[..]), &[][..]),
        record(-5, Some(b"k2"), None, &[]),
        record(100, None, Some(b""), &headers),
        record(0, None, Some(&[b'z'; 64]), &[]),
    ];
    let mut builder = BatchBuilder::new(1024);
    for record in &written {
        builder.try_push(record).unwrap();
    }
    let stamp_of_producer = ProducerStamp {
        id: ProducerId(4097),
        epoch: ProducerEpoch(2),
        base_sequence: Sequence(u32::MAX - 1),
    };
    let mut batch = builder.finish(stamp_of_producer).to_vec();
    stamp(&mut batch, Offset(7), LeaderEpoch(1));
    assert_eq!(batch, vector(BATCHES, "records_of_all_shapes"));

    let header = verify(&batch, 64).unwrap();
    assert_eq!(header.producer(), stamp_of_producer);
    let mut encoded = [0; BATCH_HEADER_BYTES];
    header.encode(&mut encoded);
    assert_eq!(encoded, batch[..BATCH_HEADER_BYTES]);
    for (index, (read, written)) in records(&batch).unwrap().zip(&written).enumerate() {
        let read = read.unwrap();
        assert_eq!(read.offset, Offset(7 + index as u64));
        assert_eq!(
            (read.timestamp, read.key, read.value),
            (written.timestamp, written.key, written.value)
        );
        assert_eq!(read.headers().collect::<Vec<_>>(), written.headers);
    }
}

#[test]
fn refused_batches_are_refused_for_the_reason_in_their_name() {
    for (name, bytes) in vectors(BATCHES_REFUSED) {
        let error = verify(&bytes, 5).expect_err(name);
        let reason = match error {
            BatchError::HeaderTruncated { bytes: 63 } => "header_truncated",
            BatchError::LengthOutOfBounds { length: 63 } => "length_out_of_bounds",
            BatchError::LengthMismatch { .. } => "length_mismatch",
            BatchError::UnknownFormatVersion { version: 2 } => "unknown_format_version",
            BatchError::UnknownAttributes { attributes: 8 } => "unknown_attributes",
            BatchError::PaddingNotZero => "padding_not_zero",
            BatchError::RecordCountOutOfBounds { count: 0 } => "record_count_out_of_bounds",
            BatchError::OffsetOverflow { .. } => "offset_overflow",
            BatchError::RecordsBytesMismatch { .. } => "records_bytes_mismatch",
            BatchError::CrcMismatch { .. } => "crc_mismatch",
            BatchError::UnsupportedCompression { compression: Compression::Lz4 } => {
                "unsupported_compression"
            }
            BatchError::TrailingBytes { .. } => "trailing_bytes",
            BatchError::MaxTimestampMismatch { .. } => "max_timestamp_mismatch",
            BatchError::Record { error, .. } => match error {
                RecordError::Field(DecodeError::Truncated { .. }) => "record_truncated",
                RecordError::UnknownAttributes { attributes: 1 } => "record_attributes",
                RecordError::NegativeLength { length: -2 } => "record_negative_length",
                RecordError::HeaderCount { count: -1 } => "record_header_count",
                RecordError::HeaderKeyNotUtf8 => "record_header_key_not_utf8",
                RecordError::OffsetDelta { delta: 1, expected: 0 } => "record_offset_delta",
                RecordError::TooLarge { bytes: 6, max: 5 } => "record_too_large",
                _ => "another",
            },
            _ => "another",
        };
        assert_eq!(reason, name, "{error}");
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(vectors(BATCHES_REFUSED).len(), 20);
}

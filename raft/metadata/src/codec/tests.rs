//! Golden bytes, and everything that a reader refuses.

use rustmq_protocol::ids::{BrokerId, TopicId};

use super::*;
use crate::image::{ImageFault, WalUuid};
use crate::limits::{PARTITIONS_PER_TOPIC_MAX, WALS_PER_BROKER_MAX};
use crate::topic_config::TopicConfig;
use crate::{PartitionAssignment, apply};

fn encoded(command: &Command) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    bytes
}

fn envelope(kind: u16, version: u16, level: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [ENVELOPE_MAGIC, kind, version, level] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = checksum(&bytes, body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn format_cluster() -> Command {
    Command::FormatCluster { cluster_id: [0xab; 16] }
}

fn create_topic(partitions: usize) -> Command {
    let assignment = PartitionAssignment { broker: BrokerId(u32::MAX - 1), wal: WalUuid([7; 16]) };
    Command::CreateTopic {
        id: TopicId::from_bytes([3; 16]),
        name: "x".repeat(249),
        replication_factor: 1,
        config: TopicConfig {
            retention_ms: Some(i64::MAX as u64),
            retention_bytes: Some(i64::MAX as u64),
            ..TopicConfig::default()
        },
        partitions: vec![assignment; partitions],
    }
}

#[test]
fn a_command_is_stored_in_these_bytes_for_ever() {
    let command = Command::StartBroker {
        broker: BrokerId(7),
        shard_count: 3,
        wals: vec![WalUuid([0x11; 16])],
    };
    let mut body = vec![0x83, 0x07, 0x03, 0x81, 0x50];
    body.extend_from_slice(&[0x11; 16]);
    let mut golden = b"RM\x02\x00\x01\x00\x01\x00\x15\x00\x00\x00".to_vec();
    golden.extend_from_slice(&checksum(&golden, &body).to_le_bytes());
    golden.extend_from_slice(&body);
    assert_eq!(encoded(&command), golden);
    assert_eq!(decode_command(&golden), Ok(command));
}

#[test]
fn a_command_follows_what_is_in_the_buffer_already() {
    let mut bytes = b"before".to_vec();
    encode_command(&format_cluster(), &mut bytes);
    assert_eq!(bytes[..6], *b"before");
    assert_eq!(decode_command(&bytes[6..]), Ok(format_cluster()));
}

#[test]
fn newer_software_is_recognised_before_anything_else_is_read() {
    let found = ENVELOPE_VERSION + 1;
    let mut bytes = envelope(1, found, FEATURE_LEVEL, &[]);
    let newer = DecodeError::NewerVersion { found, supported: ENVELOPE_VERSION };
    assert_eq!(decode_command(&bytes), Err(newer.clone()));
    // A newer envelope may have its checksum elsewhere.
    bytes[12] ^= 1;
    assert_eq!(decode_command(&bytes), Err(newer));
    let found = FEATURE_LEVEL + 1;
    let newer = DecodeError::NewerFeatureLevel { found, supported: FEATURE_LEVEL };
    assert_eq!(decode_command(&envelope(1, ENVELOPE_VERSION, found, &[])), Err(newer.clone()));
    assert_eq!(decode_image(&envelope(0x100, ENVELOPE_VERSION, found, &[])), Err(newer));
    let zero = envelope(1, 0, FEATURE_LEVEL, &[]);
    assert_eq!(decode_command(&zero), Err(DecodeError::Version { found: 0 }));
}

#[test]
fn unknown_kinds_are_refused_and_images_are_no_commands() {
    for found in [0, 8, 0x100, u16::MAX] {
        let bytes = envelope(found, ENVELOPE_VERSION, FEATURE_LEVEL, &[0x80]);
        assert_eq!(decode_command(&bytes), Err(DecodeError::UnknownKind { found }));
    }
    let command = encoded(&format_cluster());
    assert_eq!(decode_image(&command), Err(DecodeError::UnknownKind { found: 1 }));
}

#[test]
fn every_changed_bit_and_every_cut_is_noticed() {
    let bytes = encoded(&create_topic(2));
    for position in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[position / 8] ^= 1 << (position % 8);
        assert!(decode_command(&changed).is_err(), "bit {position}");
    }
    for length in 0..bytes.len() {
        assert!(decode_command(&bytes[..length]).is_err(), "cut at {length}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    let length = DecodeError::Length { found: longer.len(), expected: bytes.len() };
    assert_eq!(decode_command(&longer), Err(length));
}

#[test]
fn a_field_added_by_newer_software_is_passed_over() {
    let cluster_id = [0x50; 1].into_iter().chain([0xab; 16]);
    let body: Vec<u8> = [0x83].into_iter().chain(cluster_id).chain([0xf6, 0x18, 0x2a]).collect();
    let bytes = envelope(1, ENVELOPE_VERSION, FEATURE_LEVEL, &body);
    assert_eq!(decode_command(&bytes), Ok(format_cluster()));
}

#[test]
fn bodies_that_are_not_the_kinds_fields_are_refused() {
    let bodies: [&[u8]; 6] = [
        b"",
        b"\x80",                                     // no field
        b"\x81\x01",                                 // a number for bytes
        b"\x81\x4f\x00\x00\x00\x00\x00\x00\x00\x00", // bytes that are cut
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",     // a list without end
        b"\xff",
    ];
    for body in bodies {
        let bytes = envelope(1, ENVELOPE_VERSION, FEATURE_LEVEL, body);
        let error = decode_command(&bytes);
        assert!(matches!(error, Err(DecodeError::Body { kind: 1, .. })), "{error:?}");
    }
    let mut body = encoded(&format_cluster())[ENVELOPE_BYTES..].to_vec();
    body.push(0);
    let bytes = envelope(1, ENVELOPE_VERSION, FEATURE_LEVEL, &body);
    let trailing = DecodeError::Body { kind: 1, position: body.len() - 1 };
    assert_eq!(decode_command(&bytes), Err(trailing));
}

#[test]
fn lists_end_at_their_limits() {
    let start = |count| Command::StartBroker {
        broker: BrokerId(1),
        shard_count: 1,
        wals: vec![WalUuid([1; 16]); count],
    };
    assert!(decode_command(&encoded(&start(WALS_PER_BROKER_MAX))).is_ok());
    let too_many = DecodeError::TooMany { max: WALS_PER_BROKER_MAX };
    assert_eq!(decode_command(&encoded(&start(WALS_PER_BROKER_MAX + 1))), Err(too_many));
    let max = PARTITIONS_PER_TOPIC_MAX as usize;
    let too_many = DecodeError::TooMany { max };
    assert_eq!(decode_command(&encoded(&create_topic(max + 1))), Err(too_many));
}

#[test]
fn the_longest_command_is_encoded_within_its_limit() {
    let command = create_topic(PARTITIONS_PER_TOPIC_MAX as usize);
    let bytes = encoded(&command);
    assert!(bytes.len() <= COMMAND_BYTES_MAX);
    assert_eq!(decode_command(&bytes), Ok(command));
    let long = vec![0; COMMAND_BYTES_MAX + 1];
    let too_long = DecodeError::TooLong { bytes: long.len(), max: COMMAND_BYTES_MAX };
    assert_eq!(decode_command(&long), Err(too_long));
}

#[test]
fn values_that_a_configuration_never_has_are_refused() {
    let bytes = encoded(&create_topic(1));
    let body = &bytes[ENVELOPE_BYTES..];
    // The configuration ends in cleanup policy 0 and compression type 0, before one partition.
    let end = body.windows(4).position(|window| window == [0, 0, 0x81, 0x82]).unwrap();
    for (offset, field) in [(0, "cleanup_policy"), (1, "compression_type")] {
        let mut body = body.to_vec();
        body[end + offset] = 1;
        let bytes = envelope(4, ENVELOPE_VERSION, FEATURE_LEVEL, &body);
        assert_eq!(decode_command(&bytes), Err(DecodeError::Value { field }));
    }
}

#[test]
fn an_image_that_breaks_an_invariant_is_refused() {
    let mut image = Image::new();
    let start = |broker, byte| Command::StartBroker {
        broker: BrokerId(broker),
        shard_count: 1,
        wals: vec![WalUuid([byte; 16])],
    };
    for command in [format_cluster(), start(1, 1), start(2, 2)] {
        apply(&mut image, &command).unwrap();
    }
    let mut bytes = Vec::new();
    encode_image(&image, &mut bytes);
    assert_eq!(decode_image(&bytes), Ok(image.clone()));
    image.brokers.get_mut(&BrokerId(2)).unwrap().wals = vec![WalUuid([1; 16])];
    bytes.clear();
    encode_image(&image, &mut bytes);
    let shared = ImageFault::SharedWal { wal: WalUuid([1; 16]) };
    assert_eq!(decode_image(&bytes), Err(DecodeError::Inconsistent(shared)));
}

#[test]
fn an_empty_image_is_read_back() {
    let mut bytes = Vec::new();
    encode_image(&Image::new(), &mut bytes);
    assert_eq!(decode_image(&bytes), Ok(Image::new()));
}

#[test]
fn a_snapshot_and_commands_add_up_to_an_image() {
    let mut image = Image::new();
    apply(&mut image, &format_cluster()).unwrap();
    let mut snapshot = Vec::new();
    encode_image(&image, &mut snapshot);
    let broker = BrokerId(u32::MAX - 1);
    let start = Command::StartBroker { broker, shard_count: 1, wals: vec![WalUuid([7; 16])] };
    let commands = [encoded(&start), encoded(&create_topic(1))];
    apply(&mut image, &start).unwrap();
    apply(&mut image, &create_topic(1)).unwrap();
    let slices: Vec<&[u8]> = commands.iter().map(Vec::as_slice).collect();
    assert_eq!(replay(&snapshot, &slices), Ok(image));
    let refused = replay(&snapshot, &[slices[1]]);
    assert!(matches!(refused, Err(ReplayError::Apply(_))), "{refused:?}");
    let short = replay(&snapshot, &[&slices[0][1..]]);
    assert!(matches!(short, Err(ReplayError::Command(_))), "{short:?}");
    let none = replay(&[], &slices);
    assert!(matches!(none, Err(ReplayError::Snapshot(_))), "{none:?}");
}

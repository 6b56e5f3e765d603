//! Histories of commands, made from bytes.

use rustmq_metadata::{
    Command, Image, PartitionAssignment, TopicConfig, WalUuid, apply, check, decode_command,
    decode_image, encode_command, encode_image,
};
use rustmq_protocol::{BrokerId, TopicId};

use crate::source::Source;

/// Commands of one history, at most.
const COMMANDS_MAX: usize = 64;

/// Every command reads back; refused or applied the image keeps its invariants; and the image at the
/// end reads back.
pub(super) fn history(source: &mut Source<'_>) {
    let mut image = Image::new();
    let opening = Command::FormatCluster { cluster_id: [1; 16] };
    assert!(apply(&mut image, &opening).is_ok());
    let mut left = COMMANDS_MAX;
    while !source.is_empty() && 0 < left {
        left -= 1;
        let command = command(source);
        let mut bytes = Vec::new();
        encode_command(&command, &mut bytes);
        assert_eq!(decode_command(&bytes).as_ref(), Ok(&command));
        let checked = check(&image, &command).is_ok();
        assert_eq!(checked, apply(&mut image, &command).is_ok());
    }
    image.invariants();
    let mut bytes = Vec::new();
    encode_image(&image, &mut bytes);
    let read = decode_image(&bytes);
    assert_eq!(read.as_ref(), Ok(&image));
    let mut again = Vec::new();
    encode_image(&image, &mut again);
    assert!(again == bytes);
}

fn command(source: &mut Source<'_>) -> Command {
    match source.u8() % 8 {
        0 => Command::FormatCluster { cluster_id: source.array() },
        1 | 2 => Command::StartBroker {
            broker: broker(source),
            shard_count: u16::from(source.u8() % 4),
            wals: source.list(wal),
        },
        3 => Command::AddWal { broker: broker(source), wal: wal(source) },
        4 | 5 => Command::CreateTopic {
            id: topic(source),
            name: source.text(),
            replication_factor: u16::from(source.u8() % 4),
            config: config(source),
            partitions: source
                .list(|source| PartitionAssignment { broker: broker(source), wal: wal(source) }),
        },
        6 if source.u8() < 128 => Command::DeleteTopic { id: topic(source) },
        6 => Command::ForgetTopic { id: topic(source) },
        _ => Command::AllocateProducerIds { broker: broker(source), count: source.u32() },
    }
}

/// Few of each kind, so that commands meet.
fn broker(source: &mut Source<'_>) -> BrokerId {
    BrokerId(u32::from(source.u8() % 4))
}

fn wal(source: &mut Source<'_>) -> WalUuid {
    WalUuid([source.u8() % 8; 16])
}

fn topic(source: &mut Source<'_>) -> TopicId {
    TopicId::from_bytes([source.u8() % 8; 16])
}

fn config(source: &mut Source<'_>) -> TopicConfig {
    let config = TopicConfig::default();
    match source.u8() % 4 {
        0 => config,
        1 => TopicConfig { retention_ms: Some(source.u64()), ..config },
        2 => TopicConfig { retention_bytes: Some(source.u64()), ..config },
        _ => TopicConfig { max_message_bytes: source.u32(), ..config },
    }
}

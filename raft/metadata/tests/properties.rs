//! What holds for every sequence of commands: the same result on every node, invariants kept,
//! replay and snapshot lead to the same image, and bytes are read back as they were written.

use proptest::collection::vec;
use proptest::prelude::*;
use rustmq_metadata::codec::ENVELOPE_BYTES;
use rustmq_metadata::{
    Command, DecodeError, Delta, Image, PartitionAssignment, TopicConfig, WalUuid, apply, check,
    decode_command, decode_image, encode_command, encode_image,
};
use rustmq_protocol::ids::{BrokerId, TopicId};

/// Few ids, so that commands meet: names are taken, WALs are shared, topics are deleted twice.
fn broker() -> impl Strategy<Value = BrokerId> {
    (1..4u32).prop_map(BrokerId)
}

fn wal() -> impl Strategy<Value = WalUuid> {
    (0..8u8).prop_map(|byte| WalUuid([byte; 16]))
}

fn topic() -> impl Strategy<Value = TopicId> {
    (0..6u8).prop_map(|byte| TopicId::from_bytes([byte; 16]))
}

fn config() -> impl Strategy<Value = TopicConfig> {
    (any::<Option<u64>>(), any::<Option<u64>>(), 1..=16u32 << 20).prop_map(
        |(retention_ms, retention_bytes, max_message_bytes)| TopicConfig {
            retention_ms: retention_ms.map(|ms| ms >> 1),
            retention_bytes: retention_bytes.map(|bytes| bytes >> 1),
            max_message_bytes,
            ..TopicConfig::default()
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let factor = prop_oneof![8 => Just(1u16), 1 => 0..3u16];
    prop_oneof![
        1 => any::<[u8; 16]>().prop_map(|cluster_id| Command::FormatCluster { cluster_id }),
        // The two brokers of the opening start again.
        2 => prop_oneof![Just(start(1, &[1, 2, 3])), Just(start(2, &[4, 5, 6]))],
        4 => (broker(), 0..4u16, vec(wal(), 0..6)).prop_map(|(broker, shard_count, wals)| {
            Command::StartBroker { broker, shard_count, wals }
        }),
        4 => (broker(), wal()).prop_map(|(broker, wal)| Command::AddWal { broker, wal }),
        8 => (topic(), "[ab]{1,2}|_{0,2}", factor, config(), vec(assignment(), 0..4)).prop_map(
            |(id, name, replication_factor, config, partitions)| Command::CreateTopic {
                id,
                name,
                replication_factor,
                config,
                partitions,
            }
        ),
        4 => topic().prop_map(|id| Command::DeleteTopic { id }),
        4 => topic().prop_map(|id| Command::ForgetTopic { id }),
        2 => (broker(), 0..3000u32)
            .prop_map(|(broker, count)| Command::AllocateProducerIds { broker, count }),
    ]
}

/// A leader and a WAL that fit together unless the history took them apart.
fn assignment() -> impl Strategy<Value = PartitionAssignment> {
    prop_oneof![
        4 => (1..4u8).prop_map(|byte| (1, byte)),
        2 => (4..6u8).prop_map(|byte| (2, byte)),
        1 => (1..4u32, 0..8u8),
    ]
    .prop_map(|(broker, byte)| PartitionAssignment {
        broker: BrokerId(broker),
        wal: WalUuid([byte; 16]),
    })
}

fn start(broker: u32, wals: &[u8]) -> Command {
    Command::StartBroker {
        broker: BrokerId(broker),
        shard_count: 2,
        wals: wals.iter().map(|byte| WalUuid([*byte; 16])).collect(),
    }
}

/// A formatted cluster with two brokers, and then anything.
fn history() -> impl Strategy<Value = Vec<Command>> {
    let opening = vec![
        Command::FormatCluster { cluster_id: [1; 16] },
        start(1, &[1, 2, 3]),
        start(2, &[4, 5]),
    ];
    vec(command(), 0..80).prop_map(move |commands| [opening.clone(), commands].concat())
}

fn bytes_of(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_image(image, &mut bytes);
    bytes
}

proptest! {
    #[test]
    fn any_history_keeps_the_invariants_and_changes_nothing_when_refused(commands in history()) {
        let mut image = Image::new();
        let mut end_of_producer_ids = 0;
        for command in &commands {
            let before = image.clone();
            let checked = check(&image, command);
            let applied = apply(&mut image, command);
            prop_assert_eq!(checked.is_ok(), applied.is_ok());
            image.invariants();
            match applied {
                Err(_) => prop_assert_eq!(&image, &before),
                Ok(Delta::ProducerIds { range, .. }) => {
                    prop_assert_eq!(range.start.0, end_of_producer_ids, "no id is handed out twice");
                    end_of_producer_ids = range.end.0;
                }
                Ok(_) => {}
            }
        }
    }

    #[test]
    fn two_nodes_agree_on_every_result(commands in history()) {
        let (mut left, mut right) = (Image::new(), Image::new());
        for command in &commands {
            prop_assert_eq!(apply(&mut left, command), apply(&mut right, command));
        }
        prop_assert_eq!(bytes_of(&left), bytes_of(&right));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn replaying_the_log_of_accepted_commands_is_the_image(commands in history()) {
        let mut image = Image::new();
        let mut log = Vec::new();
        for command in &commands {
            if apply(&mut image, command).is_ok() {
                let mut bytes = Vec::new();
                encode_command(command, &mut bytes);
                log.push(bytes);
            }
        }
        let mut replayed = Image::new();
        for bytes in &log {
            let command = decode_command(bytes).unwrap();
            prop_assert!(apply(&mut replayed, &command).is_ok());
        }
        prop_assert_eq!(replayed, image);
    }

    #[test]
    fn a_snapshot_and_the_commands_after_it_are_the_image(
        commands in history(),
        part in 0.0..=1.0f64,
    ) {
        let (before, after) = commands.split_at((commands.len() as f64 * part) as usize);
        let mut image = Image::new();
        for command in before {
            let _ = apply(&mut image, command);
        }
        let mut restored = decode_image(&bytes_of(&image)).unwrap();
        prop_assert_eq!(&restored, &image);
        for command in after {
            prop_assert_eq!(apply(&mut restored, command), apply(&mut image, command));
        }
        prop_assert_eq!(restored, image);
    }

    #[test]
    fn commands_are_read_back_as_they_were_written(command in command()) {
        let mut bytes = Vec::new();
        encode_command(&command, &mut bytes);
        prop_assert_eq!(decode_command(&bytes), Ok(command));
    }

    #[test]
    fn a_leader_epoch_never_falls(commands in history()) {
        let mut image = Image::new();
        for command in &commands {
            let before = image.clone();
            let _ = apply(&mut image, command);
            for topic in before.topics() {
                let Some(now) = image.topic(topic.id) else { continue };
                for (was, is) in topic.partitions.iter().zip(&now.partitions) {
                    prop_assert!(was.leader_epoch <= is.leader_epoch);
                }
            }
        }
    }

    /// Bytes that pass the checksum, as from software with another idea of the fields.
    #[test]
    fn any_body_in_a_valid_envelope_is_read_or_refused(
        command in command(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = Vec::new();
        encode_command(&command, &mut bytes);
        for (position, byte) in changes {
            let body = &mut bytes[ENVELOPE_BYTES..];
            body[position.index(body.len())] = byte;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[ENVELOPE_BYTES..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let decoded = decode_command(&bytes);
        let damaged = matches!(decoded, Err(DecodeError::Checksum { .. }));
        prop_assert!(!damaged);
        // Whatever it is now, applying it is total.
        if let Ok(command) = decoded {
            let mut image = Image::new();
            apply(&mut image, &Command::FormatCluster { cluster_id: [1; 16] }).unwrap();
            let _ = apply(&mut image, &command);
            image.invariants();
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = (decode_command(&bytes), decode_image(&bytes));
    }
}

#[test]
fn histories_reach_what_they_are_meant_to_reach() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..200 {
        let mut image = Image::new();
        for command in history().new_tree(&mut runner).unwrap().current() {
            let outcome = match apply(&mut image, &command) {
                Ok(Delta::ClusterFormatted { .. }) => "formatted",
                Ok(Delta::BrokerStarted { .. }) => "started",
                Ok(Delta::WalAdded { .. }) => "wal added",
                Ok(Delta::TopicCreated(_)) => "created",
                Ok(Delta::TopicDeleted(_)) => "deleted",
                Ok(Delta::TopicForgotten(_)) => "forgotten",
                Ok(Delta::ProducerIds { .. }) => "producer ids",
                Err(_) => "refused",
            };
            *counts.entry(outcome).or_insert(0) += 1;
        }
    }
    assert!(counts.len() == 8 && counts.values().all(|count| 20 <= *count), "{counts:?}");
}

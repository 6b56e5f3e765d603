//! Each rule once: what is accepted, what it changes, what is refused.

use super::*;
use crate::{decode_image, encode_image};

const BROKER: BrokerId = BrokerId(1);
const OTHER: BrokerId = BrokerId(2);
const CLUSTER: [u8; 16] = [9; 16];

fn wal(byte: u8) -> WalUuid {
    WalUuid([byte; 16])
}

fn id(byte: u8) -> TopicId {
    TopicId::from_bytes([byte; 16])
}

fn start(broker: BrokerId, wals: &[u8]) -> Command {
    let wals = wals.iter().copied().map(wal).collect();
    Command::StartBroker { broker, shard_count: 2, wals }
}

fn create(topic: u8, name: &str, wals: &[u8]) -> Command {
    let on = |byte: &u8| PartitionAssignment { broker: BROKER, wal: wal(*byte) };
    Command::CreateTopic {
        id: id(topic),
        name: name.to_owned(),
        replication_factor: 1,
        config: TopicConfig::default(),
        partitions: wals.iter().map(on).collect(),
    }
}

fn done(image: &mut Image, command: Command) -> Delta {
    apply(image, &command).unwrap()
}

/// What `apply` says, with the proof that it changed nothing.
fn refused(image: &mut Image, command: Command) -> ApplyError {
    let before = image.clone();
    let error = apply(image, &command).unwrap_err();
    assert_eq!(*image, before, "a refused command changes nothing");
    assert_eq!(check(image, &command), Err(error.clone()));
    error
}

/// Formatted, with one broker that owns WALs 1 and 2.
fn running() -> Image {
    let mut image = Image::new();
    done(&mut image, Command::FormatCluster { cluster_id: CLUSTER });
    done(&mut image, start(BROKER, &[1, 2]));
    image
}

#[test]
fn a_cluster_is_formatted_once_and_first() {
    let mut image = Image::new();
    assert_eq!(refused(&mut image, start(BROKER, &[1])), ApplyError::NotFormatted);
    let zero = Command::FormatCluster { cluster_id: [0; 16] };
    assert_eq!(refused(&mut image, zero), ApplyError::ZeroId);
    let format = Command::FormatCluster { cluster_id: CLUSTER };
    let delta = Delta::ClusterFormatted { cluster_id: CLUSTER };
    assert_eq!(done(&mut image, format.clone()), delta);
    assert_eq!(image.cluster_id(), Some(CLUSTER));
    let again = ApplyError::AlreadyFormatted { cluster_id: CLUSTER };
    assert_eq!(refused(&mut image, format), again);
}

#[test]
fn each_start_raises_the_brokers_epoch_and_the_leader_epochs_of_what_it_leads() {
    let mut image = running();
    done(&mut image, start(OTHER, &[7]));
    done(&mut image, create(1, "orders", &[1, 2]));
    let leader_epochs = |image: &Image| {
        let topic = image.topic_by_name("orders").unwrap();
        topic.partitions.iter().map(|partition| partition.leader_epoch.0).collect::<Vec<_>>()
    };
    assert_eq!(leader_epochs(&image), [0, 0]);
    let delta = done(&mut image, start(BROKER, &[1, 2]));
    assert_eq!(delta, Delta::BrokerStarted { broker: BROKER, epoch: 2 });
    assert_eq!(leader_epochs(&image), [1, 1]);
    done(&mut image, start(OTHER, &[7]));
    assert_eq!(leader_epochs(&image), [1, 1], "another broker's start");
    assert_eq!(image.broker(BROKER).unwrap().shard_count, 2);
}

#[test]
fn a_start_names_a_broker_shards_and_wals() {
    let mut image = running();
    assert_eq!(refused(&mut image, start(BrokerId::NONE, &[3])), ApplyError::NoBroker);
    let nothing = ApplyError::NothingToRun { broker: OTHER };
    assert_eq!(refused(&mut image, start(OTHER, &[])), nothing);
    let no_shard = Command::StartBroker { broker: OTHER, shard_count: 0, wals: vec![wal(3)] };
    assert_eq!(refused(&mut image, no_shard), nothing);
    assert_eq!(refused(&mut image, start(OTHER, &[0])), ApplyError::ZeroId);
}

#[test]
fn a_wal_has_one_owner() {
    let mut image = running();
    let taken = ApplyError::WalTaken { wal: wal(2), owner: BROKER };
    assert_eq!(refused(&mut image, start(OTHER, &[3, 2])), taken);
    assert_eq!(refused(&mut image, start(BROKER, &[1, 2, 2])), taken);
    assert_eq!(refused(&mut image, Command::AddWal { broker: BROKER, wal: wal(2) }), taken);
    assert_eq!(image.wal_owner(wal(2)), Some(BROKER));
    assert_eq!(image.wal_owner(wal(3)), None);
}

#[test]
fn a_wal_may_go_only_when_no_partition_names_it() {
    let mut image = running();
    done(&mut image, create(1, "orders", &[2]));
    let in_use = ApplyError::WalInUse { wal: wal(2), topic: id(1) };
    assert_eq!(refused(&mut image, start(BROKER, &[1])), in_use);
    done(&mut image, start(BROKER, &[2, 3]));
    done(&mut image, Command::DeleteTopic { id: id(1) });
    done(&mut image, start(BROKER, &[3]));
    assert_eq!(image.broker(BROKER).unwrap().wals, [wal(3)]);
}

#[test]
fn a_running_broker_adds_wals_and_places_topics_on_them() {
    let mut image = running();
    let add = Command::AddWal { broker: BROKER, wal: wal(3) };
    let unknown = ApplyError::UnknownWal { broker: BROKER, wal: wal(3) };
    assert_eq!(refused(&mut image, create(1, "orders", &[3])), unknown);
    assert_eq!(done(&mut image, add), Delta::WalAdded { broker: BROKER, wal: wal(3) });
    done(&mut image, create(1, "orders", &[3]));
    let unknown = ApplyError::UnknownBroker { broker: OTHER };
    assert_eq!(refused(&mut image, Command::AddWal { broker: OTHER, wal: wal(4) }), unknown);
}

#[test]
fn a_created_topic_is_found_by_id_and_by_name() {
    let mut image = running();
    assert_eq!(done(&mut image, create(5, "orders", &[1, 2, 1])), Delta::TopicCreated(id(5)));
    let topic = image.topic(id(5)).unwrap();
    assert_eq!(image.topic_by_name("orders"), Some(topic));
    let wals: Vec<_> = topic.partitions.iter().filter_map(Partition::append_wal).collect();
    assert_eq!(wals, [wal(1), wal(2), wal(1)]);
    assert_eq!(topic.partitions[0].placements[0].first_offset, Offset::ZERO);
    assert_eq!(image.partition_count(), 3);
}

#[test]
fn names_and_ids_are_unique_and_ids_are_never_used_again() {
    let mut image = running();
    done(&mut image, create(1, "orders", &[1]));
    let exists = ApplyError::TopicExists { id: id(1) };
    assert_eq!(refused(&mut image, create(2, "orders", &[1])), exists);
    assert_eq!(
        refused(&mut image, create(1, "other", &[1])),
        ApplyError::TopicIdUsed { id: id(1) }
    );
    done(&mut image, Command::DeleteTopic { id: id(1) });
    let used = ApplyError::TopicIdUsed { id: id(1) };
    assert_eq!(refused(&mut image, create(1, "orders", &[1])), used);
    done(&mut image, create(2, "orders", &[1]));
    assert_eq!(refused(&mut image, create(0, "zero", &[1])), ApplyError::ZeroId);
}

#[test]
fn a_topic_out_of_bounds_is_refused() {
    let mut image = running();
    let name = TopicNameError::Reserved;
    assert_eq!(refused(&mut image, create(1, "__x", &[1])), ApplyError::TopicName(name));
    let max = limits::PARTITIONS_PER_TOPIC_MAX;
    let count = ApplyError::PartitionCount { count: 0, max };
    assert_eq!(refused(&mut image, create(1, "orders", &[])), count);
    let many = max as usize + 1;
    let count = ApplyError::PartitionCount { count: many, max };
    assert_eq!(refused(&mut image, create(1, "orders", &vec![1; many])), count);
    for asked in [0, 2] {
        let mut command = create(1, "orders", &[1]);
        if let Command::CreateTopic { replication_factor, .. } = &mut command {
            *replication_factor = asked;
        }
        let factor = ApplyError::ReplicationFactor { asked, max: 1 };
        assert_eq!(refused(&mut image, command), factor);
    }
    let mut command = create(1, "orders", &[1]);
    if let Command::CreateTopic { config, .. } = &mut command {
        config.max_message_bytes = 0;
    }
    assert!(matches!(refused(&mut image, command), ApplyError::TopicConfig { .. }));
}

#[test]
fn a_deleted_topic_leaves_a_tombstone_until_it_is_forgotten() {
    let mut image = running();
    done(&mut image, create(1, "orders", &[1, 2]));
    let topic = image.topic(id(1)).unwrap().clone();
    let delete = Command::DeleteTopic { id: id(1) };
    assert_eq!(done(&mut image, delete.clone()), Delta::TopicDeleted(topic));
    assert_eq!((image.topic(id(1)), image.topic_by_name("orders")), (None, None));
    assert_eq!(image.partition_count(), 0);
    assert_eq!(image.tombstone(id(1)), Some(&Tombstone { name: "orders".to_owned() }));
    assert_eq!(refused(&mut image, delete), ApplyError::UnknownTopic { id: id(1) });
    let forget = Command::ForgetTopic { id: id(1) };
    assert_eq!(done(&mut image, forget.clone()), Delta::TopicForgotten(id(1)));
    assert_eq!(refused(&mut image, forget), ApplyError::UnknownTombstone { id: id(1) });
}

#[test]
fn a_live_topic_is_not_forgotten() {
    let mut image = running();
    done(&mut image, create(1, "orders", &[1]));
    let forget = Command::ForgetTopic { id: id(1) };
    assert_eq!(refused(&mut image, forget), ApplyError::UnknownTombstone { id: id(1) });
}

#[test]
fn producer_ids_are_handed_out_once_to_one_broker() {
    let mut image = running();
    done(&mut image, start(OTHER, &[7]));
    let take = |broker| Command::AllocateProducerIds { broker, count: 1000 };
    for (broker, start) in [(BROKER, 0), (OTHER, 1000), (BROKER, 2000)] {
        let range = ProducerId(start)..ProducerId(start + 1000);
        assert_eq!(done(&mut image, take(broker)), Delta::ProducerIds { broker, range });
    }
    assert_eq!(image.next_producer_id(), ProducerId(3000));
    let unknown = ApplyError::UnknownBroker { broker: BrokerId(3) };
    assert_eq!(refused(&mut image, take(BrokerId(3))), unknown);
    let max = limits::PRODUCER_IDS_PER_COMMAND_MAX;
    for count in [0, max + 1] {
        let command = Command::AllocateProducerIds { broker: BROKER, count };
        assert_eq!(refused(&mut image, command), ApplyError::ProducerIdCount { count, max });
    }
}

#[test]
fn the_last_producer_id_is_handed_out_and_then_none() {
    let mut image = running();
    image.next_producer_id = ProducerId::NONE.0 - 1;
    let take = |count| Command::AllocateProducerIds { broker: BROKER, count };
    let exhausted = ApplyError::ProducerIdsExhausted { next: ProducerId(u64::MAX - 1) };
    assert_eq!(refused(&mut image, take(2)), exhausted);
    let range = ProducerId(u64::MAX - 1)..ProducerId::NONE;
    assert_eq!(done(&mut image, take(1)), Delta::ProducerIds { broker: BROKER, range });
    let exhausted = ApplyError::ProducerIdsExhausted { next: ProducerId::NONE };
    assert_eq!(refused(&mut image, take(1)), exhausted);
}

#[test]
fn a_broker_without_a_next_epoch_does_not_start() {
    let exhausted = ApplyError::EpochExhausted { broker: BROKER };
    let mut image = running();
    image.brokers.get_mut(&BROKER).unwrap().epoch = u64::MAX;
    assert_eq!(refused(&mut image, start(BROKER, &[1, 2])), exhausted);
    let mut image = running();
    done(&mut image, create(1, "orders", &[1]));
    image.topics.get_mut(&id(1)).unwrap().partitions[0].leader_epoch = LeaderEpoch(u32::MAX);
    assert_eq!(refused(&mut image, start(BROKER, &[1, 2])), exhausted);
}

fn counted(number: usize) -> TopicId {
    TopicId::from_bytes((number as u128 + 1).to_be_bytes())
}

/// An image filled without `apply`, whose O(n) check would make filling it O(n²).
fn with_topics(count: usize, partitions: usize) -> Image {
    let mut image = running();
    for number in 0..count {
        let (topic, name) = (counted(number), format!("{number:0>249}"));
        image.names.insert(name.clone(), topic);
        let assignment = PartitionAssignment { broker: BROKER, wal: wal(1) };
        let partitions = vec![new_partition(&assignment); partitions];
        image.partition_count += partitions.len();
        let config = TopicConfig::default();
        let topic = Topic { id: topic, name, replication_factor: 1, config, partitions };
        image.topics.insert(topic.id, topic);
    }
    image.invariants();
    image
}

#[test]
fn topics_partitions_and_tombstones_end_at_their_limits() {
    let full = |limit, max| ApplyError::LimitExceeded { limit, max: max as u64 };
    let mut image = with_topics(limits::TOPICS_MAX, 1);
    let command = create(255, "one-more", &[1]);
    let topics = full("TOPICS_MAX", limits::TOPICS_MAX);
    assert_eq!(refused(&mut image, command.clone()), topics);
    done(&mut image, Command::DeleteTopic { id: counted(0) });
    done(&mut image, command.clone());

    let mut image = with_topics(limits::PARTITIONS_MAX / 10_000, 10_000);
    let partitions = full("PARTITIONS_MAX", limits::PARTITIONS_MAX);
    assert_eq!(refused(&mut image, command.clone()), partitions);

    let mut image = with_topics(1, 1);
    for number in 1..limits::TOMBSTONES_MAX {
        image.tombstones.insert(counted(number), Tombstone { name: String::new() });
    }
    let tombstones = full("TOMBSTONES_MAX", limits::TOMBSTONES_MAX);
    assert_eq!(refused(&mut image, command), tombstones);
    done(&mut image, Command::DeleteTopic { id: counted(0) });
}

#[test]
fn brokers_and_their_wals_end_at_their_limits() {
    let mut image = running();
    let many = |count: usize| -> Vec<WalUuid> {
        (1000..1000 + count).map(|number| WalUuid((number as u128).to_be_bytes())).collect()
    };
    let start = |wals| Command::StartBroker { broker: OTHER, shard_count: 1, wals };
    let max = limits::WALS_PER_BROKER_MAX;
    let wals = ApplyError::LimitExceeded { limit: "WALS_PER_BROKER_MAX", max: max as u64 };
    assert_eq!(refused(&mut image, start(many(max + 1))), wals);
    done(&mut image, start(many(max)));
    assert_eq!(refused(&mut image, Command::AddWal { broker: OTHER, wal: wal(3) }), wals);

    let broker = |number: u32| {
        let wals = vec![WalUuid((u128::from(number) << 64).to_be_bytes())];
        Command::StartBroker { broker: BrokerId(number), shard_count: 1, wals }
    };
    let max = limits::BROKERS_MAX as u32;
    for number in 3..=max {
        done(&mut image, broker(number));
    }
    let brokers = ApplyError::LimitExceeded { limit: "BROKERS_MAX", max: u64::from(max) };
    assert_eq!(refused(&mut image, broker(max + 1)), brokers);
    done(&mut image, broker(max));
}

#[test]
fn the_fullest_image_is_encoded_within_its_limit() {
    let mut image = with_topics(limits::TOPICS_MAX, limits::PARTITIONS_MAX / limits::TOPICS_MAX);
    for partition in image.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
        partition.leader_epoch = LeaderEpoch(u32::MAX);
        let at =
            |number: u64| Placement { first_offset: Offset(u64::MAX / 16 + number), wal: wal(1) };
        partition.placements = (0..limits::PLACEMENTS_PER_PARTITION_MAX as u64).map(at).collect();
    }
    for number in limits::TOPICS_MAX..limits::TOMBSTONES_MAX {
        image.tombstones.insert(counted(number), Tombstone { name: "x".repeat(249) });
    }
    image.invariants();
    let mut bytes = Vec::new();
    encode_image(&image, &mut bytes);
    assert!(bytes.len() <= limits::IMAGE_BYTES_MAX);
    assert_eq!(decode_image(&bytes), Ok(image));
}

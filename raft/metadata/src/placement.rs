//! Placement: on which WAL, and so on which shard, each partition of a new topic goes.
//!
//! By load and never by hash: a hash puts a busy topic where it puts an idle one.

use std::collections::BTreeMap;

use rustmq_protocol::ids::{BrokerId, ShardId};

use crate::command::PartitionAssignment;
use crate::image::{Image, WalUuid};

/// How busy one WAL of a broker is, as its shard last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalLoad {
    /// The WAL.
    pub wal: WalUuid,
    /// The shard that owns it at present.
    pub shard: ShardId,
    /// Live partitions that append to it.
    pub partitions: u32,
    /// Bytes appended per second, lately.
    pub bytes_per_s: u64,
}

/// Places the partitions of a new topic on the WALs of one broker.
///
/// Each goes to the shard with the fewest partitions of this topic, then the fewest of all, then
/// the fewest bytes; among the WALs of that shard likewise; the earlier in `load` wins a tie. So
/// the partitions of one topic are spread evenly over all shards, and consecutive ones lie on
/// different shards whenever there are two. WALs that the image does not give to the broker are
/// passed over; if none remains the result is empty, which `CreateTopic` refuses. The caller keeps
/// `partitions` within the topic's limit.
pub fn place(
    image: &Image,
    broker: BrokerId,
    partitions: u32,
    load: &[WalLoad],
) -> Vec<PartitionAssignment> {
    let owned = image.broker(broker).map_or(&[][..], |state| &state.wals);
    let mut wals: Vec<WalLoad> =
        load.iter().filter(|load| owned.contains(&load.wal)).copied().collect();
    let mut shards = shard_loads(&wals);
    let mut assignments = Vec::new();
    for _ in 0..partitions {
        let Some(shard) = shards.iter_mut().min_by_key(|shard| shard.rank()) else {
            break;
        };
        shard.of_this_topic += 1;
        shard.partitions += 1;
        let wal = wals
            .iter_mut()
            .filter(|wal| wal.shard == shard.shard)
            .min_by_key(|wal| (wal.partitions, wal.bytes_per_s))
            .expect("a shard is listed because a WAL of it is");
        wal.partitions = wal.partitions.saturating_add(1);
        assignments.push(PartitionAssignment { broker, wal: wal.wal });
    }
    assignments
}

struct ShardLoad {
    shard: ShardId,
    of_this_topic: u32,
    partitions: u64,
    bytes_per_s: u64,
}

impl ShardLoad {
    fn rank(&self) -> (u32, u64, u64) {
        (self.of_this_topic, self.partitions, self.bytes_per_s)
    }
}

/// Sums the WALs by shard, the shards in the order in which `wals` first names them.
fn shard_loads(wals: &[WalLoad]) -> Vec<ShardLoad> {
    let mut shards = BTreeMap::new();
    for (order, wal) in wals.iter().enumerate() {
        let (_, shard) = shards.entry(wal.shard).or_insert_with(|| {
            let shard = wal.shard;
            (order, ShardLoad { shard, of_this_topic: 0, partitions: 0, bytes_per_s: 0 })
        });
        shard.partitions += u64::from(wal.partitions);
        shard.bytes_per_s = shard.bytes_per_s.saturating_add(wal.bytes_per_s);
    }
    let mut shards: Vec<_> = shards.into_values().collect();
    shards.sort_by_key(|(order, _)| *order);
    shards.into_iter().map(|(_, shard)| shard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, apply};

    const BROKER: BrokerId = BrokerId(1);

    fn image_with_wals(count: u8) -> Image {
        let mut image = Image::new();
        let wals = (1..=count).map(|byte| WalUuid([byte; 16])).collect();
        apply(&mut image, &Command::FormatCluster { cluster_id: [9; 16] }).unwrap();
        apply(&mut image, &Command::StartBroker { broker: BROKER, shard_count: 1, wals }).unwrap();
        image
    }

    fn load(wal: u8, shard: u16, partitions: u32, bytes_per_s: u64) -> WalLoad {
        WalLoad { wal: WalUuid([wal; 16]), shard: ShardId(shard), partitions, bytes_per_s }
    }

    fn placed(image: &Image, partitions: u32, load: &[WalLoad]) -> Vec<u8> {
        place(image, BROKER, partitions, load).iter().map(|placed| placed.wal.0[0]).collect()
    }

    #[test]
    fn one_partition_goes_to_the_shard_with_the_fewest() {
        let image = image_with_wals(3);
        assert_eq!(placed(&image, 1, &[load(1, 0, 5, 0), load(2, 1, 3, 9), load(3, 2, 4, 0)]), [2]);
    }

    #[test]
    fn bytes_decide_between_equal_counts_and_order_between_equal_bytes() {
        let image = image_with_wals(3);
        assert_eq!(placed(&image, 1, &[load(1, 0, 3, 9), load(2, 1, 3, 8), load(3, 2, 3, 8)]), [2]);
    }

    #[test]
    fn consecutive_partitions_lie_on_different_shards_even_if_one_is_far_busier() {
        let image = image_with_wals(2);
        assert_eq!(placed(&image, 5, &[load(1, 0, 1000, 0), load(2, 1, 0, 0)]), [2, 1, 2, 1, 2]);
    }

    #[test]
    fn a_shard_with_two_wals_counts_once_and_fills_both() {
        let image = image_with_wals(3);
        let load = [load(1, 0, 0, 0), load(2, 0, 0, 0), load(3, 1, 0, 0)];
        assert_eq!(placed(&image, 6, &load), [1, 3, 2, 3, 1, 3]);
    }

    #[test]
    fn many_small_topics_spread_evenly() {
        let image = image_with_wals(4);
        let mut counts: Vec<WalLoad> = (1..=4).map(|wal| load(wal, u16::from(wal), 0, 0)).collect();
        for _ in 0..40 {
            let wal = place(&image, BROKER, 1, &counts)[0].wal;
            counts.iter_mut().find(|load| load.wal == wal).unwrap().partitions += 1;
        }
        assert!(counts.iter().all(|load| load.partitions == 10), "{counts:?}");
    }

    #[test]
    fn wals_of_another_broker_are_passed_over() {
        let image = image_with_wals(1);
        assert_eq!(placed(&image, 2, &[load(7, 0, 0, 0), load(1, 1, 5, 0)]), [1, 1]);
        assert_eq!(placed(&image, 2, &[load(7, 0, 0, 0)]), [0; 0]);
        assert!(place(&image, BrokerId(2), 2, &[load(1, 0, 0, 0)]).is_empty());
    }
}

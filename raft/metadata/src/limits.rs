//! How large the metadata may grow. Every list in an [`Image`](crate::Image) or a
//! [`Command`](crate::Command) has its maximum here; a command that would pass one is refused by
//! name ([`ApplyError::LimitExceeded`](crate::ApplyError::LimitExceeded)) and a decoder stops there.

pub use rustmq_protocol::limits::PARTITIONS_PER_TOPIC_MAX;
use rustmq_protocol::limits::TOPIC_NAME_BYTES_MAX;

/// Live topics of the cluster. 10,000: a snapshot stays a few MiB. At the limit a topic is created
/// only after another has been deleted.
pub const TOPICS_MAX: usize = 10_000;

/// Live topics and tombstones together. A deleted topic keeps its tombstone until no segment names
/// it. At the limit *creation* is refused, so that a deletion always finds room for its tombstone.
pub const TOMBSTONES_MAX: usize = 20_000;

/// Partitions of the cluster, and so of any one broker. 100,000: each costs some 200 bytes on the
/// control core, and every start of a broker visits them all. At the limit creation is refused.
pub const PARTITIONS_MAX: usize = 100_000;

/// Brokers that were ever started. At the limit a new broker is refused.
pub const BROKERS_MAX: usize = 1_024;

/// WALs of one broker: 64 shards with four each, for directories that once ran on more cores. At
/// the limit a new WAL is refused.
pub const WALS_PER_BROKER_MAX: usize = 256;

/// Places in which the records of one partition lie: it grows by one with each move between cores
/// and shrinks as retention passes the older places. At the limit the partition does not move.
pub const PLACEMENTS_PER_PARTITION_MAX: usize = 8;

/// Copies of a partition. One until partitions carry a list of replicas; more are refused, because
/// an image that promises copies that nobody keeps would lie.
pub const REPLICATION_FACTOR_MAX: u16 = 1;

/// Producer ids that a broker takes at a time: one durable command per thousand new producers.
pub const PRODUCER_ID_BLOCK: u32 = 1_000;

/// Producer ids that one command may take; larger counts are refused.
pub const PRODUCER_IDS_PER_COMMAND_MAX: u32 = 1_000_000;

/// Principals that one shard interns. At the limit a new principal's session is refused; a
/// restart forgets the ones that no longer come.
pub const PRINCIPALS_MAX: usize = 65_536;

/// Bytes of a principal's name: a distinguished name of a certificate fits. Longer is refused.
pub const PRINCIPAL_NAME_BYTES_MAX: usize = 1_024;

/// Bytes of one encoded command with its envelope. The longest, a topic with
/// [`PARTITIONS_PER_TOPIC_MAX`] partitions, takes about a quarter. A longer one is not decoded.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Bytes of one encoded image with its envelope, above what the other limits can add up to. A
/// longer one is not decoded.
pub const IMAGE_BYTES_MAX: usize = 64 << 20;

/// Upper bounds of encoded sizes, each rounded up from the layouts in `codec`.
const TOPIC_FIXED_BYTES: usize = 96 + TOPIC_NAME_BYTES_MAX;
const PARTITION_FIXED_BYTES: usize = 16;
const PLACEMENT_BYTES: usize = 32;
const BROKER_FIXED_BYTES: usize = 32;
const WAL_BYTES: usize = 17;

const _: () = assert!(TOPICS_MAX < TOMBSTONES_MAX);
const _: () = assert!(PARTITIONS_PER_TOPIC_MAX as usize <= PARTITIONS_MAX);
const _: () = assert!(PRODUCER_ID_BLOCK <= PRODUCER_IDS_PER_COMMAND_MAX);
const _: () = assert!(
    TOPIC_FIXED_BYTES + PARTITIONS_PER_TOPIC_MAX as usize * (PARTITION_FIXED_BYTES + WAL_BYTES)
        < COMMAND_BYTES_MAX
);
const _: () = assert!(
    TOMBSTONES_MAX * TOPIC_FIXED_BYTES
        + PARTITIONS_MAX * (PARTITION_FIXED_BYTES + PLACEMENTS_PER_PARTITION_MAX * PLACEMENT_BYTES)
        + BROKERS_MAX * (BROKER_FIXED_BYTES + WALS_PER_BROKER_MAX * WAL_BYTES)
        < IMAGE_BYTES_MAX
);

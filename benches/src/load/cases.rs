//! The questions of a run, one case each.

use rustmq_client::PollMode;
use rustmq_config::Poll;
use rustmq_sys::runtime::FlushPlan;

use super::sdk::{Batching, Clients};
use super::shape::{KIB, Shape, large, shape};
use super::standing::Question;
use super::tail::By;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// Its name in the report.
    pub name: &'static str,
    pub(super) kind: Kind,
    pub(super) shape: Shape,
}

/// Whom it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The device: durable writes, one after another, through the shards' runtime, by a write through
    /// the device's cache as shards do it, or by a write and a linked flush.
    Ring(FlushPlan),
    /// The same where the thread always has something else to do.
    BusyRing(FlushPlan),
    /// The device: the same by a blocking system call.
    Blocking,
    /// QUIC alone, on what the shards run on.
    Bare,
    /// QUIC alone, as most services are built: quinn on tokio.
    Quinn,
    /// Datagrams without QUIC, durable and answered.
    Floor,
    /// The broker, in closed loop.
    Produce,
    /// A broker whose flush takes a millisecond longer.
    Slow,
    /// The broker in open loop, at half the rate that [`CLOSED`] reached.
    Open,
    /// The broker, by one producer and as many consumers at the tail as the shape says.
    Tail(By),
    /// QUIC alone, by the same producer and consumers.
    BareTail,
    /// QUIC alone, by a consumer of batches without end.
    Transfer,
    /// The device: the log of the broker that is just started, from one end to the other.
    Sequential,
    /// A broker that is just started, by a consumer of one of as many partitions as the shape says.
    CatchUp,
    /// The broker, as [`Self::Open`], and a consumer of all partitions.
    EndToEnd,
    /// The broker in closed loop, beside a producer of batches of 1 MiB of the same client.
    Beside,
    /// QUIC alone, by the same two producers.
    BareBeside,
    /// The broker in closed loop, by the Rust SDK.
    Sdk(Clients),
    /// The broker, by producers of the Rust SDK that hand over record after record, batched so.
    SdkMany(Batching),
    /// The broker, by one producer and consumers of the Rust SDK at the tail.
    SdkTail,
    /// The broker in closed loop, by nothing but quinn on tokio: what the SDK is built on.
    QuinnClient,
    /// The same, of the server that is nothing but QUIC.
    BareQuinnClient,
    /// Brokers of their own: what it costs that something is there.
    Standing(Question),
}

/// The case whose rate the open loop halves.
pub(super) const CLOSED: &str = "produce/8x1KiB";

/// All, in the order of a round. References stand beside what is held against them.
pub const CASES: [Case; 100] = [
    case("device/ring_4KiB", Kind::Ring(THROUGH), shape(1, 1, 4096, 1)),
    case("device/linked_4KiB", Kind::Ring(LINKED), shape(1, 1, 4096, 1)),
    case("device/busy_ring_4KiB", Kind::BusyRing(THROUGH), shape(1, 1, 4096, 1)),
    case("device/busy_linked_4KiB", Kind::BusyRing(LINKED), shape(1, 1, 4096, 1)),
    case("device/blocking_4KiB", Kind::Blocking, shape(1, 1, 4096, 1)),
    case("bare/1x1KiB", Kind::Bare, shape(1, 1, KIB, 1)),
    case("quinn/1x1KiB", Kind::Quinn, shape(1, 1, KIB, 1)),
    case("floor/1x1KiB", Kind::Floor, shape(1, 1, KIB, 1)),
    case("produce/1x1KiB", Kind::Produce, shape(1, 1, KIB, 1)),
    case("sdk/1x1KiB", Kind::Sdk(Clients::ONE), shape(1, 1, KIB, 1)),
    case("sdk/1x1KiB_sleeping", Kind::Sdk(SLEEPING), shape(1, 1, KIB, 1)),
    case("quinn_client/1x1KiB", Kind::QuinnClient, shape(1, 1, KIB, 1)),
    case("bare/1x1KiB_quinn_client", Kind::BareQuinnClient, shape(1, 1, KIB, 1)),
    case("bare/8x1KiB", Kind::Bare, shape(8, 1, KIB, 1)),
    case(CLOSED, Kind::Produce, shape(8, 1, KIB, 1)),
    case("sdk/8x1KiB", Kind::Sdk(Clients::ONE), shape(8, 1, KIB, 1)),
    case("sdk/8x1KiB_sleeping", Kind::Sdk(SLEEPING), shape(8, 1, KIB, 1)),
    case("sdk/8x1KiB_8_clients", Kind::Sdk(APART), shape(8, 1, KIB, 1)),
    case("quinn_client/8x1KiB", Kind::QuinnClient, shape(8, 1, KIB, 1)),
    case("slow_flush/8x1KiB", Kind::Slow, shape(8, 1, KIB, 1)),
    case("open_loop/8x1KiB", Kind::Open, shape(8, 1, KIB, 1)),
    case("open_loop/8x1KiB_consumed", Kind::EndToEnd, shape(8, 1, KIB, 1)),
    case("device/ring_88KiB", Kind::Ring(THROUGH), shape(1, 1, 88 * KIB, 1)),
    case("device/blocking_88KiB", Kind::Blocking, shape(1, 1, 88 * KIB, 1)),
    case("bare/8x10x1KiB", Kind::Bare, shape(8, 10, KIB, 1)),
    case("produce/8x10x1KiB", Kind::Produce, shape(8, 10, KIB, 1)),
    case("sdk/8x10x1KiB", Kind::Sdk(Clients::ONE), shape(8, 10, KIB, 1)),
    case("quinn_client/8x10x1KiB", Kind::QuinnClient, shape(8, 10, KIB, 1)),
    case("device/ring_1MiB", Kind::Ring(THROUGH), shape(1, 1, 1024 * KIB, 1)),
    case("device/blocking_1MiB", Kind::Blocking, shape(1, 1, 1024 * KIB, 1)),
    case("bare/2x64KiB_window_8", Kind::Bare, shape(2, 1, 64 * KIB, 8)),
    case("quinn/2x64KiB_window_8", Kind::Quinn, shape(2, 1, 64 * KIB, 8)),
    case("produce/2x64KiB_window_8", Kind::Produce, shape(2, 1, 64 * KIB, 8)),
    case("sdk/2x64KiB_window_8", Kind::Sdk(Clients::ONE), shape(2, 1, 64 * KIB, 8)),
    case("quinn_client/2x64KiB_window_8", Kind::QuinnClient, shape(2, 1, 64 * KIB, 8)),
    case("bare/2x64KiB_window_8_quinn_client", Kind::BareQuinnClient, shape(2, 1, 64 * KIB, 8)),
    case("bare/2x1MiB_window_2", Kind::Bare, shape(2, 1, 1024 * KIB, 2)),
    case("produce/2x1MiB_window_2", Kind::Produce, shape(2, 1, 1024 * KIB, 2)),
    case("sdk/2x1MiB_window_2", Kind::Sdk(Clients::ONE), shape(2, 1, 1024 * KIB, 2)),
    case("quinn_client/2x1MiB_window_2", Kind::QuinnClient, shape(2, 1, 1024 * KIB, 2)),
    case("bare/2x64KiB_window_8_loopback", Kind::Bare, large(2, 1, 64 * KIB, 8)),
    case("produce/2x64KiB_window_8_loopback", Kind::Produce, large(2, 1, 64 * KIB, 8)),
    case("bare/2x1MiB_window_2_loopback", Kind::Bare, large(2, 1, 1024 * KIB, 2)),
    case("produce/2x1MiB_window_2_loopback", Kind::Produce, large(2, 1, 1024 * KIB, 2)),
    case("bare/1x1KiB_window_256", Kind::Bare, shape(1, 1, KIB, 256)),
    case("quinn/1x1KiB_window_256", Kind::Quinn, shape(1, 1, KIB, 256)),
    case("floor/1x1KiB_window_256", Kind::Floor, shape(1, 1, KIB, 256)),
    case("produce/1x1KiB_window_256", Kind::Produce, shape(1, 1, KIB, 256)),
    case("sdk/1x1KiB_window_256", Kind::Sdk(Clients::ONE), shape(1, 1, KIB, 256)),
    case("quinn_client/1x1KiB_window_256", Kind::QuinnClient, shape(1, 1, KIB, 256)),
    case("bare/1x1KiB_window_256_quinn_client", Kind::BareQuinnClient, shape(1, 1, KIB, 256)),
    case("sdk_many/16KiB", many(16, 0), MANY),
    case("sdk_many/64KiB", many(64, 0), MANY),
    case("sdk_many/256KiB", many(256, 0), MANY),
    case("sdk_many/1MiB", many(1024, 0), MANY),
    case("sdk_many/64KiB_1ms", many(64, 1), MANY),
    case("sdk_many/64KiB_5ms", many(64, 5), MANY),
    case("sdk_many/256KiB_5ms", many(256, 5), MANY),
    case("produce/1x64KiB", Kind::Produce, shape(1, 1, 64 * KIB, 1)),
    case("produce/1x64KiB_window_8", Kind::Produce, shape(1, 1, 64 * KIB, 8)),
    case("bare/1x64KiB_window_8", Kind::Bare, shape(1, 1, 64 * KIB, 8)),
    case("bare/tail", Kind::BareTail, shape(1, 1, 64 * KIB, 8)),
    case("consume/tail", Kind::Tail(By::Subscription), shape(1, 1, 64 * KIB, 8)),
    case("sdk/tail", Kind::SdkTail, shape(1, 1, 64 * KIB, 8)),
    case("bare/tail_loopback", Kind::BareTail, large(1, 1, 64 * KIB, 8)),
    case("consume/tail_loopback", Kind::Tail(By::Subscription), large(1, 1, 64 * KIB, 8)),
    case("consume/tail_x10", Kind::Tail(By::Subscription), shape(10, 1, 64 * KIB, 8)),
    case("consume/tail_fetch", Kind::Tail(By::Fetch), shape(1, 1, 64 * KIB, 8)),
    case("consume/tail_fetch_x10", Kind::Tail(By::Fetch), shape(10, 1, 64 * KIB, 8)),
    case("device/sequential_4MiB", Kind::Sequential, ONE_COLD),
    case("bare/transfer", Kind::Transfer, ONE_COLD),
    case("consume/catch_up", Kind::CatchUp, ONE_COLD),
    case("consume/catch_up_1_of_100", Kind::CatchUp, HUNDRED_COLD),
    case("bare/1x1KiB_beside_1MiB", Kind::BareBeside, shape(1, 1, KIB, 1)),
    case("produce/1x1KiB_alone", Kind::Produce, shape(1, 1, KIB, 1)),
    case("produce/1x1KiB_beside_1MiB", Kind::Beside, shape(1, 1, KIB, 1)),
    standing("partitions/1", Question::Partitions { used: 1, there: 1 }),
    standing("partitions/8_of_1000", Question::Partitions { used: 8, there: 1_000 }),
    standing("partitions/1000", Question::Partitions { used: 1_000, there: 1_000 }),
    standing("partitions/8_of_10000", Question::Partitions { used: 8, there: 10_000 }),
    standing("partitions/10000", Question::Partitions { used: 10_000, there: 10_000 }),
    standing("connections/1", Question::Connections(1)),
    standing("connections/1000", Question::Connections(1_000)),
    standing("connections/10000", Question::Connections(10_000)),
    standing("connections/silent", Question::Silent),
    standing("memory/2_shards", Question::Memory),
    standing("memory/partition", Question::PartitionMemory),
    standing("memory/connection", Question::ConnectionMemory),
    standing("idle/adaptive", Question::Idle { poll: Poll::Adaptive, connections: 0 }),
    standing("idle/adaptive_1000", Question::Idle { poll: Poll::Adaptive, connections: 1_000 }),
    standing("idle/sleep", Question::Idle { poll: Poll::Sleep, connections: 0 }),
    standing("idle/sleep_1000", Question::Idle { poll: Poll::Sleep, connections: 1_000 }),
    standing("idle/sleep_10000", Question::Idle { poll: Poll::Sleep, connections: 10_000 }),
    standing("idle/busy", Question::Idle { poll: Poll::Busy, connections: 0 }),
    standing("start/version", Question::Version),
    standing("start/one_topic", Question::Start { is_large: false }),
    standing("start/1000_topics", Question::Start { is_large: true }),
    standing("hop/raw", Question::Hop),
    standing("hop/forward", Question::Forward),
    standing("scrape/each", Question::Scrape),
];

pub(super) const THROUGH: FlushPlan = FlushPlan::WriteThrough;
const LINKED: FlushPlan = FlushPlan::WriteFlush;

const fn case(name: &'static str, kind: Kind, shape: Shape) -> Case {
    Case { name, kind, shape }
}

const fn standing(name: &'static str, question: Question) -> Case {
    case(name, Kind::Standing(question), shape(0, 0, 0, 0))
}

/// As a program has it that does not ask for more.
const SLEEPING: Clients = Clients { poll: PollMode::Sleep, is_shared: true };

/// A client for each producer.
const APART: Clients = Clients { poll: PollMode::Adaptive, is_shared: false };

const fn many(batch_kib: usize, linger_ms: u64) -> Kind {
    Kind::SdkMany(Batching { batch_bytes: batch_kib * KIB, linger_ms })
}

/// Small records, more than fill the batches that may be on their way.
const MANY: Shape = shape(1, 1, 100, 32 * KIB);

/// What a log to catch up with was filled by: one producer of large batches, or a hundred of single
/// records.
pub(super) const ONE_COLD: Shape = shape(1, 1, 64 * KIB, 8);
pub(super) const HUNDRED_COLD: Shape = shape(100, 1, KIB, 8);

/// Bytes of values in them.
pub(super) const ONE_COLD_BYTES: u64 = 1 << 30;
pub(super) const HUNDRED_COLD_BYTES: u64 = 512 << 20;

//! What a shard measures of itself: histograms by stage, and counters. No atomics: the shard owns
//! them, and a scrape takes a copy of the counters and the histograms themselves.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use rustmq_protocol::{ErrorCode, ShardId};
use rustmq_sys::clock;
use rustmq_sys::runtime::Stats;

use crate::connection::Stall;
use crate::mesh::Message;
use crate::shard::Shard;

/// The longest time that a histogram tells apart; longer ones count as this.
pub const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Two significant digits: a value is off by at most 1 %, a histogram takes about 30 KiB.
const SIGNIFICANT_DIGITS: u8 = 2;

/// The parts of a request's time in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Produce: from the last byte's arrival until the request is worked on.
    ProduceReceive,
    /// Produce: from the first entry in a block until the block is written.
    ProduceQueue,
    /// Sealing a block (checksums, directory) and handing it to the device; with blocks flushed at
    /// intervals also the write itself.
    WalWrite,
    /// From then until the block is durable: the write and the flush, which the kernel does as one.
    WalFlush,
    /// Produce: from the end of the wait until the answer is with the session.
    ProduceReply,
    /// Produce: from the last byte's arrival until the answer.
    Produce,
    /// Fetch: from the request's arrival until it is worked on.
    FetchReceive,
    /// Fetch: waiting for records that are not there yet.
    FetchWait,
    /// Fetch: finding the batches, from the cache or the disk. Subscriptions: from the disk.
    FetchRead,
    /// Fetch: from the request's arrival until the answer.
    Fetch,
    /// A request's way from a wrong shard to the right one and back.
    Forward,
    /// Answering a scrape: for so long it keeps the shard from everything else.
    Scrape,
}

impl Stage {
    /// Every stage, in the order of a request.
    pub const ALL: [Self; 12] = [
        Self::ProduceReceive,
        Self::ProduceQueue,
        Self::WalWrite,
        Self::WalFlush,
        Self::ProduceReply,
        Self::Produce,
        Self::FetchReceive,
        Self::FetchWait,
        Self::FetchRead,
        Self::Fetch,
        Self::Forward,
        Self::Scrape,
    ];

    /// The name under which it is exported.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProduceReceive => "produce_receive",
            Self::ProduceQueue => "produce_queue",
            Self::WalWrite => "wal_write",
            Self::WalFlush => "wal_flush",
            Self::ProduceReply => "produce_reply",
            Self::Produce => "produce",
            Self::FetchReceive => "fetch_receive",
            Self::FetchWait => "fetch_wait",
            Self::FetchRead => "fetch_read",
            Self::Fetch => "fetch",
            Self::Forward => "forward",
            Self::Scrape => "scrape",
        }
    }
}

/// Sums since the shard started.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Records acknowledged, or accepted where no acknowledgement was asked for.
    pub records_produced: u64,
    /// Bytes of their batches.
    pub bytes_produced: u64,
    /// Records sent to consumers.
    pub records_fetched: u64,
    /// Bytes of their batches.
    pub bytes_fetched: u64,
    /// Those of them that were sent to subscriptions.
    pub bytes_subscribed: u64,
    /// Fetches, and answers of subscriptions, served from memory.
    pub cache_hits: u64,
    /// Reads of the disk for them, when they were due or ahead.
    pub cache_misses: u64,
    /// Blocks written to the WAL.
    pub blocks_written: u64,
    /// Blocks made durable by a flush of their own.
    pub blocks_flushed: u64,
    /// Entries in the blocks written.
    pub entries_written: u64,
    /// Bytes written to the WAL's blocks.
    pub wal_bytes_written: u64,
    /// Bytes read from the WAL for consumers, footers included.
    pub wal_bytes_read: u64,
    /// Segments sealed.
    pub segments_sealed: u64,
    /// Segments freed for another use.
    pub segments_freed: u64,
    /// Records dropped by `when_full = "delete_oldest"`.
    pub records_dropped_full: u64,
    /// Requests refused, and subscriptions ended, by error.
    pub refused: BTreeMap<&'static str, u64>,
}

/// What became of a shard's connections since it started.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointCounters {
    /// Handshakes begun.
    pub begun: u64,
    /// Handshakes that ended well.
    pub done: u64,
    /// First packets answered with a Retry.
    pub retried: u64,
    /// First packets refused: no place for another connection, or the broker stops.
    pub refused: u64,
    /// First packets ignored: too many handshakes.
    pub ignored: u64,
    /// First packets dropped unread: strangers have had their share of the time.
    pub dropped: u64,
    /// Handshakes that took too long.
    pub timed_out: u64,
    /// Bytes of the largest datagram that a path has come to take.
    pub path_mtu: u16,
    /// Datagrams for connections of other shards, handed to them.
    pub passed_on: u64,
    /// The same, lost because the other shard had too many to look at.
    pub passed_on_lost: u64,
    /// Connections closed because no Hello came.
    pub no_hello: u64,
    /// Connections closed because a frame did not become whole.
    pub half_frame: u64,
    /// Connections closed because their answers were not read.
    pub unread: u64,
}

impl EndpointCounters {
    /// Counts a connection that is closed because it does not get on.
    pub(crate) fn count_stall(&mut self, stall: Stall) {
        match stall {
            Stall::NoHello => self.no_hello += 1,
            Stall::HalfFrame => self.half_frame += 1,
            Stall::Unread => self.unread += 1,
        }
    }
}

/// One histogram for each of [`Stage::ALL`] in which nothing is counted yet. They take 350 KiB, and a
/// while to make: the control thread does, and shards are sent them.
pub fn empty_stages() -> Vec<Histogram<u64>> {
    let histogram = || {
        Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
            .expect("constant bounds that the crate allows")
    };
    Stage::ALL.iter().map(|_| histogram()).collect()
}

/// The shard's own. The histograms are of what was measured since the last scrape.
pub(crate) struct Metrics {
    stages: Vec<Histogram<u64>>,
    pub(crate) counters: Counters,
}

/// Everything that a shard measures.
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    /// Which shard.
    pub shard: ShardId,
    /// One histogram for each of [`Stage::ALL`], in nanoseconds. A shard sends those of the time since
    /// it was last asked; the control thread adds them up.
    pub stages: Vec<Histogram<u64>>,
    /// The sums.
    pub counters: Counters,
    /// What became of its connections.
    pub endpoint: EndpointCounters,
    /// What is now.
    pub gauges: Gauges,
    /// What the shard's runtime did.
    pub runtime: Stats,
}

/// Values of the moment.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Partitions led here.
    pub partitions: u64,
    /// Client connections, handshakes included.
    pub connections: u64,
    /// Bytes that live segments take on disk.
    pub wal_bytes: u64,
    /// Live segments.
    pub wal_segments: u64,
    /// Bytes that the hot cache pins.
    pub cache_bytes: u64,
    /// Bytes of the block buffers in use.
    pub buffer_bytes: u64,
    /// Bytes of requests that are not answered, and of unfinished ones.
    pub request_bytes: u64,
    /// Bytes of answers that their clients have not acknowledged.
    pub answer_bytes: u64,
    /// Bytes of memory for what is read ahead.
    pub read_ahead_bytes: u64,
    /// Bytes of credit given to connections beyond the least.
    pub window_bytes: u64,
    /// Handshakes that are not over.
    pub handshakes: u64,
    /// Subscriptions that are open.
    pub subscriptions: u64,
    /// Requests forwarded and not yet answered.
    pub forwarded: u64,
    /// How long the disk has not answered, if that is too long; else 0.
    pub stalled_ms: u64,
    /// Files that were deleted beneath the broker.
    pub lost_files: u64,
}

impl Metrics {
    /// Empty histograms.
    pub(crate) fn new() -> Self {
        Self { stages: empty_stages(), counters: Counters::default() }
    }

    /// Notes how long a stage took.
    pub(crate) fn record(&mut self, stage: Stage, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(LATENCY_NS_MAX).max(1);
        self.stages[stage as usize].saturating_record(ns);
    }

    /// A batch was acknowledged.
    pub(crate) fn count_produced(&mut self, records: u32, bytes: usize) {
        self.counters.records_produced += u64::from(records);
        self.counters.bytes_produced += bytes as u64;
    }

    /// Batches were sent to a consumer.
    pub(crate) fn count_fetched(&mut self, records: u64, bytes: usize) {
        self.counters.records_fetched += records;
        self.counters.bytes_fetched += bytes as u64;
    }

    /// A request was refused.
    pub(crate) fn count_refused(&mut self, code: ErrorCode) {
        *self.counters.refused.entry(code.name()).or_default() += 1;
    }
}

/// Answers a scrape: tells the control thread what was measured since the last one, and goes on in
/// `empty` histograms. Nothing is copied: that took longer than anything may keep a shard busy.
pub(crate) async fn scrape(shard: Rc<Shard>, empty: Vec<Histogram<u64>>) {
    assert_eq!(empty.len(), Stage::ALL.len(), "one histogram for each stage");
    let begun = clock::refresh();
    let mut snapshot = Box::new(shard.snapshot());
    snapshot.stages = std::mem::replace(&mut shard.metrics.borrow_mut().stages, empty);
    shard.mesh.leave_for_control(Message::Scraped(snapshot));
    shard.metrics.borrow_mut().record(Stage::Scrape, clock::refresh() - begun);
}

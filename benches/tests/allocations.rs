//! Does a produce allocate, and how often does a delivery? A real shard serves a real client over QUIC while every request to the
//! allocator on the shard's thread is counted: ours, and beside it those of quinn-proto, which builds
//! its packets and keeps its books with the allocator's help.

#![allow(clippy::unwrap_used, reason = "a test: what fails here fails it")]

mod shard;

use rustmq_benches::load::producers::client_endpoint;
use rustmq_benches::load::wire::{self, Link, ProduceFrame, Target};
use rustmq_protocol::{
    CREDIT_BYTES_MAX, Fetch, FetchResponse, Offset, RequestKind, Subscribe, batches,
};
use rustmq_sys::alloc::{self, CountingAllocator, Counts};
use rustmq_sys::runtime::{Backend, probe_uring};

use shard::Shard;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Of so many requests one is sent alone, the others in bursts.
const ALONE: usize = 5;

/// Requests in flight at once in a burst: as many as a producer may have.
const BURST: usize = 8;

/// Requests after which every buffer that is used again has its size. The index of a segment, one
/// point for each request, doubles until the segment is full: here it last did so at 32,768.
const WARM_UP: usize = 34_000;

/// Deliveries that are counted of either kind, and as many as a quarter before them.
const DELIVERED: usize = 400;

/// Allocations of ours for each: the counting of who holds the batch, which all its consumers share,
/// and of this consumer's answer until it is acknowledged.
const DELIVERY_ALLOCATIONS_MAX: usize = 2;

/// Requests that are counted at a time.
const PART: usize = 2_000;

/// Parts in a row in which nothing is allocated. What allocates for each record, or block, or every
/// ten thousandth, has no such stretch.
const CLEAN_PARTS: usize = 5;

/// Parts in which a clean stretch is looked for: a queue that meets a higher peak than ever before
/// doubles, which a busy machine puts off. With deliveries the index would double again beyond them,
/// at 65,536.
const PARTS_MAX: usize = 15;

/// One segment that the whole test fits into: beginning another one allocates, once in tens of
/// thousands of records. And memory for blocks and cache that is soon taken from the allocator for
/// good.
const SETS: [&str; 8] = [
    "cache.hot_bytes=8MiB",
    "wal.buffer_bytes=8MiB",
    "test.enabled=true",
    "wal.segment_bytes=256MiB",
    "wal.capacity_bytes=1GiB",
    "test.retention_check_ms=3600000",
    "test.files_check_ms=3600000",
    "broker.shards=1",
];

// One test, because the counts are of the whole process.
#[test]
fn a_produce_of_one_record_allocates_nothing_of_ours_and_a_subscription_no_more_than_fetches() {
    for backend in [Backend::Uring, Backend::Epoll] {
        if backend == Backend::Uring
            && let Err(why) = probe_uring()
        {
            assert!(std::env::var_os("CI").is_none(), "io_uring cannot be used: {why}");
            println!("SKIPPED {backend}: {why}");
            continue;
        }
        let (parts, [fetched, subscribed]) = count(backend);
        let per_request = |count: fn(&Counts) -> u64| {
            parts.iter().map(count).sum::<u64>() as f64 / (parts.len() * PART) as f64
        };
        println!(
            "{backend}: per produce {:.4} allocations of ours ({:.1} bytes), {:.2} of quinn-proto \
             ({:.0} bytes)",
            per_request(|counts| counts.ours),
            per_request(|counts| counts.ours_bytes),
            per_request(|counts| counts.quic),
            per_request(|counts| counts.quic_bytes),
        );
        for (how, counts) in [("fetch", &fetched), ("subscription", &subscribed)] {
            println!(
                "{backend}: per delivery by {how}, with its produce, {:.2} allocations of ours ({:.0} \
                 bytes), {:.2} of quinn-proto",
                counts.ours as f64 / DELIVERED as f64,
                counts.ours_bytes as f64 / DELIVERED as f64,
                counts.quic as f64 / DELIVERED as f64,
            );
        }
        // As a queue may grow once, not exactly.
        let most = (DELIVERY_ALLOCATIONS_MAX * DELIVERED + DELIVERED / 10) as u64;
        assert!(fetched.ours <= most && subscribed.ours <= most, "{fetched:?} {subscribed:?}");
        // Less than one more in each.
        let more = subscribed.ours.saturating_sub(fetched.ours);
        assert!(more < DELIVERED as u64 / 10, "{} and {}", subscribed.ours, fetched.ours);
        let ours: Vec<u64> = parts.iter().map(|counts| counts.ours).collect();
        assert!(
            ends_clean(&parts),
            "{backend}: allocations of ours in each {PART} produces: {ours:?}; the first of them:\n{}",
            our_frames(&alloc::take_traces())
        );
    }
}

/// Was nothing of ours allocated in the last parts?
fn ends_clean(parts: &[Counts]) -> bool {
    let clean = parts.iter().rev().take_while(|counts| counts.ours == 0).count();
    CLEAN_PARTS <= clean
}

/// What the shard's thread asked the allocator for while it served each part of the counted requests,
/// of which there are enough once they end clean, and then deliveries by fetches and by a subscription.
fn count(backend: Backend) -> (Vec<Counts>, [Counts; 2]) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shard = Shard::start(dir.path(), backend, &SETS);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let parts = runtime.block_on(async {
        let endpoint = client_endpoint(&shard.certs).unwrap();
        let connection = wire::connect(&endpoint, shard.address).await.unwrap();
        let mut link = Link::to_broker(&connection).await.unwrap();
        link.create_topic("t", 1).await.unwrap();
        let metadata = link.metadata("t").await.unwrap();
        let target = Target::of_topic(&metadata, shard.address).unwrap()[0];
        let producer = link.init_producer().await.unwrap();
        let mut frame = ProduceFrame::new(&target, producer, 1, 1 << 10);
        produce(&mut link, &mut frame, WARM_UP).await;
        alloc::trace_ours(alloc::TRACES_MAX);
        let mut parts = Vec::new();
        while parts.len() < PARTS_MAX && !ends_clean(&parts) {
            let before = alloc::counts();
            produce(&mut link, &mut frame, PART).await;
            parts.push(alloc::counts().since(before));
        }
        alloc::trace_ours(0);
        let mut consumer = Link::to_broker(&connection).await.unwrap();
        let mut delivered = Vec::new();
        for subscribed in [false, true] {
            let counted = parts.len() * PART;
            let next = WARM_UP + counted + delivered.len() * (DELIVERED + DELIVERED / 4);
            let next = Offset(next as u64);
            let mut consumer = Deliveries { consumer: &mut consumer, target, next, subscribed };
            if subscribed {
                consumer.subscribe().await;
            }
            consumer.take(&mut link, &mut frame, DELIVERED / 4).await;
            let before = alloc::counts();
            consumer.take(&mut link, &mut frame, DELIVERED).await;
            delivered.push(alloc::counts().since(before));
        }
        (parts, delivered.try_into().unwrap())
    });
    shard.stop();
    parts
}

/// Some requests one by one, the rest in bursts that share blocks.
async fn produce(link: &mut Link, frame: &mut ProduceFrame, count: usize) {
    let mut left = count;
    while 0 < left {
        let burst = if count - left < count / ALONE { 1 } else { BURST.min(left) };
        for _ in 0..burst {
            link.sender.send(frame.next_batch().1).await.unwrap();
        }
        for _ in 0..burst {
            link.receiver.receive().await.unwrap().unwrap();
        }
        left -= burst;
    }
}

/// A consumer at the tail.
struct Deliveries<'a> {
    consumer: &'a mut Link,
    target: Target,
    next: Offset,
    subscribed: bool,
}

impl Deliveries<'_> {
    async fn subscribe(&mut self) {
        let head = self.target.head;
        let ask = Subscribe {
            topic: head.topic,
            partition: head.partition,
            leader_epoch: head.leader_epoch,
            offset: self.next,
            credit: CREDIT_BYTES_MAX,
            bytes_max: 1 << 20,
        };
        self.consumer.call(RequestKind::Subscribe, |out| ask.encode(out)).await.unwrap();
    }

    /// Produces records one by one, and takes each.
    async fn take(&mut self, link: &mut Link, frame: &mut ProduceFrame, count: usize) {
        let head = self.target.head;
        for _ in 0..count {
            if !self.subscribed {
                let ask = Fetch {
                    topic: head.topic,
                    partition: head.partition,
                    leader_epoch: head.leader_epoch,
                    offset: self.next,
                    wait_ms_max: 10_000,
                    bytes_min: 1,
                    bytes_max: 1 << 20,
                };
                self.consumer.send(RequestKind::Fetch, |out| ask.encode(out)).await.unwrap();
            }
            link.sender.send(frame.next_batch().1).await.unwrap();
            link.receiver.receive().await.unwrap().unwrap();
            self.consumer.receiver.receive().await.unwrap().unwrap();
            let answer = FetchResponse::decode(self.consumer.receiver.body()).unwrap();
            let (batch, _) = batches(answer.batches).next().unwrap().unwrap();
            assert_eq!(batch.base_offset, self.next);
            self.next = Offset(self.next.0 + 1);
        }
    }
}

/// The lines of the backtraces that name code of ours, each distinct trace once.
fn our_frames(traces: &[String]) -> String {
    let ours = |trace: &String| {
        let frames =
            trace.lines().filter(|line| line.contains(": rustmq_") || line.contains(": <rustmq_"));
        let frames = frames.filter(|line| !line.contains("::alloc::"));
        frames.take(6).map(|line| format!("{line}\n")).collect::<String>()
    };
    let mut distinct: Vec<String> = traces.iter().map(ours).collect();
    distinct.sort();
    distinct.dedup();
    distinct.join("--\n")
}

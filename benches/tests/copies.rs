//! How often is a payload copied? Every copy that the process makes goes through two functions that
//! stand in for those of the C library and count the bytes that a shard's thread copies: ours, and
//! beside them those of quinn-proto, TLS included. What the kernel copies to and from sockets
//! is not seen, nor is what the device reads and writes, which copies nothing.

#![allow(clippy::unwrap_used, reason = "a test: what fails here fails it")]
#![allow(unsafe_code, reason = "what `count_copies` stands in for is the C library's")]

mod shard;

use rustmq_benches::load::producers::client_endpoint;
use rustmq_benches::load::wire::{self, Link, ProduceFrame, Target};
use rustmq_protocol::{FetchResponse, Offset, RequestKind, Subscribe, batches};
use rustmq_sys::alloc::{self, Copied};
use rustmq_sys::runtime::{Backend, probe_uring};

use shard::Shard;

/// Bytes of a record's value: hundreds of datagrams' worth of headers do not hide a copy of it.
const VALUE_BYTES: usize = 64 << 10;

/// Batches that are produced, and again while they are consumed.
const COUNT: usize = 100;

/// Of a payload's bytes, those in pieces that are too short to be counted, and what is copied beside payloads: at most so
/// large a part.
const BESIDE: f64 = 0.1;

/// A cache that holds sixteen of the batches, so that the others come from the disk.
const SETS: [&str; 5] = [
    "cache.hot_bytes=1MiB",
    "wal.buffer_bytes=8MiB",
    "test.enabled=true",
    "wal.capacity_bytes=1GiB",
    "broker.shards=1",
];

rustmq_sys::count_copies!();

/// Bytes copied, of ours and of quinn-proto's, as parts of so many batches.
fn copied(before: Copied, count: usize) -> (f64, f64) {
    let payload = (count * VALUE_BYTES) as f64;
    let now = alloc::copied();
    ((now.ours - before.ours) as f64 / payload, (now.quic - before.quic) as f64 / payload)
}

// One test, because the counts are of the whole process.
#[test]
fn a_payload_is_copied_once_on_its_way_in_and_never_on_its_way_out_but_into_packets() {
    for backend in [Backend::Uring, Backend::Epoll] {
        if backend == Backend::Uring
            && let Err(why) = probe_uring()
        {
            assert!(std::env::var_os("CI").is_none(), "io_uring cannot be used: {why}");
            println!("SKIPPED {backend}: {why}");
            continue;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let shard = Shard::start(dir.path(), backend, &SETS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let [produce, tail, disk] = runtime.block_on(count(&shard));
        shard.stop();
        for (what, (ours, quic)) in [
            ("produced", produce),
            ("produced and delivered", tail),
            ("delivered from the disk", disk),
        ] {
            println!(
                "{backend}: each byte {what} is copied {ours:.3} times by us, {quic:.3} by quinn-proto"
            );
        }
        let once = 1.0 - BESIDE..1.0 + BESIDE;
        assert!(once.contains(&produce.0), "{backend}: {produce:?} on the way in");
        assert!(once.contains(&tail.0), "{backend}: {tail:?} on the way in and out");
        assert!(disk.0 < BESIDE, "{backend}: {disk:?} from the disk");
        // Packets are built of copies, so what is sent out was seen here.
        assert!(once.start <= tail.1 && once.start <= disk.1, "{backend}: {tail:?} {disk:?}");
    }
}

async fn count(shard: &Shard) -> [(f64, f64); 3] {
    let endpoint = client_endpoint(&shard.certs).unwrap();
    let connection = wire::connect(&endpoint, shard.address).await.unwrap();
    let mut link = Link::to_broker(&connection).await.unwrap();
    link.create_topic("t", 1).await.unwrap();
    let metadata = link.metadata("t").await.unwrap();
    let target = Target::of_topic(&metadata, shard.address).unwrap()[0];
    let producer = link.init_producer().await.unwrap();
    let mut frame = ProduceFrame::new(&target, producer, 1, VALUE_BYTES);

    let before = alloc::copied();
    for _ in 0..COUNT {
        produce(&mut link, &mut frame).await;
    }
    let produced = copied(before, COUNT);

    let mut consumer = subscribe(&connection, &target, COUNT).await;
    let before = alloc::copied();
    for number in COUNT..2 * COUNT {
        produce(&mut link, &mut frame).await;
        assert_eq!(take(&mut consumer, number).await, number + 1);
    }
    let tailed = copied(before, COUNT);

    let before = alloc::copied();
    let mut consumer = subscribe(&connection, &target, 0).await;
    let mut next = 0;
    while next < COUNT {
        next = take(&mut consumer, next).await;
    }
    [produced, tailed, copied(before, next)]
}

async fn produce(link: &mut Link, frame: &mut ProduceFrame) {
    link.sender.send(frame.next_batch().1).await.unwrap();
    link.receiver.receive().await.unwrap().unwrap();
}

async fn subscribe(connection: &quinn::Connection, target: &Target, from: usize) -> Link {
    let mut consumer = Link::to_broker(connection).await.unwrap();
    let ask = Subscribe {
        topic: target.head.topic,
        partition: target.head.partition,
        leader_epoch: target.head.leader_epoch,
        offset: Offset(from as u64),
        credit: 1 << 30,
        bytes_max: 256 << 10,
    };
    consumer.call(RequestKind::Subscribe, |out| ask.encode(out)).await.unwrap();
    consumer
}

/// Takes one answer, and says what comes next.
async fn take(consumer: &mut Link, next: usize) -> usize {
    consumer.receiver.receive().await.unwrap().unwrap();
    let answer = FetchResponse::decode(consumer.receiver.body()).unwrap();
    let mut next = next;
    for batch in batches(answer.batches) {
        let (header, _) = batch.unwrap();
        assert_eq!(header.base_offset, Offset(next as u64));
        next += 1;
    }
    next
}

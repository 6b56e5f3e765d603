//! What does the decision about one batch cost: epoch, duplicates, offsets?
//!
//! `append` is followed by `handle_flushed`, as the shell does, so that nothing piles up. With a
//! producer id the sequence is checked and remembered; `among_1000` has that many producers known.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustmq_benches::fixtures::{PARTITION, VALUE_BYTES, batch};
use rustmq_engine::partition::PartitionState;
use rustmq_engine::{Append, Partition};
use rustmq_protocol::{BatchHeader, LeaderEpoch, ProducerEpoch, ProducerId, Sequence, TimestampMs};

const EPOCH: LeaderEpoch = LeaderEpoch(1);
const NOW: TimestampMs = TimestampMs(1_700_000_000_000);
const PRODUCERS_MAX: usize = 1000;

fn partition() -> Partition {
    Partition::new(PARTITION, EPOCH, PartitionState::default(), PRODUCERS_MAX)
}

fn append(partition: &mut Partition, header: &BatchHeader) {
    let appended = partition.append(NOW, EPOCH, black_box(header)).expect("it comes next");
    assert!(matches!(appended, Append::New { .. }), "each batch is new");
    partition.handle_flushed(partition.log_end_offset());
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine_append");
    group.throughput(Throughput::Elements(1));
    let sealed = batch(1, VALUE_BYTES);
    let anonymous = BatchHeader::decode(&sealed).expect("made by the batch builder");

    let mut appended = partition();
    group.bench_function(BenchmarkId::new("append", "anonymous"), |bencher| {
        bencher.iter(|| append(&mut appended, &anonymous));
    });

    for producers in [1, 1000] {
        let mut appended = partition();
        let mut headers: Vec<BatchHeader> = (0..producers)
            .map(|id| BatchHeader {
                producer_id: ProducerId(id + 1),
                producer_epoch: ProducerEpoch(0),
                ..anonymous
            })
            .collect();
        let mut turn = 0;
        let name = format!("producer_among_{producers}");
        group.bench_function(BenchmarkId::new("append", name), |bencher| {
            bencher.iter(|| {
                let header = &mut headers[turn];
                append(&mut appended, header);
                header.base_sequence = Sequence(header.base_sequence.0 + header.record_count);
                turn = (turn + 1) % producers as usize;
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = benches
}
criterion_main!(all);

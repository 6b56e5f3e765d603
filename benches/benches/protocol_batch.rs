//! What does one batch cost to build, to check and to read, by its size?
//!
//! `verify` is on the path of every produce: header, checksum and every record. `build` is the
//! client's share, `records` the consumer's.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustmq_benches::fixtures::{batch, push_records, value};
use rustmq_protocol::limits::{BATCH_BYTES_MAX, RECORD_BYTES_MAX};
use rustmq_protocol::{BatchBuilder, ProducerStamp, records, verify};

/// Name of the case, records in the batch, bytes of each value.
const SHAPES: [(&str, usize, usize); 3] =
    [("1KiB", 1, 1 << 10), ("10x1KiB", 10, 1 << 10), ("64KiB", 1, 64 << 10)];

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("protocol_batch");
    for (name, record_count, value_bytes) in SHAPES {
        let sealed = batch(record_count, value_bytes);
        group.throughput(Throughput::Bytes(sealed.len() as u64));
        group.bench_with_input(BenchmarkId::new("verify", name), &sealed, |bencher, sealed| {
            bencher.iter(|| verify(black_box(sealed), RECORD_BYTES_MAX));
        });
        group.bench_with_input(BenchmarkId::new("records", name), &sealed, |bencher, sealed| {
            bencher.iter(|| {
                let walk = records(black_box(sealed)).expect("a good batch");
                walk.map(|record| record.expect("a good record").value.map_or(0, <[u8]>::len))
                    .sum::<usize>()
            });
        });
        let value = value(value_bytes);
        let mut builder = BatchBuilder::new(BATCH_BYTES_MAX.min(2 * sealed.len()));
        group.bench_function(BenchmarkId::new("build", name), |bencher| {
            bencher.iter(|| {
                push_records(&mut builder, record_count, black_box(&value));
                builder.finish(ProducerStamp::NONE)
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

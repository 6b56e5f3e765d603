//! What does a block cost the shard between the socket's buffer and the device?
//!
//! `put_and_seal` copies the batches in and writes headers, directory and checksums; `decode` is
//! what recovery pays for the same block.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustmq_benches::fixtures::{Blocks, VALUE_BYTES, batch, segment_header};
use rustmq_wal::decode_block;

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal_block");
    let segment = segment_header(64 << 20);
    let batch = batch(1, VALUE_BYTES);
    for entries in [1, 8, 64] {
        let name = format!("{entries}x1KiB");
        group.throughput(Throughput::Elements(entries as u64));
        let mut blocks = Blocks::new(&segment);
        group.bench_function(BenchmarkId::new("put_and_seal", &name), |bencher| {
            bencher.iter(|| blocks.build(black_box(&batch), entries));
        });
        let mut blocks = Blocks::new(&segment);
        let block = blocks.build(&batch, entries);
        let (bytes, expect) = (blocks.bytes(&block), segment.chain_start());
        group.bench_function(BenchmarkId::new("decode", &name), |bencher| {
            bencher.iter(|| {
                let view = decode_block(black_box(bytes), &expect).expect("a good block");
                view.entries().map(|entry| entry.payload.len()).sum::<usize>()
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

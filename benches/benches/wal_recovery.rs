//! How fast does a start read a segment that has no footer, once its bytes are in memory?
//!
//! The device is left out: this is the processor's share of recovery, checksums of all payloads
//! included.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustmq_benches::fixtures::{segment_header, segment_image};
use rustmq_wal::{BlockSequence, Scan};

const SEGMENT_BYTES: u64 = 16 << 20;

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal_recovery");
    group.throughput(Throughput::Bytes(SEGMENT_BYTES)).sample_size(20);
    let segment = segment_header(SEGMENT_BYTES);
    for entries in [1, 64] {
        let (image, _) = segment_image(&segment, entries);
        let name = format!("16MiB_blocks_of_{entries}");
        group.bench_function(BenchmarkId::new("scan", name), |bencher| {
            bencher.iter(|| {
                let mut scan = Scan::new(&segment, BlockSequence::FIRST);
                let mut records = 0;
                while let Some(read) = scan.next_read() {
                    let bytes = &image[read.start as usize..read.end as usize];
                    let count = |_: &_, entry: &rustmq_wal::Entry<'_>| {
                        records += u64::from(entry.header.record_count);
                    };
                    scan.feed(read.start, black_box(bytes), count).expect("nothing is damaged");
                }
                (scan.finish(), records)
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

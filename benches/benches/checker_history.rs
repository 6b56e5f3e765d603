//! How long does it take to judge what clients saw?
//!
//! `small` is what a simulated run leaves behind, of which there are very many; `large` is a long
//! test of many clients. Both are clean, as nearly all are; recording them is not counted.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustmq_checker::generate::{Size, clean, replay};
use rustmq_checker::{Checker, History};

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checker_history");
    for (name, size) in [("small", Size::small(300)), ("large", Size::large(1_000_000))] {
        let mut history = History::default();
        replay(&clean(1, size), &mut history);
        let mut checker = Checker::default();
        group.throughput(Throughput::Elements(size.operations as u64));
        group.bench_function(BenchmarkId::new("check", name), |bencher| {
            bencher.iter(|| {
                let report = checker.check(black_box(&history));
                assert!(report.is_clean(), "{report}");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(5))
        .sample_size(10);
    targets = benches
}
criterion_main!(all);

//! What does a message between shards cost the two of them, waking left out?
//!
//! Both ends are on one thread: this is the ring's own work, with its cache lines where they are
//! cheapest. A forwarded request pays it four times.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustmq_sys::channel::channel;

/// Messages of the mesh are three words: a kind and what it carries, in a box.
type Message = [u64; 3];

const CAPACITY: usize = 1024;
const BATCH: usize = 64;

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sys_channel");
    let message: Message = [1, 2, 3];

    let (mut sender, mut receiver) = channel::<Message>(CAPACITY);
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("push_and_pop", 1), |bencher| {
        bencher.iter(|| {
            sender.try_push(black_box(message)).expect("the ring is empty");
            receiver.try_pop()
        });
    });

    let (mut sender, mut receiver) = channel::<Message>(CAPACITY);
    let (mut line, mut out) = (VecDeque::with_capacity(BATCH), Vec::with_capacity(BATCH));
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::new("push_and_pop_batch", BATCH), |bencher| {
        bencher.iter(|| {
            line.extend((0..BATCH).map(|_| black_box(message)));
            let pushed = sender.push_batch(&mut line);
            out.clear();
            assert_eq!(receiver.pop_batch(&mut out, BATCH), pushed);
        });
    });
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

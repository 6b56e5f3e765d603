//! What glommio leaves behind. A program of its own: it counts the descriptors and threads of all.
#![cfg(feature = "glommio")]

use std::time::{Duration, Instant};

use rustmq_sys::buffer::{ALIGN, BufferPool};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::fs;
use rustmq_sys::runtime::{self, Backend, RuntimeConfig};

const RUNS: usize = 40;

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("the kernel lists them").count()
}

#[test]
fn a_runtime_leaves_no_thread_and_but_one_descriptor_of_glommios() {
    if let Err(why) = runtime::probe(Backend::Glommio) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must test glommio: {why}");
        println!("SKIPPED a_runtime_leaves_no_thread_and_but_one_descriptor_of_glommios: {why}");
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made");
    let pool = BufferPool::new(1 << 20, 64 << 10);
    let run = |number: usize| {
        let backend = Backend::Glommio;
        let config = RuntimeConfig::new(backend);
        let path = folder.path().join(number.to_string());
        runtime::run(config, Doorbell::new().expect("an eventfd"), async {
            let file = fs::create(path, 8 * ALIGN as u64).await.expect("created");
            let data = pool.try_get(ALIGN).expect("within the budget").split_to(ALIGN);
            file.write_durable(data, 0).await.expect("written");
        })
        .expect("the runtime starts");
    };
    run(0);
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    (1..=RUNS).for_each(run);
    assert_eq!(pool.used_bytes(), 0);
    // The eventfd of an executor outlives it in glommio 0.9: a process makes as many as it has
    // shards, once. Of what is ours nothing stays. Its thread ends when it gets to it.
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let after = (count("/proc/self/fd"), count("/proc/self/task"));
        if after.0 <= before.0 + RUNS && after.1 <= before.1 {
            println!("descriptors, threads before {RUNS} runtimes: {before:?}, after: {after:?}");
            return;
        }
        assert!(Instant::now() < end, "descriptors and threads: {before:?} and then {after:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

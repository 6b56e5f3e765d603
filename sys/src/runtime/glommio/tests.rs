//! What of glommio 0.9 the driver steps around, each beside glommio alone, which does not.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::buffer::{ALIGN, BufferPool};
use crate::cpu;
use crate::runtime::Backend;

/// Preempt timers that have often run out before the first task, on a core that others use too. Where
/// one always has, no task runs at all, and the next is tried.
const PREEMPT_US: [u64; 5] = [50, 100, 200, 500, 1000];

fn config() -> RuntimeConfig {
    RuntimeConfig::new(Backend::Glommio)
}

/// Whether a test can run, and its control shows what it has to; else it is named.
fn holds(test: &str, held: Result<(), String>) -> bool {
    match held {
        Ok(()) => true,
        Err(why) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
            println!("SKIPPED {test}: {why}");
            false
        }
    }
}

/// A file that was allocated and never written: reading it does not touch the device.
fn unwritten(folder: &tempfile::TempDir, name: &str) -> File {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = options.open(folder.path().join(name)).expect("created");
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, 1 << 20) }, 0);
    file
}

/// Writes by a ring that polls the device, and by the others, since this was last asked.
fn writes(executor: &LocalExecutor) -> (u64, u64) {
    let stats = executor.run(async { ::glommio::executor().io_stats() });
    let polled = stats.poll_ring.file_writes().0;
    (polled, stats.all_rings().file_writes().0 - polled)
}

/// Ends what the driver has in flight and returns how it ended.
fn finish(driver: &mut Glommio) -> Vec<Outcome> {
    let mut news = Vec::new();
    while driver.shared.in_flight.get() > 0 {
        driver.poll(Wait::News, &mut news).expect("polls");
    }
    let outcome = |event| match event {
        Event::Completed { outcome, .. } => Some(outcome),
        Event::Ready { .. } => None,
    };
    news.into_iter().filter_map(outcome).collect()
}

#[test]
fn no_device_is_polled_even_if_its_first_file_was_never_written() {
    let test = "no_device_is_polled_even_if_its_first_file_was_never_written";
    if !holds(test, probe_glommio()) {
        return;
    }
    let here = std::env::current_exe().expect("this program is a file");
    let folder = tempfile::tempdir_in(here.parent().expect("in a folder")).expect("made");
    // What is known of a device is kept for each thread: a thread for each part.
    let path = folder.path().join("alone");
    drop(unwritten(&folder, "alone"));
    let alone = thread::spawn(move || {
        let executor = LocalExecutor::default();
        executor.run(async {
            let file = OpenOptions::new().write(true).read(true).dma_open(path).await;
            let file = file.expect("opened");
            file.write_at(file.alloc_dma_buffer(ALIGN), 0).await.expect("written");
            file.close().await.expect("closed");
        });
        writes(&executor)
    });
    let held = match alone.join().expect("the thread ends") {
        (1, 0) => Ok(()),
        other => Err(format!("alone, too, glommio polls nothing: {other:?}")),
    };
    if !holds(test, held) {
        return;
    }

    let file = unwritten(&folder, "driven");
    let driven = thread::spawn(move || {
        let doorbell = Doorbell::new().expect("an eventfd");
        let mut driver = Glommio::new(&config(), &doorbell).expect("starts");
        let pool = BufferPool::new(ALIGN, ALIGN);
        let buffer = pool.try_get(ALIGN).expect("within the budget");
        let request = Request {
            kind: Kind::WriteDurable,
            descriptor: file.as_raw_fd(),
            memory: buffer.memory(),
            bytes: ALIGN as u32,
            position: 0,
        };
        for index in 0..10 {
            let token = Token { index, generation: 1 };
            // SAFETY: buffer and file are there until the driver is done, below.
            unsafe { driver.submit(token, request) };
        }
        assert_eq!(finish(&mut driver), [Outcome::Done; 10]);
        writes(&driver.executor)
    });
    assert_eq!(driven.join().expect("the thread ends"), (0, 10));
}

/// Rounds on a thread of its own; how many there were when no more came.
fn rounds(count: u32, quiet: Duration, run: impl FnOnce(&dyn Fn()) + Send + 'static) -> u32 {
    let done = Arc::new(AtomicU32::new(0));
    let (told, ended) = mpsc::channel();
    let there = done.clone();
    // Not joined: if it sleeps for good, it does so until the program ends.
    thread::spawn(move || {
        run(&|| {
            there.fetch_add(1, Ordering::Relaxed);
        });
        told.send(()).expect("somebody waits");
    });
    let mut before = 0;
    while ended.recv_timeout(quiet).is_err() {
        let now = done.load(Ordering::Relaxed);
        if now == before || now == count {
            break;
        }
        before = now;
    }
    done.load(Ordering::Relaxed)
}

/// A core that another thread is busy on. Who works there too is kept from running every few
/// milliseconds, at any point of what it does.
struct BusyCore {
    over: Arc<AtomicBool>,
    busy: Option<thread::JoinHandle<()>>,
}

impl BusyCore {
    fn new(core: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let busy = thread::spawn(move || {
            cpu::pin_current(core).expect("one of ours");
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { over, busy: Some(busy) }
    }
}

impl Drop for BusyCore {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It has nothing to panic with.
        let _ = self.busy.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn glommio_does_not_sleep_for_good_beside_work() {
    let test = "glommio_does_not_sleep_for_good_beside_work";
    if !holds(test, probe_glommio()) {
        return;
    }
    const ALONE: u32 = 100_000;
    const DRIVEN: u32 = 200;
    let core = *cpu::available_cores().last().expect("there is one");
    let _busy = BusyCore::new(core);
    let mut slept_alone = false;
    for preempt in PREEMPT_US.map(Duration::from_micros) {
        let alone = rounds(ALONE, Duration::from_secs(1), move |done| {
            cpu::pin_current(core).expect("one of ours");
            let builder = LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(preempt);
            let executor = builder.make().expect("starts");
            for _ in 0..ALONE {
                executor.run(async { spawn_local(async {}).await });
                done();
            }
        });
        slept_alone |= alone < ALONE;
        // A round may take a beat; that it takes none is not promised.
        let driven = rounds(DRIVEN, Duration::from_secs(2), move |done| {
            cpu::pin_current(core).expect("one of ours");
            let doorbell = Doorbell::new().expect("an eventfd");
            let preempted = |builder: LocalExecutorBuilder| builder.preempt_timer(preempt);
            let mut driver = Glommio::with(&config(), &doorbell, preempted).expect("starts");
            for _ in 0..DRIVEN {
                driver.run(Wait::No).expect("runs");
                done();
            }
        });
        println!("{preempt:?}: alone {alone} of {ALONE} rounds, driven {driven} of {DRIVEN}");
        if slept_alone && driven == DRIVEN {
            return;
        }
    }
    assert!(!slept_alone, "with the driver, too, glommio sleeps beside work for good");
    holds(test, Err("alone, too, glommio does not sleep beside work".to_owned()));
}

#[test]
fn a_panic_of_glommio_is_an_error_afterwards_and_no_wait_without_end() {
    if !holds("a_panic_of_glommio_is_an_error_afterwards", probe_glommio()) {
        return;
    }
    let doorbell = Doorbell::new().expect("an eventfd");
    let mut driver = Glommio::new(&config(), &doorbell).expect("starts");
    driver.shared.in_flight.set(1);
    let panics = || driver.work(async { panic!("meant to") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    let error = driver.poll(Wait::News, &mut Vec::new()).expect_err("its task is gone");
    assert!(error.to_string().contains("panicked"), "{error}");
}

//! Files: what is written is there, whatever becomes of the future that wrote it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustmq_sys::buffer::{ALIGN, BufferPool, Slice};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_sys::runtime::{self, Class, RuntimeConfig, spawn};

use super::{backends, config, file_of, folder, on_each, on_each_that_writes, pool, write_block};

#[test]
fn what_was_written_durably_is_read_back() {
    on_each_that_writes(async || {
        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 8).await;
        assert_eq!(file.bytes(), 8 * ALIGN as u64);
        for block in 0..8u8 {
            write_block(&file, &pool, u64::from(block) * ALIGN as u64, block + 1).await;
        }
        let again = fs::open(folder.path().join("file")).await.expect("opened");
        assert_eq!(again.bytes(), file.bytes());
        drop(file);
        let buffer = pool.try_get(8 * ALIGN).expect("within the budget");
        let (read, buffer) = again.read(buffer, 0, 8 * ALIGN).await;
        assert_eq!(read.expect("read"), 8 * ALIGN);
        for (block, bytes) in buffer[..8 * ALIGN].chunks(ALIGN).enumerate() {
            assert!(bytes.iter().all(|byte| usize::from(*byte) == block + 1));
        }
        let stats = runtime::stats();
        assert!(stats.flushes == 8 || cfg!(feature = "fault-no-flush"), "{stats:?}");
        assert!(stats.turns > 0 && stats.enters > 0 && stats.busy_fraction() > 0.0, "{stats:?}");
        assert!(stats.operations > stats.flushes, "{stats:?}");
    });
}

#[test]
fn many_writes_in_flight_all_arrive() {
    on_each_that_writes(async || {
        let (folder, pool) = (folder(), BufferPool::new(64 << 20, 64 << 10));
        let file = file_of(folder.path(), 512).await;
        let left = Rc::new(Cell::new(500));
        let done = Rc::new(RefCell::new(None::<Waker>));
        // More than the ring and the file thread hold at once.
        for block in 0..500u64 {
            let (file, pool, left, done) = (file.clone(), pool.clone(), left.clone(), done.clone());
            spawn(Class::Foreground, async move {
                write_block(&file, &pool, block * ALIGN as u64, block as u8).await;
                left.set(left.get() - 1);
                if let Some(waker) = done.borrow_mut().take() {
                    waker.wake();
                }
            });
        }
        poll_fn(|context| {
            *done.borrow_mut() = Some(context.waker().clone());
            if left.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let buffer = pool.try_get(512 * ALIGN).expect("within the budget");
        let (read, buffer) = file.read(buffer, 0, 512 * ALIGN).await;
        assert_eq!(read.expect("read"), 512 * ALIGN);
        for (block, bytes) in buffer.chunks(ALIGN).take(500).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == block as u8), "block {block}");
        }
    });
}

#[test]
fn reading_past_the_end_gives_what_there_is() {
    on_each(async || {
        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 2).await;
        write_block(&file, &pool, ALIGN as u64, 9).await;
        let buffer = pool.try_get(4 * ALIGN).expect("within the budget");
        let (read, buffer) = file.read(buffer, ALIGN as u64, 4 * ALIGN).await;
        assert_eq!(read.expect("read"), ALIGN);
        assert!(buffer[..ALIGN].iter().all(|byte| *byte == 9));
        let (read, _) = file.read(buffer, 100 * ALIGN as u64, ALIGN).await;
        assert_eq!(read.expect("nothing is there"), 0);
    });
}

#[test]
fn names_are_created_listed_renamed_and_removed() {
    on_each(async || {
        let folder = folder();
        let inner = folder.path().join("a/b");
        fs::create_dir(&inner).await.expect("made");
        fs::create_dir(&inner).await.expect("there already");
        fs::create(inner.join("one"), 0).await.expect("created");
        let error = fs::create(inner.join("one"), 0).await.expect_err("exists");
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        fs::create(inner.join("two"), 4096).await.expect("created");
        fs::rename(inner.join("one"), inner.join("three")).await.expect("renamed");
        fs::sync_dir(&inner).await.expect("flushed");
        assert_eq!(fs::list(&inner).await.expect("listed"), ["three", "two"]);
        fs::remove(inner.join("two")).await.expect("removed");
        assert_eq!(fs::list(&inner).await.expect("listed"), ["three"]);
        assert!(fs::open(inner.join("two")).await.is_err());
        assert!(fs::list(inner.join("no")).await.is_err());
        let error = fs::create(inner.join("huge"), i64::MAX as u64).await.expect_err("no space");
        assert!(!error.to_string().is_empty());
        assert_eq!(fs::list(&inner).await.expect("listed"), ["three"], "nothing is left behind");
    });
}

#[test]
fn a_write_to_a_full_device_or_a_wrong_file_is_an_error() {
    on_each_that_writes(async || {
        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 1).await;
        let far = (i64::MAX as u64 / ALIGN as u64) * ALIGN as u64;
        let data = pool.try_get(ALIGN).expect("within the budget").split_to(ALIGN);
        file.write_durable(data.clone(), far).await.expect_err("past every file system's end");
        file.write(data, far).await.expect_err("past every file system's end");
    });
}

/// Whether a file may be so long. Other errors than that it may not come under load, and are tried again.
async fn fits(file: &File, data: Slice, position: u64) -> bool {
    const TRIES: usize = 100;
    let mut latest = None;
    for _ in 0..TRIES {
        match file.write(data.clone(), position).await {
            Ok(()) => return true,
            Err(error) => match error.raw_os_error() {
                Some(libc::EFBIG | libc::EINVAL | libc::EOVERFLOW) => return false,
                _ => latest = Some(error),
            },
        }
        runtime::sleep(Duration::from_millis(1)).await;
    }
    panic!("writing at {position}: {latest:?}");
}

#[test]
fn a_short_write_is_completed_or_reported() {
    on_each_that_writes(async || {
        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 1).await;
        let data = pool.try_get(2 * ALIGN).expect("within the budget").split_to(2 * ALIGN);
        // Find where the file system ends: a write across it is short, and the rest is refused.
        let (mut there, mut past) = (0, i64::MAX as u64 / ALIGN as u64);
        while there + 1 < past {
            let middle = there + (past - there) / 2;
            match fits(&file, data.slice(0..ALIGN), middle * ALIGN as u64).await {
                true => there = middle,
                false => past = middle,
            }
        }
        let end = there * ALIGN as u64;
        file.write_durable(data.slice(0..ALIGN), end).await.expect("the last block there is");
        file.write_durable(data.clone(), end).await.expect_err("half of it does not fit");
        file.write(data, end).await.expect_err("half of it does not fit");
    });
}

#[test]
fn a_dropped_future_leaves_its_buffer_until_the_kernel_is_done() {
    on_each_that_writes(async || {
        // Enough for all rounds, should the kernel be done with none of them in time.
        let (folder, pool) = (folder(), BufferPool::new(16 << 20, 64 << 10));
        let file = file_of(folder.path(), 64).await;
        for round in 0..50u64 {
            let mut buffer = pool.try_get(ALIGN).expect("within the budget");
            buffer[..ALIGN].fill(7);
            let data = buffer.split_to(ALIGN);
            drop(buffer);
            let position = round * ALIGN as u64;
            {
                let mut write = pin!(file.write_durable(data, position));
                let mut read = pin!(file.read(
                    pool.try_get(ALIGN).expect("within the budget"),
                    position,
                    ALIGN
                ));
                poll_fn(|context| {
                    assert!(write.as_mut().poll(context).is_pending());
                    assert!(read.as_mut().poll(context).is_pending());
                    Poll::Ready(())
                })
                .await;
                assert!(pool.used_bytes() > 0);
            }
            if round % 2 == 0 {
                runtime::sleep(Duration::from_micros(50)).await;
            }
        }
        let end = Instant::now() + Duration::from_secs(20);
        while pool.used_bytes() > 0 {
            assert!(Instant::now() < end, "{} bytes never came back", pool.used_bytes());
            runtime::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn run_returns_with_operations_in_flight_and_frees_their_buffers() {
    for backend in backends() {
        let (folder, pool) = (folder(), pool());
        let doorbell = Doorbell::new().expect("an eventfd");
        let answer = runtime::run(config(backend), doorbell, async {
            let file = file_of(folder.path(), 64).await;
            for block in 0..40 {
                let (file, pool) = (file.clone(), pool.clone());
                spawn(Class::Fetch, async move {
                    write_block(&file, &pool, block * ALIGN as u64, 1).await;
                    runtime::sleep(Duration::from_secs(1000)).await;
                });
            }
            spawn(Class::Background, async { runtime::doorbell_rung().await });
            runtime::yield_now().await;
            runtime::yield_now().await;
            42
        });
        assert_eq!(answer.expect("the runtime starts"), 42);
        assert_eq!(pool.used_bytes(), 0);
    }
}

#[test]
fn a_panic_leaves_nothing_in_the_kernels_hands() {
    for backend in backends() {
        let (folder, pool) = (folder(), pool());
        let there = pool.clone();
        let folder = folder.path().to_owned();
        std::fs::create_dir_all(&folder).expect("made");
        let thread = std::thread::spawn(move || {
            let doorbell = Doorbell::new().expect("an eventfd");
            let _ = runtime::run(config(backend), doorbell, async {
                let file = file_of(&folder, 64).await;
                for block in 0..20 {
                    let (file, pool) = (file.clone(), there.clone());
                    spawn(Class::Foreground, async move {
                        write_block(&file, &pool, block * ALIGN as u64, 1).await;
                    });
                }
                runtime::yield_now().await;
                panic!("meant to");
            });
        });
        assert!(thread.join().is_err());
        assert_eq!(pool.used_bytes(), 0);
    }
}

#[test]
fn a_flush_delay_slows_flushes_and_nothing_else() {
    if cfg!(feature = "fault-no-flush") {
        return;
    }
    for backend in backends() {
        let config =
            RuntimeConfig { flush_delay: Some(Duration::from_millis(30)), ..config(backend) };
        let doorbell = Doorbell::new().expect("an eventfd");
        runtime::run(config, doorbell, async {
            let (folder, pool) = (folder(), pool());
            let file = file_of(folder.path(), 1).await;
            let start = Instant::now();
            write_block(&file, &pool, 0, 1).await;
            assert!(start.elapsed() >= Duration::from_millis(30));
            file.flush().await.expect("flushed");
            assert!(start.elapsed() >= Duration::from_millis(60));
        })
        .expect("the runtime starts");
    }
}

#[test]
fn no_file_is_taken_for_another_one() {
    on_each(async || {
        let (folder, pool) = (folder(), pool());
        // Each is given the descriptor of the one before, as soon as that is closed.
        for number in 0..40u8 {
            let path = folder.path().join(number.to_string());
            let file = fs::create(&path, 2 * ALIGN as u64).await.expect("created");
            write_block(&file, &pool, 0, number).await;
            if number % 2 == 1 {
                // And the number of the inode, if nobody holds it any more.
                fs::remove(path).await.expect("removed");
            }
            write_block(&file, &pool, ALIGN as u64, number).await;
        }
        for number in (0..40u8).step_by(2) {
            let file = fs::open(folder.path().join(number.to_string())).await.expect("opened");
            let buffer = pool.try_get(2 * ALIGN).expect("within the budget");
            let (read, buffer) = file.read(buffer, 0, 2 * ALIGN).await;
            assert_eq!(read.expect("read"), 2 * ALIGN);
            assert!(buffer[..2 * ALIGN].iter().all(|byte| *byte == number), "file {number}");
        }
    });
}

#[test]
fn a_removed_file_is_let_go_of() {
    on_each(async || {
        let (folder, pool) = (folder(), pool());
        let path = folder.path().join("removed");
        let file = fs::create(&path, ALIGN as u64).await.expect("created");
        write_block(&file, &pool, 0, 1).await;
        fs::remove(&path).await.expect("removed");
        drop(file);
        let still_open = || {
            let links = std::fs::read_dir("/proc/self/fd").expect("the kernel lists them");
            let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
            targets.filter(|target| target.starts_with(folder.path())).count()
        };
        let end = Instant::now() + Duration::from_secs(20);
        while still_open() > 0 {
            assert!(Instant::now() < end, "{} descriptors of it stay open", still_open());
            runtime::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// What `fault-no-flush` must make fail: the device itself counts.
#[test]
fn every_durable_write_and_every_flush_flushes_the_device() {
    let Ok(storage) = rustmq_sys::probe::storage(env!("CARGO_TARGET_TMPDIR")) else { return };
    let Some(device) = storage.device.filter(|it| it.volatile_cache == Some(true)) else {
        eprintln!("leaving out: the device needs no flushes, or does not tell");
        return;
    };
    on_each_that_writes(async || {
        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 1).await;
        write_block(&file, &pool, 0, 1).await;
        let Some(before) = device.flushes() else { return };
        for _ in 0..200 {
            write_block(&file, &pool, 0, 2).await;
        }
        let written = device.flushes().expect("counted before, too");
        assert!(written - before >= 200, "{} flushes for 200 writes", written - before);
        for _ in 0..10 {
            file.flush().await.expect("flushed");
        }
    });
}

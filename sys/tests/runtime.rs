//! One suite for all drivers. Each test runs under each of them; where io_uring is not usable the runs
//! under it are left out by name, except under `CI=true`, where that fails. glommio is one of them
//! with the feature of that name.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustmq_sys::buffer::{ALIGN, BufferPool, Slice};
use rustmq_sys::channel::channel;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::file::File;
use rustmq_sys::runtime::{
    self, Backend, Class, FlushPlan, Polling, RuntimeConfig, TaskPool, spawn,
};
use rustmq_sys::udp::{DatagramMeta, ReceiveBuffers, Transmit, UdpSocket};
use rustmq_sys::{clock, fs};

fn config(backend: Backend) -> RuntimeConfig {
    RuntimeConfig::new(backend)
}

fn backends() -> Vec<Backend> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut backends = vec![Backend::Epoll];
    let mut more = vec![Backend::Uring];
    if cfg!(feature = "glommio") {
        more.push(Backend::Glommio);
    }
    for backend in more {
        match runtime::probe(backend) {
            Ok(()) => backends.push(backend),
            Err(reason) if ci => panic!("CI must test {backend}: {reason}"),
            Err(reason) => eprintln!("leaving out {backend}: {reason}"),
        }
    }
    backends
}

const POLLINGS: [Polling; 3] = [Polling::Sleep, Polling::Adaptive, Polling::Busy];

/// Runs the future of `main` under each driver, sleeping or not when there is nothing to do.
fn on_each<F: Future<Output = ()>>(main: impl Fn() -> F) {
    for polling in POLLINGS {
        on_each_that(polling, &main);
    }
}

fn on_each_that<F: Future<Output = ()>>(polling: Polling, main: impl Fn() -> F) {
    for backend in backends() {
        eprintln!("on {backend}, {polling:?}");
        let doorbell = Doorbell::new().expect("an eventfd");
        let config = RuntimeConfig { polling, ..config(backend) };
        runtime::run(config, doorbell, main()).expect("the runtime starts");
    }
}

/// The same, writing through the device's cache as well.
fn on_each_that_writes<F: Future<Output = ()>>(main: impl Fn() -> F) {
    on_each(&main);
    for backend in backends() {
        let doorbell = Doorbell::new().expect("an eventfd");
        let config = RuntimeConfig { flush_plan: FlushPlan::WriteThrough, ..config(backend) };
        runtime::run(config, doorbell, main()).expect("the runtime starts");
    }
}

/// On the disk that the build uses: a temporary folder may be memory.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made")
}

fn pool() -> BufferPool {
    BufferPool::new(4 << 20, 64 << 10)
}

async fn write_block(file: &File, pool: &BufferPool, position: u64, fill: u8) {
    let mut buffer = pool.try_get(ALIGN).expect("within the budget");
    let mut slice = buffer.split_to(0);
    assert!(slice.is_empty());
    buffer[..ALIGN].fill(fill);
    slice = buffer.split_to(ALIGN);
    file.write_durable(slice, position).await.expect("written");
}

async fn file_of(folder: &Path, blocks: u64) -> File {
    fs::create(folder.join("file"), blocks * ALIGN as u64).await.expect("created")
}

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
fn timers_fire_in_the_order_of_their_moments() {
    on_each(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = clock::now();
        for milliseconds in [30u64, 10, 20, 0, 10] {
            let order = order.clone();
            spawn(Class::Foreground, async move {
                runtime::sleep_until(start + Duration::from_millis(milliseconds)).await;
                assert!(clock::now() >= start + Duration::from_millis(milliseconds));
                order.borrow_mut().push(milliseconds);
            });
        }
        // Dropped before it fires: no trace of it.
        {
            let mut never = pin!(runtime::sleep(Duration::from_millis(1)));
            poll_fn(|context| {
                assert!(never.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        runtime::sleep(Duration::from_millis(50)).await;
        assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
    });
}

#[test]
fn foreground_goes_first_and_background_is_not_starved() {
    on_each(async || {
        // Mostly: where others use this core, a slice may be over before the first task.
        let mut in_order = 0;
        for _ in 0..9 {
            let order = Rc::new(RefCell::new(Vec::new()));
            for class in [Class::Background, Class::Fetch, Class::Foreground] {
                let order = order.clone();
                spawn(class, async move { order.borrow_mut().push(class) });
            }
            runtime::sleep(Duration::from_millis(1)).await;
            let expected = [Class::Foreground, Class::Fetch, Class::Background];
            in_order += u32::from(*order.borrow() == expected);
        }
        assert!(in_order >= 5, "{in_order} of 9 times in the order of their classes");

        // A hungry foreground leaves one turn in each round to the others.
        let (stop, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new([0u32; 3])));
        for class in [Class::Background, Class::Fetch, Class::Foreground] {
            let (stop, turns) = (stop.clone(), turns.clone());
            spawn(class, async move {
                while !stop.get() {
                    while !runtime::need_preempt() {
                        std::hint::spin_loop();
                    }
                    let mut now = turns.get();
                    now[class as usize] += 1;
                    turns.set(now);
                    runtime::yield_now().await;
                }
            });
        }
        runtime::sleep(Duration::from_millis(20)).await;
        stop.set(true);
        assert!(turns.get().into_iter().all(|turns| turns > 3), "{:?}", turns.get());
    });
}

#[test]
fn background_work_delays_the_foreground_by_slices_only() {
    on_each(async || {
        let stop = Rc::new(Cell::new(false));
        for _ in 0..4 {
            let stop = stop.clone();
            spawn(Class::Background, async move {
                while !stop.get() {
                    while !runtime::need_preempt() {
                        std::hint::spin_loop();
                    }
                    runtime::yield_now().await;
                }
            });
        }
        let mut late: Vec<_> = Vec::new();
        for _ in 0..50 {
            let due = Instant::now() + Duration::from_micros(300);
            runtime::sleep_until(due).await;
            late.push(due.elapsed());
        }
        stop.set(true);
        late.sort_unstable();
        // Two slices; a lot more is allowed to a machine that is busy with other things.
        assert!(late[25] < Duration::from_millis(5), "{:?}", late[25]);
    });
}

#[test]
fn background_work_delays_news_by_turns_and_not_until_a_timer_of_the_runtime() {
    on_each(async || {
        let (stop, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0u32)));
        let (stopped, counted) = (stop.clone(), turns.clone());
        spawn(Class::Background, async move {
            while !stopped.get() {
                while !runtime::need_preempt() {
                    std::hint::spin_loop();
                }
                counted.set(counted.get() + 1);
                runtime::yield_now().await;
            }
        });
        // The median: that this thread was kept from running now and then says nothing.
        let median = |mut counts: Vec<u32>| {
            counts.sort_unstable();
            counts[counts.len() / 2]
        };

        let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), 1 << 20);
        let socket = socket.expect("bound");
        let address = socket.local_addr().expect("has one");
        let mut buffers = ReceiveBuffers::new(1 << 20);
        let mut waited = Vec::new();
        for _ in 0..51 {
            while socket.recv_trains(&mut buffers, |_, _| ()).expect("works") > 0 {}
            let before = turns.get();
            send(&socket, address, b"hello", 5).await;
            socket.readable().await;
            waited.push(turns.get() - before);
        }
        // One to hand over, one to be told, and as many again to spare.
        let datagrams = median(waited);
        assert!(datagrams <= 4, "{datagrams} background turns before a datagram was seen");

        let (folder, pool) = (folder(), pool());
        let file = file_of(folder.path(), 1).await;
        let mut waited = Vec::new();
        for _ in 0..21 {
            let before = turns.get();
            write_block(&file, &pool, 0, 1).await;
            waited.push(turns.get() - before);
        }
        stop.set(true);
        // A tenth of a second is 2,000 turns; a disk takes far less.
        let writes = median(waited);
        assert!(writes < 1000, "{writes} background turns before a write was durable");
    });
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

#[test]
fn a_doorbell_wakes_the_runtime_from_another_thread() {
    const COUNT: u64 = 20_000;
    for backend in backends() {
        let doorbell = Doorbell::new().expect("an eventfd");
        let bell = doorbell.bell();
        let (mut sender, mut receiver) = channel(128);
        let pushing = std::thread::spawn(move || {
            let mut waiting = VecDeque::new();
            for value in 0..COUNT {
                waiting.push_back(value);
                if value % 7 == 0 {
                    sender.push_batch(&mut waiting);
                    bell.ring();
                }
                if value % 1000 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
            while !waiting.is_empty() {
                sender.push_batch(&mut waiting);
                bell.ring();
                std::thread::yield_now();
            }
        });
        runtime::run(config(backend), doorbell, async {
            let mut next = 0;
            while next < COUNT {
                while let Some(value) = receiver.try_pop() {
                    assert_eq!(value, next);
                    next += 1;
                }
                if next < COUNT {
                    runtime::doorbell_rung().await;
                }
            }
        })
        .expect("the runtime starts");
        pushing.join().expect("the pushing thread ends");
    }
}

#[test]
fn a_waker_works_on_another_thread_and_after_the_runtime() {
    for backend in backends() {
        let (send, receive) = std::sync::mpsc::channel::<Waker>();
        let woken = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let there = woken.clone();
        let waking = std::thread::spawn(move || {
            let mut kept = Vec::new();
            for waker in receive {
                there.fetch_add(1, std::sync::atomic::Ordering::Release);
                waker.wake_by_ref();
                kept.push(waker);
            }
            kept
        });
        let doorbell = Doorbell::new().expect("an eventfd");
        runtime::run(config(backend), doorbell, async {
            for round in 0..200 {
                let mut sent = false;
                poll_fn(|context| {
                    if !std::mem::replace(&mut sent, true) {
                        send.send(context.waker().clone()).expect("the thread is there");
                    }
                    if woken.load(std::sync::atomic::Ordering::Acquire) > round {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
            }
        })
        .expect("the runtime starts");
        drop(send);
        let kept = waking.join().expect("the waking thread ends");
        assert_eq!(kept.len(), 200);
        kept.into_iter().for_each(Waker::wake);
    }
}

#[test]
fn a_pooled_task_starts_at_once_and_its_memory_is_used_again() {
    on_each(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let addresses = Rc::new(RefCell::new(Vec::new()));
        let pool = TaskPool::new(Class::Foreground);
        let task = |number: u32| {
            let (order, addresses) = (order.clone(), addresses.clone());
            async move {
                let here = number;
                addresses.borrow_mut().push((&raw const here).addr());
                order.borrow_mut().push((here, "first"));
                if number % 2 == 1 {
                    runtime::yield_now().await;
                    order.borrow_mut().push((here, "second"));
                }
            }
        };
        for number in 0..4 {
            pool.spawn(task(number));
            assert_eq!(order.borrow().last(), Some(&(number, "first")), "polled at once");
        }
        runtime::yield_now().await;
        assert_eq!(order.borrow()[4..], [(1, "second"), (3, "second")]);
        for number in 4..100 {
            pool.spawn(task(number));
            runtime::yield_now().await;
        }
        addresses.borrow_mut().sort_unstable();
        addresses.borrow_mut().dedup();
        assert!(addresses.borrow().len() <= 3, "{} places for 100 tasks", addresses.borrow().len());
    });
}

#[test]
fn a_pooled_task_may_spawn_on_its_own_pool_as_it_ends() {
    type Boxed = std::pin::Pin<Box<dyn Future<Output = ()>>>;
    struct AtEnd(TaskPool<Boxed>, Rc<Cell<u32>>);
    impl Drop for AtEnd {
        fn drop(&mut self) {
            if self.1.get() < 5 {
                self.1.set(self.1.get() + 1);
                let next = AtEnd(self.0.clone(), self.1.clone());
                self.0.spawn(Box::pin(async move {
                    let _next = next;
                    runtime::yield_now().await;
                }));
            }
        }
    }
    on_each(async || {
        let (pool, count) = (TaskPool::new(Class::Foreground), Rc::new(Cell::new(0)));
        drop(AtEnd(pool, count.clone()));
        runtime::sleep(Duration::from_millis(2)).await;
        assert_eq!(count.get(), 5);
    });
}

#[test]
fn datagrams_go_around_in_trains() {
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let server = UdpSocket::bind(localhost, 1 << 20).expect("bound");
        let client = UdpSocket::bind(localhost, 1 << 20).expect("bound");
        let address = server.local_addr().expect("has one");
        assert!(server.buffer_bytes().expect("known").0 > 0);
        spawn(Class::Foreground, async move {
            let mut buffers = ReceiveBuffers::new(4 << 20);
            loop {
                server.readable().await;
                let mut echoes = Vec::new();
                while server.recv_trains(&mut buffers, |m, b| echoes.push((m, b))).expect("works")
                    > 0
                {}
                for (meta, train) in echoes {
                    send(&server, meta.remote, &train, meta.stride).await;
                }
            }
        });
        let mut buffers = ReceiveBuffers::new(256 << 10);
        for (segments, length) in [(1, 1200), (10, 1200), (3, 100), (1, 0), (40, 1200)] {
            let segments = segments.min(client.max_gso_segments());
            let contents: Vec<u8> = (0..segments * length).map(|index| (index / 7) as u8).collect();
            send(&client, address, &contents, length).await;
            let mut received: Vec<u8> = Vec::new();
            let mut trains = 0;
            while received.len() < contents.len() || trains == 0 {
                client.readable().await;
                client
                    .recv_trains(&mut buffers, |meta: DatagramMeta, train| {
                        assert_eq!((meta.remote, meta.len), (address, train.len()));
                        assert!(meta.stride <= length.max(1) && meta.stride > 0);
                        assert_eq!(meta.local_ip, Some(address.ip()));
                        received.extend_from_slice(&train);
                        trains += 1;
                    })
                    .expect("works");
            }
            assert_eq!(received, contents);
            assert!(trains <= segments.max(1));
        }
    });
}

async fn send(socket: &UdpSocket, destination: std::net::SocketAddr, contents: &[u8], size: usize) {
    let segment_size = (contents.len() > size).then_some(size);
    let transmit = Transmit { destination, ecn: 2, contents, segment_size, src_ip: None };
    while !socket.try_send(&transmit).expect("works") {
        socket.writable().await;
    }
}

#[test]
fn receive_buffers_keep_to_their_budget_and_come_back() {
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let server = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let client = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let address = server.local_addr().expect("has one");
        let mut buffers = ReceiveBuffers::new(4 * 64 * 1024);
        for _ in 0..5 {
            let mut kept = Vec::new();
            for fill in 0..12u8 {
                send(&client, address, &[fill; 3000], 3000).await;
                while kept.len() <= usize::from(fill) {
                    server.readable().await;
                    server.recv_trains(&mut buffers, |_, train| kept.push(train)).expect("works");
                }
            }
            assert!(buffers.handed_out_bytes() < 4 * 64 * 1024);
            for (fill, train) in kept.iter().enumerate() {
                assert!(train.len() == 3000 && train.iter().all(|byte| usize::from(*byte) == fill));
            }
        }
    });
}

#[test]
fn a_byte_kept_of_each_train_costs_no_more_than_its_datagram() {
    const BUFFERS: usize = 3;
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let server = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let client = UdpSocket::bind(localhost, 4 << 20).expect("bound");
        let address = server.local_addr().expect("has one");
        let mut buffers = ReceiveBuffers::new(BUFFERS * 64 * 1024);
        let (mut in_buffers, mut copies, mut received) = (Vec::new(), Vec::new(), 0);
        for round in 1..=20 {
            send(&client, address, &[7; 40 * 1200], 1200).await;
            while received < round * 40 * 1200 {
                server.readable().await;
                server
                    .recv_trains(&mut buffers, |meta, mut train| {
                        assert_eq!(train.len(), meta.len);
                        received += meta.len;
                        let kept = match meta.len {
                            0..=1200 => &mut copies,
                            _ => &mut in_buffers,
                        };
                        kept.push(train.split_to(1));
                    })
                    .expect("works");
            }
        }
        assert!(in_buffers.len() < BUFFERS, "{} trains are pinned", in_buffers.len());
        let pinned: usize = copies.iter().map(|kept| kept.capacity()).sum();
        assert!(pinned <= 20 * 40 * 1200, "{pinned} bytes are pinned by copies");
        assert!(18 * 40 <= copies.len(), "{} copies", copies.len());
    });
}

#[test]
fn a_lost_datagram_counts_as_sent() {
    on_each(async || {
        let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), 1 << 20);
        let socket = socket.expect("bound");
        send(&socket, "127.0.0.1:9".parse().expect("an address"), &[0; 65_507], 65_507).await;
        // Too long, and not reachable from this address.
        send(&socket, "127.0.0.1:9".parse().expect("an address"), &vec![0; 70_000], 70_000).await;
        send(&socket, "192.0.2.1:9".parse().expect("an address"), b"x", 1).await;
    });
}

#[test]
fn a_socket_that_waits_for_room_is_told() {
    on_each(async || {
        let localhost = "127.0.0.1:0".parse().expect("an address");
        let (receiver, sender) =
            (UdpSocket::bind(localhost, 4096).expect("bound"), UdpSocket::bind(localhost, 4096));
        let (sender, address) = (sender.expect("bound"), receiver.local_addr().expect("has one"));
        for _ in 0..2000 {
            send(&sender, address, &[1; 1200], 1200).await;
        }
        sender.writable().await;
    });
}

#[test]
fn one_socket_serves_one_runtime_after_the_other() {
    let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("an address"), 1 << 20);
    let socket = socket.expect("bound");
    let address = socket.local_addr().expect("has one");
    let mut buffers = ReceiveBuffers::new(1 << 20);
    assert_eq!(socket.recv_trains(&mut buffers, |_, _| ()).expect("works outside, too"), 0);
    for backend in backends() {
        for _ in 0..2 {
            let doorbell = Doorbell::new().expect("an eventfd");
            runtime::run(config(backend), doorbell, async {
                send(&socket, address, b"hello", 5).await;
                let mut received = 0;
                while received == 0 {
                    socket.readable().await;
                    received = socket.recv_trains(&mut buffers, |_, _| ()).expect("works");
                }
            })
            .expect("the runtime starts");
        }
    }
}

#[test]
fn an_idle_runtime_sleeps() {
    for polling in [Polling::Sleep, Polling::Adaptive] {
        on_each_that(polling, async || {
            runtime::yield_now().await;
            let before = runtime::stats();
            runtime::sleep(Duration::from_millis(50)).await;
            let after = runtime::stats();
            assert!(after.turns - before.turns < 10, "{} turns", after.turns - before.turns);
            assert_eq!(after.polled, Duration::ZERO);
        });
    }
}

/// What a runtime hears while another thread rings every so often: how long it looked for that.
fn polled_while_rung(backend: Backend, polling: Polling, pause: Duration) -> Duration {
    const RINGS: usize = 300;
    let doorbell = Doorbell::new().expect("an eventfd");
    let bell = doorbell.bell();
    let (heard_by, heard) = std::sync::mpsc::sync_channel(1);
    let ringing = std::thread::spawn(move || {
        for _ in 0..RINGS {
            std::thread::sleep(pause);
            bell.ring();
            heard.recv().expect("each ring is heard");
        }
    });
    let config = RuntimeConfig { polling, ..config(backend) };
    let polled = runtime::run(config, doorbell, async {
        for _ in 0..RINGS {
            runtime::doorbell_rung().await;
            heard_by.send(()).expect("the other thread listens");
        }
        runtime::stats().polled
    });
    ringing.join().expect("the other thread ends");
    polled.expect("the runtime starts")
}

#[test]
fn news_are_looked_for_as_the_policy_says() {
    let (soon, late) = (Duration::from_micros(20), Duration::from_millis(2));
    for backend in backends() {
        let polled = |polling, pause| polled_while_rung(backend, polling, pause);
        assert_eq!(polled(Polling::Sleep, soon), Duration::ZERO);
        assert!(polled(Polling::Busy, late) > 300 * late / 2);
        // On a busy host a ring that was to come soon may come late, but not each time.
        assert!(polled(Polling::Adaptive, soon) > Duration::ZERO, "on {backend}");
        // Once in a while one comes soon after the last was heard.
        assert!(polled(Polling::Adaptive, late) < 300 * late / 10, "on {backend}");
    }
}

#[test]
fn a_pinned_runtime_works_beside_its_kernel_threads() {
    let core = *rustmq_sys::cpu::available_cores().last().expect("there is one");
    for backend in backends() {
        std::thread::spawn(move || {
            let doorbell = Doorbell::new().expect("an eventfd");
            let config = RuntimeConfig { core: Some(core), ..config(backend) };
            runtime::run(config, doorbell, async {
                let (folder, pool) = (folder(), pool());
                let file = file_of(folder.path(), 8).await;
                for block in 0..8 {
                    write_block(&file, &pool, block * ALIGN as u64, 3).await;
                }
                file.flush().await.expect("flushed");
            })
            .expect("the runtime starts");
        })
        .join()
        .expect("the thread ends");
    }
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

#[test]
fn what_may_cross_threads_does() {
    fn crosses<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    crosses::<UdpSocket>();
    crosses::<rustmq_sys::buffer::Buffer>();
    crosses::<ReceiveBuffers>();
    is_shared::<Slice>();
    is_shared::<BufferPool>();
    is_shared::<Doorbell>();
    is_shared::<rustmq_sys::doorbell::Bell>();
    is_shared::<File>();
}

#[test]
fn names_of_backends_are_read_and_written() {
    for backend in [Backend::Uring, Backend::Epoll, Backend::Glommio] {
        assert_eq!(backend.to_string().parse(), Ok(backend));
    }
    let error = "kqueue".parse::<Backend>().expect_err("not one of ours");
    let known = "uring, epoll and glommio are known";
    assert_eq!(error.to_string(), format!("unknown runtime \"kqueue\": {known}"));
}

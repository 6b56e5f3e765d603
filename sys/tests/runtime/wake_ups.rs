//! Sleeping, looking for news, and being woken from other threads.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustmq_sys::buffer::ALIGN;
use rustmq_sys::channel::channel;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, Backend, Polling, RuntimeConfig};

use super::{backends, config, file_of, folder, on_each_that, pool, write_block};

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

/// What a runtime hears while another thread rings every so often: how long it looked for that. The
/// other thread pauses between a ring that was heard and the next one.
fn polled_while_rung(backend: Backend, polling: Polling, pause: fn()) -> Duration {
    const RINGS: usize = 300;
    let doorbell = Doorbell::new().expect("an eventfd");
    let bell = doorbell.bell();
    let (heard_by, heard) = std::sync::mpsc::sync_channel(1);
    let ringing = std::thread::spawn(move || {
        for _ in 0..RINGS {
            pause();
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
    const LATE: Duration = Duration::from_millis(2);
    let late = || std::thread::sleep(LATE);
    // Without sleeping, from which a busy machine may be late to wake.
    let soon = || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        }
    };
    for backend in backends() {
        let polled = |polling, pause| polled_while_rung(backend, polling, pause);
        assert_eq!(polled(Polling::Sleep, soon), Duration::ZERO);
        assert!(polled(Polling::Busy, late) > 300 * LATE / 2);
        // Where others use the cores a ring that was to come soon may come late, but not each time.
        assert!(polled(Polling::Adaptive, soon) > Duration::ZERO, "on {backend}");
        // Once in a while one comes soon after the last was heard.
        assert!(polled(Polling::Adaptive, late) < 300 * LATE / 10, "on {backend}");
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

//! In a steady state, spawning, waking, sleeping and writing allocate nothing.
#![allow(unsafe_code, reason = "counting allocations means to be the allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rustmq_sys::buffer::{ALIGN, BufferPool};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::fs;
use rustmq_sys::runtime::{self, Backend, Class, RuntimeConfig, TaskPool};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work; counting touches a number of this thread only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Queues grow until they have seen the most that ever comes at once, which a busy machine puts off:
/// so many times is looked for a stretch in which none grew. What is allocated for each write would
/// show in all of them.
const WINDOWS: usize = 10;

#[test]
fn a_steady_state_allocates_nothing() {
    let mut backends = vec![Backend::Epoll];
    if runtime::probe_uring().is_ok() {
        backends.push(Backend::Uring);
    }
    for backend in backends {
        let config = RuntimeConfig::new(backend);
        let doorbell = Doorbell::new().expect("an eventfd");
        runtime::run(config, doorbell, steady_state()).expect("the runtime starts");
    }
}

async fn steady_state() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = fs::create(folder.path().join("file"), ALIGN as u64).await.expect("created");
    let buffers = BufferPool::new(64 * ALIGN, ALIGN);
    let left = Rc::new(Cell::new(0u32));
    let tasks = TaskPool::new(Class::Foreground);
    let write = || {
        let (file, buffers, left) = (file.clone(), buffers.clone(), left.clone());
        async move {
            runtime::yield_now().await;
            let buffer = buffers.try_get(1).expect("the others came back");
            file.write_durable(buffer.freeze(), 0).await.expect("written");
            runtime::sleep(Duration::from_micros(10)).await;
            left.set(left.get() - 1);
        }
    };
    for _ in 0..WINDOWS {
        let before = ALLOCATIONS.get();
        for _ in 0..30 {
            left.set(8);
            for _ in 0..8 {
                tasks.spawn(write());
            }
            while left.get() > 0 {
                runtime::sleep(Duration::from_micros(50)).await;
            }
        }
        if ALLOCATIONS.get() == before {
            return;
        }
    }
    panic!("something was allocated in each of {WINDOWS} times 30 rounds of 8 durable writes");
}

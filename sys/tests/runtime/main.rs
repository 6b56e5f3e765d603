//! One suite for all drivers. Each test runs under each of them; where io_uring is not usable the runs
//! under it are left out by name, except under `CI=true`, where that fails. glommio is one of them
//! with the feature of that name.

mod datagrams;
mod disk;
mod tasks;
mod wake_ups;

use std::future::Future;
use std::path::Path;

use rustmq_sys::buffer::{ALIGN, BufferPool, Slice};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_sys::runtime::{self, Backend, FlushPlan, Polling, RuntimeConfig};
use rustmq_sys::udp::{ReceiveBuffers, UdpSocket};

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

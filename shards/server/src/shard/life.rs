//! A shard from its start to its end: it recovers, serves, and is drained or fails.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::file::{self, DiskFaults};
use rustmq_sys::runtime::{self, Class};

use super::{Shard, ShardSetup};
use crate::catalogue::{self, Catalogue};
use crate::endpoint::Endpoint;
use crate::error::ShardError;
use crate::mesh::{self, Mesh, MeshPort, Message};
use crate::reply::RequestError;
use crate::{housekeeping, subscribe};

/// Runs a shard on the calling thread until it is drained or fails.
pub fn run(setup: ShardSetup) -> Result<(), ShardError> {
    let settings = setup.runtime.clone();
    let (doorbell, life) = life(setup);
    runtime::run(settings, doorbell, life)
        .map_err(|error| ShardError::Runtime { error: error.to_string() })?
}

/// A shard's whole life, for whoever runs it on a runtime of their own, and the doorbell of that
/// runtime.
pub fn life(setup: ShardSetup) -> (Doorbell, impl Future<Output = Result<(), ShardError>>) {
    let ShardSetup { id, node, config, sockets, port, runtime: _ } = setup;
    let MeshPort { doorbell, senders, receivers, bells } = port;
    let test = &config.test;
    file::set_disk_faults(DiskFaults {
        write_fail_at: test.write_fail_at,
        flush_fail_at: test.flush_fail_at,
        flush_hang_at: test.flush_hang_at,
        flush_hang: Duration::from_millis(test.flush_hang_ms),
    });
    let life = async move {
        let mesh = Mesh::new(senders, receivers, bells);
        let shard = Rc::new(Shard::new(id, node, config, sockets, mesh));
        let _end = LifeEnd(Rc::clone(&shard));
        serve(&shard).await
    };
    (doorbell, life)
}

/// However a life ends, also when its owner drops it: sessions keep the shard that keeps their
/// connections, and nothing else would let go of either.
struct LifeEnd(Rc<Shard>);

impl Drop for LifeEnd {
    fn drop(&mut self) {
        self.0.endpoint.forget_all();
    }
}

/// The life of a shard, from recovery to its clean end.
async fn serve(shard: &Rc<Shard>) -> Result<(), ShardError> {
    runtime::spawn(Class::Foreground, mesh::receive_loop(Rc::clone(shard)));
    if let Some(catalogue) = &shard.catalogue {
        catalogue.start(shard).await?;
    }
    let boot = shard.boot.take().await;
    shard.recover(boot).await?;
    catalogue::booted(shard);
    shard.may_serve.notified().await;

    if shard.catalogue.is_some() {
        Catalogue::serve(shard);
    }
    Endpoint::start(shard);
    runtime::spawn(Class::Fetch, subscribe::serve_loop(Rc::clone(shard)));
    housekeeping::start(shard);
    shard.mesh.send_control(Message::Serving { shard: shard.id });
    let ended = shard.until_drained();
    let failed = shard.failure.take();
    let mut ended = std::pin::pin!(ended);
    let mut failed = std::pin::pin!(failed);
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        if let Poll::Ready(error) = failed.as_mut().poll(cx) {
            return Poll::Ready(Err(error));
        }
        ended.as_mut().poll(cx).map(Ok)
    })
    .await?;
    Endpoint::close(shard).await;
    Ok(())
}

impl Shard {
    /// Waits for the word to stop, then for everything in flight to be answered and durable.
    async fn until_drained(self: &Rc<Self>) {
        self.drain.notified().await;
        self.draining.set(true);
        self.partitions.borrow().wake_all();
        self.partitions.borrow().end_subscriptions(&RequestError::ShuttingDown);
        let wals = self.wals.borrow().clone();
        for wal in &wals {
            wal.close();
        }
        for wal in &wals {
            wal.closed().await;
        }
    }
}

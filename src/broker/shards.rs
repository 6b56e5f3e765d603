//! The threads of the shards, and the word of each one's end.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use anyhow::{Context, Result};
use rustmq_protocol::ShardId;
use rustmq_server::{ShardError, ShardSetup};
use tokio::sync::mpsc;

/// A shard's thread is over.
pub(super) struct Ended {
    pub(super) shard: ShardId,
    pub(super) result: Result<(), Failure>,
}

/// Why it ended before it was asked to.
pub(super) enum Failure {
    /// The shard said so.
    Error(ShardError),
    /// A bug of ours, with the panic's message.
    Panic(String),
}

/// Starts a thread for each shard. The receiver gets one message for each of them.
pub(super) fn start(setups: Vec<ShardSetup>) -> Result<mpsc::Receiver<Ended>> {
    let (sender, receiver) = mpsc::channel(setups.len().max(1));
    for setup in setups {
        let (shard, sender) = (setup.id, sender.clone());
        thread::Builder::new()
            .name(format!("shard-{shard}"))
            .spawn(move || {
                // What a shard owned is dropped with it; nobody looks at it after a panic.
                let outcome = catch_unwind(AssertUnwindSafe(|| rustmq_server::run(setup)));
                let result = match outcome {
                    Ok(result) => result.map_err(Failure::Error),
                    Err(payload) => Err(Failure::Panic(message(payload.as_ref()))),
                };
                // There is room for one message of each; a control thread that is gone has ended
                // the process.
                let _ = sender.try_send(Ended { shard, result });
            })
            .with_context(|| format!("starting the thread of shard {shard}"))?;
    }
    Ok(receiver)
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

//! An SDK client, and the runtime it needs.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustmq_client::{Client, ClientConfig, ClientError, NewTopic};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use super::process::PATIENCE;

/// The longest pause before a broker is dialled again.
const REDIAL_PAUSE: Duration = Duration::from_millis(100);

/// A runtime for clients: one thread, the test's own.
pub(crate) fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

/// A client of the broker in this directory, which dials quickly again when it is gone.
pub(crate) async fn connect(data_dir: &Path) -> Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut config = ClientConfig::from_dev_dir(data_dir)?;
        config.connect_timeout = Duration::from_secs(2);
        config.backoff_max = REDIAL_PAUSE;
        match Client::connect(config).await {
            // A machine that hangs for a while is not a broker that is gone.
            Err(ClientError::Connect { .. }) if Instant::now() < deadline => {
                sleep(REDIAL_PAUSE).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// Makes a topic, with a client of its own.
pub(crate) async fn create_topic(data_dir: &Path, topic: &str, partitions: u32) -> Result<()> {
    let client = connect(data_dir).await?;
    bounded("a topic", client.create_topic(NewTopic::new(topic, partitions))).await??;
    client.close().await;
    Ok(())
}

/// Deletes a topic, with a client of its own.
pub(crate) async fn delete_topic(data_dir: &Path, topic: &str) -> Result<()> {
    let client = connect(data_dir).await?;
    bounded("a deletion", client.delete_topic(topic)).await??;
    client.close().await;
    Ok(())
}

/// The outcome of a future that must not take for ever.
pub(crate) async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    let outcome = timeout(PATIENCE, future).await;
    outcome.with_context(|| format!("{what}: no outcome after {PATIENCE:?}"))
}

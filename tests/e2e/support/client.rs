//! An SDK client, and the runtime it needs.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustmq_client::{Client, ClientConfig, NewTopic};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::process::PATIENCE;

/// A runtime for clients: one thread, the test's own.
pub(crate) fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

/// A client of the broker in this directory, which dials quickly again when it is gone.
pub(crate) async fn connect(data_dir: &Path) -> Result<Client> {
    let mut config = ClientConfig::from_dev_dir(data_dir)?;
    config.connect_timeout = Duration::from_secs(2);
    config.backoff_max = Duration::from_millis(100);
    Ok(Client::connect(config).await?)
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

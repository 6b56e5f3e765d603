//! The broker's own messages, to standard error.
//!
//! Whoever logs puts a line into a bounded queue and goes on; a thread of its own writes. When the
//! queue is full lines are dropped: a slow terminal must not slow a shard.

use anyhow::{Context, Result};
use rustmq_config::{Log, LogFormat, LogLevel};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that wait to be written. 8192: about 2 MiB; further ones are dropped.
const LINES_MAX: usize = 8192;

/// Starts logging. What is queued is written when the guard is dropped.
pub(super) fn start(log: &Log) -> Result<WorkerGuard> {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let layer = fmt::layer().with_writer(writer).with_ansi(false);
    let layer = match log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    let level = level(log.level);
    // What libraries have to say is for those who debug them.
    let others = level.min(LevelFilter::WARN);
    let targets = Targets::new().with_target("rustmq", level).with_default(others);
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(targets));
    subscriber.try_init().context("starting the log")?;
    Ok(guard)
}

fn level(level: LogLevel) -> LevelFilter {
    LevelFilter::from_level(match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    })
}

//! Sends many records without waiting for each, while a second task reads them as a stream.
//!
//! ```text
//! cargo run --release -p rustmq-client --example pipeline -- --data-dir rustmq-data
//! ```

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_core::Stream;
use rustmq_client::{Client, ClientConfig, Consumer, ErrorCode, NewTopic, ProducerRecord, Start};

const TOPIC: &str = "example-pipeline";
const RECORDS: usize = 100_000;
const RECORD_BYTES: usize = 1024;

/// Tickets that are held before the oldest is waited for.
const TICKETS_MAX: usize = 10_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let client = Client::connect(ClientConfig::from_dev_dir(data_dir()?)?).await?;
    match client.create_topic(NewTopic::new(TOPIC, 4)).await {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => {}
        result => drop(result?),
    }
    let consumer = client.consumer(TOPIC).start(Start::Latest).build().await?;
    while consumer.positions().len() < 4 {
        // It starts at the end: nothing may be sent before it knows where that is.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reading = tokio::spawn(read(consumer));

    let producer = client.producer(TOPIC).batch_bytes(128 << 10).build().await?;
    let begun = Instant::now();
    let mut tickets = VecDeque::with_capacity(TICKETS_MAX);
    for _ in 0..RECORDS {
        if tickets.len() == TICKETS_MAX
            && let Some(oldest) = tickets.pop_front()
        {
            wait_for(oldest).await?;
        }
        tickets.push_back(producer.submit(ProducerRecord::value(vec![7; RECORD_BYTES])).await?);
    }
    for ticket in tickets {
        wait_for(ticket).await?;
    }
    report("sent", begun);
    producer.close().await?;

    reading.await??;
    report("received", begun);
    client.close().await;
    Ok(())
}

async fn wait_for(ticket: rustmq_client::Ticket) -> Result<(), Failure> {
    ticket.await?;
    Ok(())
}

async fn read(mut consumer: Consumer) -> Result<(), Failure> {
    for _ in 0..RECORDS {
        let mut stream = Pin::new(&mut consumer);
        match std::future::poll_fn(|context| stream.as_mut().poll_next(context)).await {
            Some(record) => drop(record?),
            None => break,
        }
    }
    Ok(())
}

fn report(what: &str, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{what} {RECORDS} records of {RECORD_BYTES} bytes in {seconds:.3} s, {:.0}/s",
        RECORDS as f64 / seconds
    );
}

/// `--data-dir DIR`, or `RUSTMQ_DATA_DIR`, or `rustmq-data`.
fn data_dir() -> Result<String, String> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--data-dir") => arguments.next().ok_or_else(|| "--data-dir needs a value".to_owned()),
        Some(other) => Err(format!("unknown argument {other}; --data-dir DIR is allowed")),
        None => Ok(std::env::var("RUSTMQ_DATA_DIR").unwrap_or_else(|_| "rustmq-data".to_owned())),
    }
}

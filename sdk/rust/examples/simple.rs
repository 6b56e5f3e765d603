//! Creates a topic, sends a few records and reads them back.
//!
//! ```text
//! cargo run -p rustmq-client --example simple -- --data-dir rustmq-data
//! ```

use rustmq_client::{Client, ClientConfig, ErrorCode, NewTopic, ProducerRecord, Start};

const TOPIC: &str = "example-simple";
const RECORDS: usize = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(ClientConfig::from_dev_dir(data_dir()?)?).await?;
    match client.create_topic(NewTopic::new(TOPIC, 2)).await {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => {}
        result => drop(result?),
    }

    let mut consumer = client.consumer(TOPIC).start(Start::Earliest).build().await?;
    let producer = client.producer(TOPIC).build().await?;
    for number in 0..RECORDS {
        let record = ProducerRecord::value(format!("record {number}")).with_key(number.to_string());
        let metadata = producer.send(record).await?;
        println!("sent {number} to partition {} offset {}", metadata.partition, metadata.offset);
    }
    producer.close().await?;

    let mut received = 0;
    while received < RECORDS {
        let Some(record) = consumer.receive().await.transpose()? else { break };
        let value = record.value.unwrap_or_default();
        println!(
            "received {:?} from partition {} offset {}",
            String::from_utf8_lossy(&value),
            record.partition,
            record.offset
        );
        received += 1;
    }
    drop(consumer);
    client.close().await;
    Ok(())
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

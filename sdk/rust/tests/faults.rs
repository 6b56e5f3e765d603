//! What a program sees of the client when the broker refuses, loses connections or changes leaders.

mod broker;

use std::time::Duration;

use broker::{Broker, Fault, PARTITIONS, TOPIC};
use rustmq_client::{
    Acks, Client, ClientError, Consumer, ErrorCode, Offset, OffsetAt, OutOfRange, PartitionId,
    Partitions, Producer, ProducerBuilder, ProducerRecord, RecordMetadata, RouteMode, Start,
    TimestampMs,
};

const FIRST: PartitionId = PartitionId(0);

async fn connect(broker: &Broker) -> Client {
    Client::connect(broker.client_config()).await.expect("the broker answers")
}

/// A producer of one record per batch, so that many are on their way together.
fn one_by_one(client: &Client) -> ProducerBuilder {
    client.producer(TOPIC).batch_records_max(1)
}

fn record(value: impl ToString) -> ProducerRecord {
    ProducerRecord::value(value.to_string()).with_partition(FIRST)
}

/// Submits records with these numbers and waits for all.
async fn send_all(
    producer: &Producer,
    numbers: std::ops::Range<u32>,
) -> Vec<Result<RecordMetadata, ClientError>> {
    let mut tickets = Vec::new();
    for number in numbers {
        tickets.push(producer.submit(record(number)).await.expect("the buffer has room"));
    }
    let mut results = Vec::new();
    for ticket in tickets {
        results.push(ticket.await);
    }
    results
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

async fn receive(consumer: &mut Consumer, count: usize) -> Vec<(u32, u64, String)> {
    let mut received = Vec::new();
    while received.len() < count {
        let record = tokio::time::timeout(Duration::from_secs(10), consumer.receive()).await;
        let record = record.expect("records come").expect("partitions").expect("no error");
        let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).expect("text");
        received.push((record.partition.0, record.offset.0, value));
    }
    received
}

#[tokio::test]
async fn records_are_sent_and_read_back_with_everything_they_carry() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).build().await.unwrap();
    let sent = ProducerRecord::value("value")
        .with_key("key")
        .with_header("trace", "1")
        .with_timestamp(TimestampMs(5));
    let metadata = producer.send(sent).await.unwrap();
    let start = Start::Offset(metadata.offset);
    let partitions = Partitions::Some(vec![metadata.partition]);
    let mut consumer =
        client.consumer(TOPIC).partitions(partitions).start(start).build().await.unwrap();
    let record = consumer.receive().await.unwrap().unwrap();
    assert_eq!(record.key.as_deref(), Some(&b"key"[..]));
    assert_eq!(record.value.as_deref(), Some(&b"value"[..]));
    assert_eq!(record.headers, [("trace".to_owned(), Some("1".into()))]);
    assert_eq!((&*record.topic, record.timestamp), (TOPIC, TimestampMs(5)));
    assert!(consumer.is_at_end());
    producer.close().await.unwrap();
    client.close().await;
}

#[tokio::test]
async fn every_fault_that_may_pass_leaves_each_record_once_and_in_order() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = one_by_one(&client).build().await.unwrap();
    let faults = [
        Fault::Refuse(ErrorCode::Throttled),
        Fault::Nothing,
        Fault::LoseBefore,
        Fault::Nothing,
        Fault::LoseAfter,
        Fault::Refuse(ErrorCode::Timeout),
        Fault::Moved,
        Fault::Refuse(ErrorCode::NotLeader),
    ];
    for round in 0..10 {
        broker.inject(faults.into_iter().cycle().skip(round).take(faults.len()));
        let first = round as u32 * 20;
        for (index, result) in send_all(&producer, first..first + 20).await.into_iter().enumerate()
        {
            let metadata = result.unwrap();
            assert_eq!(metadata.offset, Offset(u64::from(first) + index as u64));
        }
    }
    assert_eq!(broker.values(0), numbers(0..200));
}

#[tokio::test]
async fn a_record_refused_for_good_fails_alone() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = one_by_one(&client).build().await.unwrap();
    broker.inject([Fault::Nothing, Fault::Refuse(ErrorCode::RecordTooLarge)]);
    let mut results = send_all(&producer, 0..10).await;
    let error = results.remove(1).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RecordTooLarge));
    assert!(error.is_definite() && !error.is_retriable());
    assert!(results.iter().all(Result::is_ok));
    let mut expected = numbers(0..10);
    expected.remove(1);
    assert_eq!(broker.values(0), expected);
}

#[tokio::test]
async fn a_leader_change_is_followed_by_producer_and_consumer() {
    for version in VERSIONS {
        let broker = Broker::speaking(version);
        let client = connect(&broker).await;
        let producer = client.producer(TOPIC).build().await.unwrap();
        let mut consumer = client.consumer(TOPIC).start(Start::Earliest).build().await.unwrap();
        for round in 0..5 {
            producer.send(record(round)).await.unwrap();
            assert_eq!(receive(&mut consumer, 1).await, [(0, round, round.to_string())]);
            broker.change_leader();
        }
    }
}

#[tokio::test]
async fn a_consumer_subscribes_where_it_can_and_fetches_elsewhere() {
    for version in VERSIONS {
        let broker = Broker::speaking(version);
        let client = connect(&broker).await;
        let producer = one_by_one(&client).build().await.unwrap();
        let builder = || {
            let partitions = Partitions::Some(vec![FIRST]);
            client.consumer(TOPIC).partitions(partitions).start(Start::Earliest)
        };
        let mut consumer = builder().build().await.unwrap();
        send_all(&producer, 0..100).await;
        receive(&mut consumer, 100).await;
        let (subscriptions, fetches) = broker.subscriptions_and_fetches();
        match version {
            1 => assert!(subscriptions == 0 && 0 < fetches, "{subscriptions} {fetches}"),
            _ => assert_eq!((subscriptions, fetches), (1, 0), "no request a batch"),
        }
        // Who wants to wait for more bytes fetches.
        let mut gathering = builder().fetch_bytes_min(2).build().await.unwrap();
        receive(&mut gathering, 100).await;
        assert_eq!(broker.subscriptions_and_fetches().0, subscriptions);
    }
}

#[tokio::test]
async fn a_slow_consumer_is_sent_no_more_than_it_may_read_ahead() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).batch_records_max(1).build().await.unwrap();
    let value = "x".repeat(10_000);
    for _ in 0..100 {
        producer.send(ProducerRecord::value(value.clone()).with_partition(FIRST)).await.unwrap();
    }
    let partitions = Partitions::Some(vec![FIRST]);
    // The least there is: two answers of 64 KiB.
    let builder = client.consumer(TOPIC).partitions(partitions).start(Start::Earliest);
    let mut consumer = builder.prefetch_bytes_max(1).build().await.unwrap();
    for offset in 0..100 {
        let record = consumer.receive().await.unwrap().unwrap();
        assert_eq!(record.offset, Offset(offset));
        let sent = broker.sent_bytes();
        assert!(sent <= (offset + 1) * 10_100 + (128 << 10) + 10_100, "{sent} after {offset}");
    }
}

#[tokio::test]
async fn a_consumer_that_goes_away_ends_its_subscriptions() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).build().await.unwrap();
    producer.send(record(0)).await.unwrap();
    let mut consumer = client.consumer(TOPIC).start(Start::Earliest).build().await.unwrap();
    receive(&mut consumer, 1).await;
    while broker.subscriptions_open() < PARTITIONS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    consumer.seek(FIRST, Offset(0)).unwrap();
    receive(&mut consumer, 1).await;
    drop(consumer);
    // Its connection stays: the client has others.
    let ended = async {
        while 0 < broker.subscriptions_open() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("all are ended");
    producer.send(record(1)).await.unwrap();
}

#[tokio::test]
async fn forwarded_requests_make_the_client_look_again_unless_it_is_told_to_use_one_connection() {
    let broker = Broker::start();
    for (route, refreshes) in [(RouteMode::Owner, 3), (RouteMode::Bootstrap, 0)] {
        let mut config = broker.client_config();
        config.route = route;
        let client = Client::connect(config).await.unwrap();
        let producer = client.producer(TOPIC).build().await.unwrap();
        let before = broker.metadata_requests();
        broker.inject([Fault::Moved; 3]);
        for number in 0..4 {
            producer.send(record(number)).await.unwrap();
        }
        assert_eq!(broker.metadata_requests() - before, refreshes, "{route:?}");
    }
}

#[tokio::test]
async fn an_error_says_whether_the_records_may_be_in_the_log() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    client.producer(TOPIC).build().await.unwrap().send(record(0)).await.unwrap();
    let timeout = Duration::from_millis(300);
    let producer = client.producer(TOPIC).delivery_timeout(timeout).build().await.unwrap();

    broker.inject(std::iter::repeat_n(Fault::Refuse(ErrorCode::StorageFull), 10_000));
    let refused = |error: &ClientError| error.code() == Some(ErrorCode::StorageFull);
    let error = definite_error(&producer, refused).await;
    assert!(matches!(error, ClientError::DeliveryTimeout { .. }), "{error}");

    drop(broker);
    let error = producer.send(record(2)).await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    definite_error(&producer, |_| true).await;
}

/// Sends until an error like this is definite: where the time runs out between a request and its
/// answer, nobody can say.
async fn definite_error(producer: &Producer, like: impl Fn(&ClientError) -> bool) -> ClientError {
    for _ in 0..20 {
        let error = producer.send(record(1)).await.expect_err("it cannot be stored");
        if error.is_definite() && like(&error) {
            return error;
        }
    }
    panic!("no error is definite");
}

/// Records that are more than fit on the way to a broker that does not read: 40 in its window, 64
/// that are being written and 256 behind them.
const MORE_THAN_A_STREAM: u32 = 450;

fn record_of_32_kib(number: u32) -> ProducerRecord {
    record(format!("{number} {}", "x".repeat(32 << 10)))
}

#[tokio::test]
async fn a_record_is_given_up_in_time_when_there_is_no_room_on_the_way() {
    let broker = Broker::start();
    let mut config = broker.client_config();
    // Nothing else ends it.
    config.request_timeout = Duration::from_secs(24 * 3600);
    let client = Client::connect(config).await.unwrap();
    let timeout = Duration::from_millis(300);
    let builder = client.producer(TOPIC).delivery_timeout(timeout).idempotent(false);
    broker.inject([Fault::Hang]);
    let mut tickets = Vec::new();
    for number in 0..MORE_THAN_A_STREAM {
        let producer = builder.clone().build().await.unwrap();
        tickets.push(producer.submit(record_of_32_kib(number)).await.unwrap());
    }
    let mut never_sent = 0;
    for ticket in tickets {
        let fate = tokio::time::timeout(Duration::from_secs(60), ticket).await;
        let error = fate.expect("it has its fate").unwrap_err();
        assert!(matches!(error, ClientError::DeliveryTimeout { .. }), "{error}");
        never_sent += u32::from(error.is_definite());
    }
    assert!(0 < never_sent, "there was room for all");
}

#[tokio::test]
async fn a_way_without_room_is_left_when_no_answer_comes() {
    let broker = Broker::start();
    let mut config = broker.client_config();
    config.request_timeout = Duration::from_secs(2);
    let client = Client::connect(config).await.unwrap();
    let mut producers = Vec::new();
    for _ in 0..MORE_THAN_A_STREAM / 2 {
        producers.push(one_by_one(&client).build().await.unwrap());
    }
    broker.inject([Fault::Hang]);
    let mut tickets = Vec::new();
    // The last record of each is still gathered.
    for round in 0..4 {
        for (index, producer) in producers.iter().enumerate() {
            let number = round * producers.len() as u32 + index as u32;
            tickets.push(producer.submit(record_of_32_kib(number)).await.unwrap());
        }
        // Each has a record on its way before any has the next: then all wait for room.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let count = tickets.len();
    for ticket in tickets {
        let fate = tokio::time::timeout(Duration::from_secs(60), ticket).await;
        fate.expect("it has its fate").unwrap();
    }
    assert_eq!(broker.values(0).len(), count, "each is there once");
}

#[tokio::test]
async fn a_full_buffer_makes_a_producer_wait_and_nothing_is_lost() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).buffer_bytes_max(1024).build().await.unwrap();
    for number in 0..1000 {
        drop(producer.submit(record(number)).await.unwrap());
    }
    producer.flush().await.unwrap();
    assert_eq!(broker.values(0), numbers(0..1000));
    let records = (0..100).map(|number| record(1000 + number)).collect();
    let metadata = producer.send_batch(records).await.unwrap();
    assert_eq!(metadata.len(), 100);
    assert_eq!(broker.values(0), numbers(0..1100));
}

#[tokio::test]
async fn what_was_submitted_is_delivered_after_the_producer_is_dropped() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).linger(Duration::from_millis(20)).build().await.unwrap();
    let ticket = producer.submit(record("last")).await.unwrap();
    drop(producer);
    ticket.await.unwrap();
    assert_eq!(broker.values(0), ["last"]);
}

#[tokio::test]
async fn a_closed_producer_refuses_records() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).build().await.unwrap();
    let clone = producer.clone();
    clone.send(record(0)).await.unwrap();
    producer.close().await.unwrap();
    assert!(matches!(clone.send(record(1)).await, Err(ClientError::Closed)));
}

#[tokio::test]
async fn without_acknowledgements_records_arrive_and_their_offset_is_unknown() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).acks(Acks::None).build().await.unwrap();
    let metadata = producer.send(record(0)).await.unwrap();
    assert_eq!(metadata.offset, RecordMetadata::OFFSET_UNKNOWN);
    let mut consumer = client.consumer(TOPIC).start(Start::Earliest).build().await.unwrap();
    assert_eq!(receive(&mut consumer, 1).await, [(0, 0, "0".to_owned())]);
}

#[tokio::test]
async fn without_acknowledgements_a_lost_record_fails_and_none_is_sent_twice() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let silent = one_by_one(&client).acks(Acks::None).build().await.unwrap();
    // The broker reads two and ends the connection. All eight are more than it takes unread, so
    // some are being written at that moment.
    broker.inject([Fault::Nothing, Fault::LoseAfter]);
    let filler = "x".repeat(900_000);
    let mut tickets = Vec::new();
    for number in 0..8 {
        tickets.push(silent.submit(record(format!("{number} {filler}"))).await.unwrap());
    }
    let mut lost = 0;
    for ticket in tickets {
        if let Err(error) = ticket.await {
            assert!(!error.is_definite(), "it may have arrived: {error}");
            lost += 1;
        }
    }
    assert!(0 < lost, "what was being written has an open fate");
    // It is answered on the stream that they took: whatever was sent has arrived.
    client.producer(TOPIC).build().await.unwrap().send(record("last")).await.unwrap();
    let arrived = broker.values(0);
    for value in &arrived {
        let times = arrived.iter().filter(|other| *other == value).count();
        assert_eq!(times, 1, "{:?}", value.split(' ').next());
    }
}

#[tokio::test]
async fn records_with_one_key_stay_together_and_records_without_use_all_partitions() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).build().await.unwrap();
    let mut partitions = Vec::new();
    for _ in 0..4 {
        let keyed = producer.send(ProducerRecord::value("k").with_key("key")).await.unwrap();
        partitions.push(keyed.partition);
    }
    assert!(partitions.iter().all(|partition| *partition == partitions[0]));
    let mut seen = Vec::new();
    for _ in 0..PARTITIONS {
        seen.push(producer.send(ProducerRecord::value("v")).await.unwrap().partition.0);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..PARTITIONS).collect::<Vec<_>>());
}

/// Protocol versions: without subscriptions, and with them.
const VERSIONS: [u8; 2] = [1, 2];

#[tokio::test]
async fn a_seek_delivers_from_there_and_nothing_that_was_read_ahead() {
    for version in VERSIONS {
        let broker = Broker::speaking(version);
        let client = connect(&broker).await;
        let producer = one_by_one(&client).build().await.unwrap();
        send_all(&producer, 0..100).await;
        let partitions = Partitions::Some(vec![FIRST]);
        let mut consumer = client
            .consumer(TOPIC)
            .partitions(partitions)
            .start(Start::Earliest)
            .build()
            .await
            .unwrap();
        for target in [50, 3, 99] {
            receive(&mut consumer, 1).await;
            consumer.seek(FIRST, Offset(target)).unwrap();
            let first = receive(&mut consumer, 1).await;
            assert_eq!(first, [(0, target, target.to_string())]);
            assert_eq!(consumer.positions()[&FIRST], Offset(target + 1));
            if target < 99 {
                assert!(!consumer.is_at_end());
            }
        }
        assert!(consumer.is_at_end());
        assert_eq!(consumer.high_watermarks()[&FIRST], Offset(100));
        assert!(consumer.seek(PartitionId(1), Offset(0)).is_err());
    }
}

#[tokio::test]
async fn an_offset_out_of_range_follows_the_policy() {
    for version in VERSIONS {
        let broker = Broker::speaking(version);
        let client = connect(&broker).await;
        let producer = client.producer(TOPIC).build().await.unwrap();
        producer.send(record(0)).await.unwrap();
        let consumer = |policy| {
            let partitions = Partitions::Some(vec![FIRST]);
            let start = Start::Offset(Offset(77));
            client.consumer(TOPIC).partitions(partitions).start(start).out_of_range(policy)
        };
        let mut failing = consumer(OutOfRange::Fail).build().await.unwrap();
        let error = failing.receive().await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::OffsetOutOfRange));
        failing.seek(FIRST, Offset(0)).unwrap();
        assert_eq!(receive(&mut failing, 1).await, [(0, 0, "0".to_owned())]);

        let mut earliest = consumer(OutOfRange::Earliest).build().await.unwrap();
        assert_eq!(receive(&mut earliest, 1).await, [(0, 0, "0".to_owned())]);
    }
}

#[tokio::test]
async fn offsets_are_looked_up_at_the_leader_with_fresh_metadata() {
    let broker = Broker::start();
    let client = connect(&broker).await;
    let producer = client.producer(TOPIC).build().await.unwrap();
    send_all(&producer, 0..3).await;
    broker.change_leader();
    let offsets = client.list_offsets(TOPIC, &[FIRST], OffsetAt::Latest).await.unwrap();
    assert_eq!(offsets[0].offset, Offset(3));
    let error = client.producer("gone").build().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test]
async fn a_broker_whose_certificate_has_another_authority_is_not_believed() {
    let broker = Broker::start();
    let mut config = Broker::start().client_config();
    config.bootstrap = broker.client_config().bootstrap;
    let error = Client::connect(config).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

//! Requests that are refused, each with its code and a word about what is allowed. The broker
//! serves on, and nothing of them is kept.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustmq_client::ErrorCode;
use rustmq_protocol::{
    CorrelationId, CreateTopic, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Fetch, FrameHeader,
    LeaderEpoch, Offset, PartitionId, ProducerStamp, RequestKind, TopicId, UnsupportedVersionBody,
};

use crate::support::broker::{Backend, Broker, Node};
use crate::support::cli::Cli;
use crate::support::random::Random;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine};

/// A broker with a topic of one partition, `known`.
fn with_broker(test: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let mut broker: Broker = node.start()?;
    let cli = Cli::new(node.data_dir());
    cli.create_topic("known", 1)?;
    client::runtime()?.block_on(test(node.data_dir()))?;
    ensure!(broker.is_running()?, "the broker ended\n{}", broker.output());
    ensure!(cli.consume("known")?.is_empty(), "something of it was kept");
    cli.check_health("after")?;
    broker.stop()
}

#[test]
fn versions_without_overlap_are_told_the_range() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::connect(dir).await?;
        let mut frame = Vec::new();
        raw::hello(3, 9, &mut frame);
        let (header, body) = raw.ask_bytes(&frame).await?;
        ensure!(header.error_code() == ErrorCode::UnsupportedVersion, "{}", header.error_code());
        let body = UnsupportedVersionBody::decode(&body)?;
        ensure!((body.supported.min, body.supported.max) == (1, 2), "{:?}", body.supported);
        ensure!(body.message.contains("1 to 2"), "{:?}", body.message);
        Ok(())
    })
}

#[test]
fn a_request_before_hello_is_refused() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::connect(dir).await?;
        let (header, body) = raw.ask(RequestKind::ListTopics, |_| {}).await?;
        raw::message(ErrorCode::HelloRequired, &header, &body).map(drop)
    })
}

#[test]
fn a_frame_over_the_limit_is_told_the_limit_and_ends_the_stream() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::greeted(dir).await?;
        let mut header = FrameHeader::request(RequestKind::Produce, CorrelationId(1)).encode();
        let length = FRAME_BYTES_MAX as u32 + 1;
        header[..4].copy_from_slice(&length.to_le_bytes());
        let said = raw.refused(&header, ErrorCode::FrameTooLarge).await?;
        ensure!(said.contains(&FRAME_BYTES_MAX.to_string()), "{said:?}");
        raw.until_ended().await
    })
}

#[test]
fn a_frame_shorter_than_its_header_is_malformed() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::greeted(dir).await?;
        let mut header = FrameHeader::request(RequestKind::Produce, CorrelationId(1)).encode();
        header[..4].copy_from_slice(&15_u32.to_le_bytes());
        let said = raw.refused(&header, ErrorCode::MalformedFrame).await?;
        ensure!(said.contains(&FRAME_HEADER_BYTES.to_string()), "{said:?}");
        raw.until_ended().await
    })
}

#[test]
fn flags_without_a_meaning_are_malformed() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::greeted(dir).await?;
        let mut header = FrameHeader::request(RequestKind::ListTopics, CorrelationId(1)).encode();
        header[7] = 0xf0;
        raw.refused(&header, ErrorCode::MalformedFrame).await?;
        raw.until_ended().await
    })
}

#[test]
fn a_body_cut_short_is_malformed_and_the_stream_goes_on() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::greeted(dir).await?;
        for kind in [RequestKind::Produce, RequestKind::Fetch, RequestKind::CreateTopic] {
            let (header, body) = raw.ask(kind, |out| out.extend([1, 2, 3])).await?;
            raw::message(ErrorCode::MalformedFrame, &header, &body)
                .with_context(|| format!("{kind:?}"))?;
        }
        let (header, _) = raw.ask(RequestKind::ListTopics, |_| {}).await?;
        ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
        Ok(())
    })
}

#[test]
fn a_kind_that_nobody_knows_is_refused() -> Result<()> {
    with_broker(async |dir| {
        let mut raw = Raw::greeted(dir).await?;
        let header = FrameHeader::request(RequestKind::ListTopics, CorrelationId(1));
        let frame = FrameHeader { kind: 999, ..header }.encode();
        let said = raw.refused(&frame, ErrorCode::UnknownRequest).await?;
        ensure!(said.contains("999"), "{said:?}");
        Ok(())
    })
}

#[test]
fn noise_on_many_streams_harms_nobody() -> Result<()> {
    with_broker(async |dir| {
        let mut random = Random::for_test(7);
        for _ in 0..50 {
            let mut raw = Raw::greeted(dir).await?;
            let count = 1 + random.below(4_000) as usize;
            let mut noise = random.bytes(count);
            // Half of them look like a frame at first.
            if random.below(2) == 0 {
                let kind = *RequestKind::ALL
                    .get(random.below(RequestKind::ALL.len() as u64) as usize)
                    .context("a kind")?;
                let header = FrameHeader::request(kind, CorrelationId(1));
                let mut frame = Vec::new();
                header.encode_frame(&mut frame, |out| out.append(&mut noise));
                noise = frame;
            }
            raw.send(&noise).await?;
            // A frame that never ends is waited for; going away is the peer's right.
            raw.connection.close(0_u32.into(), b"bye");
        }
        Ok(())
    })
}

#[test]
fn a_batch_with_a_wrong_checksum_is_corrupt() -> Result<()> {
    with_broker(async |dir| {
        let topic = raw::topic(dir, "known").await?;
        let mut raw = Raw::greeted(dir).await?;
        let whole = raw::batch(&["a value"], ProducerStamp::NONE);
        // Any byte behind the checksum, and the checksum itself.
        for at in [16, 20, 40, 63, whole.len() - 1] {
            let mut batch = whole.clone();
            batch[at] ^= 1;
            let frame = raw::produce_frame(&topic, 0, &batch)?;
            let refused = raw.refused(&frame, ErrorCode::CorruptBatch).await;
            refused.with_context(|| format!("byte {at}"))?;
        }
        Ok(())
    })
}

#[test]
fn a_topic_id_that_nobody_knows_is_refused() -> Result<()> {
    with_broker(async |dir| {
        let mut topic = raw::topic(dir, "known").await?;
        topic.id = TopicId::from_bytes([9; 16]);
        let mut raw = Raw::greeted(dir).await?;
        let batch = raw::batch(&["a value"], ProducerStamp::NONE);
        let frame = raw::produce_frame(&topic, 0, &batch)?;
        raw.refused(&frame, ErrorCode::UnknownTopicId).await?;
        let fetch = Fetch {
            topic: topic.id,
            partition: PartitionId(0),
            leader_epoch: LeaderEpoch(1),
            offset: Offset(0),
            wait_ms_max: 0,
            bytes_min: 1,
            bytes_max: 1 << 20,
        };
        let (header, body) = raw.ask(RequestKind::Fetch, |out| fetch.encode(out)).await?;
        raw::message(ErrorCode::UnknownTopicId, &header, &body).map(drop)
    })
}

#[test]
fn a_partition_that_the_topic_lacks_is_refused() -> Result<()> {
    with_broker(async |dir| {
        let mut topic = raw::topic(dir, "known").await?;
        topic.partitions.first_mut().context("a partition")?.partition = PartitionId(77);
        let mut raw = Raw::greeted(dir).await?;
        let batch = raw::batch(&["a value"], ProducerStamp::NONE);
        let frame = raw::produce_frame(&topic, 0, &batch)?;
        let said = raw.refused(&frame, ErrorCode::UnknownPartition).await?;
        ensure!(said.contains('1'), "how many there are is not said: {said:?}");
        Ok(())
    })
}

#[test]
fn a_record_over_the_limit_is_refused_and_told_the_limit() -> Result<()> {
    with_broker(async |dir| {
        let topic = raw::topic(dir, "known").await?;
        let mut raw = Raw::greeted(dir).await?;
        // The broker is set to 192 KiB.
        let value = "x".repeat((192 << 10) + 1);
        let batch = raw::batch(&[&value], ProducerStamp::NONE);
        let frame = raw::produce_frame(&topic, 0, &batch)?;
        let said = raw.refused(&frame, ErrorCode::RecordTooLarge).await?;
        ensure!(said.contains(&(192 << 10).to_string()), "{said:?}");
        let fits = "x".repeat(190 << 10);
        let cli = Cli::new(dir);
        cli.create_topic("fits", 1)?;
        cli.produce("fits", &fits)?;
        ensure!(cli.consume("fits")?.trim_end() == fits, "a record below the limit changed");
        Ok(())
    })
}

#[test]
fn names_that_could_be_paths_are_refused_and_leave_no_file() -> Result<()> {
    with_broker(async |dir| {
        let before = files_around(dir)?;
        let mut raw = Raw::greeted(dir).await?;
        let long = "x".repeat(250);
        let names =
            ["../evil", "a/../../evil", "/etc/evil", "..", ".", "", "a b", "a\0b", "ä", &long];
        for name in names {
            let create = CreateTopic {
                name: name.to_owned(),
                partitions: 1,
                replication_factor: 1,
                config: Vec::new(),
            };
            let (header, body) =
                raw.ask(RequestKind::CreateTopic, |out| create.encode(out)).await?;
            raw::message(ErrorCode::InvalidTopicName, &header, &body)
                .with_context(|| format!("{name:?}"))?;
        }
        let outcome = Cli::new(dir).run(&["topic", "create", "../evil"])?;
        ensure!(outcome.code == 4, "exit code {}: {}", outcome.code, outcome.stderr);
        ensure!(outcome.stderr.contains("INVALID_TOPIC_NAME"), "{}", outcome.stderr);
        ensure!(files_around(dir)? == before, "there are new files");
        Ok(())
    })
}

#[test]
fn the_command_line_names_the_code_and_exits_with_4() -> Result<()> {
    with_broker(async |dir| {
        let cli = Cli::new(dir);
        let refusals: [(&[&str], &str); 6] = [
            (&["topic", "create", "known", "--partitions", "1"], "TOPIC_EXISTS"),
            (&["topic", "create", "none", "--partitions", "0"], "INVALID_PARTITION_COUNT"),
            (&["topic", "create", "odd", "--config", "color=red"], "INVALID_CONFIG"),
            (&["topic", "delete", "nobody"], "UNKNOWN_TOPIC"),
            (&["topic", "describe", "nobody"], "UNKNOWN_TOPIC"),
            (&["consume", "nobody", "--until-end"], "UNKNOWN_TOPIC"),
        ];
        for (arguments, code) in refusals {
            let outcome = cli.run(arguments)?;
            ensure!(
                outcome.code == 4 && outcome.stderr.contains(code),
                "{arguments:?} ended with {}: {}",
                outcome.code,
                outcome.stderr
            );
        }
        Ok(())
    })
}

#[test]
fn without_a_broker_the_command_line_exits_with_3() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    node.start()?.kill_running()?;
    // The address file of the killed broker names a port on which nobody is.
    let outcome = Cli::new(node.data_dir()).run(&["topic", "list"])?;
    ensure!(outcome.code == 3, "exit code {}: {}", outcome.code, outcome.stderr);
    Ok(())
}

/// The names in the data directory and in the one above it.
fn files_around(dir: &Path) -> Result<Vec<String>> {
    let above = dir.parent().context("a directory above")?;
    let mut names = Vec::new();
    for dir in [dir, above] {
        for entry in std::fs::read_dir(dir)? {
            names.push(entry?.path().display().to_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

//! `rustmq topic`: topics, for people and as JSON.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use rustmq_client::{Client, NewTopic, OffsetAt, PartitionId, TopicInfo};
use serde_json::json;

use crate::cli::connect::ConnectArgs;
use crate::cli::output::{TextOrJson, print};

#[derive(Args, Debug)]
pub(crate) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Subcommand, Debug)]
enum TopicCommand {
    /// Creates a topic; it can be used at once
    Create {
        /// Name: 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'
        name: String,
        /// Partitions
        #[arg(long, value_name = "N", default_value_t = 1)]
        partitions: u32,
        /// Brokers that keep each partition
        #[arg(long, value_name = "N", default_value_t = 1)]
        replication_factor: u16,
        /// One setting in which the topic differs from the defaults; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = entry)]
        config: Vec<(String, String)>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Lists all topics
    List {
        #[command(flatten)]
        how: HowArgs,
    },
    /// Shows a topic's settings, and leader and offsets of each partition
    Describe {
        /// Name
        name: String,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Deletes a topic and its records
    Delete {
        /// Name
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

#[derive(Args, Debug)]
struct HowArgs {
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = TextOrJson::Text)]
    format: TextOrJson,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("allowed is KEY=VALUE".to_owned()),
    }
}

pub(crate) async fn run(args: &TopicArgs) -> anyhow::Result<()> {
    let text = match &args.command {
        TopicCommand::Create { name, partitions, replication_factor, config, connect } => {
            let client = connect.client().await?;
            let topic = NewTopic {
                name: name.clone(),
                partitions: *partitions,
                replication_factor: *replication_factor,
                config: config.clone(),
            };
            let id = client.create_topic(topic).await;
            let id = id.with_context(|| format!("creating topic {name}"))?;
            format!("created topic {name} with {partitions} partitions, id {id}\n")
        }
        TopicCommand::List { how } => list(&how.connect.client().await?, how.format).await?,
        TopicCommand::Describe { name, how } => {
            describe(&how.connect.client().await?, name, how.format).await?
        }
        TopicCommand::Delete { name, connect } => {
            let client = connect.client().await?;
            let id = client.delete_topic(name).await;
            let id = id.with_context(|| format!("deleting topic {name}"))?;
            format!("deleted topic {name}, id {id}\n")
        }
    };
    print(text).await
}

async fn list(client: &Client, format: TextOrJson) -> anyhow::Result<String> {
    let topics = client.list_topics().await.context("listing topics")?;
    if format == TextOrJson::Json {
        let topics: Vec<_> = topics
            .iter()
            .map(|topic| {
                let id = topic.id.to_string();
                json!({ "name": topic.name, "id": id, "partitions": topic.partitions })
            })
            .collect();
        return Ok(json!(topics).to_string() + "\n");
    }
    let rows = topics
        .iter()
        .map(|topic| vec![topic.name.clone(), topic.partitions.to_string(), topic.id.to_string()]);
    Ok(table(&["NAME", "PARTITIONS", "ID"], rows.collect()))
}

async fn describe(client: &Client, name: &str, format: TextOrJson) -> anyhow::Result<String> {
    let topic = client.describe_topic(name).await;
    let topic = topic.with_context(|| format!("describing topic {name}"))?;
    let partitions: Vec<PartitionId> =
        topic.partitions.iter().map(|partition| partition.partition).collect();
    let start = client.list_offsets(name, &partitions, OffsetAt::Earliest).await?;
    let end = client.list_offsets(name, &partitions, OffsetAt::Latest).await?;
    let offsets: Vec<(u64, u64)> =
        start.iter().zip(&end).map(|(start, end)| (start.offset.0, end.offset.0)).collect();
    Ok(match format {
        TextOrJson::Text => describe_text(&topic, &offsets),
        TextOrJson::Json => describe_json(&topic, &offsets),
    })
}

fn describe_text(topic: &TopicInfo, offsets: &[(u64, u64)]) -> String {
    let mut text = format!(
        "name        {}\nid          {}\npartitions  {}\n",
        topic.name,
        topic.id,
        topic.partitions.len()
    );
    for (key, value) in &topic.config {
        text += &format!("config      {key}={value}\n");
    }
    let rows = topic.partitions.iter().zip(offsets).map(|(partition, (start, end))| {
        vec![
            partition.partition.to_string(),
            partition.leader.to_string(),
            partition.shard.to_string(),
            partition.leader_epoch.to_string(),
            start.to_string(),
            end.to_string(),
        ]
    });
    let titles =
        ["PARTITION", "LEADER", "SHARD", "LEADER EPOCH", "LOG START OFFSET", "HIGH WATERMARK"];
    text + "\n" + &table(&titles, rows.collect())
}

fn describe_json(topic: &TopicInfo, offsets: &[(u64, u64)]) -> String {
    let config: serde_json::Map<_, _> =
        topic.config.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let partitions: Vec<_> = topic
        .partitions
        .iter()
        .zip(offsets)
        .map(|(partition, (start, end))| {
            json!({
                "partition": partition.partition.0,
                "leader": partition.leader.0,
                "shard": partition.shard.0,
                "leader_epoch": partition.leader_epoch.0,
                "log_start_offset": start,
                "high_watermark": end,
            })
        })
        .collect();
    let id = topic.id.to_string();
    let topic = json!({ "name": topic.name, "id": id, "config": config, "partitions": partitions });
    topic.to_string() + "\n"
}

/// Columns as wide as their widest cell.
fn table(titles: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut lines = vec![titles.iter().map(|title| (*title).to_owned()).collect()];
    lines.extend(rows);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line: &Vec<String>| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut out = Vec::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end()).expect("a Vec takes everything");
    }
    String::from_utf8(out).expect("made of strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["long-name".to_owned(), "1".to_owned()]];
        assert_eq!(table(&["A", "B"], rows), "A          B\nlong-name  1\n");
    }

    #[test]
    fn a_setting_has_a_key_and_may_contain_equals_signs() {
        assert_eq!(entry("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(entry("a="), Ok(("a".to_owned(), String::new())));
        assert!(entry("a").is_err() && entry("=b").is_err());
    }
}

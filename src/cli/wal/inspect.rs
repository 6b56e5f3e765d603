//! `rustmq wal inspect`: what a segment file holds, in its order.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use rustmq_wal::verify::{Finding, Verified};
use rustmq_wal::{
    BLOCK_ALIGN, BlockFlags, BlockHeader, EntryHeader, EntryKind, PartitionCheckpoint,
    SegmentHeader, SegmentState, WAL_ITSELF,
};
use serde_json::{Value, json};

use super::segment;
use super::source::{self, Source};
use crate::cli::output::TextOrJson;

/// A block, and the entries in it that are whole.
struct Block {
    header: BlockHeader,
    entries: Vec<(EntryHeader, u64, Option<PartitionCheckpoint>)>,
}

pub(super) fn run(path: &Path, format: TextOrJson) -> Result<()> {
    let mut source = Source::open(path, &source::memory())?;
    let page = source.bytes().min(BLOCK_ALIGN as u64);
    let first = source.get(0..page)?.to_vec();
    let read = SegmentHeader::decode(&first);
    let header = read.ok().or_else(|| SegmentHeader::correct(&first));
    let mut blocks: Vec<Block> = Vec::new();
    let mut verified = None;
    if let Some(header) = header.filter(|header| header.sequence.0 != 0) {
        verified = Some(segment::blocks(&mut source, &header, |block, entry| {
            if blocks.last().is_none_or(|last| last.header != *block) {
                blocks.push(Block { header: *block, entries: Vec::new() });
            }
            let is_partition =
                entry.header.kind == EntryKind::Checkpoint && entry.header.partition != WAL_ITSELF;
            let checkpoint =
                is_partition.then(|| PartitionCheckpoint::decode(entry.payload).ok()).flatten();
            let entries = &mut blocks.last_mut().expect("just pushed").entries;
            entries.push((entry.header, entry.position, checkpoint));
        })?);
    }
    let text = match format {
        TextOrJson::Json => {
            let header = header.map(|header| header_json(&header));
            let blocks: Vec<Value> = blocks.iter().map(block_json).collect();
            let error = read.err().map(|error| error.to_string());
            let end = verified.as_ref().map(end_json);
            format!(
                "{}\n",
                json!({
                    "file": path.display().to_string(),
                    "bytes": source.bytes(),
                    "header": header,
                    "header_error": error,
                    "blocks": blocks,
                    "end": end,
                })
            )
        }
        TextOrJson::Text => {
            let mut text = format!("{}: {} bytes\n", path.display(), source.bytes());
            if let Err(error) = read {
                text += &format!("header: {error}\n");
            }
            if let Some(header) = &header {
                text += &header_text(header);
            }
            blocks.iter().for_each(|block| text += &block_text(block));
            if let Some(verified) = &verified {
                text += &end_text(verified);
            }
            text
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn state(header: &SegmentHeader) -> &'static str {
    match header.state {
        SegmentState::Spare => "spare",
        SegmentState::Active => "active",
    }
}

fn header_text(header: &SegmentHeader) -> String {
    format!(
        "segment {} of WAL {}: {}, slot {}, generation {:016x}, first block {}, after checksum \
         {:08x}\n",
        header.sequence,
        header.wal,
        state(header),
        header.slot.0,
        header.generation.0,
        header.first_block,
        header.prev_crc
    )
}

fn header_json(header: &SegmentHeader) -> Value {
    json!({
        "state": state(header),
        "slot": header.slot.0,
        "wal": header.wal.to_string(),
        "sequence": header.sequence.0,
        "generation": format!("{:016x}", header.generation.0),
        "segment_bytes": header.segment_bytes,
        "first_block": header.first_block.0,
        "prev_crc": header.prev_crc,
    })
}

fn flags(header: &BlockHeader) -> Vec<&'static str> {
    let names = [
        (BlockFlags::START, "start"),
        (BlockFlags::CLEAN, "clean"),
        (BlockFlags::SEAL, "seal"),
        (BlockFlags::IDLE, "idle"),
        (BlockFlags::CHECKPOINT, "checkpoint"),
        (BlockFlags::CHECKPOINT_END, "checkpoint end"),
    ];
    names.iter().filter(|(flag, _)| header.flags.has(*flag)).map(|(_, name)| *name).collect()
}

fn block_text(block: &Block) -> String {
    let header = &block.header;
    let mut text = format!(
        "block {} at {}: {} bytes, {} entries, incarnation {}, durable end {}, checksum {:08x} {}\n",
        header.sequence,
        header.position,
        header.length,
        header.entry_count,
        header.incarnation,
        header.durable_end,
        header.crc,
        flags(header).join(", ")
    );
    for (entry, position, checkpoint) in &block.entries {
        text += &match (entry.kind, checkpoint) {
            (EntryKind::Data, _) => format!(
                "  {position}: {} offsets {}..{}, epoch {}, {} bytes, appended {}\n",
                entry.partition,
                entry.base_offset,
                entry.end_offset(),
                entry.leader_epoch,
                entry.payload_length,
                entry.append_time.0
            ),
            (_, Some(checkpoint)) => format!(
                "  {position}: checkpoint of {}: log {}..{}, epoch {}, {} producers\n",
                entry.partition,
                checkpoint.log_start,
                checkpoint.log_end,
                checkpoint.leader_epoch,
                checkpoint.producers.len()
            ),
            (EntryKind::Checkpoint, None) => format!("  {position}: checkpoint of the WAL\n"),
            (EntryKind::LogStart, _) => {
                format!(
                    "  {position}: log of {} starts at {}\n",
                    entry.partition, entry.base_offset
                )
            }
            (EntryKind::EpochStart, _) => format!(
                "  {position}: epoch {} of {} starts at {}\n",
                entry.leader_epoch, entry.partition, entry.base_offset
            ),
        };
    }
    text
}

fn block_json(block: &Block) -> Value {
    let header = &block.header;
    let entries: Vec<Value> = block
        .entries
        .iter()
        .map(|(entry, position, checkpoint)| {
            let checkpoint = checkpoint.as_ref().map(|checkpoint| {
                json!({
                    "log_start": checkpoint.log_start.0,
                    "log_end": checkpoint.log_end.0,
                    "leader_epoch": checkpoint.leader_epoch.0,
                    "epochs": checkpoint.epochs.len(),
                    "producers": checkpoint.producers.len(),
                })
            });
            json!({
                "position": position,
                "kind": format!("{:?}", entry.kind),
                "partition": entry.partition.to_string(),
                "first": entry.base_offset.0,
                "end": entry.end_offset().0,
                "leader_epoch": entry.leader_epoch.0,
                "payload_bytes": entry.payload_length,
                "append_time": entry.append_time.0,
                "checkpoint": checkpoint,
            })
        })
        .collect();
    json!({
        "sequence": header.sequence.0,
        "position": header.position,
        "bytes": header.length,
        "incarnation": header.incarnation.0,
        "durable_end": header.durable_end.0,
        "flags": flags(header),
        "crc": header.crc,
        "entry_count": header.entry_count,
        "entries": entries,
    })
}

fn end_text(verified: &Verified) -> String {
    let end = &verified.end;
    let mut text =
        format!("blocks end at {}, next block {}\n", end.next.position, end.next.sequence);
    if let Some(next) = end.sealed {
        text += &format!("sealed; segment {} in slot {} comes next\n", next.sequence, next.slot.0);
    }
    if let Some(torn) = &end.torn {
        text += &format!("a torn write at {}: {}\n", torn.position, torn.why);
    }
    for Finding { position, end, what, lost } in &verified.findings {
        text += &format!("damage at {position}..{end}: {what}; {lost}\n");
    }
    text
}

fn end_json(verified: &Verified) -> Value {
    let end = &verified.end;
    let findings: Vec<Value> = verified
        .findings
        .iter()
        .map(|finding| {
            json!({
                "position": finding.position,
                "end": finding.end,
                "what": finding.what.to_string(),
                "lost": finding.lost.to_string(),
            })
        })
        .collect();
    json!({
        "position": end.next.position,
        "next_block": end.next.sequence.0,
        "clean": end.clean,
        "next_segment": end.sealed.map(|next| next.sequence.0),
        "torn": end.torn.map(|torn| torn.position),
        "findings": findings,
    })
}

//! Files that a newer version wrote: refused by name, and left as they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustmq_protocol::{LeaderEpoch, Offset, PartitionId, TimestampMs, TopicPartition};
use rustmq_wal::segment::SEGMENT_VERSION;
use rustmq_wal::{
    BLOCK_HEADER_BYTES, BlockBuilder, BlockFlags, BlockSequence, Chain, DIRECTORY_CAPACITY_MIN,
    ENTRY_HEADER_BYTES, EntryKind, EntryMeta, Generation, Incarnation, SEGMENT_HEADER_BYTES, Scan,
    SegmentHeader, SegmentState,
};

use crate::support::broker::{Backend, Node, wal_dirs};
use crate::support::cli::Cli;
use crate::support::{client, machine, raw};

/// A kind of entry that no version has yet.
const UNKNOWN_KIND: u8 = 9;

/// Bytes of a file's header that its checksum covers.
const HEADER_COVERED: usize = 508;

/// Where the version is in the headers of segments and catalogue files.
const VERSION_AT: usize = 8;

/// A broker that was killed after it had stored three records.
fn killed() -> Result<Node> {
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    let cli = Cli::new(node.data_dir());
    cli.create_topic("kept", 1)?;
    cli.produce("kept", "a\nb\nc\n")?;
    broker.kill_running()?;
    Ok(node)
}

/// After `change` the broker refuses to start, says `words`, and leaves the file alone; with the
/// file as it was, everything is there.
fn refused(path: &Path, node: &Node, changed: &[u8], words: &[&str]) -> Result<()> {
    let before = fs::read(path)?;
    fs::write(path, changed)?;
    let said = node.refusal()?;
    for word in words {
        ensure!(said.contains(word), "{word:?} is missing in {said}");
    }
    ensure!(fs::read(path)? == changed, "the file was written to");
    fs::write(path, before)?;
    let broker = node.start()?;
    ensure!(Cli::new(node.data_dir()).consume("kept")? == "a\nb\nc\n", "records are missing");
    broker.stop()
}

#[test]
fn node_keys_of_a_newer_version_are_refused() -> Result<()> {
    let _machine = machine::shared();
    let node = killed()?;
    let path = node.data_dir().join("node.keys");
    let newer = fs::read_to_string(&path)?.replacen("keys 1", "keys 2", 1);
    refused(&path, &node, newer.as_bytes(), &["node.keys", "2", "newer"])
}

#[test]
fn a_catalogue_of_a_newer_version_is_refused() -> Result<()> {
    let _machine = machine::shared();
    let node = killed()?;
    let path = node.data_dir().join("catalogue-a.log");
    let mut newer = fs::read(&path)?;
    raise_version(&mut newer, 16)?;
    refused(&path, &node, &newer, &["catalogue-a.log", "version 2", "up to 1"])
}

#[test]
fn a_segment_of_a_newer_version_is_refused() -> Result<()> {
    let _machine = machine::shared();
    let node = killed()?;
    let (path, _) = newest_segment(node.data_dir())?;
    let mut newer = fs::read(&path)?;
    raise_version(&mut newer, 40)?;
    let next = format!("version {}", SEGMENT_VERSION + 1);
    refused(&path, &node, &newer, &[&next, "up to 1"])
}

#[test]
fn an_entry_of_an_unknown_kind_is_refused_and_not_skipped() -> Result<()> {
    let _machine = machine::shared();
    let node = killed()?;
    // The topic's id is asked of a start of its own.
    let broker = node.start()?;
    let topic = client::runtime()?.block_on(raw::topic(node.data_dir(), "kept"))?;
    broker.kill_running()?;
    let (path, header) = newest_segment(node.data_dir())?;
    let mut file = fs::read(&path)?;
    let partition = TopicPartition { topic: topic.id, partition: PartitionId(0) };
    append_unknown_entry(&mut file, &header, partition)?;
    let kind = format!("kind {UNKNOWN_KIND}");
    refused(&path, &node, &file, &[&kind, "knows"])
}

/// The segment that was written to last, and its header.
fn newest_segment(data_dir: &Path) -> Result<(PathBuf, SegmentHeader)> {
    let mut newest: Option<(PathBuf, SegmentHeader)> = None;
    for wal in wal_dirs(data_dir)? {
        for segment in fs::read_dir(wal)? {
            let path = segment?.path();
            let Ok(header) = SegmentHeader::decode(&fs::read(&path)?) else { continue };
            let later = newest.as_ref().is_none_or(|(_, seen)| seen.sequence < header.sequence);
            if header.state == SegmentState::Active && later {
                newest = Some((path, header));
            }
        }
    }
    newest.context("a segment in use")
}

/// Counts up the version in a file's header, whose checksum begins with the generation at
/// `generation_at`.
fn raise_version(file: &mut [u8], generation_at: usize) -> Result<()> {
    let header = file.get_mut(..512).context("a header")?;
    let generation: [u8; 8] = header[generation_at..generation_at + 8].try_into()?;
    let version = u16::from_le_bytes([header[VERSION_AT], header[VERSION_AT + 1]]);
    header[VERSION_AT..VERSION_AT + 2].copy_from_slice(&(version + 1).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&generation), &header[..HEADER_COVERED]);
    header[HEADER_COVERED..].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Puts a block behind the last one, right in all but the kind of its one entry.
fn append_unknown_entry(
    file: &mut [u8],
    header: &SegmentHeader,
    partition: TopicPartition,
) -> Result<()> {
    let mut scan = Scan::new(header, BlockSequence::FIRST);
    while let Some(range) = scan.next_read() {
        let bytes = file.get(range.start as usize..range.end as usize).context("in the file")?;
        if let Err(error) = scan.feed(range.start, bytes, |_, _| {}) {
            bail!("the segment is not whole: {error}");
        }
    }
    let end = scan.finish();
    let incarnation = Incarnation(end.next.incarnation.0 + 1);
    let chain = Chain::new(&end.next, incarnation, end.next.sequence);

    let region_bytes = BlockBuilder::region_bytes_for(0, DIRECTORY_CAPACITY_MIN);
    let mut region = vec![0; region_bytes];
    let mut builder = BlockBuilder::open(region_bytes, DIRECTORY_CAPACITY_MIN);
    let payload = builder.reserve(0).context("room for an entry")?;
    builder.push(EntryMeta {
        kind: EntryKind::EpochStart,
        partition,
        leader_epoch: LeaderEpoch(1_000),
        base_offset: Offset(3),
        record_count: 0,
        append_time: TimestampMs(0),
        max_timestamp: TimestampMs(0),
        payload: payload.start as u32..payload.end as u32,
        payload_crc: 0,
        tag: 0,
    });
    let sealed = builder.seal(&mut region, &chain.context(BlockFlags::NONE, None));
    let block = region.get_mut(sealed.range.clone()).context("the block")?;
    let entry_at = payload.start - ENTRY_HEADER_BYTES - sealed.range.start;
    make_kind_unknown(block, entry_at, header.generation, sealed.sequence);
    let at = sealed.position as usize;
    let place = file.get_mut(at..at + block.len()).context("room behind the last block")?;
    place.copy_from_slice(block);
    Ok(())
}

/// Changes the kind in the entry's header and in the directory, and makes every checksum right
/// again, from the innermost to the outermost.
fn make_kind_unknown(block: &mut [u8], entry_at: usize, generation: Generation, of: BlockSequence) {
    let seed = crc32c::crc32c(&generation.0.to_le_bytes());
    let block_seed = crc32c::crc32c_append(seed, &of.0.to_le_bytes());
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(entry_at + 4, &[UNKNOWN_KIND]);
    put(BLOCK_HEADER_BYTES + 20, &[UNKNOWN_KIND]);

    let crc = |seed: u32, bytes: &[u8]| crc32c::crc32c_append(seed, bytes).to_le_bytes();
    let entry = entry_at..entry_at + ENTRY_HEADER_BYTES;
    let entry_crc = crc(seed, &block[entry_at + 4..entry.end]);
    block[entry_at..entry_at + 4].copy_from_slice(&entry_crc);
    let entries_crc = crc(block_seed, &block[entry]);
    let line = BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + rustmq_wal::DIRECTORY_LINE_BYTES;
    let directory_crc = crc(block_seed, &block[line]);
    block[80..84].copy_from_slice(&directory_crc);
    block[84..88].copy_from_slice(&entries_crc);
    let header_crc = crc(seed, &block[..BLOCK_HEADER_BYTES - 4]);
    block[BLOCK_HEADER_BYTES - 4..BLOCK_HEADER_BYTES].copy_from_slice(&header_crc);
}

const _: () = assert!(HEADER_COVERED + 4 <= SEGMENT_HEADER_BYTES);

//! A disk in memory that can lose power, and a WAL on it: written and recovered in the order of
//! steps that the real shell takes.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;

use rustmq_protocol::{
    BatchBuilder, BatchHeader, LeaderEpoch, Offset, PartitionId, ProducerStamp, Record,
    TimestampMs, TopicId, TopicPartition, stamp,
};
use rustmq_wal::recovery::check_join;
use rustmq_wal::{
    Activation, BlockBuilder, BlockFlags, BlockSequence, Chain, DIRECTORY_CAPACITY_MIN, EntryKind,
    EntryMeta, FOOTER_TRAILER_BYTES, FooterTrailer, Generation, Incarnation, NextSegment, NextSlot,
    OpenError, PartitionCheckpoint, SEGMENT_HEADER_BYTES, Scan, ScanEnd, ScanError, SealedBlock,
    SegmentEnd, SegmentHeader, SegmentIndex, SegmentSequence, SegmentState, Segments, Slot,
    WAL_ITSELF, WalCheckpoint, WalId, encode_footer, footer_bytes, judge_newest, plan,
};

pub(crate) const WAL: WalId = WalId([0xaa; 16]);
pub(crate) const SECTOR_BYTES: usize = 512;
const REGION_BYTES: usize = 256 * 1024;

pub(crate) fn partition(number: u8) -> TopicPartition {
    TopicPartition {
        topic: TopicId::from_bytes([number + 1; 16]),
        partition: PartitionId(u32::from(number)),
    }
}

/// A batch of one record for each value.
pub(crate) fn batch(values: &[&[u8]], base_offset: Offset, epoch: LeaderEpoch) -> Vec<u8> {
    let mut builder = BatchBuilder::new(8 << 20);
    for (index, value) in values.iter().enumerate() {
        let timestamp = TimestampMs(1_000 + index as i64);
        let record = Record { timestamp, key: None, value: Some(value), headers: &[] };
        builder.try_push(&record).expect("a batch takes a few records");
    }
    let mut bytes = builder.finish(ProducerStamp::NONE).to_vec();
    stamp(&mut bytes, base_offset, epoch);
    bytes
}

/// Copies a batch into the block and describes it.
pub(crate) fn push_batch(
    builder: &mut BlockBuilder,
    region: &mut [u8],
    to: TopicPartition,
    batch: &[u8],
) -> bool {
    let Some(range) = builder.reserve(batch.len()) else { return false };
    region[range.clone()].copy_from_slice(batch);
    let header = BatchHeader::decode(batch).expect("a good batch");
    builder.push(EntryMeta {
        kind: EntryKind::Data,
        partition: to,
        leader_epoch: header.leader_epoch,
        base_offset: header.base_offset,
        record_count: header.record_count,
        append_time: TimestampMs(header.base_offset.0 as i64),
        max_timestamp: header.max_timestamp,
        payload: range.start as u32..range.end as u32,
        payload_crc: header.crc,
        tag: 0,
    });
    true
}

/// An entry that is no data.
pub(crate) fn push_note(
    builder: &mut BlockBuilder,
    region: &mut [u8],
    kind: EntryKind,
    to: TopicPartition,
    offset: Offset,
    payload: &[u8],
) {
    let range = builder.reserve(payload.len()).expect("notes are short");
    region[range.clone()].copy_from_slice(payload);
    builder.push(EntryMeta {
        kind,
        partition: to,
        leader_epoch: LeaderEpoch(0),
        base_offset: offset,
        record_count: 0,
        append_time: TimestampMs(0),
        max_timestamp: TimestampMs(0),
        payload: range.start as u32..range.end as u32,
        payload_crc: 0,
        tag: 0,
    });
}

pub(crate) type Files = BTreeMap<Slot, Vec<u8>>;

enum Op {
    Write { slot: Slot, position: u64, bytes: Vec<u8> },
    Flush,
}

/// Files, and what was written to them since they were last as `base` shows.
pub(crate) struct Disk {
    base: Files,
    ops: Vec<Op>,
}

impl Disk {
    pub(crate) fn new(base: Files) -> Self {
        Self { base, ops: Vec::new() }
    }

    pub(crate) fn write(&mut self, slot: Slot, position: u64, bytes: &[u8]) {
        self.ops.push(Op::Write { slot, position, bytes: bytes.to_vec() });
    }

    pub(crate) fn flush(&mut self) {
        self.ops.push(Op::Flush);
    }

    pub(crate) fn op_count(&self) -> usize {
        self.ops.len()
    }

    /// Writes among the last unflushed ones, in sectors.
    pub(crate) fn unflushed_sectors(&self) -> usize {
        let flushed =
            self.ops.iter().rposition(|op| matches!(op, Op::Flush)).map_or(0, |at| at + 1);
        self.ops[flushed..]
            .iter()
            .map(|op| match op {
                Op::Write { bytes, .. } => bytes.len() / SECTOR_BYTES,
                Op::Flush => 0,
            })
            .sum()
    }

    /// What is found after the power went at `op`: all that was flushed, and of what was written
    /// after, the sectors that `survives` picks.
    pub(crate) fn crash_at(&self, op: usize, mut survives: impl FnMut(usize) -> bool) -> Files {
        let mut files = self.base.clone();
        let ops = &self.ops[..op];
        let flushed = ops.iter().rposition(|op| matches!(op, Op::Flush)).map_or(0, |at| at + 1);
        let mut sector = 0;
        for (index, op) in ops.iter().enumerate() {
            let Op::Write { slot, position, bytes } = op else { continue };
            let file = files.get_mut(slot).expect("a file is made before it is written");
            for (at, chunk) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let keep = index < flushed || survives(sector);
                sector += usize::from(flushed <= index);
                if keep {
                    let start = *position as usize + at * SECTOR_BYTES;
                    file[start..start + chunk.len()].copy_from_slice(chunk);
                }
            }
        }
        files
    }

    pub(crate) fn crash(&self, survives: impl FnMut(usize) -> bool) -> Files {
        self.crash_at(self.ops.len(), survives)
    }

    pub(crate) fn files(&self) -> Files {
        self.crash(|_| true)
    }
}

/// An entry that was written, and what it took until it was flushed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    pub(crate) partition: TopicPartition,
    pub(crate) base_offset: Offset,
    pub(crate) payload: Vec<u8>,
    pub(crate) segment: SegmentSequence,
    /// Count of disk operations after which it is surely there; `None` as long as it is not.
    pub(crate) durable_at: Option<usize>,
}

/// A WAL under writing.
pub(crate) struct Writer {
    pub(crate) disk: Disk,
    pub(crate) segments: Segments,
    pub(crate) chain: Chain,
    pub(crate) index: SegmentIndex,
    pub(crate) written: Vec<Written>,
    pub(crate) segment_bytes: u64,
    builder: BlockBuilder,
    region: Vec<u8>,
    pending: Vec<(TopicPartition, Offset, Vec<u8>)>,
    log_ends: BTreeMap<TopicPartition, Offset>,
    generation: u64,
}

impl Writer {
    pub(crate) fn create(segment_bytes: u64, capacity: usize, seed: u64) -> Self {
        let mut files = Files::new();
        for slot in 0..capacity as u32 {
            files.insert(Slot(slot), vec![0; segment_bytes as usize]);
        }
        let header = SegmentHeader {
            state: SegmentState::Active,
            slot: Slot(0),
            wal: WAL,
            sequence: SegmentSequence::FIRST,
            generation: Generation(seed),
            segment_bytes,
            first_block: BlockSequence::FIRST,
            prev_crc: 0,
        };
        let mut segments = Segments::new(segment_bytes, capacity);
        segments.handle_activated(&header);
        for slot in 1..capacity as u32 {
            segments.handle_spare(Slot(slot));
        }
        let chain = Chain::new(&header.chain_start(), Incarnation(1), BlockSequence::FIRST);
        let mut writer = Self::with(Disk::new(files), segments, chain, SegmentIndex::new(), seed);
        writer.write_header(&header);
        for (slot, header) in (1..capacity as u32)
            .map(|slot| (Slot(slot), SegmentHeader::spare(WAL, Slot(slot), segment_bytes)))
        {
            writer.write_header(&SegmentHeader { slot, ..header });
        }
        let checkpoint = writer.write_checkpoint(&header);
        writer.disk.flush();
        writer.chain.handle_flushed(checkpoint.sequence);
        writer
    }

    fn with(
        disk: Disk,
        segments: Segments,
        chain: Chain,
        index: SegmentIndex,
        generation: u64,
    ) -> Self {
        Self {
            disk,
            segment_bytes: segments.segment_bytes(),
            segments,
            chain,
            index,
            written: Vec::new(),
            builder: BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN),
            region: vec![0xcc; REGION_BYTES],
            pending: Vec::new(),
            log_ends: BTreeMap::new(),
            generation,
        }
    }

    /// Goes on with what recovery found, as a start does: rewrite, start block, flush.
    pub(crate) fn resume(files: Files, found: Recovered, seed: u64) -> Self {
        let Recovered { plan, tail, tail_end, older, newest_was_activated, entries } = found;
        let mut segments = Segments::new(tail.segment_bytes, files.len());
        for (header, seen) in &older {
            segments
                .restore(header, seen.index.partitions(), seen.index.point_count(), seen.blocks_end)
                .expect("what was written can be restored");
        }
        let index = tail_end.index.clone();
        segments
            .restore(&tail, index.partitions(), index.point_count(), tail_end.next.position)
            .expect("what was written can be restored");
        let newest = *plan.segments.last().expect("there is one");
        let live: Vec<Slot> = segments.live().map(|segment| segment.header.slot).collect();
        for slot in files.keys().filter(|slot| !live.contains(slot)) {
            segments.handle_spare(*slot);
        }
        let incarnation = Incarnation(tail_end.next.incarnation.0 + 1);
        let chain = Chain::new(&tail_end.next, incarnation, tail_end.next.sequence);
        let undurable = tail_end.undurable;
        let bytes = files[&tail.slot][undurable.start as usize..undurable.end as usize].to_vec();
        let mut writer = Self::with(Disk::new(files), segments, chain, index, seed);
        if !newest_was_activated {
            writer.write_header(&newest.freed());
            writer.disk.flush();
        }
        writer.disk.write(tail.slot, undurable.start, &bytes);
        for entry in &entries {
            let end = BatchHeader::decode(&entry.payload).expect("recovered batches are good");
            let end = Offset(end.last_offset().0 + 1);
            writer.log_ends.insert(entry.partition, end);
        }
        writer.written = entries;
        writer.commit(BlockFlags::START, true);
        let now = writer.disk.op_count();
        for entry in &mut writer.written {
            entry.durable_at = Some(now);
        }
        writer
    }

    /// Appends a batch to the open block; closes it first if it is full.
    pub(crate) fn append(&mut self, to: TopicPartition, values: &[&[u8]]) {
        let base_offset = *self.log_ends.entry(to).or_insert(Offset::ZERO);
        let batch = batch(values, base_offset, LeaderEpoch(1));
        if !push_batch(&mut self.builder, &mut self.region, to, &batch) {
            self.commit(BlockFlags::NONE, true);
            assert!(push_batch(&mut self.builder, &mut self.region, to, &batch), "it fits alone");
        }
        self.log_ends.insert(to, Offset(base_offset.0 + values.len() as u64));
        self.pending.push((to, base_offset, batch));
    }

    /// Adds an entry without a payload to the open block.
    pub(crate) fn note(&mut self, kind: EntryKind, to: TopicPartition, offset: Offset) {
        push_note(&mut self.builder, &mut self.region, kind, to, offset, &[]);
    }

    /// A topic was deleted: checkpoints do not name its partition any more.
    pub(crate) fn forget(&mut self, partition: TopicPartition) {
        self.written.retain(|entry| entry.partition != partition);
    }

    /// Closes and writes the open block, flushed or not.
    pub(crate) fn commit(&mut self, flags: BlockFlags, flush: bool) -> SealedBlock {
        if !self.segments.fits(self.builder.sealed_bytes(), self.builder.entries().len()) {
            self.rotate();
        }
        let ends = flags.has(BlockFlags::CLEAN);
        if ends {
            self.flush();
        }
        let slot = self.active().slot;
        let sealed = self.builder.seal(&mut self.region, &self.chain.context(flags, None));
        self.chain.advance(&sealed);
        self.disk.write(slot, sealed.position, &self.region[sealed.range.clone()]);
        self.segments.handle_block(self.builder.entries(), sealed.bytes());
        self.index.add_block(self.builder.entries(), &sealed);
        let segment = self.active().sequence;
        for (partition, base_offset, payload) in self.pending.drain(..) {
            let durable_at = None;
            self.written.push(Written { partition, base_offset, payload, segment, durable_at });
        }
        self.builder.reset(REGION_BYTES, self.builder.next_directory_capacity());
        if flush {
            self.flush();
        }
        sealed
    }

    pub(crate) fn flush(&mut self) {
        self.disk.flush();
        let last = self.chain.point().sequence.0 - 1;
        if 0 < last {
            self.chain.handle_flushed(BlockSequence(last));
        }
        let now = self.disk.op_count();
        for entry in self.written.iter_mut().rev().take_while(|entry| entry.durable_at.is_none()) {
            entry.durable_at = Some(now);
        }
    }

    /// Seals the active segment and goes on in a spare.
    pub(crate) fn rotate(&mut self) {
        let slot = loop {
            match self.segments.next_slot() {
                NextSlot::Spare(slot) => break slot,
                NextSlot::Create(_) | NextSlot::Full => assert!(self.free(), "the pool is full"),
            }
        };
        self.flush();
        let old = self.active();
        self.generation = self.generation.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let next = NextSegment {
            sequence: old.sequence.next(),
            slot,
            generation: Generation(self.generation),
        };
        let mut builder = BlockBuilder::open(16 << 10, DIRECTORY_CAPACITY_MIN);
        let mut region = vec![0; 16 << 10];
        let seal = builder.seal(&mut region, &self.chain.context(BlockFlags::SEAL, Some(next)));
        self.chain.advance(&seal);
        let end = SegmentEnd::of(&self.chain.point(), next);
        let header = SegmentHeader {
            state: SegmentState::Active,
            slot,
            wal: WAL,
            sequence: next.sequence,
            generation: next.generation,
            segment_bytes: self.segment_bytes,
            first_block: end.next_block,
            prev_crc: end.prev_crc,
        };
        self.write_header(&header);
        self.segments.handle_block(&[], seal.bytes());
        let old_index = core::mem::take(&mut self.index);
        self.segments.handle_activated(&header);
        self.chain.enter(header.generation, SEGMENT_HEADER_BYTES as u64);
        let checkpoint = self.write_checkpoint(&header);
        self.disk.flush();
        self.disk.write(old.slot, seal.position, &region[seal.range.clone()]);
        self.disk.flush();
        self.chain.handle_flushed(checkpoint.sequence);
        let bytes = footer_bytes(old_index.partition_count(), old_index.point_count());
        let mut footer = vec![0xee; bytes];
        encode_footer(&old_index, &old, &end, &mut footer);
        self.disk.write(old.slot, self.segment_bytes - bytes as u64, &footer);
    }

    /// Frees the oldest segment, whatever is in it.
    pub(crate) fn free(&mut self) -> bool {
        let Some(sequence) = self.segments.freeable(|_| None) else { return false };
        let header = self.segments.segment(sequence).expect("it is live").header;
        self.write_header(&header.freed());
        self.disk.flush();
        self.segments.handle_freed(sequence);
        true
    }

    pub(crate) fn active(&self) -> SegmentHeader {
        self.segments.active().expect("there is one").header
    }

    fn write_header(&mut self, header: &SegmentHeader) {
        let mut page = [0; SEGMENT_HEADER_BYTES];
        header.encode(&mut page);
        self.disk.write(header.slot, 0, &page);
    }

    fn write_checkpoint(&mut self, header: &SegmentHeader) -> SealedBlock {
        let mut builder = BlockBuilder::open(16 << 10, DIRECTORY_CAPACITY_MIN);
        let mut region = vec![0; 16 << 10];
        let mut ends = BTreeMap::new();
        for entry in &self.written {
            let end = BatchHeader::decode(&entry.payload).expect("a good batch").last_offset();
            ends.insert(entry.partition, Offset(end.0 + 1));
        }
        let partition_count = ends.len() as u32;
        let wal = WalCheckpoint { first_segment: header.sequence, partition_count };
        let kind = EntryKind::Checkpoint;
        push_note(&mut builder, &mut region, kind, WAL_ITSELF, Offset::ZERO, &wal.encode());
        for (partition, log_end) in ends {
            let log_start = self.segments.first_offset(partition).unwrap_or(log_end);
            let state = PartitionCheckpoint {
                partition,
                log_start,
                log_end,
                leader_epoch: LeaderEpoch(1),
                append_time_max: TimestampMs(0),
                epochs: vec![(LeaderEpoch(1), Offset::ZERO)],
                producers: Vec::new(),
            };
            push_note(&mut builder, &mut region, kind, partition, Offset::ZERO, &state.encode());
        }
        let flags = BlockFlags::CHECKPOINT.with(BlockFlags::CHECKPOINT_END);
        let sealed = builder.seal(&mut region, &self.chain.context(flags, None));
        self.chain.advance(&sealed);
        self.disk.write(header.slot, sealed.position, &region[sealed.range.clone()]);
        self.segments.handle_block(builder.entries(), sealed.bytes());
        self.index.add_block(builder.entries(), &sealed);
        sealed
    }
}

/// What a start found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) plan: rustmq_wal::RecoveryPlan,
    pub(crate) tail: SegmentHeader,
    pub(crate) tail_end: ScanEnd,
    pub(crate) older: Vec<(SegmentHeader, Older)>,
    pub(crate) newest_was_activated: bool,
    pub(crate) entries: Vec<Written>,
}

#[derive(Debug)]
pub(crate) struct Older {
    pub(crate) index: SegmentIndex,
    pub(crate) blocks_end: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RecoverError {
    Open(OpenError),
    Scan(ScanError),
    NotSealed(SegmentSequence),
}

/// Recovers a WAL from its files by the steps of `recovery`.
pub(crate) fn recover(files: &Files, segment_bytes: u64) -> Result<Recovered, RecoverError> {
    let headers = files.iter().map(|(slot, file)| (*slot, SegmentHeader::decode(file)));
    let plan = plan(WAL, segment_bytes, headers).map_err(RecoverError::Open)?;
    let (newest, before) = plan.segments.split_last().expect("tests begin with a segment");
    let (newest_end, newest_entries) = scan(files, newest, BlockSequence::FIRST)?;
    let mut older = Vec::new();
    let mut entries = Vec::new();
    let mut ends = Vec::new();
    for (index, header) in before.iter().enumerate() {
        let last = index + 1 == before.len();
        let durable_end = match before.get(index + 1) {
            Some(next) => next.first_block,
            None => newest_end.durable_end,
        };
        // The footer says how it ended; the test reads the entries all the same.
        let footer = footer_end(files, header);
        let durable_end = footer.map_or(durable_end, |end| durable_end.max(end.next_block));
        let (end, mut held) = scan(files, header, durable_end)?;
        if let Some(footer) = footer {
            assert_eq!(Some(footer), end.segment_end(), "footer and scan agree");
        }
        entries.append(&mut held);
        match (end.segment_end(), last) {
            (Some(segment_end), false) => {
                check_join(&segment_end, &before[index + 1]).map_err(RecoverError::Open)?;
            }
            (None, false) => return Err(RecoverError::NotSealed(header.sequence)),
            _ => {}
        }
        ends.push((*header, end));
    }
    let sealed = ends.last().map(|(_, end)| end.segment_end());
    let activation = judge_newest(sealed, newest, &newest_end).map_err(RecoverError::Open)?;
    let (tail, tail_end) = match activation {
        Activation::Activated => {
            entries.extend(newest_entries);
            (*newest, newest_end)
        }
        Activation::Never => ends.pop().expect("tests make the first segment whole"),
    };
    for (header, end) in ends {
        older.push((header, Older { index: end.index, blocks_end: end.next.position }));
    }
    let newest_was_activated = activation == Activation::Activated;
    Ok(Recovered { plan, tail, tail_end, older, newest_was_activated, entries })
}

fn footer_end(files: &Files, header: &SegmentHeader) -> Option<SegmentEnd> {
    let file = &files[&header.slot];
    let trailer = FooterTrailer::decode(&file[file.len() - FOOTER_TRAILER_BYTES..], header).ok()?;
    let table = trailer.table_range();
    let bytes = &file[table.start as usize..table.end as usize];
    trailer.decode_table(bytes, header.generation).ok()?;
    Some(trailer.end)
}

/// Scans one segment to its end.
pub(crate) fn scan(
    files: &Files,
    header: &SegmentHeader,
    durable_end: BlockSequence,
) -> Result<(ScanEnd, Vec<Written>), RecoverError> {
    let file = &files[&header.slot];
    let mut entries = Vec::new();
    let mut scan = Scan::new(header, durable_end);
    while let Some(range) = scan.next_read() {
        let bytes = &file[range.start as usize..range.end as usize];
        scan.feed(range.start, bytes, |_, entry| {
            if entry.header.kind == EntryKind::Data {
                entries.push(Written {
                    partition: entry.header.partition,
                    base_offset: entry.header.base_offset,
                    payload: entry.payload.to_vec(),
                    segment: header.sequence,
                    durable_at: None,
                });
            }
        })
        .map_err(RecoverError::Scan)?;
    }
    Ok((scan.finish(), entries))
}

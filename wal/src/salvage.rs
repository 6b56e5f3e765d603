//! Writes what is left of a WAL anew: every whole record in its order and at its offset, behind
//! checkpoints that say where each log begins and ends.
//!
//! The result is a WAL like any other: sealed segments with footers, and an empty tail whose
//! checkpoint has the state of every partition. Offsets that were lost are not given to others;
//! a broker names them. The shell feeds whole entries in the order of the log, and writes what
//! [`Salvage::take_writes`] gives, in order, to new files.

use std::collections::{BTreeMap, VecDeque};

use crate::block::{BLOCK_ALIGN, BlockFlags};
use crate::builder::{BlockBuilder, DIRECTORY_CAPACITY_MIN};
use crate::chain::Chain;
use crate::checkpoint::{
    BATCHES_PER_PRODUCER_MAX, BatchCheckpoint, EPOCHS_PER_PARTITION_MAX,
    PRODUCERS_PER_PARTITION_MAX, PartitionCheckpoint, ProducerCheckpoint, WalCheckpoint,
    forgotten_beyond,
};
use crate::entry::{EntryHeader, EntryKind, EntryMeta, WAL_ITSELF};
use crate::footer::{SegmentEnd, encode_footer, footer_bytes};
use crate::ids::{
    BlockSequence, Generation, Incarnation, NextSegment, SegmentSequence, Slot, WalId,
};
use crate::index::SegmentIndex;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState};
use crate::verify::{Finding, Lost};
use rustmq_protocol::{BatchHeader, LeaderEpoch, Offset, ProducerId, TimestampMs, TopicPartition};

/// Bytes of a block, unless one batch is larger.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes for a file of the new WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SalvageWrite {
    /// The file.
    pub slot: Slot,
    /// Where in it.
    pub position: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// A new WAL while it is written.
pub struct Salvage<G> {
    wal: WalId,
    segment_bytes: u64,
    /// Draws the random bits of a generation.
    draw: G,
    states: BTreeMap<TopicPartition, State>,
    /// Records that a partition which nothing has named so far may have lost, at most.
    doubt: u64,
    active: SegmentHeader,
    chain: Chain,
    index: SegmentIndex,
    builder: BlockBuilder,
    region: Vec<u8>,
    writes: Vec<SalvageWrite>,
}

/// What is known of a partition so far.
#[derive(Clone, Debug)]
struct State {
    log_start: Offset,
    log_end: Offset,
    append_time_max: TimestampMs,
    leader_epoch: LeaderEpoch,
    epochs: Vec<(LeaderEpoch, Offset)>,
    producers: BTreeMap<ProducerId, ProducerCheckpoint>,
    /// Records that may have followed and are lost, at most.
    doubt: u64,
}

impl<G: FnMut() -> u64> Salvage<G> {
    /// Begins a WAL of this id and segment size, after the last incarnation of the old one.
    pub fn new(wal: WalId, segment_bytes: u64, after: Incarnation, mut draw: G) -> Self {
        let active = SegmentHeader {
            state: SegmentState::Active,
            slot: Slot(0),
            wal,
            sequence: SegmentSequence::FIRST,
            generation: Generation(draw()),
            segment_bytes,
            first_block: BlockSequence::FIRST,
            prev_crc: 0,
        };
        let mut chain = Chain::new(&active.chain_start(), Incarnation(1), BlockSequence::FIRST);
        // The chain's incarnation never falls.
        let point = crate::ChainPoint { incarnation: after, ..chain.point() };
        chain = Chain::new(&point, Incarnation(after.0 + 1), BlockSequence::FIRST);
        let mut salvage = Self {
            wal,
            segment_bytes,
            draw,
            states: BTreeMap::new(),
            doubt: 0,
            active,
            chain,
            index: SegmentIndex::new(),
            builder: BlockBuilder::open(BLOCK_BYTES, DIRECTORY_CAPACITY_MIN),
            region: vec![0; BLOCK_BYTES],
            writes: Vec::new(),
        };
        salvage.begin_segment();
        salvage
    }

    /// Takes the next whole entry of the old log. False: it makes no sense where it stands, and is
    /// given up.
    pub fn take(&mut self, header: &EntryHeader, payload: &[u8]) -> bool {
        if header.partition == WAL_ITSELF {
            // What is said of the WAL is made anew; records it has none.
            return header.kind != EntryKind::Data;
        }
        match header.kind {
            EntryKind::Checkpoint => match PartitionCheckpoint::decode(payload) {
                Ok(checkpoint) => self.take_checkpoint(checkpoint),
                Err(_) => return false,
            },
            EntryKind::LogStart => {
                let state = self.state(header.partition);
                state.log_start = state.log_start.max(header.base_offset);
                state.log_end = state.log_end.max(header.base_offset);
            }
            EntryKind::EpochStart => {
                let state = self.state(header.partition);
                state.log_end = state.log_end.max(header.base_offset);
                state.leader_epoch = state.leader_epoch.max(header.leader_epoch);
                state.doubt = 0;
            }
            EntryKind::Data => {
                let Ok(batch) = BatchHeader::decode(payload) else { return false };
                let state = self.state(header.partition);
                if header.base_offset < state.log_end {
                    return false;
                }
                state.take_batch(header, &batch);
                self.push(header, payload);
            }
        }
        true
    }

    /// Takes note of what is wrong, between the entries before it and those behind it.
    pub fn leave_out(&mut self, finding: &Finding) {
        match &finding.lost {
            Lost::Nothing | Lost::State => {}
            Lost::Records(records) => {
                for (partition, range) in records {
                    let state = self.state(*partition);
                    state.log_end = state.log_end.max(range.end);
                    state.doubt = 0;
                }
            }
            Lost::Unknown => self.lose(finding.end - finding.position),
        }
    }

    /// Something of so many bytes is lost here, and nothing says whose it was: of each partition of which
    /// nothing comes behind it, as many records at most.
    pub fn lose(&mut self, bytes: u64) {
        self.doubt = self.doubt.saturating_add(bytes);
        for state in self.states.values_mut() {
            state.doubt = state.doubt.saturating_add(bytes);
        }
    }

    /// Writes the end: what is left of the last block, and a tail with the state of everybody.
    /// Gives the offsets that may have held records and are given up.
    pub fn finish(&mut self) -> Vec<(TopicPartition, core::ops::Range<Offset>)> {
        let mut doubtful = Vec::new();
        for (partition, state) in &mut self.states {
            if 0 < state.doubt {
                let end = Offset(state.log_end.0.saturating_add(state.doubt));
                doubtful.push((*partition, state.log_end..end));
                (state.log_end, state.doubt) = (end, 0);
            }
        }
        self.close();
        self.rotate();
        doubtful
    }

    /// What was not written yet, in order.
    pub fn take_writes(&mut self) -> Vec<SalvageWrite> {
        core::mem::take(&mut self.writes)
    }

    /// Files of the new WAL so far: slots from 0.
    #[must_use]
    pub fn file_count(&self) -> u32 {
        self.active.slot.0 + 1
    }

    fn state(&mut self, partition: TopicPartition) -> &mut State {
        let doubt = self.doubt;
        self.states.entry(partition).or_insert_with(|| State {
            log_start: Offset::ZERO,
            log_end: Offset::ZERO,
            append_time_max: TimestampMs(0),
            leader_epoch: LeaderEpoch(0),
            epochs: Vec::new(),
            producers: BTreeMap::new(),
            doubt,
        })
    }

    /// A later checkpoint repeats what is known, and tells what was lost in between, and whom the broker
    /// had forgotten.
    fn take_checkpoint(&mut self, checkpoint: PartitionCheckpoint) {
        let known = self.states.contains_key(&checkpoint.partition);
        let state = self.state(checkpoint.partition);
        state.doubt = 0;
        state.log_start = state.log_start.max(checkpoint.log_start);
        if known && checkpoint.log_end < state.log_end {
            return;
        }
        let producers = checkpoint.producers.into_iter().map(|producer| (producer.id, producer));
        *state = State {
            log_start: state.log_start,
            log_end: checkpoint.log_end,
            append_time_max: checkpoint.append_time_max.max(state.append_time_max),
            leader_epoch: checkpoint.leader_epoch.max(state.leader_epoch),
            epochs: checkpoint.epochs,
            producers: producers.collect(),
            doubt: 0,
        };
    }

    fn push(&mut self, header: &EntryHeader, payload: &[u8]) {
        if !self.builder.fits(payload.len()) {
            self.close();
            let wanted = BlockBuilder::region_bytes_for(payload.len(), DIRECTORY_CAPACITY_MIN);
            let bytes = BLOCK_BYTES.max(wanted).min(self.segment_bytes as usize / 2).max(wanted);
            if self.region.len() < bytes {
                self.region.resize(bytes, 0);
            }
            self.builder.reset(bytes, DIRECTORY_CAPACITY_MIN);
        }
        if !self.has_room(self.builder.sealed_bytes() + payload.len() + BLOCK_ALIGN, 1) {
            self.close();
            self.rotate();
        }
        let range = self.builder.reserve(payload.len()).expect("an empty block takes one batch");
        self.region[range.clone()].copy_from_slice(payload);
        self.builder.push(EntryMeta {
            kind: header.kind,
            partition: header.partition,
            leader_epoch: header.leader_epoch,
            base_offset: header.base_offset,
            record_count: header.record_count,
            append_time: header.append_time,
            max_timestamp: header.max_timestamp,
            payload: range.start as u32..range.end as u32,
            payload_crc: header.payload_crc,
            tag: 0,
        });
    }

    /// Room for a block, a seal and a footer.
    fn has_room(&self, block_bytes: usize, more_entries: usize) -> bool {
        let entries = self.builder.entries().len() + more_entries;
        let footer = footer_bytes(
            self.index.partition_count() + entries,
            self.index.point_count() + entries,
        );
        let end = self.chain.point().position as usize + block_bytes + 2 * BLOCK_ALIGN + footer;
        end as u64 <= self.segment_bytes
    }

    fn close(&mut self) {
        if self.builder.is_empty() {
            return;
        }
        self.seal(BlockFlags::NONE, None);
    }

    fn seal(&mut self, flags: BlockFlags, next: Option<NextSegment>) {
        let sealed = self.builder.seal(&mut self.region, &self.chain.context(flags, next));
        self.chain.advance(&sealed);
        // All is flushed before anybody looks at it.
        self.chain.handle_flushed(sealed.sequence);
        self.index.add_block(self.builder.entries(), &sealed);
        let bytes = self.region[sealed.range.clone()].to_vec();
        let slot = self.active.slot;
        self.writes.push(SalvageWrite { slot, position: sealed.position, bytes });
        self.builder.reset(self.region.len(), DIRECTORY_CAPACITY_MIN);
    }

    fn rotate(&mut self) {
        let next = NextSegment {
            sequence: self.active.sequence.next(),
            slot: Slot(self.active.slot.0 + 1),
            generation: Generation((self.draw)()),
        };
        self.seal(BlockFlags::SEAL, Some(next));
        let end = SegmentEnd::of(&self.chain.point(), next);
        let bytes = footer_bytes(self.index.partition_count(), self.index.point_count());
        let mut footer = vec![0; bytes];
        encode_footer(&self.index, &self.active, &end, &mut footer);
        let position = self.segment_bytes - bytes as u64;
        self.writes.push(SalvageWrite { slot: self.active.slot, position, bytes: footer });
        self.active = end.next_header(self.wal, self.segment_bytes);
        self.index = SegmentIndex::new();
        self.chain.enter(next.generation, SEGMENT_HEADER_BYTES as u64);
        self.begin_segment();
    }

    /// Header and checkpoint.
    fn begin_segment(&mut self) {
        let mut page = [0; SEGMENT_HEADER_BYTES];
        self.active.encode(&mut page);
        let (slot, bytes) = (self.active.slot, page.to_vec());
        self.writes.push(SalvageWrite { slot, position: 0, bytes });
        let first_segment = SegmentSequence::FIRST;
        let wal = WalCheckpoint { first_segment, partition_count: self.states.len() as u32 };
        let mut entries = VecDeque::from([(WAL_ITSELF, wal.encode().to_vec())]);
        for (partition, state) in &mut self.states {
            state.bound_producers();
            entries.push_back((*partition, state.checkpoint(*partition).encode()));
        }
        while let Some((partition, payload)) = entries.pop_front() {
            if !self.builder.fits(payload.len()) {
                self.seal(BlockFlags::CHECKPOINT, None);
                let wanted = BlockBuilder::region_bytes_for(payload.len(), DIRECTORY_CAPACITY_MIN);
                if self.region.len() < wanted {
                    self.region.resize(wanted, 0);
                }
                self.builder.reset(self.region.len(), DIRECTORY_CAPACITY_MIN);
            }
            let range = self.builder.reserve(payload.len()).expect("the region was made for it");
            self.region[range.clone()].copy_from_slice(&payload);
            self.builder.push(EntryMeta::checkpoint(partition, range));
        }
        self.seal(BlockFlags::CHECKPOINT.with(BlockFlags::CHECKPOINT_END), None);
    }
}

impl State {
    fn take_batch(&mut self, header: &EntryHeader, batch: &BatchHeader) {
        self.log_end = header.end_offset();
        self.append_time_max = self.append_time_max.max(header.append_time);
        self.leader_epoch = self.leader_epoch.max(header.leader_epoch);
        self.doubt = 0;
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch < header.leader_epoch) {
            self.epochs.push((header.leader_epoch, header.base_offset));
            let extra = self.epochs.len().saturating_sub(EPOCHS_PER_PARTITION_MAX);
            self.epochs.drain(..extra);
        }
        let id = batch.producer_id;
        if id == ProducerId::NONE {
            return;
        }
        let producer = self.producers.entry(id).or_insert_with(|| ProducerCheckpoint {
            id,
            epoch: batch.producer_epoch,
            last_append_time: header.append_time,
            batches: Vec::new(),
        });
        if producer.epoch != batch.producer_epoch {
            producer.epoch = batch.producer_epoch;
            producer.batches.clear();
        }
        producer.last_append_time = header.append_time;
        producer.batches.push(BatchCheckpoint {
            base_sequence: batch.base_sequence,
            record_count: batch.record_count,
            base_offset: header.base_offset,
        });
        let extra = producer.batches.len().saturating_sub(BATCHES_PER_PRODUCER_MAX);
        producer.batches.drain(..extra);
    }

    /// Forgets whoever appended the longest ago, until a checkpoint takes the others. The broker had
    /// forgotten them: it remembers no more at a time, and forgets in this order.
    fn bound_producers(&mut self) {
        let producers = self.producers.values().map(|producer| {
            let last = producer.batches.last().map_or(Offset::ZERO, |batch| batch.base_offset);
            (producer.last_append_time, last, producer.id)
        });
        for id in forgotten_beyond(PRODUCERS_PER_PARTITION_MAX, producers) {
            self.producers.remove(&id);
        }
    }

    fn checkpoint(&self, partition: TopicPartition) -> PartitionCheckpoint {
        PartitionCheckpoint {
            partition,
            log_start: self.log_start,
            log_end: self.log_end,
            leader_epoch: self.leader_epoch,
            append_time_max: self.append_time_max,
            epochs: self.epochs.clone(),
            producers: self.producers.values().cloned().collect(),
        }
    }
}

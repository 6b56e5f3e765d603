//! Recovery: what the files of a WAL say, and making it durable before anything is believed.
//!
//! The judgements are `wal::recovery`'s and `wal::Scan`'s; this file reads for them, keeps what they
//! hand out, and does what they ask for: rewrites what may not be durable, frees what was never
//! used, and makes footers that a crash left out.

mod blocks;
mod by_footer;
mod files;
mod older;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use rustmq_planted::{Bug, planted};
use rustmq_sys::buffer::{BufferPool, Slice};
use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_wal::recovery::{
    Activation, FileClues, OpenError, RecoveryPlan, check_join, headless, judge_newest, plan,
    rebuild, was_in_use,
};
use rustmq_wal::{
    BlockSequence, Chain, ChainPoint, Generation, Incarnation, ScanEnd, SegmentEnd, SegmentHeader,
    SegmentHeaderError, SegmentIndex, SegmentSequence, SegmentState, Segments, Slot, WalId,
};

use self::older::Seen;
use crate::checkpoint::CheckpointBlocks;
use crate::error::ShardError;
use crate::random;
use crate::replay::Replayed;
use crate::segment_io::{create_segment, read_range, write_header};
use crate::segments::Recovered;

/// Which WAL to open, and how.
pub(crate) struct WalSetup {
    pub(crate) id: WalId,
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) segments_max: usize,
    /// No partition was ever placed on it, so it may be new.
    pub(crate) may_create: bool,
}

/// A WAL that is open: its files, and the state of its partitions.
pub(crate) struct OpenedWal {
    pub(crate) recovered: Recovered,
    pub(crate) replayed: Replayed,
}

/// Opens a WAL: makes it if it is new, else recovers it. Nothing may be served before the caller
/// has written a start block.
pub(crate) async fn open(setup: &WalSetup, pool: &BufferPool) -> Result<OpenedWal, ShardError> {
    let recovery = Recovery {
        setup,
        pool,
        files: BTreeMap::new(),
        unread: Vec::new(),
        repair: Vec::new(),
        unfooted: BTreeMap::new(),
    };
    recovery.open().await
}

struct Recovery<'a> {
    setup: &'a WalSetup,
    pool: &'a BufferPool,
    files: BTreeMap<Slot, File>,
    /// Files whose header said nothing.
    unread: Vec<Slot>,
    /// Those whose header is known from the others, and is to be written again.
    repair: Vec<Slot>,
    /// Indexes of sealed segments whose footer cannot be written.
    unfooted: BTreeMap<SegmentSequence, Rc<SegmentIndex>>,
}

/// What came of one attempt.
enum Step {
    Open(Box<OpenedWal>),
    /// The header of a file that said nothing became known: begin again with it.
    Next(SegmentHeader),
    /// The only segment was never used.
    Unused(SegmentHeader),
}

/// What files say that seem to be in no use.
struct Behind {
    /// The segment behind the newest one.
    in_use: Option<SegmentHeader>,
    /// First block that none of their blocks says is flushed.
    durable_end: BlockSequence,
}

impl Recovery<'_> {
    async fn open(mut self) -> Result<OpenedWal, ShardError> {
        let mut clues = self.read_clues().await?;
        let damaged: Vec<(Slot, SegmentHeaderError)> = clues
            .iter()
            .filter_map(|file| Some((file.slot, file.header.err()?)))
            .filter(|(_, why)| *why != SegmentHeaderError::Blank)
            .collect();
        self.unread = clues.iter().filter(|file| file.header.is_err()).map(|f| f.slot).collect();
        self.repair = rebuild(self.setup.id, self.setup.segment_bytes, &mut clues);
        for (slot, why) in damaged {
            let file = self.path(slot);
            match self.repair.contains(&slot) {
                true => tracing::warn!(
                    file = %file.display(), %why,
                    "a segment header was damaged, and is made up from its neighbours"
                ),
                false => {
                    tracing::warn!(file = %file.display(), %why, "a segment header cannot be read");
                }
            }
        }
        loop {
            let headers = clues.iter().map(|file| (file.slot, file.header));
            let order = plan(self.setup.id, self.setup.segment_bytes, headers);
            let order = order.map_err(|error| self.refuse_open(&error))?;
            if order.segments.is_empty() {
                return self.create(&order).await;
            }
            for sequence in &order.lost {
                tracing::error!(
                    dir = %self.setup.dir.display(), segment = %sequence,
                    "a segment file is gone or unreadable: the records in it will not be served"
                );
            }
            match self.recover(&order, &clues).await? {
                Step::Open(opened) => return Ok(*opened),
                Step::Next(header) => {
                    // All of it is known from the seal that names it, or from its first block.
                    let file = clues.iter_mut().find(|file| file.slot == header.slot);
                    let file = file.expect("every file was looked at");
                    file.header = Ok(header);
                    self.repair.push(header.slot);
                }
                Step::Unused(header) => {
                    // Making this WAL was cut off: nothing was ever in it.
                    self.check_may_create()?;
                    self.give_back(&header).await?;
                    let removed = fs::remove(&self.path(header.slot)).await;
                    removed.map_err(|error| self.device("making anew", &error))?;
                    self.files.clear();
                    return self.create(&RecoveryPlan::default()).await;
                }
            }
        }
    }

    /// Makes the first segment of a new WAL.
    async fn create(mut self, order: &RecoveryPlan) -> Result<OpenedWal, ShardError> {
        self.check_may_create()?;
        for slot in &order.blank {
            self.files.remove(slot);
        }
        let setup = self.setup;
        let slot = Slot(0);
        let bytes = setup.segment_bytes;
        let file = create_segment(&setup.dir, setup.id, slot, bytes, self.pool, false).await;
        let file = file.map_err(|error| self.device("making the first segment in", &error))?;
        let header = SegmentHeader {
            state: SegmentState::Active,
            slot,
            wal: setup.id,
            sequence: SegmentSequence::FIRST,
            generation: Generation(random::number()),
            segment_bytes: bytes,
            first_block: BlockSequence::FIRST,
            prev_crc: 0,
        };
        let written = write_header(&file, &header, self.pool).await;
        written.map_err(|error| self.device("beginning the first segment in", &error))?;
        let start = header.chain_start();
        let mut chain = Chain::new(&start, next_incarnation(&start), BlockSequence::FIRST);
        let mut segments = Segments::new(bytes, setup.segments_max);
        segments.handle_activated(&header);
        let mut index = SegmentIndex::new();
        let mut blocks = CheckpointBlocks::empty(header.sequence);
        while let Some((mut builder, mut buffer, flags)) = blocks.next(self.pool)? {
            let sealed = builder.seal(&mut buffer, &chain.context(flags, None));
            chain.advance(&sealed);
            let memory = buffer.freeze().slice(sealed.range.clone());
            let written = file.write_durable(memory, sealed.position).await;
            written.map_err(|error| self.device("beginning the first segment in", &error))?;
            chain.handle_flushed(sealed.sequence);
            segments.handle_block(builder.entries(), sealed.bytes());
            index.add_block(builder.entries(), &sealed);
        }
        self.files.insert(slot, file);
        let recovered = Recovered {
            files: self.files,
            segments,
            chain,
            index,
            reach: None,
            unfooted: BTreeMap::new(),
            checkpoint_from: None,
        };
        Ok(OpenedWal { recovered, replayed: Replayed::default() })
    }

    fn check_may_create(&self) -> Result<(), ShardError> {
        match self.setup.may_create {
            true => Ok(()),
            false => Err(self.refuse(
                "topics have partitions in this WAL and its segments are gone: restore the directory \
                 from a copy"
                    .to_owned(),
            )),
        }
    }

    async fn recover(
        &mut self,
        order: &RecoveryPlan,
        clues: &[FileClues],
    ) -> Result<Step, ShardError> {
        let mut headers = order.segments.clone();
        let newest = headers.pop().expect("the caller saw a segment");
        let (mut tail_end, mut replayed) = self.scan(&newest, BlockSequence::FIRST).await?;
        if let Some(end) = tail_end.segment_end()
            && let Some(header) = self.unread_next(&end)
        {
            return Ok(Step::Next(header));
        }
        if tail_end.sealed.is_none() {
            let behind = self.headless_behind(&newest, &tail_end, clues).await?;
            if let Some(header) = behind.in_use {
                return Ok(Step::Next(header));
            }
            if tail_end.next.sequence < behind.durable_end {
                // What looked like a torn write was flushed.
                (tail_end, replayed) = self.scan(&newest, behind.durable_end).await?;
                if tail_end.next.sequence < behind.durable_end {
                    return Err(self.refuse_cut(&newest, &tail_end));
                }
            }
        }
        let mut tail = newest;

        // How the one before ended says whether the newest one was ever in use.
        let mut older = Vec::new();
        match headers.pop() {
            Some(before) if before.sequence.next() == newest.sequence => {
                let (seen, scanned) = self.see(&before, &newest, tail_end.durable_end).await?;
                let judged = judge_newest(Some(seen.end), &newest, &tail_end);
                match judged.map_err(|error| self.refuse_open(&error))? {
                    Activation::Activated => older.push(seen),
                    Activation::Never => {
                        let (end, of_before) = scanned
                            .expect("a segment that is not sealed has no footer: it was scanned");
                        if end.corrupt && end.next.sequence < tail_end.durable_end {
                            return Err(self.refuse_cut(&before, &end));
                        }
                        self.check_tail_file(&before, &end)?;
                        self.give_back(&newest).await?;
                        (tail_end, replayed) = (end, of_before);
                        tail = before;
                    }
                }
            }
            before => {
                let judged = judge_newest(None, &newest, &tail_end);
                match judged.map_err(|error| self.refuse_open(&error))? {
                    Activation::Activated => headers.extend(before),
                    Activation::Never => {
                        self.check_tail_file(&newest, &tail_end)?;
                        return Ok(Step::Unused(newest));
                    }
                }
            }
        }
        self.check_tail_file(&tail, &tail_end)?;
        let mut footers = self.read_footers(&headers).await;
        let mut next = older.last().map_or(tail, |seen: &Seen| seen.header);
        while let Some(header) = headers.pop() {
            let footer = footers.pop().expect("one for each header")?;
            let (mut seen, _) = match footer {
                Some(seen) => (seen, None),
                None => self.see_blocks(&header, &next, next.first_block).await?,
            };
            let joined = header.sequence.next() == next.sequence;
            match seen.end {
                Some(end) if joined => {
                    check_join(&end, &next).map_err(|error| self.refuse_open(&error))?;
                }
                // It ends in damage, or before a segment that is lost: that was said.
                Some(_) | None => seen.end = None,
            }
            older.push(seen);
            next = header;
        }
        let mut checkpoint_from = None;
        if !tail_end.checkpoint_complete {
            (replayed, checkpoint_from) = self.replay_from_older(&older, &tail, &tail_end).await?;
        }
        self.rewrite(&tail, &tail_end).await?;
        for header in older.iter().map(|seen| &seen.header).chain([&tail]) {
            if self.repair.contains(&header.slot) {
                let written = write_header(&self.file(header.slot), header, self.pool).await;
                written.map_err(|error| self.device("repairing a header in", &error))?;
            }
        }
        let opened = self.finish(order, older, tail, tail_end, replayed, checkpoint_from).await?;
        Ok(Step::Open(Box::new(opened)))
    }

    /// The header of the segment that a seal names, if its file is here and its header says nothing.
    fn unread_next(&self, end: &SegmentEnd) -> Option<SegmentHeader> {
        let unread = self.unread.contains(&end.next.slot) && !self.repair.contains(&end.next.slot);
        unread.then(|| end.next_header(self.setup.id, self.setup.segment_bytes))
    }

    /// What files without their header page say of what came after the newest segment: the device put
    /// that page elsewhere, perhaps over a block that would have told of it.
    async fn headless_behind(
        &self,
        newest: &SegmentHeader,
        end: &ScanEnd,
        clues: &[FileClues],
    ) -> Result<Behind, ShardError> {
        let mut behind = Behind { in_use: None, durable_end: BlockSequence::FIRST };
        for header in headless(newest, &end.next, clues) {
            let (scanned, _) = self.scan(&header, BlockSequence::FIRST).await?;
            behind.durable_end = behind.durable_end.max(scanned.durable_end);
            if was_in_use(&header, &scanned) {
                tracing::warn!(
                    file = %self.path(header.slot).display(), segment = %header.sequence,
                    "the header of a segment in use is not in its file, and is made up from its blocks"
                );
                behind.in_use = Some(header);
            }
        }
        Ok(behind)
    }

    /// A file that is shorter than it was made has lost what lay there. Of the newest segment
    /// nothing says what that was, unless its blocks end before.
    fn check_tail_file(&self, tail: &SegmentHeader, end: &ScanEnd) -> Result<(), ShardError> {
        let bytes = self.file(tail.slot).bytes();
        match bytes < tail.segment_bytes {
            true => Err(ShardError::Corrupt {
                file: self.path(tail.slot),
                position: end.next.position,
                why: format!(
                    "the file has {bytes} bytes and was made with {}; the newest records are in it",
                    tail.segment_bytes
                ),
            }),
            false => Ok(()),
        }
    }

    /// The end of the tail is damaged, and only the segment that was prepared behind it knows.
    fn refuse_cut(&self, header: &SegmentHeader, end: &ScanEnd) -> ShardError {
        ShardError::Corrupt {
            file: self.path(header.slot),
            position: end.next.position,
            why: "blocks from here on were flushed, and none of them can be read".to_owned(),
        }
    }

    /// Makes a file a spare, durably: one that was prepared and never used, or that is said to be one.
    async fn give_back(&self, header: &SegmentHeader) -> Result<(), ShardError> {
        let file = self.file(header.slot);
        let freed = write_header(&file, &header.freed(), self.pool).await;
        freed.map_err(|error| self.device("freeing a segment in", &error))
    }

    async fn finish(
        &mut self,
        order: &RecoveryPlan,
        older: Vec<Seen>,
        tail: SegmentHeader,
        tail_end: ScanEnd,
        mut replayed: Replayed,
        checkpoint_from: Option<SegmentSequence>,
    ) -> Result<OpenedWal, ShardError> {
        let live: Vec<Slot> =
            older.iter().map(|seen| seen.header.slot).chain([tail.slot]).collect();
        let setup = self.setup;
        // Files that hold nothing and are no spares are made anew when they are needed.
        let useless: Vec<Slot> = self
            .files
            .keys()
            .filter(|slot| !live.contains(slot))
            .filter(|slot| order.spares.iter().all(|spare| spare.slot != **slot))
            .copied()
            .collect();
        let mut spares = order.spares.clone();
        let mut unused = Vec::new();
        for slot in useless {
            match self.given_back(slot).await? {
                Some(header) => spares.push(header),
                None => unused.push(slot),
            }
        }
        let capacity = setup.segments_max.max(live.len() + spares.len());
        let mut segments = Segments::new(setup.segment_bytes, capacity);
        for seen in older.iter().rev() {
            let held = seen.held.iter().copied();
            let restored = segments.restore(&seen.header, held, seen.points, seen.blocks_end);
            restored.map_err(|error| ShardError::Refused {
                dir: setup.dir.clone(),
                why: error.to_string(),
            })?;
        }
        let held = tail_end.index.partitions();
        let points = tail_end.index.point_count();
        let restored = segments.restore(&tail, held, points, tail_end.next.position);
        restored.map_err(|error| ShardError::Refused {
            dir: setup.dir.clone(),
            why: error.to_string(),
        })?;
        for header in spares {
            // Whoever freed it may have been killed before that was durable, or its flush failed: then
            // what is read here never gets to the device by another flush alone.
            if planted(Bug::SpareOnlyFlushed) {
                let flushed = self.file(header.slot).flush().await;
                flushed.map_err(|error| self.device("flushing", &error))?;
            } else {
                self.give_back(&header).await?;
            }
            segments.handle_spare(header.slot);
        }
        replayed.end();
        let missing = replayed.check_holes(&segments, &setup.dir);
        self.clear(unused, missing).await?;
        let chain = Chain::new(
            &tail_end.next,
            next_incarnation(&tail_end.next),
            // Everything up to here was just flushed.
            tail_end.next.sequence,
        );
        let recovered = Recovered {
            files: std::mem::take(&mut self.files),
            segments,
            chain,
            index: tail_end.index,
            reach: tail_end.reach,
            unfooted: std::mem::take(&mut self.unfooted),
            checkpoint_from,
        };
        Ok(OpenedWal { recovered, replayed })
    }

    fn file(&self, slot: Slot) -> File {
        self.files.get(&slot).expect("every header was read from a file").clone()
    }

    async fn read(&self, file: &File, range: Range<u64>) -> Result<(Slice, usize), ShardError> {
        let read = read_range(file, range, self.pool).await;
        read.map_err(|error| self.device("reading", &error))
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.setup.dir.join(slot.file_name())
    }

    fn refuse_open(&self, error: &OpenError) -> ShardError {
        let advice = match error {
            OpenError::NewerVersion { .. } => "run the newer program that wrote it",
            OpenError::SegmentBytes { .. } => "set wal.segment_bytes to what it was",
            _ => {
                "restore the directory from a copy, or give up what is lost with `rustmq wal salvage`"
            }
        };
        self.refuse(format!("{error}: {advice}"))
    }

    fn refuse(&self, why: String) -> ShardError {
        ShardError::Refused { dir: self.setup.dir.clone(), why }
    }

    fn device(&self, doing: &'static str, error: &io::Error) -> ShardError {
        ShardError::Device { doing, dir: self.setup.dir.clone(), error: error.to_string() }
    }
}

/// Files opened, or footers read, side by side: enough to keep a disk busy. Each takes a buffer of the
/// pool.
const FILES_AT_ONCE: usize = 16;

fn next_incarnation(point: &ChainPoint) -> Incarnation {
    Incarnation(point.incarnation.0 + 1)
}

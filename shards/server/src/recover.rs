//! Recovery: what the files of a WAL say, and making it durable before anything is believed.
//!
//! The judgements are `wal::recovery`'s and `wal::Scan`'s; this file reads for them, keeps what they
//! hand out, and does what they ask for: rewrites what may not be durable, frees what was never
//! used, and makes footers that a crash left out.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use rustmq_protocol::TopicPartition;
use rustmq_sys::buffer::BufferPool;

use rustmq_sys::file::File;
use rustmq_sys::fs;
use rustmq_wal::recovery::{Activation, RecoveryPlan, check_join, judge_newest, plan};
use rustmq_wal::{
    BlockSequence, Chain, FOOTER_TRAILER_BYTES, FooterTrailer, Generation, Incarnation,
    PartitionSummary, SEGMENT_HEADER_BYTES, Scan, ScanEnd, ScanError, SegmentEnd, SegmentHeader,
    SegmentHeaderError, SegmentIndex, SegmentSequence, SegmentState, Segments, Slot, WalId,
};

use crate::checkpoint::CheckpointBlocks;
use crate::error::ShardError;
use crate::random;
use crate::replay::Replayed;
use crate::segment_io::{create_segment, read_range, store_footer, write_header};
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
    let recovery = Recovery { setup, pool, files: BTreeMap::new() };
    recovery.open().await
}

struct Recovery<'a> {
    setup: &'a WalSetup,
    pool: &'a BufferPool,
    files: BTreeMap<Slot, File>,
}

/// One segment, as its footer or a scan shows it.
struct Seen {
    header: SegmentHeader,
    held: Vec<PartitionSummary>,
    points: usize,
    blocks_end: u64,
    end: Option<SegmentEnd>,
}

impl Recovery<'_> {
    async fn open(mut self) -> Result<OpenedWal, ShardError> {
        let headers = self.read_headers().await?;
        let order = plan(self.setup.id, self.setup.segment_bytes, headers);
        let order = order.map_err(|error| self.refuse(error.to_string()))?;
        if order.segments.is_empty() {
            return self.create(&order).await;
        }
        self.recover(order).await
    }

    /// Opens every segment file and reads its header.
    async fn read_headers(
        &mut self,
    ) -> Result<Vec<(Slot, Result<SegmentHeader, SegmentHeaderError>)>, ShardError> {
        let dir = &self.setup.dir;
        let names = match fs::list(dir).await {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(dir).await.map_err(|error| self.device("creating", &error))?;
                let parent = dir.parent().unwrap_or(dir);
                fs::sync_dir(parent).await.map_err(|error| self.device("creating", &error))?;
                Vec::new()
            }
            Err(error) => return Err(self.device("listing", &error)),
        };
        let mut headers = Vec::new();
        for slot in names.iter().filter_map(|name| Slot::from_file_name(name)) {
            let file = fs::open(&dir.join(slot.file_name())).await;
            let file = file.map_err(|error| self.device("opening a segment in", &error))?;
            // A file of another size was never finished: no header was written to it.
            let header = match file.bytes() == self.setup.segment_bytes {
                false if file.bytes() < SEGMENT_HEADER_BYTES as u64 => {
                    Err(SegmentHeaderError::Blank)
                }
                _ => {
                    let page = 0..SEGMENT_HEADER_BYTES as u64;
                    let (page, at) = self.read(&file, page).await?;
                    SegmentHeader::decode(&page[at..])
                }
            };
            self.files.insert(slot, file);
            headers.push((slot, header));
        }
        Ok(headers)
    }

    /// Makes the first segment of a new WAL.
    async fn create(mut self, order: &RecoveryPlan) -> Result<OpenedWal, ShardError> {
        if !self.setup.may_create {
            return Err(self.refuse(
                "topics have partitions in this WAL and its segments are gone: restore the directory \
                 from a copy"
                    .to_owned(),
            ));
        }
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
        let recovered = Recovered { files: self.files, segments, chain, index };
        Ok(OpenedWal { recovered, replayed: Replayed::default() })
    }

    async fn recover(mut self, order: RecoveryPlan) -> Result<OpenedWal, ShardError> {
        for (slot, why) in &order.unreadable {
            let file = self.setup.dir.join(slot.file_name());
            tracing::warn!(file = %file.display(), %why, "a segment header cannot be read");
        }
        let mut headers = order.segments;
        let newest = headers.pop().expect("the caller saw a segment");
        let (mut tail_end, mut replayed) = self.scan(&newest, BlockSequence::FIRST).await?;
        let mut tail = newest;

        // How the one before ended says whether the newest one was ever in use.
        let mut older = Vec::new();
        if let Some(before) = headers.pop() {
            let (seen, scanned) = self.see(&before, tail_end.durable_end).await?;
            let judged = judge_newest(Some(seen.end), &newest, &tail_end);
            match judged.map_err(|error| self.refuse(error.to_string()))? {
                Activation::Activated => older.push(seen),
                Activation::Never => {
                    self.give_back(&newest).await?;
                    (tail_end, replayed) = scanned
                        .expect("a segment that is not sealed has no footer: it was scanned");
                    tail = before;
                }
            }
        } else {
            let judged = judge_newest(None, &newest, &tail_end);
            match judged.map_err(|error| self.refuse(error.to_string()))? {
                Activation::Activated => {}
                Activation::Never => {
                    // Making this WAL was cut off: nothing was ever in it.
                    self.give_back(&newest).await?;
                    let path = self.setup.dir.join(newest.slot.file_name());
                    let removed = fs::remove(&path).await;
                    removed.map_err(|error| self.device("making anew", &error))?;
                    self.files.clear();
                    return self.create(&RecoveryPlan::default()).await;
                }
            }
        }
        let mut next = older.last().map_or(tail, |seen: &Seen| seen.header);
        while let Some(header) = headers.pop() {
            let (seen, _) = self.see(&header, next.first_block).await?;
            let missing = || self.refuse(format!("segment {} is not sealed", header.sequence));
            let end = seen.end.ok_or_else(missing)?;
            check_join(&end, &next).map_err(|error| self.refuse(error.to_string()))?;
            older.push(seen);
            next = header;
        }
        self.rewrite(&tail, &tail_end).await?;
        self.finish(order.spares, older, tail, tail_end, replayed).await
    }

    /// What an older segment holds: from its footer, or, if a crash left that out, from a scan, and
    /// then the footer is made up for.
    async fn see(
        &mut self,
        header: &SegmentHeader,
        durable_end: BlockSequence,
    ) -> Result<(Seen, Option<(ScanEnd, Replayed)>), ShardError> {
        if let Some(seen) = self.read_footer(header).await? {
            return Ok((seen, None));
        }
        let (end, replayed) = self.scan(header, durable_end).await?;
        let segment_end = end.segment_end();
        let seen = Seen {
            header: *header,
            held: end.index.partitions().collect(),
            points: end.index.point_count(),
            blocks_end: end.next.position,
            end: segment_end,
        };
        if let Some(segment_end) = segment_end {
            self.rewrite(header, &end).await?;
            let file = self.file(header.slot);
            let stored = store_footer(&file, header, &end.index, &segment_end, self.pool).await;
            stored.map_err(|error| self.device("writing a footer in", &error))?;
        }
        Ok((seen, Some((end, replayed))))
    }

    async fn read_footer(&self, header: &SegmentHeader) -> Result<Option<Seen>, ShardError> {
        let file = self.file(header.slot);
        let trailer_at = header.segment_bytes - FOOTER_TRAILER_BYTES as u64;
        let (page, at) = self.read(&file, trailer_at..header.segment_bytes).await?;
        let trailer = match FooterTrailer::decode(&page[at..], header) {
            Ok(trailer) => trailer,
            Err(error @ rustmq_wal::FooterError::NewerVersion { .. }) => {
                let file = self.setup.dir.join(header.slot.file_name());
                return Err(self.refuse(format!("{}: {error}", file.display())));
            }
            Err(_) => return Ok(None),
        };
        let (table, at) = self.read(&file, trailer.table_range()).await?;
        let Ok(table) = trailer.decode_table(&table[at..], header.generation) else {
            return Ok(None);
        };
        Ok(Some(Seen {
            header: *header,
            held: table.iter().map(|line| line.summary).collect(),
            points: trailer.point_count as usize,
            blocks_end: trailer.end.blocks_end,
            end: Some(trailer.end),
        }))
    }

    /// Follows the blocks of a segment and keeps what its entries say. Damage of known extent is
    /// named and left out; damage of unknown extent refuses the WAL.
    async fn scan(
        &self,
        header: &SegmentHeader,
        durable_end: BlockSequence,
    ) -> Result<(ScanEnd, Replayed), ShardError> {
        let file = self.file(header.slot);
        let path = self.setup.dir.join(header.slot.file_name());
        let mut scan = Scan::new(header, durable_end);
        let mut replayed = Replayed::default();
        while let Some(range) = scan.next_read() {
            let position = range.start;
            let (bytes, at) = self.read(&file, range).await?;
            let mut wrong = None;
            let fed = scan.feed(position, &bytes[at..], |block, entry| {
                if wrong.is_none() {
                    wrong = replayed.replay(block, entry).err();
                }
            });
            if let Some(why) = wrong {
                return Err(self.refuse(format!("{}: {why}", path.display())));
            }
            match fed {
                Ok(()) => {}
                Err(ScanError::Corruption(corruption)) => {
                    let named = replayed.leave_out(&corruption, &path);
                    if !named || !scan.skip_corruption() {
                        return Err(ShardError::Corrupt {
                            file: path,
                            position: corruption.position,
                            why: corruption.why.to_string(),
                        });
                    }
                }
                Err(error) => return Err(self.refuse(format!("{}: {error}", path.display()))),
            }
        }
        let end = scan.finish();
        if let Some(torn) = &end.torn {
            tracing::info!(
                file = %path.display(), position = torn.position, why = %torn.why,
                "the last write before the crash was cut off; nothing in it was acknowledged"
            );
        }
        Ok((end, replayed))
    }

    /// Recovered is not yet durable: what lies past the durable end is written again and flushed.
    async fn rewrite(&self, header: &SegmentHeader, end: &ScanEnd) -> Result<(), ShardError> {
        let file = self.file(header.slot);
        let mut range = end.undurable.clone();
        while range.start < range.end {
            let chunk = range.start..range.end.min(range.start + REWRITE_BYTES);
            let (bytes, at) = self.read(&file, chunk.clone()).await?;
            let bytes = bytes.slice(at..at + (chunk.end - chunk.start) as usize);
            let written = file.write(bytes, chunk.start).await;
            written.map_err(|error| self.device("rewriting", &error))?;
            range.start = chunk.end;
        }
        file.flush().await.map_err(|error| self.device("flushing", &error))
    }

    /// The newest segment was prepared and never used: it becomes a spare.
    async fn give_back(&self, header: &SegmentHeader) -> Result<(), ShardError> {
        let file = self.file(header.slot);
        let freed = write_header(&file, &header.freed(), self.pool).await;
        freed.map_err(|error| self.device("freeing a segment in", &error))
    }

    async fn finish(
        mut self,
        spares: Vec<Slot>,
        older: Vec<Seen>,
        tail: SegmentHeader,
        tail_end: ScanEnd,
        mut replayed: Replayed,
    ) -> Result<OpenedWal, ShardError> {
        let live: Vec<Slot> =
            older.iter().map(|seen| seen.header.slot).chain([tail.slot]).collect();
        let setup = self.setup;
        // Files that hold nothing and are no spares are made anew when they are needed.
        let useless: Vec<Slot> = self
            .files
            .keys()
            .filter(|slot| !live.contains(slot) && !spares.contains(slot))
            .copied()
            .collect();
        let mut spares = spares;
        let mut unused = Vec::new();
        for slot in useless {
            match self.was_given_back(slot).await? {
                true => spares.push(slot),
                false => unused.push(slot),
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
        for slot in spares {
            segments.handle_spare(slot);
        }
        let mut missing = false;
        for (partition, first) in first_offsets(&segments, &replayed) {
            missing |= replayed.check_start(partition, first, &setup.dir);
        }
        self.clear(unused, missing).await?;
        let chain = Chain::new(
            &tail_end.next,
            next_incarnation(&tail_end.next),
            // Everything up to here was just flushed.
            tail_end.next.sequence,
        );
        let recovered = Recovered { files: self.files, segments, chain, index: tail_end.index };
        Ok(OpenedWal { recovered, replayed })
    }

    /// Files that hold nothing are made anew when they are needed. When records are missing they may
    /// be in one whose header is damaged: those are put aside, for whoever can repair them.
    async fn clear(&mut self, unused: Vec<Slot>, missing: bool) -> Result<(), ShardError> {
        for slot in unused {
            self.files.remove(&slot);
            let path = self.setup.dir.join(slot.file_name());
            let cleared = match missing {
                true => fs::rename(&path, path.with_extension("damaged")).await,
                false => fs::remove(&path).await,
            };
            cleared.map_err(|error| self.device("clearing an unused file in", &error))?;
        }
        Ok(())
    }

    async fn was_given_back(&self, slot: Slot) -> Result<bool, ShardError> {
        let file = self.file(slot);
        if file.bytes() != self.setup.segment_bytes {
            // Making it was cut off, or the disk was full.
            return Ok(false);
        }
        let (page, at) = self.read(&file, 0..SEGMENT_HEADER_BYTES as u64).await?;
        let header = SegmentHeader::decode(&page[at..]);
        Ok(header.is_ok_and(|header| header.state == SegmentState::Spare))
    }

    fn file(&self, slot: Slot) -> File {
        self.files.get(&slot).expect("every header was read from a file").clone()
    }

    async fn read(
        &self,
        file: &File,
        range: std::ops::Range<u64>,
    ) -> Result<(rustmq_sys::buffer::Slice, usize), ShardError> {
        let read = read_range(file, range, self.pool).await;
        read.map_err(|error| self.device("reading", &error))
    }

    fn refuse(&self, why: String) -> ShardError {
        ShardError::Refused { dir: self.setup.dir.clone(), why }
    }

    fn device(&self, doing: &'static str, error: &io::Error) -> ShardError {
        ShardError::Device { doing, dir: self.setup.dir.clone(), error: error.to_string() }
    }
}

/// Bytes rewritten at once.
const REWRITE_BYTES: u64 = 1 << 20;

fn next_incarnation(point: &rustmq_wal::ChainPoint) -> Incarnation {
    Incarnation(point.incarnation.0 + 1)
}

fn first_offsets(
    segments: &Segments,
    replayed: &Replayed,
) -> Vec<(TopicPartition, Option<rustmq_protocol::Offset>)> {
    let ids = replayed.partitions().map(|(id, _)| id);
    ids.map(|id| (id, segments.first_offset(id))).collect()
}

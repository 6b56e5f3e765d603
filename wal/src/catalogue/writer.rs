//! Writing the catalogue: in place, or to the other file, or refused.

use super::layout::{
    APPEND_HEADER_BYTES, AppendHeader, CatalogueFile, FileHeader, MARK, PAGE_BYTES, RETIRED,
    SNAPSHOT, USES_MAX, append_bytes, is_file_size, push_record,
};
use super::open::CatalogueLog;
use crate::bytes::round_up;
use crate::checksum::Checksum;
use crate::ids::{BlockSequence, Generation};

/// Whether a command makes the catalogue larger or smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandEffect {
    /// It adds something: refused when the catalogue is full.
    Grows,
    /// It takes something away: always fits.
    Frees,
}

/// Where a command goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CataloguePlan {
    /// Behind the last one: [`CatalogueWriter::append`].
    Append,
    /// To the other file, with a snapshot: [`CatalogueWriter::switch`], then
    /// [`CatalogueWriter::retire`].
    Switch,
    /// Nowhere: the state has reached half a file. Deleting makes room.
    Full,
}

/// What to write: all of the buffer it was encoded to, there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CatalogueWrite {
    /// The file.
    pub file: CatalogueFile,
    /// Where in it, a multiple of 4 KiB.
    pub position: u64,
}

/// Kept free behind commands: a page for a mark and one for the retirement.
const KEPT_BYTES: usize = 2 * PAGE_BYTES;

/// Commands of at least a sixteenth of a file follow a snapshot before the next switch: 1 MiB of 16. A
/// start reads no more than that beside the snapshot.
const USE_PART: usize = 16;

/// And this much at least, of a small file: four commands, so that few of them switch.
const USE_BYTES_MIN: usize = 4 * PAGE_BYTES;

/// The end of one file's chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileTail {
    pub(super) file: CatalogueFile,
    pub(super) generation: Generation,
    pub(super) use_number: u64,
    /// Where this use of the file ends.
    pub(super) end: usize,
    pub(super) position: usize,
    pub(super) sequence: BlockSequence,
    pub(super) prev_crc: u32,
    pub(super) durable_end: BlockSequence,
}

/// Writes the catalogue. Owned by whoever applies the commands; each write is flushed, and told so by
/// [`handle_flushed`](Self::handle_flushed), before the next.
///
/// Begins with a switch: an empty state for a new catalogue, what was read for an old one. Invariant:
/// behind the last append there is room for a mark and for the retirement.
#[derive(Clone, Debug)]
pub struct CatalogueWriter {
    file_bytes: usize,
    tail: Option<FileTail>,
    /// The file before the last switch, not yet retired.
    retiring: Option<FileTail>,
    in_flight: bool,
    /// The last append is not recorded as durable by a later one.
    unmarked: bool,
    must_switch: bool,
}

impl CatalogueWriter {
    /// For a new catalogue in two files of `file_bytes` each.
    #[must_use]
    pub fn create(file_bytes: usize) -> Self {
        assert!(
            is_file_size(file_bytes),
            "a catalogue file has CATALOGUE_BYTES_MIN..=CATALOGUE_BYTES_MAX in whole pages"
        );
        Self {
            file_bytes,
            tail: None,
            retiring: None,
            in_flight: false,
            unmarked: false,
            must_switch: true,
        }
    }

    /// For the catalogue that was read.
    #[must_use]
    pub fn resume(log: &CatalogueLog<'_>) -> Self {
        Self { tail: Some(log.tail), ..Self::create(log.file_bytes) }
    }

    /// Where commands of these lengths go, if a snapshot of the state would now take
    /// `snapshot_bytes`.
    #[must_use]
    pub fn plan(
        &self,
        snapshot_bytes: usize,
        command_bytes: &[usize],
        effect: CommandEffect,
    ) -> CataloguePlan {
        let snapshot_and_commands =
            append_bytes(command_bytes.iter().copied().chain([snapshot_bytes]));
        // Growth ends at half a file, so each switch leaves the other half to append to, and a
        // snapshot with what deleting adds to it never outgrows a file.
        if effect == CommandEffect::Grows && self.file_bytes / 2 < snapshot_and_commands {
            return CataloguePlan::Full;
        }
        let append = append_bytes(command_bytes.iter().copied());
        let fits = self.tail.is_some_and(|tail| tail.position + append <= tail.commands_end());
        if !self.must_switch && fits {
            return CataloguePlan::Append;
        }
        let is_last = self.tail.is_some_and(|tail| USES_MAX <= tail.use_number);
        if !is_last && PAGE_BYTES + snapshot_and_commands + KEPT_BYTES <= self.file_bytes {
            CataloguePlan::Switch
        } else {
            CataloguePlan::Full
        }
    }

    /// Encodes commands to go behind the last one. `out` is cleared first.
    pub fn append(&mut self, commands: &[&[u8]], out: &mut Vec<u8>) -> CatalogueWrite {
        assert!(!self.must_switch, "opening switches before it appends");
        assert!(self.retiring.is_none(), "the file before is retired first");
        let tail = self.begin();
        out.clear();
        let write = encode_append(tail, 0, commands, out);
        assert!(tail.position <= tail.commands_end(), "the plan said append");
        self.unmarked = true;
        write
    }

    /// Encodes the whole other file's beginning: header, a snapshot of the state *before* the
    /// commands, the commands. `generation` is 64 new random bits. `out` is cleared first.
    pub fn switch(
        &mut self,
        generation: Generation,
        snapshot: &[u8],
        commands: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> CatalogueWrite {
        assert!(self.retiring.is_none(), "the file before is retired first");
        let (file, use_number) = self
            .tail
            .map_or((CatalogueFile::A, 1), |tail| (tail.file.other(), tail.use_number + 1));
        let lengths = commands.iter().map(|command| command.len()).chain([snapshot.len()]);
        let end = self.use_end(append_bytes(lengths));
        self.retiring = self.tail.replace(FileTail {
            file,
            generation,
            use_number,
            end,
            position: PAGE_BYTES,
            sequence: BlockSequence::FIRST,
            prev_crc: 0,
            durable_end: BlockSequence::FIRST,
        });
        let file_bytes = self.file_bytes as u64;
        let tail = self.begin();
        out.clear();
        out.resize(PAGE_BYTES, 0);
        let header = FileHeader { file, generation, use_number, file_bytes, end: end as u64 };
        header.encode(out);
        let mut records = Vec::with_capacity(1 + commands.len());
        records.push(snapshot);
        records.extend(commands);
        encode_append(tail, SNAPSHOT, &records, out);
        assert!(tail.position <= tail.commands_end(), "the plan said switch");
        self.must_switch = false;
        self.unmarked = true;
        CatalogueWrite { file, position: 0 }
    }

    /// After a switch was flushed: encodes the last append of the file before. `None` if there was
    /// none. Commands are answered when this is flushed too.
    pub fn retire(&mut self, out: &mut Vec<u8>) -> Option<CatalogueWrite> {
        assert!(!self.in_flight, "one write is in flight");
        let mut old = self.retiring.take()?;
        out.clear();
        let write = encode_append(&mut old, RETIRED, &[], out);
        assert!(old.position <= old.end, "room was kept for the retirement");
        self.in_flight = true;
        Some(write)
    }

    /// Whether the last append should be recorded as durable when nothing else comes (within 100 ms).
    #[must_use]
    pub fn wants_mark(&self) -> bool {
        self.unmarked && !self.in_flight && self.retiring.is_none()
    }

    /// Encodes an empty append that records the durable end.
    pub fn mark(&mut self, out: &mut Vec<u8>) -> CatalogueWrite {
        assert!(self.wants_mark(), "a mark follows an append");
        let tail = self.begin();
        out.clear();
        let write = encode_append(tail, MARK, &[], out);
        assert!(tail.position + PAGE_BYTES <= tail.end, "room was kept for the mark");
        self.unmarked = false;
        write
    }

    /// The last write is flushed.
    pub fn handle_flushed(&mut self) {
        assert!(self.in_flight, "only what was begun can be flushed");
        self.in_flight = false;
        if let Some(tail) = &mut self.tail {
            tail.durable_end = tail.sequence;
        }
    }

    fn begin(&mut self) -> &mut FileTail {
        assert!(!self.in_flight, "one write is in flight");
        self.in_flight = true;
        self.tail.as_mut().expect("a catalogue begins with a switch")
    }

    /// Where a use of a file ends that begins with an append of so many bytes. As much again as the
    /// snapshot takes may follow, so switches cost less than what is appended between them.
    fn use_end(&self, first_bytes: usize) -> usize {
        let room = first_bytes.max(self.file_bytes / USE_PART).max(USE_BYTES_MIN);
        (PAGE_BYTES + first_bytes + room + KEPT_BYTES).min(self.file_bytes)
    }
}

impl FileTail {
    /// Where commands must end: behind them there is room for a mark and the retirement.
    fn commands_end(&self) -> usize {
        self.end - KEPT_BYTES
    }
}

/// Encodes an append behind what `out` holds and moves the tail behind it.
fn encode_append(
    tail: &mut FileTail,
    flags: u16,
    records: &[&[u8]],
    out: &mut Vec<u8>,
) -> CatalogueWrite {
    let start = out.len();
    out.resize(start + APPEND_HEADER_BYTES, 0);
    for record in records {
        push_record(out, record);
    }
    let records_crc = Checksum::for_block(tail.generation, tail.sequence)
        .add(&out[start + APPEND_HEADER_BYTES..])
        .value();
    let records_bytes = out.len() - start - APPEND_HEADER_BYTES;
    let length = round_up(APPEND_HEADER_BYTES + records_bytes, PAGE_BYTES);
    out.resize(start + length, 0);
    let header = AppendHeader {
        flags,
        generation: tail.generation,
        position: tail.position as u64,
        sequence: tail.sequence,
        durable_end: tail.durable_end,
        length: u32_of(length),
        records_bytes: u32_of(records_bytes),
        record_count: u32_of(records.len()),
        prev_crc: tail.prev_crc,
        records_crc,
        crc: 0,
    };
    let crc = header.encode(&mut out[start..]);
    let write = CatalogueWrite { file: tail.file, position: tail.position as u64 };
    tail.position += length;
    tail.sequence = tail.sequence.next();
    tail.prev_crc = crc;
    write
}

fn u32_of(value: usize) -> u32 {
    u32::try_from(value).expect("a catalogue file is at most 1 GiB")
}

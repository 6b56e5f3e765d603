//! A block while it gathers entries in memory, and its closing.
//!
//! Payloads are copied into the region as they arrive; their number, the block's place and its
//! generation are not known yet. So room for a directory is kept in front of the first entry, and
//! header and directory are put there when the block is sealed, as late as alignment lets them:
//!
//! ```text
//! region  |  unused pages  | header | directory | zero | entry | entry | … | zero |  the next block
//!                          ^ 4 KiB, where the write begins  ^ entries_start       ^ 4 KiB
//! ```

use core::ops::Range;

use crate::block::{
    BLOCK_ALIGN, BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, BlockFlags, BlockHeader, ChainPoint,
    DIRECTORY_LINE_BYTES, DirectoryLine,
};
use crate::bytes::{round_down, round_up};
use crate::checksum::Checksum;
use crate::entry::{
    ENTRY_ALIGN, ENTRY_HEADER_BYTES, EntryHeader, EntryKind, EntryMeta, batch_agrees,
};
use crate::ids::{BlockSequence, NextSegment};

/// Directory lines that fit beside the header in the first 512 bytes: a block of so few entries
/// spends one sector on both.
const LINES_BESIDE_HEADER: usize = 8;

/// Whole lines in one more page of directory.
const LINES_PER_PAGE: usize = BLOCK_ALIGN / DIRECTORY_LINE_BYTES;

/// Entries whose lines a block always has room for: those beside the header and a page more.
pub const DIRECTORY_CAPACITY_MIN: usize = LINES_BESIDE_HEADER + LINES_PER_PAGE;

/// Most entries in one block: 768 KiB of directory. At the limit the block is full and closes.
pub const DIRECTORY_CAPACITY_MAX: usize = 16_384;

const _: () = assert!(
    BLOCK_HEADER_BYTES + LINES_BESIDE_HEADER * DIRECTORY_LINE_BYTES == 512,
    "header and first lines fill a sector"
);

/// What a block learns only when it is about to be written. Made by [`crate::Chain::context`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockContext {
    /// Its place in the chain.
    pub at: ChainPoint,
    /// First block not known flushed. A clean or seal block has its own sequence here.
    pub durable_end: BlockSequence,
    /// What is special about it.
    pub flags: BlockFlags,
    /// The next segment, exactly when it is a seal block.
    pub next: Option<NextSegment>,
}

/// A block ready to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedBlock {
    /// What to write: this part of the region, both ends multiples of [`BLOCK_ALIGN`].
    pub range: Range<usize>,
    /// Where in the segment to write it.
    pub position: u64,
    /// Its sequence.
    pub sequence: BlockSequence,
    /// Its checksum, for the block after it.
    pub crc: u32,
}

impl SealedBlock {
    /// Bytes of the block on disk.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Where in the segment the header of an entry of this block begins.
    #[must_use]
    pub fn entry_position(&self, meta: &EntryMeta) -> u64 {
        let in_block = meta.payload.start as usize - ENTRY_HEADER_BYTES - self.range.start;
        self.position + in_block as u64
    }
}

/// Gathers the entries of one block in a memory region that the shell owns.
///
/// The region begins at a multiple of [`BLOCK_ALIGN`] in the shell's buffer and all positions here
/// are relative to it. One per WAL, on its shard; `reset` begins the next block. Invariant: entries
/// lie one after another from `entries_start`, each at a multiple of [`ENTRY_ALIGN`], and end at
/// `end <= region_bytes`.
#[derive(Debug)]
pub struct BlockBuilder {
    region_bytes: usize,
    entries_start: usize,
    directory_capacity: usize,
    entries: Vec<EntryMeta>,
    end: usize,
    payload_bytes: usize,
}

impl BlockBuilder {
    /// A builder without a region, in which nothing fits until [`reset`](Self::reset).
    #[must_use]
    pub fn empty() -> Self {
        Self {
            region_bytes: 0,
            entries_start: 0,
            directory_capacity: 0,
            entries: Vec::new(),
            end: 0,
            payload_bytes: 0,
        }
    }

    /// Begins a block in a region of `region_bytes` with room for at least `directory_capacity`
    /// entries (brought between [`DIRECTORY_CAPACITY_MIN`] and [`DIRECTORY_CAPACITY_MAX`]).
    #[must_use]
    pub fn open(region_bytes: usize, directory_capacity: usize) -> Self {
        let mut builder = Self::empty();
        builder.reset(region_bytes, directory_capacity);
        builder
    }

    /// Begins the next block, in the memory this one used for its list of entries.
    pub fn reset(&mut self, region_bytes: usize, directory_capacity: usize) {
        assert!(region_bytes.is_multiple_of(BLOCK_ALIGN), "a region is made of whole pages");
        assert!(
            entries_start(directory_capacity) <= region_bytes,
            "the region has room for the directory"
        );
        self.region_bytes = region_bytes.min(BLOCK_BYTES_MAX);
        self.entries_start = entries_start(directory_capacity);
        self.directory_capacity = (self.entries_start - BLOCK_HEADER_BYTES) / DIRECTORY_LINE_BYTES;
        self.entries.clear();
        self.end = self.entries_start;
        self.payload_bytes = 0;
    }

    /// Smallest region in which one entry with this payload fits.
    #[must_use]
    pub fn region_bytes_for(payload_bytes: usize, directory_capacity: usize) -> usize {
        let end = entries_start(directory_capacity) + ENTRY_HEADER_BYTES + payload_bytes;
        round_up(end, BLOCK_ALIGN)
    }

    /// Largest payload that still fits; 0 also when nothing fits.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.entries.len() == self.directory_capacity {
            return 0;
        }
        self.region_bytes.saturating_sub(self.end + ENTRY_HEADER_BYTES)
    }

    /// Whether an entry with this payload fits.
    #[must_use]
    pub fn fits(&self, payload_bytes: usize) -> bool {
        self.entries.len() < self.directory_capacity
            && self.end + ENTRY_HEADER_BYTES <= self.region_bytes
            && payload_bytes <= self.region_bytes - self.end - ENTRY_HEADER_BYTES
    }

    /// Where in the region the next entry's payload goes; `None` if it does not fit and the block
    /// must be closed. Nothing is taken until [`push`](Self::push).
    #[must_use]
    pub fn reserve(&self, payload_bytes: usize) -> Option<Range<usize>> {
        let start = self.end + ENTRY_HEADER_BYTES;
        self.fits(payload_bytes).then(|| start..start + payload_bytes)
    }

    /// Takes an entry whose payload was copied to the range [`reserve`](Self::reserve) gave.
    pub fn push(&mut self, meta: EntryMeta) {
        assert!(self.fits(meta.payload_bytes()), "the entry was reserved");
        assert!(
            meta.payload.start as usize == self.end + ENTRY_HEADER_BYTES,
            "the payload lies where reserve said"
        );
        self.payload_bytes += meta.payload_bytes();
        // The region is whole pages, so rounding up to 8 never passes its end.
        self.end = round_up(meta.payload.end as usize, ENTRY_ALIGN);
        self.entries.push(meta);
    }

    /// Whether nothing was pushed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries, in the order they were pushed; also after sealing, until `reset`.
    #[must_use]
    pub fn entries(&self) -> &[EntryMeta] {
        &self.entries
    }

    /// Bytes of all payloads.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Length on disk of the block if it were sealed now.
    #[must_use]
    pub fn sealed_bytes(&self) -> usize {
        self.region_used() - self.block_start()
    }

    /// Pages of the region used so far: the region of the next block may begin there.
    #[must_use]
    pub fn region_used(&self) -> usize {
        round_up(self.end, BLOCK_ALIGN)
    }

    /// Directory capacity to open the next block with: twice this one if it was used up, else a
    /// page of lines (or an eighth) less, down to twice what was used.
    #[must_use]
    pub fn next_directory_capacity(&self) -> usize {
        let capacity = if self.entries.len() == self.directory_capacity {
            2 * self.directory_capacity
        } else {
            // More than the lines of a page, or rounding up to pages would give it all back.
            let less = (self.directory_capacity / 8).max(LINES_PER_PAGE + 1);
            self.directory_capacity.saturating_sub(less).max(2 * self.entries.len())
        };
        capacity.clamp(DIRECTORY_CAPACITY_MIN, DIRECTORY_CAPACITY_MAX)
    }

    /// Closes the block: zeroes what lies between its parts, writes entry headers, directory and
    /// header with their checksums, and says what to write where. `region` is the memory the
    /// payloads were copied to.
    pub fn seal(&mut self, region: &mut [u8], context: &BlockContext) -> SealedBlock {
        let range = self.block_start()..self.region_used();
        assert!(range.end <= region.len(), "the region holds the block");
        assert!(
            context.at.position.is_multiple_of(BLOCK_ALIGN as u64),
            "a block begins on a page of its file"
        );
        assert!(
            context.next.is_some() == context.flags.has(BlockFlags::SEAL),
            "a seal block, and only a seal block, names the next segment"
        );
        let ends = context.flags.has(BlockFlags::SEAL) || context.flags.has(BlockFlags::CLEAN);
        assert!(
            !ends || context.durable_end == context.at.sequence,
            "everything before a seal or clean block is flushed"
        );
        assert!(
            context.durable_end <= context.at.sequence,
            "a block is not durable before it exists"
        );

        let entries_crc = self.write_entries(region, context);
        let directory_crc = self.write_directory(region, range.start, context);
        let header = BlockHeader {
            flags: context.flags,
            wal: context.at.wal,
            generation: context.at.generation,
            incarnation: context.at.incarnation,
            position: context.at.position,
            sequence: context.at.sequence,
            durable_end: context.durable_end,
            length: u32_of(range.len()),
            entries_start: u32_of(self.entries_start - range.start),
            entry_count: u32_of(self.entries.len()),
            prev_crc: context.at.prev_crc,
            directory_crc,
            entries_crc,
            next: context.next,
            crc: 0,
        };
        let bytes = region[range.clone()].first_chunk_mut().expect("a block has at least a page");
        let crc = header.encode(bytes);
        SealedBlock { range, position: context.at.position, sequence: context.at.sequence, crc }
    }

    fn write_entries(&mut self, region: &mut [u8], context: &BlockContext) -> u32 {
        let mut crc = Checksum::for_block(context.at.generation, context.at.sequence);
        let mut end = self.entries_start;
        for meta in &mut self.entries {
            let payload_range = meta.payload.start as usize..meta.payload.end as usize;
            let payload = &region[payload_range.clone()];
            if meta.kind != EntryKind::Data {
                meta.payload_crc = crc32c::crc32c(payload);
            }
            let header = EntryHeader::new(meta, context.at.sequence);
            assert!(
                meta.kind != EntryKind::Data || batch_agrees(&header, payload),
                "the batch was stamped with the offset and epoch of its entry"
            );
            let bytes = header.encode(context.at.generation);
            crc = crc.add(&bytes);
            region[end..payload_range.start].copy_from_slice(&bytes);
            end = round_up(payload_range.end, ENTRY_ALIGN);
            region[payload_range.end..end].fill(0);
        }
        region[end..self.region_used()].fill(0);
        crc.value()
    }

    fn write_directory(&self, region: &mut [u8], start: usize, context: &BlockContext) -> u32 {
        let mut crc = Checksum::for_block(context.at.generation, context.at.sequence);
        let mut at = start + BLOCK_HEADER_BYTES;
        for meta in &self.entries {
            let position = meta.payload.start as usize - ENTRY_HEADER_BYTES - start;
            let line = DirectoryLine::of(meta, u32_of(position)).encode();
            crc = crc.add(&line);
            region[at..at + DIRECTORY_LINE_BYTES].copy_from_slice(&line);
            at += DIRECTORY_LINE_BYTES;
        }
        region[at..self.entries_start].fill(0);
        crc.value()
    }

    /// The last page on which header and directory can begin and end before the entries.
    fn block_start(&self) -> usize {
        let directory = DIRECTORY_LINE_BYTES * self.entries.len();
        round_down(self.entries_start - BLOCK_HEADER_BYTES - directory, BLOCK_ALIGN)
    }
}

/// Where entries begin: half a kibibyte into a page, after as many pages as the directory needs.
fn entries_start(directory_capacity: usize) -> usize {
    let lines = directory_capacity.clamp(DIRECTORY_CAPACITY_MIN, DIRECTORY_CAPACITY_MAX);
    let spilled = (lines - LINES_BESIDE_HEADER) * DIRECTORY_LINE_BYTES;
    round_up(spilled, BLOCK_ALIGN) + BLOCK_HEADER_BYTES + LINES_BESIDE_HEADER * DIRECTORY_LINE_BYTES
}

fn u32_of(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a block is at most BLOCK_BYTES_MAX long")
}

//! One block: what one write and one flush carry. Its header is checked by itself and vouches for
//! the directory and the entry headers, so that damage to records still leaves their names.

mod directory;
mod error;
mod rescue;

use crate::bytes::{put, round_up, u16_at, u32_at, u64_at, wal_at};
use crate::checksum::Checksum;
use crate::entry::{ENTRY_ALIGN, ENTRY_HEADER_BYTES, EntryError, EntryHeader};
use crate::ids::{
    BlockSequence, Generation, Incarnation, NextSegment, SegmentSequence, Slot, WalId,
};
use rustmq_planted::{Bug, planted};
use rustmq_protocol::BATCH_BYTES_MAX;

pub use self::directory::{DIRECTORY_LINE_BYTES, DirectoryLine};
pub use self::error::BlockError;
pub(crate) use self::rescue::{correct_bit, rescue_block};

/// Blocks begin and end at multiples of this in their file: what direct I/O asks of every device.
pub const BLOCK_ALIGN: usize = 4096;

/// Bytes of a block's header.
pub const BLOCK_HEADER_BYTES: usize = 128;

/// Largest block on disk: two of the largest batches. A longer length in a header is damage, so
/// recovery never asks for a larger read buffer than this.
pub const BLOCK_BYTES_MAX: usize = 32 << 20;

/// Version of the block layout this crate writes, and the newest it reads.
pub const BLOCK_VERSION: u16 = 1;

const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"RQBK");
const BLOCK_CRC_AT: usize = BLOCK_HEADER_BYTES - 4;

const _: () = assert!(BATCH_BYTES_MAX + ENTRY_HEADER_BYTES + 2 * BLOCK_ALIGN <= BLOCK_BYTES_MAX);

/// What is special about a block. Several may be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockFlags(u16);

impl BlockFlags {
    /// Nothing special: records.
    pub const NONE: Self = Self(0);
    /// First block after an opening.
    pub const START: Self = Self(1);
    /// Last block of a clean shutdown: all before it is flushed.
    pub const CLEAN: Self = Self(2);
    /// Last block of its segment: all before it is flushed, and it names the next segment.
    pub const SEAL: Self = Self(4);
    /// Empty block that records the durable end after a pause.
    pub const IDLE: Self = Self(8);
    /// Holds checkpoint entries.
    pub const CHECKPOINT: Self = Self(16);
    /// Last block of the segment's checkpoint.
    pub const CHECKPOINT_END: Self = Self(32);

    /// Both sets of flags.
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether every flag of `all` is set.
    #[must_use]
    pub const fn has(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }
}

/// What a block must be to come next in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainPoint {
    /// The WAL.
    pub wal: WalId,
    /// Generation of the segment.
    pub generation: Generation,
    /// Incarnation of the block before; the next has this one or a later.
    pub incarnation: Incarnation,
    /// Where in the file the block begins.
    pub position: u64,
    /// Its sequence.
    pub sequence: BlockSequence,
    /// Checksum of the block before it.
    pub prev_crc: u32,
}

/// A block's header.
///
/// ```text
///  0 magic "RQBK" | 4 version u16 | 6 flags u16 | 8 wal uuid | 24 generation u64 | 32 incarnation u64
/// 40 position u64 | 48 sequence u64 | 56 durable_end u64 | 64 length u32 | 68 entries_start u32
/// 72 entry_count u32 | 76 prev_crc u32 | 80 directory_crc u32 | 84 entries_crc u32
/// 88 next segment sequence u64 | 96 next generation u64 | 104 next slot u32 | 108 zero ×16 | 124 crc u32
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// What is special about it.
    pub flags: BlockFlags,
    /// The WAL it belongs to.
    pub wal: WalId,
    /// Generation of its segment.
    pub generation: Generation,
    /// Opening of the WAL that wrote it.
    pub incarnation: Incarnation,
    /// Where in its file it begins.
    pub position: u64,
    /// Its place in the WAL.
    pub sequence: BlockSequence,
    /// First block not known flushed when this one was made.
    pub durable_end: BlockSequence,
    /// Bytes of the block, a multiple of [`BLOCK_ALIGN`].
    pub length: u32,
    /// Where in the block the first entry begins.
    pub entries_start: u32,
    /// Entries in it.
    pub entry_count: u32,
    /// Checksum of the block before it.
    pub prev_crc: u32,
    /// Seeded checksum of the directory.
    pub directory_crc: u32,
    /// Seeded checksum of the entry headers, one after another.
    pub entries_crc: u32,
    /// The next segment, in a seal block.
    pub next: Option<NextSegment>,
    /// Seeded checksum of this header: the link of the chain.
    pub crc: u32,
}

impl BlockHeader {
    /// Writes the header; computes its checksum (`self.crc` is not looked at) and returns it.
    pub(crate) fn encode(&self, bytes: &mut [u8; BLOCK_HEADER_BYTES]) -> u32 {
        bytes.fill(0);
        put(bytes, 0, &BLOCK_MAGIC.to_le_bytes());
        put(bytes, 4, &BLOCK_VERSION.to_le_bytes());
        put(bytes, 6, &self.flags.0.to_le_bytes());
        put(bytes, 8, &self.wal.0);
        put(bytes, 24, &self.generation.0.to_le_bytes());
        put(bytes, 32, &self.incarnation.0.to_le_bytes());
        put(bytes, 40, &self.position.to_le_bytes());
        put(bytes, 48, &self.sequence.0.to_le_bytes());
        put(bytes, 56, &self.durable_end.0.to_le_bytes());
        put(bytes, 64, &self.length.to_le_bytes());
        put(bytes, 68, &self.entries_start.to_le_bytes());
        put(bytes, 72, &self.entry_count.to_le_bytes());
        put(bytes, 76, &self.prev_crc.to_le_bytes());
        put(bytes, 80, &self.directory_crc.to_le_bytes());
        put(bytes, 84, &self.entries_crc.to_le_bytes());
        if let Some(next) = &self.next {
            put(bytes, 88, &next.sequence.0.to_le_bytes());
            put(bytes, 96, &next.generation.0.to_le_bytes());
            put(bytes, 104, &next.slot.0.to_le_bytes());
        }
        let crc = Checksum::new(self.generation).add(&bytes[..BLOCK_CRC_AT]).value();
        put(bytes, BLOCK_CRC_AT, &crc.to_le_bytes());
        crc
    }

    /// Decodes a header of this WAL, this generation and this place in the file, whole by its own
    /// checksum. Says nothing of the chain.
    pub(crate) fn decode(
        bytes: &[u8],
        wal: WalId,
        generation: Generation,
        position: u64,
    ) -> Result<Self, BlockError> {
        let Some(bytes) = bytes.first_chunk::<BLOCK_HEADER_BYTES>() else {
            return Err(BlockError::Short { needed: BLOCK_HEADER_BYTES, available: bytes.len() });
        };
        if u32_at(bytes, 0) != BLOCK_MAGIC {
            return Err(BlockError::NotABlock);
        }
        let found = Generation(u64_at(bytes, 24));
        let generation = if planted(Bug::ForgedBlock) { found } else { generation };
        if found != generation {
            return Err(BlockError::Generation);
        }
        let crc = u32_at(bytes, BLOCK_CRC_AT);
        let computed = Checksum::new(generation).add(&bytes[..BLOCK_CRC_AT]).value();
        if crc != computed {
            return Err(BlockError::HeaderCrc { found: crc, computed });
        }
        // From here on the bytes are as they were written: by this version or by a newer one.
        let version = u16_at(bytes, 4);
        if version != BLOCK_VERSION {
            return Err(BlockError::NewerVersion { found: version, supported: BLOCK_VERSION });
        }
        let found = wal_at(bytes, 8);
        if found != wal {
            return Err(BlockError::Foreign { wal: found });
        }
        let found = u64_at(bytes, 40);
        if found != position {
            return Err(BlockError::Misplaced { found, expected: position });
        }
        let flags = BlockFlags(u16_at(bytes, 6));
        let next = flags.has(BlockFlags::SEAL).then(|| NextSegment {
            sequence: SegmentSequence(u64_at(bytes, 88)),
            generation: Generation(u64_at(bytes, 96)),
            slot: Slot(u32_at(bytes, 104)),
        });
        let header = Self {
            flags,
            wal,
            generation,
            incarnation: Incarnation(u64_at(bytes, 32)),
            position,
            sequence: BlockSequence(u64_at(bytes, 48)),
            durable_end: BlockSequence(u64_at(bytes, 56)),
            length: u32_at(bytes, 64),
            entries_start: u32_at(bytes, 68),
            entry_count: u32_at(bytes, 72),
            prev_crc: u32_at(bytes, 76),
            directory_crc: u32_at(bytes, 80),
            entries_crc: u32_at(bytes, 84),
            next,
            crc,
        };
        if header.incarnation == Incarnation::NEVER {
            return Err(BlockError::Uncountable);
        }
        if header.extents_are_sane() { Ok(header) } else { Err(BlockError::Extents) }
    }

    fn extents_are_sane(&self) -> bool {
        let length = self.length as usize;
        let directory = u64::from(self.entry_count) * DIRECTORY_LINE_BYTES as u64;
        length != 0
            && length.is_multiple_of(BLOCK_ALIGN)
            && length <= BLOCK_BYTES_MAX
            && BLOCK_HEADER_BYTES as u64 + directory <= u64::from(self.entries_start)
            && self.entries_start <= self.length
            && (self.entries_start as usize).is_multiple_of(ENTRY_ALIGN)
    }

    /// Decodes the header that must come next at `expect`.
    pub(crate) fn decode_next(bytes: &[u8], expect: &ChainPoint) -> Result<Self, BlockError> {
        if planted(Bug::StaleGeneration)
            && let Some(stale) = Self::decode_alone(bytes, expect.wal, expect.position)
        {
            return Ok(stale);
        }
        let header = Self::decode(bytes, expect.wal, expect.generation, expect.position)?;
        header.joins(expect)?;
        Ok(header)
    }

    /// The header that must come next at `expect`, if one wrong bit is all that keeps these bytes
    /// from being it. The checksum tells any three wrong bits from none at this length, so no other
    /// bit does; and the result has to join the chain.
    pub(crate) fn correct(bytes: &[u8], expect: &ChainPoint) -> Option<Self> {
        let mut bytes = *bytes.first_chunk::<BLOCK_HEADER_BYTES>()?;
        correct_bit(&mut bytes, |bytes| Self::decode_next(bytes, expect).ok())
    }

    /// A header that nothing is known about but its place in its file: its own generation is taken.
    pub(crate) fn decode_alone(bytes: &[u8], wal: WalId, position: u64) -> Option<Self> {
        let generation = Generation(u64_at(bytes.first_chunk::<BLOCK_HEADER_BYTES>()?, 24));
        Self::decode(bytes, wal, generation, position).ok()
    }

    /// What this block is, as the chain before it would have said.
    pub(crate) fn chain_at(&self) -> ChainPoint {
        ChainPoint {
            wal: self.wal,
            generation: self.generation,
            incarnation: self.incarnation,
            position: self.position,
            sequence: self.sequence,
            prev_crc: self.prev_crc,
        }
    }

    /// The directory, if the block's bytes reach over it and its checksum is right.
    pub(crate) fn directory(&self, block: &[u8]) -> Option<Vec<DirectoryLine>> {
        let end = BLOCK_HEADER_BYTES + self.entry_count as usize * DIRECTORY_LINE_BYTES;
        let bytes = block.get(BLOCK_HEADER_BYTES..end)?;
        let crc = Checksum::for_block(self.generation, self.sequence).add(bytes).value();
        (crc == self.directory_crc)
            .then(|| bytes.chunks_exact(DIRECTORY_LINE_BYTES).map(DirectoryLine::decode).collect())
    }

    /// What must come after this block in its file.
    #[must_use]
    pub fn chain_after(&self) -> ChainPoint {
        ChainPoint {
            wal: self.wal,
            generation: self.generation,
            incarnation: self.incarnation,
            position: self.position + u64::from(self.length),
            sequence: self.sequence.next(),
            prev_crc: self.crc,
        }
    }

    fn joins(&self, expect: &ChainPoint) -> Result<(), BlockError> {
        if self.sequence != expect.sequence {
            return Err(BlockError::Sequence { found: self.sequence, expected: expect.sequence });
        }
        if self.prev_crc != expect.prev_crc {
            return Err(BlockError::PrevCrc { found: self.prev_crc, expected: expect.prev_crc });
        }
        if self.incarnation < expect.incarnation {
            return Err(BlockError::Incarnation {
                found: self.incarnation,
                at_least: expect.incarnation,
            });
        }
        Ok(())
    }
}

/// An entry in a checked block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// Where in the file its header begins: what an index holds.
    pub position: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// A block of which every byte that matters was checked.
#[derive(Clone, Debug)]
pub struct BlockView<'a> {
    /// Its header.
    pub header: BlockHeader,
    bytes: &'a [u8],
    directory: Vec<DirectoryLine>,
}

impl<'a> BlockView<'a> {
    /// Its entries, in the order they were pushed.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        let (header, bytes) = (self.header, self.bytes);
        self.directory.iter().map(move |line| {
            let (entry, payload) = entry_at(&header, bytes, line)
                .expect("decode_block checked every entry of the directory");
            Entry { header: entry, position: header.position + u64::from(line.position), payload }
        })
    }
}

fn entry_at<'a>(
    block: &BlockHeader,
    bytes: &'a [u8],
    line: &DirectoryLine,
) -> Result<(EntryHeader, &'a [u8]), EntryError> {
    let start = line.position as usize;
    let payload_start = start.saturating_add(ENTRY_HEADER_BYTES);
    let end = payload_start.saturating_add(line.payload_length as usize);
    let short = EntryError::Short { needed: end, available: bytes.len() };
    let header = EntryHeader::decode(bytes.get(start..).ok_or(short)?, block.generation)?;
    if !line.names(&header) || header.sequence != block.sequence {
        return Err(EntryError::Another {
            partition: header.partition,
            base_offset: header.base_offset,
        });
    }
    Ok((header, bytes.get(payload_start..end).ok_or(short)?))
}

/// Checks the block that begins at `bytes` and must come next at `expect`: header, place in the
/// chain, directory, entry headers and payloads.
///
/// # Errors
/// What is wrong with it. The bytes may belong to nobody: recovery judges what an error means.
pub fn decode_block<'a>(bytes: &'a [u8], expect: &ChainPoint) -> Result<BlockView<'a>, BlockError> {
    let header = BlockHeader::decode_next(bytes, expect)?;
    let needed = header.length as usize;
    let Some(bytes) = bytes.get(..needed) else {
        return Err(BlockError::Short { needed, available: bytes.len() });
    };
    let directory = header.directory(bytes).ok_or(BlockError::DirectoryCrc)?;
    let mut entries_crc = Checksum::for_block(header.generation, header.sequence);
    let mut end = header.entries_start as usize;
    for (index, line) in directory.iter().enumerate() {
        // Entries lie one after another: none can hide in a gap or share bytes.
        if line.position as usize != end {
            return Err(BlockError::Extents);
        }
        let (entry, payload) =
            entry_at(&header, bytes, line).map_err(|error| BlockError::Entry { index, error })?;
        entries_crc = entries_crc.add(&bytes[end..end + ENTRY_HEADER_BYTES]);
        entry.check_payload(payload).map_err(|error| BlockError::Entry { index, error })?;
        end = round_up(end + ENTRY_HEADER_BYTES + payload.len(), ENTRY_ALIGN);
    }
    if entries_crc.value() != header.entries_crc {
        return Err(BlockError::EntriesCrc);
    }
    Ok(BlockView { header, bytes, directory })
}
